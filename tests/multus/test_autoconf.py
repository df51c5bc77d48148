"""00-multus.conf: what is wrapped, and that it is kept."""

from __future__ import annotations

import fcntl
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from tests.multus.multus_node import Lines

from underlay.multus import config as multus
from underlay.multus.autoconf import Autoconf
from underlay.multus.daemon_file import Generation
from underlay.multus.laid import Laid

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FLANNEL = {"cniVersion": "0.3.1", "name": "cbr0", "plugins": [
    {"type": "flannel", "capabilities": {"bandwidth": True}},
    {"type": "portmap", "capabilities": {"portMappings": True, "mac": False}}]}  # fmt: skip
CALICO = {"cniVersion": "1.0.0", "name": "k8s-pod-network", "type": "calico"}


class Bench:
    """A directory, a clock that is moved by hand, and what was said."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "net.d"
        self.directory.mkdir()
        self.file = self.directory / "00-multus.conf"
        self.log = Lines()
        self.events: list[tuple[str, str]] = []
        self.now = 1000.0
        self.made: list[Autoconf] = []

    def autoconf(self, **keys: Any) -> Autoconf:
        keys.setdefault("masters", str(self.directory))
        generation = Generation(str(self.directory), **keys)
        self.made.append(
            Autoconf(generation, self.log, notify=lambda *event: self.events.append(event), clock=lambda: self.now)
        )
        return self.made[-1]

    def lay(self, name: str, content: object) -> None:
        (self.directory / name).write_text(content if isinstance(content, str) else json.dumps(content))

    def written(self) -> Any:
        return json.loads(self.file.read_text()) if self.file.exists() else None

    def said(self) -> list[str]:
        return [line["event"] for line in self.log]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    for each in made.made:
        each.close()


def test_the_first_network_by_name_is_wrapped_with_its_version_and_capabilities(bench: Bench) -> None:
    bench.lay("20-calico.conf", CALICO)
    bench.lay("10-flannel.conflist", FLANNEL)
    assert bench.autoconf().look() is None
    assert bench.written() == {
        "cniVersion": "0.3.1", "name": "multus-cni-network", "type": "multus",
        "clusterNetwork": str(bench.directory / "10-flannel.conflist"),
        "capabilities": {"bandwidth": True, "portMappings": True},
    }  # fmt: skip
    assert bench.file.stat().st_mode & 0o777 == 0o600
    config = multus.parse(bench.file.read_bytes())
    assert config.warnings == ()
    assert sorted(os.listdir(bench.directory)) == ["00-multus.conf", "10-flannel.conflist", "20-calico.conf"]


@pytest.mark.parametrize("name", ["10-net.conf", "10-net.conflist", "10-net.json"])
def test_every_ending_that_runtimes_read_counts_and_no_other(bench: Bench, name: str) -> None:
    for other in (".05.conf", "05-net.conf.bak", "05-net.yaml", "05-net"):
        bench.lay(other, CALICO)
    bench.lay(name, CALICO if not name.endswith("list") else FLANNEL)
    bench.autoconf().look()
    assert bench.written()["clusterNetwork"] == str(bench.directory / name)


@pytest.mark.parametrize("kind", ["multus", "multus-shim"])
def test_what_calls_multus_is_never_wrapped(bench: Bench, kind: str) -> None:
    bench.lay("00-multus.conflist", FLANNEL)
    bench.lay("01-own.conf", {"cniVersion": "1.0.0", "name": "x", "type": kind, "clusterNetwork": "y"})
    bench.lay("02-own.conflist", {"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": kind}]})
    autoconf = bench.autoconf()
    autoconf.look()
    assert bench.written() is None
    bench.lay("10-calico.conf", CALICO)
    autoconf.look()
    assert bench.written()["clusterNetwork"].endswith("/10-calico.conf")


def test_the_file_says_how(bench: Bench, tmp_path: Path) -> None:
    masters = tmp_path / "masters"
    masters.mkdir()
    (masters / "10-a.conf").write_text(json.dumps(CALICO))
    (masters / "20-b.conf").write_text('{"name": "bee", "type": "b"}')
    bench.autoconf(
        masters=str(masters), master="20-b.conf", version="0.4.0", capabilities=("ips",), own_name=True
    ).look()
    assert bench.written() == {
        "cniVersion": "0.4.0", "name": "bee", "type": "multus", "clusterNetwork": f"{masters}/20-b.conf",
        "capabilities": {"ips": True},
    }  # fmt: skip


def test_changes_of_the_network_are_followed(bench: Bench) -> None:
    autoconf = bench.autoconf()
    autoconf.look()
    assert (bench.written(), bench.log[-1]["level"]) == (None, "info")
    bench.lay("20-calico.conf", CALICO)
    autoconf.look()
    bench.lay("20-calico.conf", {**CALICO, "cniVersion": "0.4.0", "capabilities": {"ips": True}})
    autoconf.look()
    assert (bench.written()["cniVersion"], bench.written()["capabilities"]) == ("0.4.0", {"ips": True})
    bench.lay("10-flannel.conflist", FLANNEL)
    autoconf.look()
    assert bench.written()["clusterNetwork"].endswith("/10-flannel.conflist")
    assert bench.events == []
    before = bench.file.stat()
    autoconf.look()
    assert bench.file.stat() == before


@pytest.mark.parametrize("content", ["", '{"name": "cbr0", "plu', "[]", "{}", '{"name":"x","type":"../y"}'])
def test_a_broken_network_leaves_the_file_as_it_is_and_is_logged_once(bench: Bench, content: str) -> None:
    bench.lay("20-calico.conf", CALICO)
    autoconf = bench.autoconf()
    autoconf.look()
    before, lines = bench.written(), len(bench.log)
    bench.lay("10-new.conf", content)
    assert autoconf.look() == pytest.approx(1.0)  # it may be in the midst of being written
    bench.now += 0.5
    assert autoconf.look() == pytest.approx(0.5)
    assert len(bench.log) == lines
    for _ in range(3):
        bench.now += 1
        autoconf.look()
    assert bench.written() == before
    (line,) = bench.log[lines:]
    assert line["level"] == "error"
    assert "stays as it is" in line["event"]
    bench.lay("10-new.conf", FLANNEL)
    assert autoconf.look() is None
    assert bench.written()["clusterNetwork"].endswith("/10-new.conf")


def test_a_network_that_is_gone_leaves_the_file_and_is_logged_once(bench: Bench) -> None:
    bench.lay("20-calico.conf", CALICO)
    autoconf = bench.autoconf()
    autoconf.look()
    (bench.directory / "20-calico.conf").unlink()
    autoconf.look()
    autoconf.look()
    assert bench.written() is not None
    assert bench.said()[1:] == [
        f"the cluster network's file is gone: waiting for one in {bench.directory}",
    ]


@pytest.mark.parametrize("how", ["rename", "unlink", "change"])
def test_what_another_program_does_to_the_file_is_put_back_and_told(bench: Bench, how: str) -> None:
    bench.lay("20-cilium.conf", CALICO)
    autoconf = bench.autoconf()
    autoconf.look()
    before = bench.file.read_bytes()
    if how == "rename":
        bench.file.rename(f"{bench.file}.cilium_bak")
    elif how == "unlink":
        bench.file.unlink()
    else:
        bench.file.write_text("{}")
    assert autoconf.look() is None
    assert bench.file.read_bytes() == before
    ((reason, message),) = bench.events
    assert reason == "MultusConfigRestored"
    assert "cni-exclusive" in message
    assert [line["level"] for line in bench.log] == ["info"]  # whoever is notified says it, once


def test_against_a_program_that_removes_it_each_time_we_get_slower(bench: Bench) -> None:
    bench.lay("20-cilium.conf", CALICO)
    autoconf = bench.autoconf()
    autoconf.look()
    pauses = []
    for _ in range(9):
        bench.file.unlink()
        pause = autoconf.look() or 0.0
        assert bench.file.exists() == (pause == 0.0)
        bench.now += pause
        assert pause == 0.0 or autoconf.look() is None
        pauses.append(pause)
    assert pauses == [0, 1, 2, 4, 8, 16, 32, 60, 60]
    bench.now += 1000
    bench.file.unlink()
    assert autoconf.look() is None


def test_a_second_daemon_waits_until_the_first_is_gone(bench: Bench) -> None:
    bench.lay("20-calico.conf", CALICO)
    first, second = bench.autoconf(), bench.autoconf(own_name=True)
    first.look()
    before = bench.file.read_bytes()
    for _ in range(3):
        assert second.look() == 5.0
    assert bench.file.read_bytes() == before
    assert bench.said().count(f"another daemon keeps {bench.file}") == 1
    first.close()
    assert second.look() is None
    assert bench.written()["name"] == "k8s-pod-network"


def test_a_daemon_that_starts_again_finds_its_file_and_writes_nothing(bench: Bench) -> None:
    bench.lay("20-calico.conf", CALICO)
    first = bench.autoconf()
    first.look()
    first.close()
    before = bench.file.stat()
    second = bench.autoconf()
    second.look()
    assert bench.file.stat() == before
    assert bench.events == []


@pytest.mark.parametrize("clean_up", [False, True])
def test_on_a_clean_stop_the_file_stays_unless_it_is_wanted_away(bench: Bench, clean_up: bool) -> None:
    bench.lay("20-calico.conf", CALICO)
    autoconf = bench.autoconf(clean_up=clean_up)
    autoconf.look()
    autoconf.close()
    assert bench.file.exists() is not clean_up


def test_a_file_of_ones_own_is_laid_as_it_is(bench: Bench, tmp_path: Path) -> None:
    given = tmp_path / "70-own.conf"
    given.write_text('{"cniVersion": "1.0.0", "name": "own", "type": "multus", "clusterNetwork": "x"}')
    autoconf = bench.autoconf(copied=str(given))
    autoconf.look()
    assert (bench.directory / "70-own.conf").read_text() == given.read_text()
    assert not bench.file.exists()


def test_a_directory_that_cannot_be_written_is_said_and_tried_again(bench: Bench) -> None:
    bench.lay("20-calico.conf", CALICO)
    (bench.directory / ".00-multus.conf.tmp").mkdir()  # unlink and open fail
    autoconf = bench.autoconf()
    autoconf.look()
    bench.now += 2
    assert autoconf.look() == 5.0
    assert "Is a directory" in bench.said()[-1]
    (bench.directory / ".00-multus.conf.tmp").rmdir()
    assert autoconf.look() is None
    assert bench.written() is not None


def test_a_directory_that_was_removed_and_made_again_is_taken_over_again(bench: Bench) -> None:
    bench.lay("20-calico.conf", CALICO)
    autoconf = bench.autoconf()
    autoconf.look()
    for each in bench.directory.iterdir():
        each.unlink()
    bench.directory.rmdir()
    autoconf.look()
    assert bench.directory.is_dir()
    bench.lay("20-calico.conf", CALICO)
    autoconf.look()
    assert bench.written() is not None
    held = os.open(bench.directory, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(held)


def test_what_is_written_is_noted_first_and_a_changed_file_is_nobodys(bench: Bench) -> None:
    state = bench.directory.parent / "state"
    state.mkdir()
    laid = Laid(str(state))
    assert not laid.holds(str(bench.file))
    bench.lay("10-calico.conf", CALICO)
    generation = Generation(str(bench.directory), str(bench.directory))
    autoconf = Autoconf(generation, bench.log, laid=laid)
    bench.made.append(autoconf)
    autoconf.look()
    assert laid.holds(str(bench.file))
    former = bench.file.read_bytes()
    bench.lay("05-flannel.conflist", FLANNEL)
    autoconf.look()
    assert laid.holds(str(bench.file))
    (elsewhere := state / bench.file.name).write_bytes(former)  # a daemon that was killed before it wrote the new one
    assert laid.holds(str(elsewhere))
    assert not laid.holds(str(bench.directory / "10-calico.conf"))
    bench.file.write_text("{}")
    assert not laid.holds(str(bench.file))


def test_a_note_that_cannot_be_made_leaves_the_file_as_it_is(bench: Bench) -> None:
    bench.lay("10-calico.conf", CALICO)
    generation = Generation(str(bench.directory), str(bench.directory))
    autoconf = Autoconf(generation, bench.log, laid=Laid(str(bench.directory / "none")))
    bench.made.append(autoconf)
    autoconf.look()
    assert bench.written() is None


def test_a_file_of_an_earlier_daemon_is_noted_too(bench: Bench, tmp_path: Path) -> None:
    bench.lay("10-calico.conf", CALICO)
    first = bench.autoconf()
    first.look()
    first.close()
    second = Autoconf(Generation(str(bench.directory), str(bench.directory)), bench.log, laid=Laid(str(tmp_path)))
    bench.made.append(second)
    second.look()
    assert Laid(str(tmp_path)).holds(str(bench.file))
