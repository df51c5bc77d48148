"""A gRPC server on a unix socket: calls of one message each way, and feeds (gRPC over HTTP/2, PROTOCOL-HTTP2.md).

    HEADERS :path /v1beta1.DevicePlugin/Allocate    DATA 0 + length + request, END_STREAM           the client
    HEADERS :status 200    DATA 0 + length + answer    HEADERS grpc-status, END_STREAM              we, to a call
    HEADERS :status 200    DATA the value now …    DATA the next value …                            we, to a feed

A feed is a stream that tells one value, and again whenever it changes; a client that reads slowly gets the newest.

One thread serves everything. It owns the selector, in which each descriptor's data is what to call with the events that
are ready; calls are answered in it, one after the other. HTTP/2 itself is h2's; why not grpcio: docs/decisions.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    RequestReceived,
    StreamEnded,
    StreamReset,
)
from h2.exceptions import H2Error

from underlay.kube.grpc import INTERNAL, OK, RESOURCE_EXHAUSTED, UNAVAILABLE, UNIMPLEMENTED
from underlay.kube.protobuf import Malformed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from h2.events import Event

    from underlay.kube.source import Log

INVALID_ARGUMENT: Final = 3
FAILED_PRECONDITION: Final = 9

_CONNECTIONS: Final = 16  # the kubelet has one; a second one while it starts anew
_LONGEST: Final = 1 << 20  # bytes of a request: a thousand device ids are 20 KiB
_UNREAD: Final = 4 << 20  # bytes that a client may leave unread
_PREFIX: Final = struct.Struct("!BI")  # compressed?, length
_PEER: Final = struct.Struct("=iII")  # struct ucred: process, user, group
_HEADERS: Final = ((":status", "200"), ("content-type", "application/grpc"))


class Refused(Exception):
    """A call is answered with a status that is not OK (statuscodes.md)."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


class Server:
    """Serves ``calls`` (by "/package.Service/Method": request to answer, both encoded; raises Refused) and ``feeds``
    (method to the value it tells at first) on the socket ``path``, to root and to the user it runs as.
    """

    def __init__(
        self,
        path: str,
        selector: selectors.BaseSelector,
        *,
        calls: Mapping[str, Callable[[bytes], bytes]],
        feeds: Mapping[str, bytes],
        log: Log,
    ) -> None:
        self.path = path
        self.calls = calls
        self.feeds = dict(feeds)
        self.log = log
        self.selector = selector
        self._connections: set[_Connection] = set()
        self._listening: socket.socket | None = None
        self._identity: tuple[int, int] | None = None

    def listen(self) -> None:
        """Take the place of whatever is at the path. Again: in a new socket, connections stay. Raises OSError."""
        self._unlisten()
        fresh = f"{self.path}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            listening.bind(fresh)
            os.chmod(fresh, 0o600)
            listening.listen(_CONNECTIONS)
            os.rename(fresh, self.path)
            self._identity = self._at_path()
        except OSError:
            listening.close()
            raise
        self._listening = listening
        self.selector.register(listening, selectors.EVENT_READ, self._accept)

    @property
    def reachable(self) -> bool:
        """Whether the path still leads to the socket that is listened on."""
        return self._identity is not None and self._at_path() == self._identity

    def tell(self, method: str, value: bytes) -> None:
        """The feed's value from now on, if it is another."""
        if value != self.feeds[method]:
            self.feeds[method] = value
            for connection in list(self._connections):
                connection.tell(method, value)

    def listeners(self, method: str) -> int:
        """How many streams the feed has now."""
        return sum(connection.listeners(method) for connection in self._connections)

    def close(self) -> None:
        """End all streams, and take the socket away if it is ours still."""
        if self.reachable:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
        self._unlisten()
        for connection in list(self._connections):
            connection.end()

    def forget(self, connection: _Connection) -> None:
        """It is closed."""
        self._connections.discard(connection)

    def _at_path(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return status.st_ino, status.st_ctime_ns

    def _unlisten(self) -> None:
        if self._listening is not None:
            self.selector.unregister(self._listening)
            self._listening.close()
            self._listening = None

    def _accept(self, _events: int) -> None:
        assert self._listening is not None
        try:
            connection, _ = self._listening.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):  # it is at the door still, and no event tells of a free one
                time.sleep(0.1)
            return
        user = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[1]
        if user not in (0, os.geteuid()) or len(self._connections) >= _CONNECTIONS:
            self.log("warn", "connection refused", socket=self.path, uid=user, connections=len(self._connections))
            connection.close()
            return
        connection.setblocking(False)
        accepted = _Connection(connection, self)
        self._connections.add(accepted)
        accepted.begin()


@dataclass(slots=True)
class _Stream:
    """``out`` is what is still to be sent of the present message, ``newer`` the message after it, ``status`` what the
    stream ends with when all is sent; None: a feed.
    """

    method: str
    request: bytearray = field(default_factory=bytearray)
    answering: bool = False
    out: bytes = b""
    newer: bytes | None = None
    status: int | None = None


class _Connection:
    """One client's connection, with all its streams."""

    def __init__(self, connection: socket.socket, server: Server) -> None:
        self._connection = connection
        self._server = server
        self._http = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self._streams: dict[int, _Stream] = {}
        self._unsent = bytearray()

    def begin(self) -> None:
        """Speak first. The server knows the connection by now, since this may be its end."""
        self._http.initiate_connection()
        self._server.selector.register(self._connection, selectors.EVENT_READ, self._ready)
        self._send()

    def tell(self, method: str, value: bytes) -> None:
        """A feed has a new value."""
        for number in self._listening(method):
            self._streams[number].newer = value
        self._pump_all()
        self._send()

    def listeners(self, method: str) -> int:
        """Streams of a feed."""
        return sum(1 for _ in self._listening(method))

    def end(self) -> None:
        """End all streams and close, without waiting for a client that does not read."""
        for number in list(self._streams):
            self._finish(number, UNAVAILABLE, "the server stops")
        with contextlib.suppress(H2Error):
            self._http.close_connection()
        self._send()
        self._close()

    def _listening(self, method: str) -> list[int]:
        feeds = self._server.feeds
        return [n for n, each in self._streams.items() if each.answering and each.method == method and method in feeds]

    def _ready(self, events: int) -> None:
        if events & selectors.EVENT_READ and not self._receive():
            self._close()
            return
        self._send()

    def _receive(self) -> bool:
        """Whether the connection goes on."""
        try:
            received = self._connection.recv(65536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not received:
            return False
        try:
            for event in self._http.receive_data(received):
                if not self._take(event):
                    return False
        except H2Error as fault:
            self._server.log("warn", "client speaks no HTTP/2", socket=self._server.path, cause=str(fault))
            self._send()  # what h2 has to say about it
            return False
        self._pump_all()  # a window may have opened
        return True

    def _pump_all(self) -> None:
        for number in list(self._streams):
            try:
                self._pump(number)
            except H2Error:  # the client has just given it up
                self._streams.pop(number, None)

    def _take(self, event: Event) -> bool:
        """Whether the connection goes on."""
        if isinstance(event, RequestReceived):
            path = next((value for name, value in event.headers if _text(name) == ":path"), b"")
            self._streams[event.stream_id] = _Stream(_text(path))
        elif isinstance(event, DataReceived):
            if event.flow_controlled_length:
                self._http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self._collect(event.stream_id, event.data)
        elif isinstance(event, StreamEnded):
            if event.stream_id in self._streams:
                self._answer(event.stream_id, self._streams[event.stream_id])
        elif isinstance(event, StreamReset):
            self._streams.pop(event.stream_id, None)
        elif isinstance(event, ConnectionTerminated):
            return False
        return True

    def _collect(self, number: int, data: bytes) -> None:
        stream = self._streams.get(number)
        if stream is None:
            return
        stream.request += data
        if len(stream.request) > _LONGEST:
            self._finish(number, RESOURCE_EXHAUSTED, f"the request is longer than {_LONGEST} bytes")
            with contextlib.suppress(H2Error):
                self._http.reset_stream(number, ErrorCodes.NO_ERROR)

    def _answer(self, number: int, stream: _Stream) -> None:
        server = self._server
        try:
            request = _message(stream.request)
            if stream.method in server.feeds:
                answer = server.feeds[stream.method]
            elif stream.method in server.calls:
                answer = server.calls[stream.method](request)
                stream.status = OK
            else:
                raise Refused(UNIMPLEMENTED, f"there is no method {stream.method}")
        except Refused as refusal:
            self._finish(number, refusal.status, str(refusal))
            return
        except Malformed as fault:
            self._finish(number, INVALID_ARGUMENT, f"the request of {stream.method} is malformed: {fault}")
            return
        stream.request.clear()
        stream.newer = answer  # sent when all that has come is read

    def _pump(self, number: int) -> None:
        """Send as much of a stream as its window takes."""
        stream = self._streams[number]
        if not stream.answering and stream.newer is not None:
            stream.answering = True
            self._http.send_headers(number, _HEADERS)
        while stream.out or stream.newer is not None:
            if not stream.out:
                assert stream.newer is not None
                stream.out, stream.newer = _PREFIX.pack(0, len(stream.newer)) + stream.newer, None
            most = min(self._http.local_flow_control_window(number), self._http.max_outbound_frame_size)
            if most <= 0:
                return
            self._http.send_data(number, stream.out[:most])
            stream.out = stream.out[most:]
        if stream.status is not None:
            self._finish(number, stream.status)

    def _finish(self, number: int, status: int, words: str = "") -> None:
        """End a stream with a status; what of it was not sent is left out."""
        stream = self._streams.pop(number, None)
        if stream is None:  # what was called has told a feed, and found the client gone
            return
        trailers = [("grpc-status", str(status))]
        if words:
            trailers.append(("grpc-message", quote(words, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~")))
        with contextlib.suppress(H2Error):  # the client has just given it up
            self._http.send_headers(number, [*([] if stream.answering else _HEADERS), *trailers], end_stream=True)

    def _send(self) -> None:
        self._unsent += self._http.data_to_send()
        try:
            while self._unsent:
                del self._unsent[: self._connection.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self._close()
            return
        if len(self._unsent) > _UNREAD:
            self._close()
        elif self._connection.fileno() >= 0:
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
            self._server.selector.modify(self._connection, wanted, self._ready)

    def _close(self) -> None:
        if self._connection.fileno() >= 0:
            self._server.selector.unregister(self._connection)
            self._connection.close()
        self._streams.clear()
        self._server.forget(self)


def _message(body: bytearray) -> bytes:
    """The one message of a request. Raises Refused."""
    if len(body) < _PREFIX.size:
        raise Refused(INTERNAL, "the request holds no message")
    compressed, length = _PREFIX.unpack_from(body)
    if compressed:
        raise Refused(UNIMPLEMENTED, "the request is compressed")
    if length != len(body) - _PREFIX.size:
        raise Refused(INTERNAL, "the request is not one message")
    return bytes(body[_PREFIX.size :])


def _text(header: str | bytes) -> str:
    return header.decode(errors="replace") if isinstance(header, bytes) else header
