"""The DEL spool: oldest first, nothing lost, nothing in the way of the rest."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from underlay.daemon import frame, spool
from underlay.daemon.spool import Spool
from underlay.errors import InvalidConfig, KernelError, UnderlayError

if TYPE_CHECKING:
    from pathlib import Path


class Daemon:
    """Notes what is delivered to it, and fails where it is told to."""

    def __init__(self, directory: Path) -> None:
        self.delivered: list[tuple[str, int]] = []
        self.faults: dict[str, UnderlayError] = {}
        self.lines: list[tuple[str, str, dict[str, Any]]] = []
        self.spool = Spool(str(directory), self.deliver, self.log)

    def deliver(self, call: frame.Call, spooled_at: int) -> None:
        container = call.env["CNI_CONTAINERID"]
        self.delivered.append((container, spooled_at))
        if container in self.faults:
            raise self.faults[container]

    def log(self, level: str, event: str, **fields: Any) -> None:
        self.lines.append((level, event, fields))


def put(directory: Path, at: int, container: str, verb: str = "DEL") -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / f"{at:020}-4711.del"
    path.write_bytes(frame.request("multus", {"CNI_COMMAND": verb, "CNI_CONTAINERID": container}, b"{}"))
    return path


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def daemon(directory: Path) -> Daemon:
    return Daemon(directory)


def test_no_directory_is_an_empty_spool(daemon: Daemon) -> None:
    assert daemon.spool.work_off() == 0
    assert daemon.lines == []


def test_files_are_delivered_oldest_first_and_removed(daemon: Daemon, directory: Path) -> None:
    for at, container in ((300, "c"), (100, "a"), (200, "b")):
        put(directory, at, container)
    assert daemon.spool.work_off() == 0
    assert daemon.delivered == [("a", 100), ("b", 200), ("c", 300)]
    assert os.listdir(directory) == []


@pytest.mark.parametrize(
    "content",
    [b"", b"UND1", b"UND1\x40\0\0\0multus\0CNI_COMM", b"garbage that is longer than a header", b"UND1\xff\xff\xff\xff"],
)
def test_a_truncated_file_is_set_aside_and_the_others_go_on(daemon: Daemon, directory: Path, content: bytes) -> None:
    broken = put(directory, 100, "a")
    broken.write_bytes(content)
    put(directory, 200, "b")
    assert daemon.spool.work_off() == 0
    assert daemon.delivered == [("b", 200)]
    assert os.listdir(directory) == ["bad"]
    assert (directory / "bad" / broken.name).read_bytes() == content
    assert [(level, event, fields["file"]) for level, event, fields in daemon.lines] == [
        ("error", "bad spool file", broken.name)
    ]


def test_an_add_or_a_strangers_file_is_never_carried_out(daemon: Daemon, directory: Path) -> None:
    put(directory, 100, "a", verb="ADD")
    (directory / "notes.txt").write_text("x")
    assert daemon.spool.work_off() == 0
    assert daemon.delivered == []
    assert len(os.listdir(directory / "bad")) == 2


def test_a_temporary_file_is_left_to_its_shim_for_an_hour(daemon: Daemon, directory: Path) -> None:
    directory.mkdir()
    (directory / ".new").write_text("")
    (directory / ".old").write_text("")
    os.utime(directory / ".old", (time.time() - 3700,) * 2)
    daemon.spool.work_off()
    assert os.listdir(directory) == [".new"]


def test_a_fault_that_passes_is_tried_again_after_a_pause_and_holds_nobody_up(
    daemon: Daemon, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(directory, 100, "a")
    put(directory, 200, "b")
    daemon.faults["a"] = KernelError("delete link eth0", 16)
    assert daemon.spool.work_off() == 1
    assert [container for container, _ in daemon.delivered] == ["a", "b"]
    assert daemon.spool.work_off() == 1
    assert len(daemon.delivered) == 2
    now = time.monotonic()
    monkeypatch.setattr(spool.time, "monotonic", lambda: now + 6)
    daemon.faults.clear()
    assert daemon.spool.work_off() == 0
    assert daemon.delivered[-1] == ("a", 100)
    assert os.listdir(directory) == []


def test_a_fault_of_the_file_itself_is_not_tried_again(daemon: Daemon, directory: Path) -> None:
    put(directory, 100, "a")
    daemon.faults["a"] = InvalidConfig("wrong")
    assert daemon.spool.work_off() == 0
    assert os.listdir(directory) == ["bad"]


def test_a_directory_that_cannot_be_read_is_told_once(daemon: Daemon, directory: Path) -> None:
    directory.write_text("no directory")
    for _ in range(3):
        assert daemon.spool.work_off() == 0
    assert [event for _, event, _ in daemon.lines] == ["spool cannot be read"]
