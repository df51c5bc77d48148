"""A machine that hangs is started again: seen on a process in QEMU's place that does as little."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from tests.vm import machine
from tests.vm.image import Image

IMAGE = Image(Path("qemu"), {}, (), Path("kernel"), Path("initramfs"))
HANGS = "time.sleep(60)"
FALLS_SILENT = "console('alive'); print('begun', flush=True); time.sleep(60)"
COMPLAINS = "console('alive'); [(console('rcu: stall'), time.sleep(0.3)) for _ in range(200)]"
BOOTS_FOR_EVER = "[(console('rcu: stall'), time.sleep(0.3)) for _ in range(200)]"
WORKS_SLOWLY = "[(console('alive'), time.sleep(0.05)) for _ in range(40)]; status(3)"
WORKS = "console('alive'); print('done', flush=True); status(3)"
DIES = "pass"


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("EXCHANGE", "CONSOLE", "QEMU_WORDS", "CACHE"):
        monkeypatch.setattr(machine, name, tmp_path / name.lower())
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(machine, "SILENCE", 1.5)
    monkeypatch.setattr(machine, "FIRST_SIGN_OF_KVM", 1.5)
    return tmp_path


def starting(monkeypatch: pytest.MonkeyPatch, directory: Path, *kvm: str, then: list[str]) -> list[str]:
    """QEMU's place is taken by these programs in turn; returns the accelerators that they are started with."""
    started: list[str] = []
    programs = [*kvm, *then]
    preamble = (
        "import time\n"
        f"def console(word): open({str(directory / 'console')!r}, 'a').write(word)\n"
        f"def status(number): open({str(directory / 'exchange/status')!r}, 'w').write(str(number))\n"
    )

    def argv(_: Image, accelerator: str) -> list[str]:
        started.append(accelerator.partition(",")[0])
        return [sys.executable, "-c", preamble + programs[len(started) - 1]]

    monkeypatch.setattr(machine, "_argv", argv)
    if not kvm:
        Path(machine._kvm_verdict()).write_text("hangs")
    else:
        monkeypatch.setattr(machine.os, "access", lambda *_: True)
    return started


@pytest.mark.parametrize("first", [HANGS, FALLS_SILENT, COMPLAINS, BOOTS_FOR_EVER])
def test_a_silent_machine_is_started_again(monkeypatch: pytest.MonkeyPatch, directory: Path, first: str) -> None:
    started = starting(monkeypatch, directory, then=[first, WORKS])
    shown: list[bytes] = []
    assert machine.run(IMAGE, "true", seconds=30, show=shown.append) == 3
    assert started == ["tcg", "tcg"]
    assert b"started again" in b"".join(shown)
    assert b"".join(shown).endswith(b"done\n")


def test_after_three_times_it_is_given_up(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    monkeypatch.setattr(machine, "SILENCE", 0.2)
    started = starting(monkeypatch, directory, then=[HANGS] * 4)
    with pytest.raises(machine.Failed, match=", 3 times; its console says"):
        machine.run(IMAGE, "true", seconds=30, show=bytes)
    assert len(started) == 3


def test_a_machine_that_gives_signs_may_take_its_time(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    started = starting(monkeypatch, directory, then=[WORKS_SLOWLY])
    assert machine.run(IMAGE, "true", seconds=30, show=bytes) == 3
    assert len(started) == 1


def test_all_of_it_ends_in_time(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    starting(monkeypatch, directory, then=[FALLS_SILENT] * 3)
    begun = time.monotonic()
    with pytest.raises(machine.Failed, match="did not end in time"):
        machine.run(IMAGE, "true", seconds=0.4, show=bytes)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("first", [HANGS, DIES])
def test_a_kvm_that_does_not_work_is_not_tried_twice(
    monkeypatch: pytest.MonkeyPatch, directory: Path, first: str
) -> None:
    started = starting(monkeypatch, directory, first, then=[WORKS, WORKS])
    for _ in range(2):
        assert machine.run(IMAGE, "true", seconds=30, show=bytes) == 3
    assert started == ["kvm", "tcg", "tcg"]


def test_a_machine_that_ends_without_a_word_is_a_fault(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    starting(monkeypatch, directory, then=[DIES])
    with pytest.raises(machine.Failed, match="without a word"):
        machine.run(IMAGE, "true", seconds=30, show=bytes)
