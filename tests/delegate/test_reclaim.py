from __future__ import annotations

import os
import resource
import sqlite3
import subprocess
import tempfile
import threading
import time
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace
from tests.delegate.conftest import ORIGIN, Bench, soon

from underlay.delegate import entries
from underlay.delegate.ledger import Ledger
from underlay.delegate.reclaim import Reclaimer
from underlay.net.undo import DropRoute
from underlay.state import salvage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Netns, State


def attach(bench: Bench, pod: Netns, container_id: str = "c1", conf: bytes | None = None) -> None:
    with bench.engine.session(bench.sandbox(pod, container_id), ORIGIN, soon()) as session:
        session.add(bench.attachment(conf))


def reborn(bench: Bench) -> Reclaimer:
    """The reclaimer of a daemon that starts on the same ledger."""
    return Reclaimer(bench.another_engine())


@pytest.fixture
def mortal(new_netns: Callable[[str], Netns]) -> Netns:
    """A pod that the test may kill."""
    return new_netns("mortal")


def kill(pod: Netns) -> None:
    """What a runtime does when a sandbox ends; the name comes back as another namespace, as after a new sandbox."""
    subprocess.run(["ip", "netns", "del", pod.name], check=True)
    subprocess.run(["ip", "netns", "add", pod.name], check=True)


def test_whole_attachments_of_living_sandboxes_are_left_alone(bench: Bench, pod: Netns) -> None:
    attach(bench, pod)
    reclaimer = reborn(bench)
    reclaimer.at_start()
    for _ in range(3):
        reclaimer.sweep()
    assert pod.link("net1")
    assert bench.reserved()


def test_a_dead_sandbox_is_reclaimed_at_the_second_sighting(bench: Bench, mortal: Netns) -> None:
    attach(bench, mortal)
    kill(mortal)
    reclaimer = reborn(bench)
    reclaimer.sweep()
    assert bench.reserved()
    reclaimer.sweep()
    assert bench.reserved() == []
    assert bench.ledger.rows() == []


def test_a_dead_sandbox_is_reclaimed_at_start(bench: Bench, mortal: Netns) -> None:
    attach(bench, mortal)
    kill(mortal)
    reborn(bench).at_start()
    assert bench.reserved() == []
    assert bench.ledger.rows() == []


def test_a_sandbox_that_cannot_be_looked_at_is_alive_and_nothing_is_left_of_looking(
    bench: Bench, pod: Netns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passing = [tmp_path / "shm", tmp_path / "tmp"]
    for each in passing:
        each.mkdir()
    monkeypatch.setattr(salvage, "_SHARED_MEMORY", str(passing[0]))
    monkeypatch.setattr(tempfile, "tempdir", str(passing[1]))
    attach(bench, pod)
    reclaimer = reborn(bench)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limit[1]))  # no file can be opened any more
    try:
        for _ in range(3):
            reclaimer.sweep()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert [os.listdir(each) for each in passing] == [[], []]
    assert len(bench.ledger.rows()) == 1
    assert bench.reserved()


def test_unfinished_calls_are_undone_at_start_and_by_the_loop(
    bench: Bench, pod: Netns, snapshot: Callable[[Netns], State]
) -> None:
    before = snapshot(pod)
    for state in ("adding", "deleting"):
        for at_start in (True, False):
            attach(bench, pod)
            set_state(bench, state)
            reclaimer = reborn(bench)
            (reclaimer.at_start if at_start else reclaimer.sweep)()
            assert snapshot(pod) == before
            assert bench.ledger.rows() == []
            assert bench.reserved() == []


def set_state(bench: Bench, state: str) -> None:
    """As a daemon leaves it that is killed in the middle."""
    bench.ledger.close()
    with sqlite3.connect(bench.ledger.path, isolation_level=None) as db:
        db.execute("UPDATE attachment SET state = ?", (state,))
    db.close()


def test_the_loop_leaves_a_call_alone_that_is_under_way(bench: Bench, pod: Netns) -> None:
    reclaimer = Reclaimer(bench.engine)
    with bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        session.add(bench.attachment())
        loop = threading.Thread(target=lambda: [reclaimer.sweep() for _ in range(3)])
        loop.start()
        loop.join()
    assert pod.link("net1")
    assert [row.state for row in bench.ledger.rows()] == ["added"]


def test_rows_of_an_earlier_boot_touch_the_node_and_the_stores_but_no_sandbox(
    bench: Bench, pod: Netns, mortal: Netns
) -> None:
    attach(bench, pod)
    (row,) = bench.ledger.rows()
    bench.ledger.forget([row.id])
    route = DropRoute("host", "172.18.9.1/32", 500, "eth0")
    bench.node.batch("route add 172.18.9.1/32 dev eth0 table 500 proto 117")
    old = bench.ledger.begin(replace(row, boot="an earlier one", state="added"))
    for line in row.undo.splitlines():
        bench.ledger.record(old, decode_line(line))
    bench.ledger.record(old, [route])
    reborn(bench).at_start()
    assert bench.ledger.rows() == []
    assert bench.reserved() == []
    assert bench.node.ip("route", "show", "table", "500") == []
    assert pod.link("net1")  # of that name there may be another in this boot


def decode_line(line: str) -> list[object]:
    return list(entries.decode(line)[0])


def test_after_a_reboot_reservations_older_than_it_are_released_once(bench: Bench, pod: Netns, mortal: Netns) -> None:
    attach(bench, pod)
    directory = bench.data_dir / "underlay-a"
    stale = directory / "172.18.9.50"
    stale.write_text("gone\r\neth0")
    os.utime(stale, (1, 1))
    reborn(bench).at_start()
    assert stale.exists()  # the ledger is new: nobody knows of a reboot
    bench.ledger.note_boot("an earlier one")
    reborn(bench).at_start()
    assert bench.reserved() == ["172.18.9.1"]
    stale.write_text("gone\r\neth0")
    os.utime(stale, (1, 1))
    reborn(bench).at_start()
    assert stale.exists()


def test_what_cannot_be_undone_is_tried_again_later_not_at_once(bench: Bench, pod: Netns) -> None:
    broken = bench.executable("broken", '[ $CNI_COMMAND = DEL ] && exit 3; printf \'{"cniVersion":"1.0.0"}\'')
    attach(bench, pod, conf=bench.macvlan("mixed", {"type": "broken"}))
    set_state(bench, "deleting")
    reclaimer = reborn(bench)
    for _ in range(5):
        reclaimer.sweep()
    assert [verb for verb, _, _ in bench.calls("broken")] == ["ADD", "DEL"]
    assert "not reclaimed" in bench.log.events()
    broken.write_text("#!/bin/sh\nexit 0\n")
    reborn(bench).at_start()
    assert bench.ledger.rows() == []


def test_an_executable_is_called_without_a_namespace_for_a_dead_sandbox(bench: Bench, mortal: Netns) -> None:
    bench.executable("echo", '[ $CNI_COMMAND = ADD ] && printf \'{"cniVersion":"1.0.0"}\'; exit 0')
    attach(bench, mortal, conf=bench.macvlan("mixed", {"type": "echo"}))
    kill(mortal)
    reborn(bench).at_start()
    verb, netns, _ = bench.calls("echo")[-1]
    assert (verb, netns) == ("DEL", "")


def test_a_ledger_that_cannot_be_read_keeps_nobody_from_starting(bench: Bench) -> None:
    with open(bench.ledger.path, "r+b") as file:
        file.write(b"no database")
    bench.ledger.close()
    reborn(bench).at_start()
    assert bench.ledger.writable()


def test_reclaiming_two_hundred_living_rows_is_a_matter_of_milliseconds(bench: Bench, pod: Netns) -> None:
    attach(bench, pod)
    (row,) = bench.ledger.rows()
    for number in range(200):
        bench.ledger.begin(replace(row, container_id=f"c-{number}", state="added"))
    reclaimer = Reclaimer(bench.engine)
    begun = time.perf_counter()
    reclaimer.sweep()
    print(f"sweep of 201 rows: {(time.perf_counter() - begun) * 1e3:.1f} ms")
    assert len(bench.ledger.rows()) == 201


def test_the_ledger_of_a_killed_daemon_opens_while_another_process_reads_it(bench: Bench, pod: Netns) -> None:
    attach(bench, pod)
    second = Ledger(bench.ledger.path, bench.log)
    assert len(second.rows()) == 1
    second.close()
