"""One gRPC call, one message each way, on a unix socket (gRPC over HTTP/2, PROTOCOL-HTTP2.md).

    HEADERS :path /v1.PodResourcesLister/Get    DATA 0 + length + request, END_STREAM                      we
    HEADERS :status 200     DATA 0 + length + answer …     HEADERS grpc-status, grpc-message, END_STREAM   the server

Every call has a connection of its own: a server that was restarted meanwhile is met by the next call, and nothing is
held between pods. HTTP/2 itself is h2's; why not grpcio: docs/decisions. Budget: a call 1.5 ms.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import H2Error

if TYPE_CHECKING:
    from collections.abc import Iterable

    from h2.events import Event

OK: Final = 0
UNKNOWN: Final = 2
DEADLINE_EXCEEDED: Final = 4
NOT_FOUND: Final = 5
RESOURCE_EXHAUSTED: Final = 8
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13
UNAVAILABLE: Final = 14

_LONGEST: Final = 16 << 20  # bytes of an answer: a thousand containers with a hundred devices are 2 MiB
_PREFIX: Final = struct.Struct("!BI")  # compressed?, length


class CallFailed(Exception):
    """The call's status (statuscodes.md) is not OK. The client's own statuses are those that gRPC libraries give:
    UNAVAILABLE for a connection that cannot be made or was lost, DEADLINE_EXCEEDED, INTERNAL for no gRPC.
    """

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


def call(path: str, method: str, request: bytes, deadline: float) -> bytes:
    """The answer to ``request``, both encoded messages; ``method`` is "/package.Service/Method".

    ``path`` is the socket's, ``deadline`` on the ``time.monotonic`` clock. Raises CallFailed.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            _limit(connection, deadline)
            connection.connect(path)
            return _Call(connection, deadline).run(method, request)
    except TimeoutError as fault:
        raise CallFailed(DEADLINE_EXCEEDED, "no answer in time") from fault
    except OSError as fault:
        raise CallFailed(UNAVAILABLE, fault.strerror or str(fault)) from fault
    except H2Error as fault:
        raise CallFailed(INTERNAL, f"the answer is no HTTP/2: {fault}") from fault


def _limit(connection: socket.socket, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection.settimeout(left)


class _Call:
    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline
        self._http = H2Connection(H2Configuration(header_encoding=None))
        self._body = bytearray()
        self._headers: dict[str, str] = {}

    def run(self, method: str, request: bytes) -> bytes:
        left = max(1, int((self._deadline - time.monotonic()) * 1000))
        headers = [
            (":method", "POST"), (":scheme", "http"), (":path", method), (":authority", "localhost"),
            ("te", "trailers"), ("content-type", "application/grpc"), ("user-agent", "underlay"),
            ("grpc-timeout", f"{min(left, 99_999_999)}m"),
        ]  # fmt: skip
        self._http.initiate_connection()
        stream = self._http.get_next_available_stream_id()
        self._http.send_headers(stream, headers)
        self._http.send_data(stream, _PREFIX.pack(0, len(request)) + request, end_stream=True)
        self._send()
        while not self._take(self._receive()):
            self._send()
        return self._answer()

    def _send(self) -> None:
        _limit(self._connection, self._deadline)
        self._connection.sendall(self._http.data_to_send())

    def _receive(self) -> Iterable[Event]:
        _limit(self._connection, self._deadline)
        received = self._connection.recv(65536)
        if not received:
            raise CallFailed(UNAVAILABLE, "the connection was closed before the answer")
        return self._http.receive_data(received)

    def _take(self, events: Iterable[Event]) -> bool:
        """Whether the answer is complete."""
        for event in events:
            if isinstance(event, (ResponseReceived, TrailersReceived)):
                self._headers.update((_text(name), _text(value)) for name, value in event.headers)
            elif isinstance(event, DataReceived):
                self._body += event.data
                if len(self._body) > _LONGEST:
                    raise CallFailed(RESOURCE_EXHAUSTED, f"the answer is longer than {_LONGEST} bytes")
                if event.flow_controlled_length:
                    self._http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, StreamReset):
                raise CallFailed(UNAVAILABLE, f"the server broke the call off (HTTP/2 error {event.error_code})")
            elif isinstance(event, ConnectionTerminated) and event.error_code:
                raise CallFailed(UNAVAILABLE, f"the server went away (HTTP/2 error {event.error_code})")
            elif isinstance(event, StreamEnded):
                return True
        return False

    def _answer(self) -> bytes:
        status = self._headers.get("grpc-status", "")
        if not status.isascii() or not status.isdigit() or len(status) > 3:
            http = self._headers.get(":status", "none")
            raise CallFailed(INTERNAL, f"the answer is no gRPC: HTTP status {http} and no grpc-status")
        if int(status) != OK:
            raise CallFailed(int(status), unquote(self._headers.get("grpc-message", "")) or f"gRPC status {status}")
        if len(self._body) < _PREFIX.size:
            raise CallFailed(INTERNAL, "the answer holds no message")
        compressed, length = _PREFIX.unpack_from(self._body)
        if compressed or length != len(self._body) - _PREFIX.size:
            raise CallFailed(INTERNAL, "the answer is compressed, or not one message")
        return bytes(self._body[_PREFIX.size :])


def _text(header: str | bytes) -> str:
    return header.decode(errors="replace") if isinstance(header, bytes) else header
