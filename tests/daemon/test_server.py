"""The socket and its worker threads, with a handler that only echoes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from underlay.daemon import frame
from underlay.daemon.server import Server
from underlay.daemon.workers import Workers
from underlay.net.netns import ThreadLost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from underlay.errors import UnderlayError


class Echo:
    """Answers with standard input; "block" waits for the gate, "lend" on a lent slot, "lost" loses its thread."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.told = threading.Semaphore(0)
        self.abandoned: list[bool] = []
        self.workers: Workers | None = None

    def answer(
        self, payload: bytes, deadline: float, gone: Callable[[], bool]
    ) -> tuple[int, bytes, Callable[[], None]]:
        call = frame.parse(payload)
        self.entered.release()
        if call.plugin == "block":
            assert self.gate.wait(30)
            self.abandoned.append(gone())
        elif call.plugin == "lend":
            assert self.workers is not None
            with self.workers.lend():
                assert self.gate.wait(30)
        elif call.plugin == "lost":
            raise ThreadLost("in a pod")
        return 0, call.stdin, self._told

    def _told(self) -> None:
        self.told.release()

    def refuse(self, error: UnderlayError) -> bytes:
        return f"{error.code} {error.message}".encode()


class Running:
    """A server with its workers."""

    def __init__(self, path: str, *, size: int, spare: int, backlog: int) -> None:
        self.path = path
        self.echo = Echo()
        self.lines: list[tuple[str, str, dict[str, Any]]] = []
        self.server = Server(path, backlog=backlog, deadline=30, handler=self.echo, log=self._log)
        self.workers = self.echo.workers = Workers(self.server.serve_one, size=size, spare=spare)
        self.server.listen(self.workers.lend)
        self.workers.start()

    def _log(self, level: str, event: str, **fields: Any) -> None:
        self.lines.append((level, event, fields))

    def ask(self, plugin: str = "echo", stdin: bytes = b"{}") -> tuple[int, bytes]:
        return frame.ask(self.path, frame.request(plugin, {}, stdin), time.monotonic() + 30)

    def background(self, plugin: str) -> threading.Thread:
        thread = threading.Thread(target=self.ask, args=(plugin,))
        thread.start()
        assert self.echo.entered.acquire(timeout=30)
        return thread

    def stop(self) -> bool:
        self.workers.stop()
        self.server.close()
        ended = self.workers.join(time.monotonic() + 30)
        self.server.release()
        return ended


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    running: list[Running] = []

    def start(size: int = 4, spare: int = 4, backlog: int = 64) -> Running:
        running.append(Running(str(tmp_path / "u.sock"), size=size, spare=spare, backlog=backlog))
        return running[-1]

    yield start
    for each in running:
        each.echo.gate.set()
        assert each.stop()


@contextmanager
def connected(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(path)
        yield connection


def exchange(path: str, content: bytes, *, end: bool = False) -> bytes:
    """Send raw bytes; everything that comes back. Bytes that the server leaves unread end as a reset, not an EOF."""
    received = bytearray()
    with connected(path) as connection, suppress(ConnectionResetError):
        connection.sendall(content)
        if end:
            connection.shutdown(socket.SHUT_WR)
        while chunk := connection.recv(65536):
            received += chunk
    return bytes(received)


def test_two_hundred_clients_at_once_all_get_their_own_answer(serve: Callable[..., Running]) -> None:
    running = serve(backlog=256)
    answers: dict[int, tuple[int, bytes]] = {}

    def client(n: int) -> None:
        answers[n] = running.ask(stdin=b"%d" % n)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {n: (0, b"%d" % n) for n in range(200)}


def test_the_largest_request_comes_back_whole(serve: Callable[..., Running]) -> None:
    content = os.urandom(frame.LIMIT - 100)
    assert serve().ask(stdin=content) == (0, content)


def test_the_socket_is_for_root_alone(serve: Callable[..., Running]) -> None:
    running = serve()
    assert os.stat(running.path).st_mode & 0o777 == 0o600
    os.chmod(running.path, 0o666)
    for parent in (os.path.dirname(running.path), os.path.dirname(os.path.dirname(running.path))):
        os.chmod(parent, 0o755)
    script = (
        "import os, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); fd = os.open(os.path.dirname(sys.argv[1]), os.O_PATH); os.fchdir(fd)\n"
        "os.setgid(65534); os.setuid(65534); s.connect('u.sock')\n"
        "try: s.sendall(bytes.fromhex(sys.argv[2]))\n"
        "except BrokenPipeError: pass  # refused before the request was read: the answer is there all the same\n"
        "print(s.recv(65536)[9:].decode())\n"
    )
    request = frame.request("echo", {}, b"secret").hex()
    done = subprocess.run(
        [sys.executable, "-c", script, running.path, request], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "uid 65534 may not talk to the daemon" in done.stdout
    assert running.lines == [("warn", "refused a client", {"uid": 65534})]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"begins with"),
        (b"UND1\xff\xff\xff\x7f", b"above the limit"),
        (b"UND1\x02\0\0\0longer than it says", b"bytes came where it says 2"),
        (b"UND1\x40\0\0\0shorter", b"7 bytes came where it says 64"),
    ],
)
def test_a_frame_that_lies_gets_a_clear_answer(serve: Callable[..., Running], content: bytes, words: bytes) -> None:
    running = serve()
    answer = exchange(running.path, content, end=True)
    assert answer[:4] == b"UND1"
    assert answer[8] == 1
    assert words in answer[9:]
    assert running.ask() == (0, b"{}")


def test_slow_clients_do_not_keep_the_others_waiting(serve: Callable[..., Running]) -> None:
    running = serve(size=2, spare=8)
    with connected(running.path) as one, connected(running.path) as two, connected(running.path) as three:
        for slow in (one, two, three):
            slow.sendall(b"UND1")
        assert running.ask() == (0, b"{}")
        one.sendall(frame.request("echo", {}, b"late")[4:])
        assert one.recv(100) == frame.answer(0, b"late")


def test_a_worker_that_waits_for_a_child_gives_its_slot_to_the_childs_own_call(serve: Callable[..., Running]) -> None:
    running = serve(size=2, spare=4)
    waiting = [running.background("lend") for _ in range(4)]
    assert running.ask() == (0, b"{}")  # both slots are lent twice over, and yet this is served
    running.echo.gate.set()
    for thread in waiting:
        thread.join()
    for _ in range(20):
        running.ask()
    assert running.workers.threads() <= 6


def test_a_thread_that_ends_by_a_fault_of_ours_says_so_and_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    faults: list[Exception] = [RuntimeError("a bug")] * 3
    said, served, end = threading.Semaphore(0), threading.Event(), threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda _fault: said.release())

    def work() -> bool:
        if faults:
            raise faults.pop()
        served.set()
        return not end.wait(30)

    workers = Workers(work, size=1, spare=0)
    workers.start()
    assert served.wait(30)
    assert all(said.acquire(timeout=30) for _ in range(3))
    workers.stop()
    end.set()
    assert workers.join(time.monotonic() + 30)
    assert workers.threads() == 0


def test_what_waits_before_the_start_has_no_stand_in_and_keeps_no_thread_from_ending() -> None:
    """A daemon that begins with plugins' DELs: there is no socket yet that a stand-in could wait at."""
    worked: list[int] = []
    workers = Workers(lambda: bool(worked.append(1)), size=2, spare=2)
    with workers.lend():
        assert (workers.threads(), worked) == (0, [])
    workers.start()
    assert workers.join(time.monotonic() + 30)
    assert worked == [1, 1]


def test_surplus_threads_leave_after_the_lending_is_over(serve: Callable[..., Running]) -> None:
    running = serve(size=1, spare=4)
    waiting = [running.background("lend") for _ in range(3)]
    assert running.workers.threads() == 4
    running.echo.gate.set()
    for thread in waiting:
        thread.join()
    deadline = time.monotonic() + 30
    while running.workers.threads() > 1 and time.monotonic() < deadline:
        running.ask()
    assert running.workers.threads() == 1
    assert running.ask() == (0, b"{}")


def test_a_thread_that_is_lost_is_replaced(serve: Callable[..., Running]) -> None:
    running = serve(size=2)
    for _ in range(5):
        with pytest.raises(ConnectionResetError):
            running.ask("lost")
    assert running.ask() == (0, b"{}")
    assert running.workers.threads() == 2


def test_a_client_that_went_away_while_waiting_is_noticed(serve: Callable[..., Running]) -> None:
    running = serve(size=1)
    with connected(running.path) as stays, connected(running.path) as leaves:
        stays.sendall(frame.request("block", {}, b"1"))
        assert running.echo.entered.acquire(timeout=30)
        leaves.sendall(frame.request("block", {}, b"2"))
        leaves.close()
        running.echo.gate.set()
        assert stays.recv(100) == frame.answer(0, b"1")
    assert running.echo.told.acquire(timeout=30)
    assert running.echo.told.acquire(timeout=30)
    assert running.echo.abandoned == [False, True]


def test_a_client_that_ended_its_sending_is_still_there(serve: Callable[..., Running]) -> None:
    running = serve()
    running.echo.gate.set()
    assert exchange(running.path, frame.request("block", {}, b"1"), end=True) == frame.answer(0, b"1")
    assert running.echo.abandoned == [False]


def test_stopping_answers_what_is_in_flight_and_in_the_queue_and_refuses_the_rest(
    serve: Callable[..., Running],
) -> None:
    running = serve(size=1)
    with connected(running.path) as flying, connected(running.path) as queued:
        flying.sendall(frame.request("block", {}, b"1"))
        assert running.echo.entered.acquire(timeout=30)
        queued.sendall(frame.request("echo", {}, b"2"))
        running.workers.stop()
        running.server.close()
        with pytest.raises(FileNotFoundError):
            running.ask()
        running.echo.gate.set()
        assert flying.recv(100) == frame.answer(0, b"1")
        assert queued.recv(100) == frame.answer(0, b"2")
    assert running.workers.join(time.monotonic() + 30)


def test_the_stop_deadline_ends_the_wait_for_what_hangs(serve: Callable[..., Running]) -> None:
    running = serve(size=1)
    hanging = running.background("block")
    running.workers.stop()
    running.server.close()
    assert not running.workers.join(time.monotonic() + 0.05)
    running.echo.gate.set()
    hanging.join()


def test_a_dead_daemons_socket_is_replaced(serve: Callable[..., Running], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "u.sock"))
    (tmp_path / "u.sock.new").write_text("of a daemon that died in between")
    assert serve().ask() == (0, b"{}")
    assert sorted(os.listdir(tmp_path)) == ["u.sock"]


def test_a_full_queue_makes_further_clients_wait_and_not_fail(serve: Callable[..., Running]) -> None:
    running = serve(size=1, backlog=1)
    first = running.background("block")
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two, socket.socket(socket.AF_UNIX) as x:
        for each in (one, two):
            each.connect(running.path)
        x.setblocking(False)
        with pytest.raises(BlockingIOError):
            x.connect(running.path)
    running.echo.gate.set()
    first.join()
    assert running.ask() == (0, b"{}")
