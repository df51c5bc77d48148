"""The gRPC server: grpcio, our own client and clients that misbehave, on a unix socket below /run."""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import h2.connection
import h2.events
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.multus.multus_node import Lines

from underlay.kube import grpc as client
from underlay.kube import protobuf
from underlay.kube.grpc_server import FAILED_PRECONDITION, Refused, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ECHO, FAIL, WATCH = "/a.Service/Echo", "/a.Service/Fail", "/a.Service/Watch"
SECONDS = 20.0


def refuse(_request: bytes) -> bytes:
    raise Refused(FAILED_PRECONDITION, "100% “refused”\n")


class Serving:
    """A server and the thread that serves it; what is to be done with the server is done there, by ``do``."""

    def __init__(self, path: Path, value: bytes) -> None:
        self.path = path
        self.log = Lines()
        self.selector = selectors.DefaultSelector()
        self.server = Server(
            str(path), self.selector, calls={ECHO: bytes, FAIL: refuse}, feeds={WATCH: value}, log=self.log
        )
        self.server.listen()
        self._awake = os.eventfd(0)
        self._todo: list[Callable[[], object]] = []
        self.selector.register(self._awake, selectors.EVENT_READ, lambda _events: os.eventfd_read(self._awake))
        self._running = True
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while self._running:
            for key, events in self.selector.select():
                key.data(events)
            while self._todo:
                self._todo.pop(0)()

    def do(self, act: Callable[[], object]) -> Any:
        """Call it in the server's thread; returns what it returns."""
        done = threading.Event()
        told: list[object] = []

        def acted() -> None:
            told.append(act())
            done.set()

        self._todo.append(acted)
        os.eventfd_write(self._awake, 1)
        assert done.wait(SECONDS)
        return told[0]

    def tell(self, value: bytes) -> None:
        self.do(lambda: self.server.tell(WATCH, value))

    def end(self) -> None:
        self.do(self.server.close)
        self._running = False
        os.eventfd_write(self._awake, 1)
        self._thread.join(SECONDS)
        self.selector.close()
        os.close(self._awake)


@contextmanager
def serving(value: bytes = b"first") -> Iterator[Serving]:
    with tempfile.TemporaryDirectory(dir="/run", prefix="g-") as directory:
        made = Serving(Path(directory) / "a.sock", value)
        try:
            yield made
        finally:
            made.end()


@contextmanager
def channel(site: Serving, **options: Any) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"unix://{site.path}", list(options.items())) as made:
        yield made


def test_a_call_is_answered() -> None:
    with serving() as site, channel(site) as made:
        assert made.unary_unary(ECHO)(b"hello", timeout=SECONDS) == b"hello"
        assert made.unary_unary(ECHO)(b"", timeout=SECONDS) == b""


@pytest.mark.parametrize("size", [16_383, 65_536, 300_000])
def test_answers_longer_than_windows_and_frames_arrive_whole(size: int) -> None:
    message = os.urandom(size)
    with serving(message) as site, channel(site) as made:
        assert made.unary_unary(ECHO)(message, timeout=SECONDS) == message
        stream = made.unary_stream(WATCH)(b"")
        assert next(stream) == message
        stream.cancel()


def test_a_refusal_has_its_status_and_its_words() -> None:
    with serving() as site, channel(site) as made:
        with pytest.raises(grpc.RpcError) as refused:
            made.unary_unary(FAIL)(b"", timeout=SECONDS)
        assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION  # type: ignore[attr-defined]
        assert refused.value.details() == "100% “refused”\n"  # type: ignore[attr-defined]
        with pytest.raises(grpc.RpcError) as unknown:
            made.unary_unary("/a.Service/Other")(b"", timeout=SECONDS)
        assert unknown.value.code() == grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]
        assert made.unary_unary(ECHO)(b"on", timeout=SECONDS) == b"on"


def test_a_compressed_request_is_refused() -> None:
    with serving() as site, channel(site) as made:
        with pytest.raises(grpc.RpcError) as refused:
            made.unary_unary(ECHO)(b"a" * 5000, timeout=SECONDS, compression=grpc.Compression.Gzip)
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]


def test_a_request_that_is_too_long_is_refused_and_the_server_goes_on() -> None:
    with serving() as site, channel(site) as made:
        with pytest.raises(grpc.RpcError) as refused:
            made.unary_unary(ECHO)(bytes(3 << 20), timeout=SECONDS)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
        assert made.unary_unary(ECHO)(b"on", timeout=SECONDS) == b"on"


def test_a_feed_tells_each_new_value_once() -> None:
    with serving() as site, channel(site) as made:
        streams = [made.unary_stream(WATCH)(b"") for _ in range(2)]
        assert [next(each) for each in streams] == [b"first", b"first"]
        site.tell(b"first")
        site.tell(b"second")
        assert [next(each) for each in streams] == [b"second", b"second"]
        assert site.do(lambda: site.server.listeners(WATCH)) == 2
        streams[0].cancel()
        site.tell(b"")
        assert next(streams[1]) == b""
        assert made.unary_unary(ECHO)(b"between", timeout=SECONDS) == b"between"
        streams[1].cancel()


def test_a_stream_that_ends_is_no_listener_any_more() -> None:
    with serving() as site:
        with channel(site) as made:
            stream = made.unary_stream(WATCH)(b"")
            assert next(stream) == b"first"
            stream.cancel()
            assert made.unary_unary(ECHO)(b"", timeout=SECONDS) == b""  # read after the cancellation
            assert site.do(lambda: site.server.listeners(WATCH)) == 0
            stream = made.unary_stream(WATCH)(b"")
            assert next(stream) == b"first"
        site.tell(b"next")
        with channel(site) as made:
            assert next(made.unary_stream(WATCH)(b"")) == b"next"


def test_our_client_and_our_server_understand_each_other() -> None:
    with serving() as site:
        assert client.call(str(site.path), ECHO, b"x" * 10_000, time.monotonic() + SECONDS) == b"x" * 10_000
        with pytest.raises(client.CallFailed, match=r"100% “refused”") as refused:
            client.call(str(site.path), FAIL, b"", time.monotonic() + SECONDS)
        assert refused.value.status == FAILED_PRECONDITION


def test_a_server_that_stops_says_so_and_takes_its_socket_away() -> None:
    with serving() as site, channel(site) as made:
        stream = made.unary_stream(WATCH)(b"")
        assert next(stream) == b"first"
        site.do(site.server.close)
        with pytest.raises(grpc.RpcError) as ended:
            next(stream)
        assert ended.value.code() == grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
        assert not site.path.exists()


def test_a_socket_that_another_has_taken_is_left_alone() -> None:
    with serving() as site:
        assert site.server.reachable
        site.path.unlink()
        assert not site.server.reachable
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(site.path))
            assert not site.server.reachable
            site.do(site.server.close)
            assert site.path.exists()


def test_the_socket_is_its_users_and_is_made_anew_where_a_left_over_lies() -> None:
    with serving() as site:
        assert site.path.stat().st_mode & 0o777 == 0o600
        site.do(site.server.listen)
        with channel(site) as made:
            assert made.unary_unary(ECHO)(b"again", timeout=SECONDS) == b"again"
        assert sorted(each.name for each in site.path.parent.iterdir()) == ["a.sock"]


def test_another_user_is_turned_away() -> None:
    script = "import os,socket,sys\nos.setuid(65534)\ns=socket.socket(socket.AF_UNIX)\n"
    script += "s.connect(sys.argv[1])\nprint(s.recv(100))"
    with serving() as site:
        site.path.parent.chmod(0o755)
        site.path.chmod(0o666)
        done = subprocess.run(
            [sys.executable, "-c", script, site.path], capture_output=True, text=True, check=True, timeout=SECONDS
        )
    assert done.stdout == "b''\n"
    assert [(line["event"], line["uid"]) for line in site.log] == [("connection refused", 65534)]


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """Frames of any kind with any content (RFC 9113, section 4.1), behind the preface and empty settings."""
    out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4\0" + bytes(4)
    for _ in range(draw(st.integers(1, 4))):
        content = draw(st.binary(max_size=40))
        kind, flags, stream = draw(st.integers(0, 11)), draw(st.integers(0, 255)), draw(st.integers(0, 5))
        out += len(content).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + content
    return out


@given(st.one_of(st.binary(min_size=1, max_size=100), frames()))
def test_whatever_a_client_sends_the_server_goes_on(sent: bytes) -> None:
    with serving() as site:
        with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
            connection.settimeout(SECONDS)
            connection.connect(str(site.path))
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
        now = time.monotonic()
        assert client.call(str(site.path), ECHO, b"on", now + SECONDS) == b"on"


def test_a_client_that_does_not_read_keeps_nobody_waiting_and_gets_the_newest() -> None:
    with serving(b"0" * 200_000) as site, socket.socket(socket.AF_UNIX) as slow:
        slow.connect(str(site.path))
        slow.settimeout(SECONDS)
        http = h2.connection.H2Connection()
        http.initiate_connection()
        headers = [(":method", "POST"), (":scheme", "http"), (":path", WATCH), (":authority", "localhost")]
        http.send_headers(1, headers)
        http.send_data(1, b"\0\0\0\0\0", end_stream=True)
        slow.sendall(http.data_to_send())
        while not site.do(lambda: site.server.listeners(WATCH)):
            pass
        for value in range(1, 50):
            site.tell(str(value).encode() * 100_000)
        with channel(site) as made:
            assert made.unary_unary(ECHO)(b"on", timeout=SECONDS) == b"on"
        told = bytearray()
        last = b"49" * 100_000
        while not told.endswith(last):
            for event in http.receive_data(slow.recv(65536)):
                if isinstance(event, h2.events.DataReceived):
                    told += event.data
                    http.acknowledge_received_data(event.flow_controlled_length, 1)
            slow.sendall(http.data_to_send())
    assert len(told) == 5 + 200_000 + 5 + 200_000, "the first value, which was under way, and the newest"


def asking(method: str) -> bytes:
    """A call without content, whole."""
    http = h2.connection.H2Connection()
    http.initiate_connection()
    headers = [(":method", "POST"), (":scheme", "http"), (":path", method), (":authority", "localhost")]
    http.send_headers(1, headers)
    http.send_data(1, b"\0\0\0\0\0", end_stream=True)
    return bytes(http.data_to_send())


def test_clients_that_are_gone_when_they_are_accepted_take_nobodys_place() -> None:
    def come_and_go(site: Serving) -> None:
        for _ in range(10):  # the server's thread is here, and accepts them afterwards
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(site.path))

    with serving() as site:
        for _ in range(3):
            site.do(lambda: come_and_go(site))
            assert client.call(str(site.path), ECHO, b"on", time.monotonic() + SECONDS) == b"on"


def test_a_client_that_a_call_finds_gone_when_it_tells_a_feed_ends_nothing_else() -> None:
    """As Allocate does: it looks at the devices, and may find that one cannot be used."""
    with serving() as site, socket.socket(socket.AF_UNIX) as connection:

        def find(_request: bytes) -> bytes:
            connection.close()
            site.server.tell(WATCH, b"second")
            raise Refused(FAILED_PRECONDITION, "it cannot be used")

        site.server.calls = {**site.server.calls, FAIL: find}
        connection.connect(str(site.path))
        connection.sendall(asking(FAIL))
        assert client.call(str(site.path), ECHO, b"on", time.monotonic() + SECONDS) == b"on"


@given(st.integers(0, 2**63), st.binary(max_size=300))
def test_numbers_and_messages_are_read_back(number: int, message: bytes) -> None:
    raw = protobuf.encode_integer(3, number) + protobuf.embed(1, message) + protobuf.encode_integer(4, 1)
    assert protobuf.integer(raw, 3) == number
    assert protobuf.messages(raw, 1) == [message]
    assert protobuf.messages(raw, 3) == []
    assert protobuf.integer(raw, 1) == 0
