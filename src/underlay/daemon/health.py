"""Whether the daemon is ready and alive, for people, systemd and the kubelet's probes.

    underlay status [--wait S]     a request for the plugin "_health" on the daemon's own socket
    NOTIFY_SOCKET                  READY=1, STOPPING=1 (sd_notify)
    health_address                 GET /healthz (alive), /readyz (serves ADD): 200 or 503 and the reason

Ready means that ADD would be served; alive, that requests come to an end, or that a new start would change nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from underlay.errors import IOFailure

if TYPE_CHECKING:
    from collections.abc import Callable

PLUGIN = "_health"
State = Literal["starting", "ready", "stopping"]
# A request that is this far past its deadline hangs in the kernel or in a bug; restarting may help.
_HANGING_SECONDS = 60.0
# Parts that a new start of the daemon's container mends: a mount whose directory was removed on the node.
_MENDED_BY_A_START = frozenset({"socket"})
_PROBE_SECONDS = 2.0


class Status(msgspec.Struct, frozen=True):
    """What ``underlay status`` prints. ``faults`` says why it is not ready or not alive."""

    state: State
    ready: bool
    alive: bool
    faults: tuple[str, ...]
    version: str
    pid: int
    uptime_s: float
    requests: int
    failures: int
    in_flight: int
    spooled: int


class Health:
    """Counts requests and knows what is wrong. Thread-safe."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._running: dict[int, float] = {}
        self._numbers = itertools.count(1)
        self._requests = 0
        self._failures = 0
        self._faults: dict[str, str] = {}
        self.state: State = "starting"
        self.spooled = 0

    def begin(self, deadline: float) -> int:
        """A request begins; returns the number to end it with."""
        with self._lock:
            self._requests += 1
            number = next(self._numbers)
            self._running[number] = deadline
            return number

    def overlook(self, number: int) -> None:
        """It only asks how the daemon is: whoever reads the answer does not count himself."""
        with self._lock:
            if self._running.pop(number, None) is not None:
                self._requests -= 1

    def end(self, number: int, *, failed: bool) -> None:
        """A request is answered."""
        with self._lock:
            self._running.pop(number, None)
            self._failures += failed

    def fault(self, part: str, reason: str) -> None:
        """Something the daemon needs is broken ("" : it works again); the daemon is not ready until then."""
        with self._lock:
            if reason:
                self._faults[part] = reason
            else:
                self._faults.pop(part, None)

    def status(self) -> Status:
        """The present state."""
        now = time.monotonic()
        with self._lock:
            hanging = sum(now > deadline + _HANGING_SECONDS for deadline in self._running.values())
            faults = tuple(f"{part}: {reason}" for part, reason in self._faults.items())
            if hanging:
                faults += (f"{hanging} requests hang",)
            return Status(
                state=self.state,
                ready=self.state == "ready" and not faults,
                alive=not hanging and self._faults.keys().isdisjoint(_MENDED_BY_A_START),
                faults=faults,
                version=self._version,
                pid=os.getpid(),
                uptime_s=round(now - self._started, 3),
                requests=self._requests,
                failures=self._failures,
                in_flight=len(self._running),
                spooled=self.spooled,
            )


def notify(message: str, address: str | None) -> None:
    """Tell systemd, where ``address`` (NOTIFY_SOCKET) names its socket; a lost word is no fault."""
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as outgoing:
            outgoing.settimeout(1)
            outgoing.connect("\0" + address[1:] if address.startswith("@") else address)
            outgoing.send(message.encode())


class Probes:
    """A thread that answers the kubelet's HTTP probes, one connection at a time."""

    def __init__(self, host: str, port: int, status: Callable[[], Status]) -> None:
        """Listen. Raises IOFailure when the address cannot be had."""
        try:
            self._listening = socket.create_server((host, port), family=_family(host))
        except OSError as error:
            hint = 'Correct "health_address", or stop what listens there.'
            raise IOFailure(f"cannot listen at {host}:{port}: {error.strerror or error}", hint=hint) from error
        self.port: int = self._listening.getsockname()[1]
        self._status = status
        self._closed = False
        threading.Thread(target=self._run, name="probes", daemon=True).start()

    def close(self) -> None:
        """Answer no more."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:  # of one client, or of a process without descriptors: the next is to find somebody here
                if self._closed:
                    return
                time.sleep(0.1)  # no event tells when there are descriptors again
                continue
            with connection, contextlib.suppress(OSError):
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        deadline = time.monotonic() + _PROBE_SECONDS
        head = b""
        while b"\r\n\r\n" not in head and len(head) < 8192 and (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            chunk = connection.recv(4096)
            if not chunk:
                return
            head += chunk
        code, body = self._page(head.split(b" ", 2)[1:2])
        connection.sendall(
            f"HTTP/1.1 {code}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n".encode()
            + b"Connection: close\r\n\r\n"
            + body
        )

    def _page(self, path: list[bytes]) -> tuple[str, bytes]:
        status = self._status()
        good = {b"/healthz": status.alive, b"/readyz": status.ready}.get(path[0] if path else b"")
        if good is None:
            return "404 Not Found", b"/healthz and /readyz are here\n"
        if good:
            return "200 OK", b"ok\n"
        return "503 Service Unavailable", ("\n".join(status.faults or (status.state,)) + "\n").encode()


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def encode(status: Status) -> bytes:
    """The status as JSON."""
    return msgspec.json.encode(status)


def decode(content: bytes) -> Any:
    """The JSON that a daemon sent, of whichever version it is."""
    return msgspec.json.decode(content)
