"""The webhook's HTTPS server: POST /validate, GET /healthz, one exchange a connection.

    accept ─▶ a thread each, 64 at most ─▶ TLS ─▶ head, body (4 MiB at most) ─▶ judge, few at a time ─▶ answer ─▶ close

Everything of an exchange shares one deadline, so a client that dribbles is cut off; where all threads are taken, the
client that has been dribbling for longest is. The API server opens a new connection when it needs one.
"""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, Final

from underlay.cni import shapes
from underlay.errors import InvalidConfig, IOFailure
from underlay.webhook.admission import Decision, NoReview

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from underlay.webhook.certificate import Certificate

VALIDATE: Final = "/validate"
HEALTHZ: Final = "/healthz"
# An object has 1.5 MiB at most (etcd's limit), a review holds two of them.
BODY_BYTES: Final = 4 << 20
_DRAINED_BYTES: Final = 64 << 20
_CHUNK: Final = 64 << 10
# Python computes in one thread at a time; more at once would only make all of them late.
_JUDGES: Final = 4


class Server:
    """Serves until :meth:`stop`. ``judge`` answers a body; it raises NoReview for what is none."""

    def __init__(
        self,
        address: tuple[str, int],
        *,
        certificate: Certificate,
        judge: Callable[[bytes], Decision],
        log: Callable[..., None],
        connections: int = 64,
        seconds: float = 10.0,
    ) -> None:
        """Listen. ``seconds`` is what one exchange may take. Raises IOFailure when the address cannot be had."""
        self._listening = _listen(*address)
        self.port: int = self._listening.getsockname()[1]
        self.judge = judge
        self.log = log
        self.judging = threading.Semaphore(_JUDGES)
        self._certificate = certificate
        self._seconds = seconds
        self._slots = threading.Semaphore(connections)
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._reading: dict[threading.Thread, socket.socket] = {}  # in the order of their coming
        self._serving = threading.Lock()
        self._stopping = False

    def start(self) -> None:
        """Serve, in a thread of its own."""
        threading.Thread(target=self.serve, name="accept", daemon=True).start()

    def serve(self) -> None:
        """Accept connections until :meth:`stop` is called."""
        shapes.make_ready()
        with self._serving:
            while not self._stopping:
                self._accept()

    def _accept(self) -> None:
        try:
            connection, _ = self._listening.accept()
        except OSError as error:
            if not self._stopping:
                self.log("warn", "cannot accept", cause=error.strerror or str(error))
                time.sleep(0.1)  # out of file descriptors: they come back when exchanges end
            return
        if not self._slots.acquire(blocking=False):
            self._cut_oldest()
            self._slots.acquire()
        self._start(connection)

    def stop(self, seconds: float) -> bool:
        """Accept no more and wait for the exchanges that run; whether they have ended in that time."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._slots.release()
        deadline = time.monotonic() + seconds
        if self._serving.acquire(timeout=seconds):  # so that none is started any more
            self._serving.release()
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def received(self) -> None:
        """The request of the calling thread is whole: its client is not slow."""
        with self._lock:
            self._reading.pop(threading.current_thread(), None)

    def _start(self, connection: socket.socket) -> None:
        thread = threading.Thread(target=self._exchange, args=(connection,), name="exchange", daemon=True)
        with self._lock:
            self._threads.add(thread)
            self._reading[thread] = connection
        thread.start()

    def _cut_oldest(self) -> None:
        with self._lock:
            oldest = next(iter(self._reading.values()), None)
            if oldest is not None:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(oldest, socket.SHUT_RDWR)  # TLS's own would touch what its thread works on

    def _exchange(self, connection: socket.socket) -> None:
        try:
            with connection:
                self._answer(connection)
        except OSError as error:  # the client's affair: TLS, time, a connection that broke
            self.log("debug", "exchange broke off", cause=" ".join(str(error).split()))
        except Exception as error:
            self.log("error", "exchange failed", error=repr(error))
        finally:
            self.received()
            with self._lock:
                self._threads.discard(threading.current_thread())
            self._slots.release()

    def _answer(self, connection: socket.socket) -> None:
        deadline = time.monotonic() + self._seconds
        connection.settimeout(self._seconds)
        context = self._certificate.context()
        with self._lock:  # it takes the descriptor over: nobody must find the one that has none any more
            tls = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            self._reading[threading.current_thread()] = tls
        with tls:
            tls.do_handshake()
            _Exchange(_Timed(tls, deadline), self)


class _Timed(io.RawIOBase):
    """A connection whose every read and write together end at one deadline."""

    def __init__(self, connection: ssl.SSLSocket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._wait()
        return self._connection.recv_into(buffer)

    def write(self, content: Any) -> int:
        self._wait()
        self._connection.sendall(content)
        return len(content)

    def _wait(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the exchange took too long")
        self._connection.settimeout(left)


class _Exchange(BaseHTTPRequestHandler):
    """One request and its answer; the standard library reads the head, with limits to its lines and their number."""

    protocol_version = "HTTP/1.1"
    error_message_format = "%(code)d %(message)s\n"
    error_content_type = "text/plain"

    def __init__(self, stream: _Timed, site: Server) -> None:
        self._stream = stream
        self._site = site
        self._refused = False
        super().__init__(stream, ("", 0), site)  # type: ignore[arg-type]

    def setup(self) -> None:
        """Read and write by the deadline."""
        self.rfile = io.BufferedReader(self._stream)
        # no buffer: it would write again when it is collected
        self.wfile = self._stream  # type: ignore[assignment]

    def finish(self) -> None:
        """Writes are not kept back, so there is nothing to flush."""

    def handle(self) -> None:
        """One request. Where it is refused, its answer would be lost on a client that is still writing, so what that
        writes is thrown away.
        """
        self.close_connection = True
        self.handle_one_request()
        left = _DRAINED_BYTES if self._refused else 0
        while left > 0 and (chunk := self.rfile.read1(_CHUNK)):
            left -= len(chunk)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """As the standard library."""
        self._refused = True
        super().send_error(code, message, explain)

    def version_string(self) -> str:
        """The header Server."""
        return "underlay"

    def log_message(self, *_words: Any) -> None:
        """What is worth a line is logged where it is known."""

    def do_GET(self) -> None:
        """Alive."""
        if self._path() == HEALTHZ:
            self._send(HTTPStatus.OK, b"ok\n", "text/plain")
        else:
            self.send_error(HTTPStatus.NOT_FOUND, f"{VALIDATE} and {HEALTHZ} are here")

    def do_POST(self) -> None:
        """An AdmissionReview."""
        if self._path() != VALIDATE:
            self.send_error(HTTPStatus.NOT_FOUND, f"{VALIDATE} and {HEALTHZ} are here")
            return
        body = self._body()
        if body is None:
            return
        self._site.received()
        begun = time.perf_counter()
        try:
            with self._site.judging:
                decision = self._site.judge(body)
        except NoReview as error:
            self.send_error(HTTPStatus.BAD_REQUEST, "no review")
            self._site.log("warn", "no review", cause=str(error))
            return
        self._send(HTTPStatus.OK, decision.body, "application/json")
        level = "debug" if decision.allowed and not decision.warnings else "info"
        self._site.log(
            level,
            "judged",
            subject=decision.subject,
            allowed=decision.allowed,
            errors=decision.errors,
            warnings=decision.warnings,
            ms=round((time.perf_counter() - begun) * 1e3, 3),
        )

    def _path(self) -> str:
        """Without the query: the API server adds ?timeout=5s."""
        return self.path.partition("?")[0]

    def _body(self) -> bytes | None:
        """The whole body, or None where it is refused."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or self.headers.get("Transfer-Encoding"):
            self.send_error(HTTPStatus.LENGTH_REQUIRED, "Content-Length is wanted")
            return None
        if len(length) > 12 or int(length) > BODY_BYTES:
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {BODY_BYTES} bytes")
            return None
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionError("the body ended too early")
        return body

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def _listen(host: str, port: int) -> socket.socket:
    """``host`` "" is every address of both families, as far as the node has them."""
    if not 0 <= port <= 65535:
        raise InvalidConfig(f"--port {port} is no port", hint="A port is 1 to 65535.")
    try:
        if not host and socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise IOFailure(
            f"cannot listen at {host}:{port}: {error.strerror or error}", hint="Correct --address and --port."
        ) from error
