"""What the shim makes of answers that lie, break off or never come, and of readers that are gone."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Any

import pytest
from tests.shim.conftest import GOOD, Daemon, Shim, answers, finished, sends

from underlay.daemon import frame

if TYPE_CHECKING:
    import socket

    from tests.shim.conftest import Behaviour

WHOLE = frame.answer(0, GOOD)
LYING = {
    "another protocol": b"HTTP/1.1 200 OK\r\n\r\n",
    "another magic": b"UND2" + WHOLE[4:],
    "shorter than it is": WHOLE[:4] + struct.pack("<I", len(GOOD)) + WHOLE[8:],
    "nothing": struct.pack("<4sI", b"UND1", 0),
    "over the limit": struct.pack("<4sI", b"UND1", frame.LIMIT + 1) + b"\0{}",
    "far over the limit": b"UND1\xff\xff\xff\xff\0{}",
    "big-endian": struct.pack(">4sI", b"UND1", len(GOOD) + 1) + WHOLE[8:],
}
CUT = {f"after {n} bytes": WHOLE[:n] for n in (1, 4, 7, 8, 9, len(WHOLE) - 1)}


def hangs_up(_: Daemon, connection: socket.socket) -> None:
    """As a daemon that dies as soon as it has accepted."""


def dies_reading(_: Daemon, connection: socket.socket) -> None:
    connection.recv(4)


def dies_working(daemon: Daemon, connection: socket.socket) -> None:
    daemon.receive(connection)


@pytest.mark.parametrize("lie", LYING)
def test_a_lying_answer_is_refused_and_not_printed(shim: Shim, daemon: Any, lie: str) -> None:
    with daemon(sends(LYING[lie])):
        outcome = shim.call()
    assert outcome.error() == {
        "cniVersion": "1.0.0",
        "code": 5,
        "msg": f"multus: no valid answer came from {shim.run_dir}/underlay.sock",
        "details": "Shim and daemon differ: use `underlay install`.",
    }
    assert outcome.stderr == ""


@pytest.mark.parametrize("where", CUT)
def test_half_an_answer_is_not_printed_and_the_runtime_tries_again(shim: Shim, daemon: Any, where: str) -> None:
    with daemon(sends(CUT[where])):
        told = shim.call().error()
    assert (told["code"], told["msg"]) == (11, f"multus: the daemon broke off at {shim.run_dir}/underlay.sock")


@pytest.mark.parametrize("lie", [*LYING.values(), *CUT.values()], ids=[*LYING, *CUT])
def test_a_deletion_that_is_answered_so_is_spooled(shim: Shim, daemon: Any, lie: bytes) -> None:
    with daemon(sends(lie)) as it:
        outcome = shim.call("DEL")
    assert (outcome.status, outcome.stdout, outcome.stderr) == (0, b"", "")
    assert shim.spooled() == it.requests


def test_an_answer_of_exactly_four_mebibytes_is_printed_whole(shim: Shim, daemon: Any) -> None:
    stdout = os.urandom(frame.LIMIT - 1)
    with daemon(answers(0, stdout)):
        outcome = shim.call()
    assert outcome.status == 0
    assert outcome.stdout == stdout


@pytest.mark.parametrize("death", [hangs_up, dies_reading, dies_working])
@pytest.mark.parametrize("verb", ["ADD", "CHECK", "GC"])
def test_a_daemon_that_dies_lets_the_runtime_try_again(shim: Shim, daemon: Any, death: Behaviour, verb: str) -> None:
    with daemon(death):
        told = shim.call(verb, stdin=b"x" * 1_000_000).error()
    assert told["code"] == 11
    assert told["msg"].startswith(f"multus: the daemon broke off at {shim.run_dir}/underlay.sock")


@pytest.mark.parametrize("death", [hangs_up, dies_reading, dies_working])
def test_a_deletion_is_spooled_when_the_daemon_dies(shim: Shim, daemon: Any, death: Behaviour) -> None:
    with daemon(death):
        assert shim.call("DEL", stdin=b"x" * 1_000_000).status == 0
    assert [frame.parse(frame.payload(each)).stdin for each in shim.spooled()] == [b"x" * 1_000_000]


def test_a_status_of_a_daemon_that_dies_says_not_available(shim: Shim, daemon: Any) -> None:
    with daemon(dies_working):
        assert shim.call("STATUS").error()["code"] == 50


def test_a_refusal_that_comes_before_the_request_is_read_counts(shim: Shim, daemon: Any) -> None:
    refusal = b'{"cniVersion":"1.0.0","code":5,"msg":"uid 7 may not","details":"-"}'

    def refuses(_: Daemon, connection: socket.socket) -> None:
        connection.sendall(frame.answer(1, refusal))

    with daemon(refuses):
        outcome = shim.call(stdin=b"x" * 2_000_000)
    assert (outcome.status, outcome.stdout) == (1, refusal)


def test_a_failed_deletion_is_told_and_not_spooled(shim: Shim, daemon: Any) -> None:
    with daemon(answers(1, b'{"code":4}')):
        outcome = shim.call("DEL")
    assert (outcome.status, outcome.stdout) == (1, b'{"code":4}')
    assert shim.spooled() == []


def test_a_result_that_nobody_reads_is_a_failure(shim: Shim, daemon: Any) -> None:
    out, into = os.pipe()
    with daemon(answers(0, GOOD)):
        process = shim.start(stdout=into)
        os.close(into)
        os.close(out)
        assert finished(process, b"{}").status == 1


def test_names_and_paths_of_any_bytes_are_printed_as_json(shim: Shim, daemon: Any) -> None:
    with daemon(hangs_up):
        told = shim.call(name=b'\x01"\\\xff\n' * 1000).error()
    assert told["msg"].startswith('\x01"\\ÿ\n' * 60 + ": the daemon broke off")
