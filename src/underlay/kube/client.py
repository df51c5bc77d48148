"""HTTP/1.1 to the API server, on the standard library: calls with a deadline, and watches that can be cut.

    call(…)  ──▶ an idle connection, or a new one ──▶ the answer's bytes      Refused, Unreachable
    watch(…) ──▶ a connection of its own          ──▶ lines as they come      the same, and at silence Unreachable

A connection that the server closed while it lay idle is no fault: what was asked is asked again on a new one (all that
this package asks may be asked twice). Why not a client library: docs/decisions/0006-kubernetes-client.md.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING

import msgspec

from underlay.kube.faults import Refused, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from underlay.kube.access import Access, Endpoint

_CONNECT_SECONDS = 5.0
_IDLE_KEPT = 4
_CHUNK = 65536
_LARGEST_ANSWER = 256 << 20
_LARGEST_LINE = 16 << 20  # etcd takes objects of 1.5 MB
# When the peer's kernel acknowledges nothing for this long, the connection is dead (tcp(7), TCP_USER_TIMEOUT), in ms.
_UNACKNOWLEDGED = 20_000
MERGE_PATCH = "application/merge-patch+json"


class _Status(msgspec.Struct):
    message: str = ""
    reason: str = ""


class _Connection:
    """One connection and the endpoint it leads to."""

    def __init__(self, endpoint: Endpoint, sock: socket.socket) -> None:
        self.endpoint = endpoint
        self.sock = sock
        self._http = http.client.HTTPConnection(endpoint.host, endpoint.port)
        self._http.auto_open = 0
        self._http.sock = sock

    def ask(self, method: str, target: str, body: bytes | None, headers: dict[str, str]) -> http.client.HTTPResponse:
        """Send the request and read the answer's head."""
        self._http.request(method, target, body, headers)
        return self._http.getresponse()

    def leads_to(self, endpoint: Endpoint) -> bool:
        """Whether a request for ``endpoint`` may go here."""
        now = self.endpoint
        return (now.host, now.port, now.server_name) == (endpoint.host, endpoint.port, endpoint.server_name) and (
            now.context is endpoint.context
        )

    def cut(self) -> None:
        """End it under the feet of a thread that reads from it."""
        with contextlib.suppress(OSError):
            # Not SSLSocket's own shutdown: that forgets the TLS session and would hand the reader ciphertext.
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the descriptor back; by the thread that uses it."""
        self._http.close()
        self.sock.close()


class Client:
    """Thread-safe. ``agent`` is the User-Agent header."""

    def __init__(self, access: Access, agent: str) -> None:
        self._access = access
        self._agent = agent
        self._lock = threading.Lock()
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self._closed = False

    def call(
        self, method: str, target: str, deadline: float, *, accept: str, body: bytes | None = None, kind: str = ""
    ) -> bytes:
        """The body of the answer to one request; ``target`` is path and query, ``kind`` the body's media type.

        Raises Refused for an answer that is no success and Unreachable for none by the deadline (monotonic seconds).
        Credentials that are refused are renewed, and the request repeated with the new ones.
        """
        endpoint = self._access.endpoint()
        try:
            return self._call(endpoint, method, target, deadline, self._headers(endpoint, accept, kind), body)
        except Refused as fault:
            if fault.status != 401:
                raise
            self._access.rejected()
            fresh = self._access.endpoint()
            if fresh == endpoint:
                raise
            return self._call(fresh, method, target, deadline, self._headers(fresh, accept, kind), body)

    def watch(self, target: str, *, accept: str, idle: float) -> Watch:
        """Begin a watch: it is cut when nothing comes for ``idle`` seconds. Raises Refused, Unreachable."""
        endpoint = self._access.endpoint()
        connection = self._connect(endpoint, time.monotonic() + _CONNECT_SECONDS)
        try:
            connection.sock.settimeout(idle)
            answer = connection.ask("GET", endpoint.prefix + target, None, self._headers(endpoint, accept, ""))
            if answer.status != 200:
                raise _refusal(answer, answer.read(_CHUNK))
        except (OSError, http.client.HTTPException, ValueError) as fault:
            self._release(connection, keep=False)
            raise _unreachable(endpoint, fault) from fault
        except Refused as refused:
            self._release(connection, keep=False)
            if refused.status == 401:
                self._access.rejected()
            raise
        return Watch(answer, endpoint, lambda: self._release(connection, keep=False))

    def close(self) -> None:
        """Cut every connection; whatever is asked from now on is Unreachable."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            busy = list(self._busy)
        for connection in idle:
            connection.close()
        for connection in busy:
            connection.cut()

    def _headers(self, endpoint: Endpoint, accept: str, kind: str) -> dict[str, str]:
        headers = {"Accept": accept, "User-Agent": self._agent}
        if endpoint.authorization:
            headers["Authorization"] = endpoint.authorization
        if kind:
            headers["Content-Type"] = kind
        return headers

    def _call(
        self, endpoint: Endpoint, method: str, target: str, deadline: float, headers: dict[str, str], body: bytes | None
    ) -> bytes:
        while True:
            connection = self._take(endpoint)
            fresh = connection is None
            if connection is None:
                connection = self._connect(endpoint, deadline)
            keep = False
            try:
                connection.sock.settimeout(_left(deadline))
                answer = connection.ask(method, endpoint.prefix + target, body, headers)
                content = _content(answer, connection.sock, deadline)
                keep = not answer.will_close
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError) as fault:
                if fresh:
                    raise _unreachable(endpoint, fault) from fault
                continue
            except (OSError, http.client.HTTPException, ValueError) as fault:  # ValueError: a token with a line break
                raise _unreachable(endpoint, fault) from fault
            finally:
                self._release(connection, keep=keep)
            if 200 <= answer.status < 300:
                return content
            raise _refusal(answer, content)

    def _take(self, endpoint: Endpoint) -> _Connection | None:
        """An idle connection to the endpoint; those that lead elsewhere by now are closed."""
        with self._lock:
            old = [each for each in self._idle if not each.leads_to(endpoint)]
            self._idle = [each for each in self._idle if each.leads_to(endpoint)]
            taken = self._idle.pop() if self._idle else None
            if taken is not None:
                self._busy.add(taken)
        for each in old:
            each.close()
        return taken

    def _connect(self, endpoint: Endpoint, deadline: float) -> _Connection:
        limit = min(deadline, time.monotonic() + _CONNECT_SECONDS)
        try:
            sock = socket.create_connection((endpoint.host, endpoint.port), _left(limit))
        except (OSError, ValueError) as fault:  # ValueError: a name that is none
            raise _unreachable(endpoint, fault) from fault
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED)
            if endpoint.context is not None:
                sock.settimeout(_left(limit))
                sock = endpoint.context.wrap_socket(sock, server_hostname=endpoint.server_name)
        except (OSError, ValueError) as fault:
            sock.close()
            raise _unreachable(endpoint, fault) from fault
        connection = _Connection(endpoint, sock)
        with self._lock:
            closed = self._closed
            if not closed:
                self._busy.add(connection)
        if closed:
            connection.close()
            raise Unreachable("this client is closed")
        return connection

    def _release(self, connection: _Connection, *, keep: bool) -> None:
        with self._lock:
            self._busy.discard(connection)
            if keep and not self._closed and len(self._idle) < _IDLE_KEPT:
                self._idle.append(connection)
                return
        connection.close()


class Watch:
    """A watch that has begun; read by one thread."""

    def __init__(self, answer: http.client.HTTPResponse, endpoint: Endpoint, release: Callable[[], None]) -> None:
        self._answer = answer
        self._endpoint = endpoint
        self._release = release

    def lines(self) -> Iterator[bytes]:
        """Each whole line as it comes, until the server ends the stream. Raises Unreachable where it is cut short."""
        rest = b""
        try:
            while chunk := self._answer.read1(_CHUNK):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
                if len(rest) > _LARGEST_LINE:
                    raise Unreachable(f"{self._endpoint} sent an event of more than {_LARGEST_LINE >> 20} MiB")
        except (OSError, http.client.HTTPException, ValueError) as fault:
            raise _unreachable(self._endpoint, fault) from fault
        if rest.strip():
            raise Unreachable(f"{self._endpoint} ended the stream in the middle of an event")

    def close(self) -> None:
        """Close the connection."""
        self._answer.close()
        self._release()


def _left(deadline: float) -> float:
    """Seconds until the deadline, as a socket's timeout. Raises TimeoutError where it has passed."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return min(left, threading.TIMEOUT_MAX)


def _content(answer: http.client.HTTPResponse, sock: socket.socket, deadline: float) -> bytes:
    parts: list[bytes] = []
    size = 0
    while chunk := answer.read1(_CHUNK):
        parts.append(chunk)
        size += len(chunk)
        if size > _LARGEST_ANSWER:
            raise http.client.HTTPException(f"an answer of more than {_LARGEST_ANSWER >> 20} MiB")
        sock.settimeout(_left(deadline))
    if answer.length:  # read1 tells no early end where a Content-Length was given
        raise http.client.IncompleteRead(b"", answer.length)
    answer.close()  # the connection takes its next request only then
    return b"".join(parts)


def _refusal(answer: http.client.HTTPResponse, content: bytes) -> Refused:
    try:
        status = msgspec.json.decode(content, type=_Status)
    except msgspec.DecodeError:  # a proxy's own page
        status = _Status(message=answer.reason)
    wish = answer.getheader("Retry-After", "")
    return Refused(answer.status, status.reason, status.message, float(wish) if wish.isdecimal() else None)


def _unreachable(endpoint: Endpoint, fault: Exception) -> Unreachable:
    if isinstance(fault, ssl.SSLCertVerificationError):
        why = f"its certificate is not accepted: {fault.verify_message}"
        if "not yet valid" in fault.verify_message or "expired" in fault.verify_message:
            why += f" (this node's clock says {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())})"
    else:
        why = getattr(fault, "strerror", None) or str(fault) or type(fault).__name__
    return Unreachable(f"the API server at {endpoint}: {why}")
