"""What the shim sends: one frame, whole and right, however its input comes."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.shim.conftest import GOOD, HERE, Daemon, Shim, answers, finished

from underlay.daemon import frame

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

# execve with strings that no mapping can hold: (program, argv, environ), all of them bytes.
EXECVE = """
import ctypes, sys
program, argv, environ = eval(sys.argv[1])
strings = lambda each: (ctypes.c_char_p * (len(each) + 1))(*each, None)
ctypes.CDLL(None).execve(program, strings(argv), strings(environ))
sys.exit("execve failed")
"""


def execve(shim: Shim, argv: list[bytes], environ: list[bytes]) -> subprocess.Popen[bytes]:
    order = repr((bytes(shim.path), argv, environ))
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-IS", "-c", EXECVE, order], **pipes)  # type: ignore[call-overload]


def drips(daemon: Daemon, connection: socket.socket) -> None:
    """Reads and answers byte by byte."""
    daemon.receive(connection, 1)
    for byte in frame.answer(0, GOOD):
        connection.sendall(bytes([byte]))


def test_the_environment_of_cni_and_standard_input_go_out_as_one_frame(shim: Shim, daemon: Any) -> None:
    env = {"PATH": "/bin", "CNI_COMMAND": "ADD", "CNI_IFNAME": "eth0", "CNI_ARGS": "", "XCNI_A": "1", "CNI_PATH": "a=b"}
    with daemon(answers()) as it:
        outcome = shim.call(env=env, stdin=b'{"name":"\0\0"}')
    assert (outcome.status, outcome.stdout, outcome.stderr) == (0, GOOD, "")
    assert it.calls() == [
        frame.Call(
            "multus",
            {"CNI_COMMAND": "ADD", "CNI_IFNAME": "eth0", "CNI_ARGS": "", "CNI_PATH": "a=b"},
            b'{"name":"\0\0"}',
        )
    ]


@pytest.mark.parametrize("status", [0, 1, 17, 255])
def test_exit_status_and_output_are_the_daemons(shim: Shim, daemon: Any, status: int) -> None:
    with daemon(answers(status, b"\0\xff anything")):
        outcome = shim.call()
    assert (outcome.status, outcome.stdout) == (status, b"\0\xff anything")


def test_an_answer_without_output_prints_nothing(shim: Shim, daemon: Any) -> None:
    with daemon(answers(0, b"")):
        assert shim.call("DEL").stdout == b""
    assert shim.spooled() == []


def test_a_daemon_that_reads_and_answers_byte_by_byte_is_understood(shim: Shim, daemon: Any) -> None:
    with daemon(drips) as it:
        outcome = shim.call(stdin=b"x" * 5000)
    assert (outcome.status, outcome.stdout) == (0, GOOD)
    assert it.calls()[0].stdin == b"x" * 5000


def test_standard_input_may_come_in_pieces(shim: Shim, daemon: Any) -> None:
    with daemon(answers()) as it:
        process = shim.start()
        assert process.stdin is not None
        for n in range(50):
            process.stdin.write(b"%02d" % n)
            process.stdin.flush()
        outcome = finished(process)
    assert outcome.status == 0
    assert it.calls()[0].stdin == b"".join(b"%02d" % n for n in range(50))


def test_a_standard_input_that_does_not_block_is_waited_for(shim: Shim, daemon: Any) -> None:
    out, into = os.pipe()
    os.set_blocking(out, False)
    with daemon(answers()) as it:
        process = shim.start(stdin=out)
        os.close(out)
        os.write(into, b"{")
        os.write(into, b"}")
        os.close(into)
        assert finished(process).status == 0
    assert it.calls()[0].stdin == b"{}"


def test_signals_interrupt_nothing(lay: Callable[..., Shim], daemon: Any) -> None:
    shim = lay("-include", str(HERE / "interrupted.h"))
    stdin = os.urandom(1 << 18)

    def slow(it: Daemon, connection: socket.socket) -> None:
        it.receive(connection, 500)
        answer = frame.answer(0, stdin)
        for start in range(0, len(answer), 1000):
            connection.sendall(answer[start : start + 1000])

    with daemon(slow) as it:
        process = shim.start()
        assert process.stdin is not None
        for start in range(0, len(stdin), 1 << 12):
            process.stdin.write(stdin[start : start + (1 << 12)])
            process.stdin.flush()
        outcome = finished(process)
    assert (outcome.status, outcome.stderr) == (0, "")
    assert outcome.stdout == stdin
    assert it.calls()[0].stdin == stdin


def test_signals_do_not_keep_a_deletion_from_the_spool(lay: Callable[..., Shim]) -> None:
    shim = lay("-include", str(HERE / "interrupted.h"))
    stdin = os.urandom(1 << 20)
    assert shim.call("DEL", stdin=stdin).status == 0
    assert [frame.parse(frame.payload(each)).stdin for each in shim.spooled()] == [stdin]


@pytest.mark.parametrize(
    ("argv0", "plugin"),
    [
        ("macvlan", "macvlan"),
        ("/opt/cni/bin/macvlan", "macvlan"),
        ("./host-local", "host-local"),
        ("//veth", "veth"),
        ("ü b", "ü b"),
        ("x" * 100_000, "x" * 100_000),
    ],
)
def test_the_name_it_was_called_by_names_the_plugin(shim: Shim, daemon: Any, argv0: str, plugin: str) -> None:
    with daemon(answers()) as it:
        assert shim.call(name=argv0).status == 0
    assert it.calls()[0].plugin == plugin


@pytest.mark.parametrize("argv", [[], [b""], [b"/opt/cni/bin/"]])
def test_without_a_name_it_is_the_daemon_that_refuses(shim: Shim, daemon: Any, argv: list[bytes]) -> None:
    with daemon(answers()) as it:
        assert finished(execve(shim, argv, [b"CNI_COMMAND=ADD"]), b"{}").status == 0
    assert it.requests == [frame.request("", {"CNI_COMMAND": "ADD"}, b"{}")]


def test_strings_that_are_no_variables_stay_behind_and_of_two_the_last_counts(shim: Shim, daemon: Any) -> None:
    environ = [b"CNI_COMMAND=VERSION", b"CNI_", b"CNI_COMMAND", b"", b"=", b"CNI_IFNAME=a", b"CNI_IFNAME=b",
               b"CNI_COMMAND=ADD"]  # fmt: skip
    with daemon(answers()) as it:
        assert finished(execve(shim, [b"veth"], environ), b"").stdout == GOOD
    assert it.calls() == [frame.Call("veth", {"CNI_COMMAND": "ADD", "CNI_IFNAME": "b"}, b"")]


def test_a_request_of_exactly_four_mebibytes_goes_through(shim: Shim, daemon: Any) -> None:
    room = frame.LIMIT - len(frame.request("multus", {"CNI_COMMAND": "ADD"}, b"")) + 8
    with daemon(answers()) as it:
        outcome = shim.call(env={"CNI_COMMAND": "ADD"}, stdin=b"x" * room)
    assert (outcome.status, outcome.stdout) == (0, GOOD)
    assert len(it.calls()[0].stdin) == room


def test_a_configuration_of_one_byte_more_is_refused(shim: Shim) -> None:
    room = frame.LIMIT - len(frame.request("multus", {"CNI_COMMAND": "ADD"}, b"")) + 8
    told = shim.call(env={"CNI_COMMAND": "ADD"}, stdin=b"x" * (room + 1)).error()
    assert (told["code"], told["msg"]) == (7, "multus: the network configuration is larger than 4 MiB")


def test_a_deletion_whose_configuration_is_too_large_goes_without_it(shim: Shim, daemon: Any) -> None:
    with daemon(answers(0, b"")) as it:
        assert shim.call("DEL", stdin=b"x" * (frame.LIMIT + 1)).status == 0
    assert it.calls() == [frame.Call("multus", {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "c1"}, b"")]


def room_for_arguments() -> None:
    """A quarter of the stack's limit, at most 6 MiB, may be arguments and environment: execve(2)."""
    resource.setrlimit(resource.RLIMIT_STACK, (64 << 20, resource.RLIM_INFINITY))


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_an_environment_above_four_mebibytes_is_refused_but_a_deletion_succeeds(shim: Shim, verb: str) -> None:
    env = {"CNI_COMMAND": verb} | {f"CNI_{n}": "x" * 120_000 for n in range(36)}
    outcome = shim.call(verb, env=env, preexec_fn=room_for_arguments)
    if verb == "DEL":
        assert (outcome.status, outcome.stdout) == (0, b"")
        assert "DEL did not reach the daemon: the CNI_* environment is larger than 4 MiB" in outcome.stderr
    else:
        assert (outcome.error()["code"], outcome.stderr) == (4, "")


def test_what_is_no_variable_of_cni_does_not_count(shim: Shim, daemon: Any) -> None:
    env = {"CNI_COMMAND": "ADD"} | {f"X_{n}": "x" * 120_000 for n in range(36)}
    with daemon(answers()) as it:
        assert shim.call(env=env, preexec_fn=room_for_arguments).status == 0
    assert it.requests == [frame.request("multus", {"CNI_COMMAND": "ADD"}, b"{}")]


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_standard_streams_do_not_end_up_in_the_socket(shim: Shim, daemon: Any, closed: tuple[int, ...]) -> None:
    def close() -> None:
        for fd in closed:
            os.close(fd)

    with daemon(answers()) as it:
        outcome = shim.call(stdin=b"" if 0 in closed else b"{}", preexec_fn=close)
    assert outcome.status == 0
    assert outcome.stdout == (b"" if 1 in closed else GOOD)
    assert it.calls()[0].stdin == (b"" if 0 in closed else b"{}")


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_a_standard_input_that_cannot_be_read_is_named_but_a_deletion_goes_on(
    shim: Shim, daemon: Any, verb: str
) -> None:
    directory = os.open("/", os.O_RDONLY)
    with daemon(answers(0, b"")) as it:
        outcome = finished(shim.start(verb, stdin=directory))
    os.close(directory)
    if verb == "DEL":
        assert (outcome.status, it.calls()[0].stdin) == (0, b"")
    else:
        assert (outcome.error()["code"], it.requests) == (5, [])
        assert outcome.error()["msg"] == "multus: cannot read standard input: Is a directory"
