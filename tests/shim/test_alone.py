"""What the shim does without a daemon: VERSION, clear errors, and deletions that are kept."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.shim.conftest import GOOD, HERE, Daemon, Shim, answers, finished

from underlay.cni import versions
from underlay.daemon import frame
from underlay.daemon.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RECORDED = (str(HERE / "recorded.c"), "-Wl,--wrap=fsync,--wrap=renameat")
DEL = {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "c1"}


def delivered(shim: Shim) -> list[frame.Call]:
    """What the daemon's own spool reads there; every file must be gone afterwards."""
    calls: list[frame.Call] = []
    faults: list[Any] = []
    spool = Spool(
        str(shim.run_dir / "spool"), lambda call, _: calls.append(call), lambda *line, **_: faults.append(line)
    )
    assert spool.work_off() == 0
    assert faults == []
    assert shim.spooled() == []
    return calls


def test_version_is_answered_alone_and_as_the_daemon_would(shim: Shim) -> None:
    outcome = shim.call("VERSION")
    assert (outcome.status, outcome.stderr) == (0, "")
    assert json.loads(outcome.stdout) == json.loads(versions.encode_version())


def test_version_does_not_wait_for_standard_input(shim: Shim) -> None:
    process = shim.start("VERSION")
    assert process.wait(timeout=30) == 0
    finished(process)


def test_called_by_hand_it_says_what_it_is(shim: Shim) -> None:
    outcome = shim.call(env={})
    assert (outcome.status, outcome.stdout) == (0, b"")
    assert "CNI_COMMAND is not set" in outcome.stderr


@pytest.mark.parametrize("verb", ["ADD", "CHECK", "GC", "", "NONSENSE"])
def test_without_a_daemon_a_call_waits_and_may_be_tried_again(hasty: Shim, verb: str) -> None:
    started = time.monotonic()
    told = hasty.call(verb).error()
    assert time.monotonic() - started >= 0.2
    assert told["code"] == 11
    assert told["msg"].startswith(f"multus: no daemon at {hasty.run_dir}/underlay.sock: ")
    assert not hasty.run_dir.exists()


def test_a_call_that_waits_finds_the_daemon_that_comes(shim: Shim, daemon: Any) -> None:
    process = shim.start()
    assert process.stdin is not None
    process.stdin.close()
    process.stdin = None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    with daemon(answers()):
        outcome = finished(process)
    assert (outcome.status, outcome.stdout) == (0, GOOD)


def test_a_call_that_waits_at_a_dead_daemons_socket_finds_the_next(shim: Shim, daemon: Any) -> None:
    shim.run_dir.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(shim.run_dir / "underlay.sock"))
    process = shim.start()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    (shim.run_dir / "underlay.sock").unlink()
    with daemon(answers()):
        assert finished(process, b"").stdout == GOOD


def test_status_without_a_daemon_says_not_available_at_once(shim: Shim) -> None:
    told = shim.call("STATUS").error()
    assert told["code"] == 50
    assert told["details"] == "Start `underlay daemon`, or see its log."


@pytest.mark.parametrize("verb", ["ADD", "STATUS"])
def test_a_socket_that_is_none_is_named(shim: Shim, verb: str) -> None:
    shim.run_dir.write_text("a file where the run directory should be")
    told = shim.call(verb).error()
    assert told["code"] == (5 if verb == "ADD" else 50)
    assert told["msg"] == f"multus: no daemon at {shim.run_dir}/underlay.sock: Not a directory"


def test_a_path_that_no_socket_can_have_is_named(lay: Callable[..., Shim], tmp_path: Path) -> None:
    shim = lay(run_dir=tmp_path / ("d" * (200 - len(str(tmp_path)))))
    told = shim.call().error()
    assert told["code"] == 5
    assert str(shim.run_dir) in told["msg"]
    assert told["msg"].endswith(("File name too long", "Filename too long"))
    assert shim.call("DEL", stdin=b"{}").status == 0
    assert delivered(shim) == [frame.Call("multus", DEL, b"{}")]


def test_a_deletion_is_kept_whole_and_for_root_alone(shim: Shim) -> None:
    umask = os.umask(0)
    try:
        outcome = shim.call("DEL", stdin=b'{"name":"n"}')
    finally:
        os.umask(umask)
    assert (outcome.status, outcome.stdout, outcome.stderr) == (0, b"", "")
    (path,) = (shim.run_dir / "spool").iterdir()
    modes = [stat.S_IMODE(each.stat().st_mode) for each in (shim.run_dir, path.parent, path)]
    assert modes == [0o700, 0o700, 0o600]
    assert abs(int(path.name[:20]) - time.time_ns()) < 60e9
    assert path.read_bytes() == frame.request("multus", DEL, b'{"name":"n"}')
    assert delivered(shim) == [frame.Call("multus", DEL, b'{"name":"n"}')]


def test_deletions_at_the_same_time_are_all_kept(shim: Shim) -> None:
    running = [shim.start(env=DEL | {"CNI_CONTAINERID": f"c{n}"}) for n in range(20)]
    assert [finished(each, b"{}").status for each in running] == [0] * 20
    assert sorted(call.env["CNI_CONTAINERID"] for call in delivered(shim)) == sorted(f"c{n}" for n in range(20))


def test_a_deletion_of_the_largest_size_is_kept(shim: Shim) -> None:
    stdin = os.urandom(frame.LIMIT - len(frame.request("multus", DEL, b"")) + 8)
    assert shim.call("DEL", stdin=stdin).status == 0
    assert delivered(shim) == [frame.Call("multus", DEL, stdin)]


def test_a_spool_file_is_on_the_disk_before_it_has_its_name(lay: Callable[..., Shim]) -> None:
    outcome = lay(*RECORDED).call("DEL")
    assert outcome.status == 0
    assert outcome.stderr.split() == ["fsync", "rename", "dir-fsync"]


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_disk_that_fails_leaves_no_half_of_a_file(lay: Callable[..., Shim], call: str) -> None:
    shim = lay(*RECORDED)
    outcome = shim.call("DEL", env=DEL | {"FAIL": call})
    assert (outcome.status, outcome.stdout) == (0, b"")
    assert outcome.stderr.splitlines()[-1].startswith(
        ("multus: DEL did not reach the daemon: I/O error", "multus: DEL did not reach the daemon: Input/output error")
    )
    assert shim.spooled() == []


def test_a_name_that_may_not_last_is_told_and_the_file_stays(lay: Callable[..., Shim]) -> None:
    shim = lay(*RECORDED)
    outcome = shim.call("DEL", env=DEL | {"FAIL": "dir-fsync"})
    assert (outcome.status, len(shim.spooled())) == (0, 1)
    assert "DEL did not reach the daemon" in outcome.stderr


def test_a_full_disk_leaves_no_half_of_a_file(shim: Shim) -> None:
    shim.run_dir.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "full", shim.run_dir], check=True)
    try:
        outcome = shim.call("DEL", stdin=b"x" * 100_000)
        left = shim.spooled()
    finally:
        subprocess.run(["umount", shim.run_dir], check=True)
    assert (outcome.status, outcome.stdout, left) == (0, b"", [])
    assert outcome.stderr == (
        "multus: DEL did not reach the daemon: No space left on device; its reclaim loop will find the sandbox gone\n"
    )


@pytest.mark.parametrize("what", ["a file", "read-only"])
def test_a_deletion_succeeds_where_no_spool_can_be(shim: Shim, what: str) -> None:
    shim.run_dir.mkdir()
    if what == "a file":
        (shim.run_dir / "spool").write_text("")
    else:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "ro", shim.run_dir], check=True)
    try:
        outcome = shim.call("DEL")
    finally:
        if what == "read-only":
            subprocess.run(["umount", shim.run_dir], check=True)
    assert (outcome.status, outcome.stdout) == (0, b"")
    assert outcome.stderr.startswith("multus: DEL did not reach the daemon: ")


def stays_silent(daemon: Daemon, connection: socket.socket) -> None:
    """Takes the request and answers when the shim has given up."""
    daemon.receive(connection)
    connection.recv(1)


@pytest.mark.parametrize("verb", ["ADD", "DEL", "STATUS"])
def test_a_daemon_that_stays_silent_is_given_up(hasty: Shim, daemon: Any, verb: str) -> None:
    with daemon(stays_silent) as it:
        outcome = hasty.call(verb)
    if verb == "DEL":
        assert (outcome.status, hasty.spooled()) == (0, it.requests)
    else:
        assert outcome.error()["code"] == (11 if verb == "ADD" else 50)
        assert "timed out" in outcome.error()["msg"]


def test_a_daemon_that_does_not_read_is_given_up(hasty: Shim, daemon: Any) -> None:
    def waits(_: Daemon, connection: socket.socket) -> None:
        process.wait(30)

    with daemon(waits):
        process = hasty.start()
        assert finished(process, b"x" * 2_000_000).error()["code"] == 11


@pytest.mark.parametrize("verb", ["ADD", "DEL", "STATUS"])
def test_a_full_backlog_is_waited_for_but_not_for_ever(hasty: Shim, verb: str) -> None:
    hasty.run_dir.mkdir()
    path = str(hasty.run_dir / "underlay.sock")
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as only:
        full.bind(path)
        full.listen(0)
        only.connect(path)
        outcome = hasty.call(verb)
    if verb == "DEL":
        assert outcome.status == 0
        assert delivered(hasty) == [frame.Call("multus", DEL, b"{}")]
    else:
        assert outcome.error()["code"] == (11 if verb == "ADD" else 50)


def test_a_full_backlog_that_empties_is_no_fault_and_a_stop_in_between_neither(shim: Shim) -> None:
    shim.run_dir.mkdir()
    path = str(shim.run_dir / "underlay.sock")
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as only:
        full.bind(path)
        full.listen(0)
        only.connect(path)
        process = shim.start("DEL")
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1)
        process.send_signal(19)  # SIGSTOP and SIGCONT interrupt a connect() that has a timeout: signal(7)
        process.send_signal(18)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1)
        full.accept()[0].close()
        connection, _ = full.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(frame.answer(0, b""))
            assert finished(process).status == 0
    assert shim.spooled() == []


def test_a_standard_input_that_never_ends_is_given_up_but_a_deletion_goes_on(hasty: Shim, daemon: Any) -> None:
    with daemon(answers(0, b"")) as it:
        waiting = {verb: hasty.start(verb) for verb in ("ADD", "DEL")}
        for process in waiting.values():
            assert process.stdin is not None
            process.stdin.write(b'{"half')
            process.stdin.flush()
        for process in waiting.values():
            process.wait(30)
    told = finished(waiting["ADD"]).error()
    assert told["code"] == 5
    assert told["msg"].startswith("multus: cannot read standard input: ")
    assert finished(waiting["DEL"]).status == 0
    assert it.calls() == [frame.Call("multus", DEL, b"")]


def test_a_reader_that_never_reads_does_not_hold_it_for_ever(hasty: Shim, daemon: Any) -> None:
    with daemon(answers(0, b"x" * 200_000)):
        process = hasty.start()
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
        assert process.wait(30) == 1
    finished(process)
