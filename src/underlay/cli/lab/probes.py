"""Who reaches whom: TCP connections that ask for an answer, all of them at the same time on one poll loop."""

from __future__ import annotations

import errno
import select
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from underlay.net.netns import Namespace

_PATIENCE_WHERE_ANSWERED = 4.0  # a lost SYN is sent again after 1 s and after 3 s
_PATIENCE_WHERE_SILENT = 1.0
_REQUEST = b"GET /healthz HTTP/1.0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Probe:
    """A call from one member of the lab to an address.

    ``path`` and ``column`` are its place in the table, ``answerer`` is who should answer, ``expected`` whether it can.
    """

    path: str
    column: str
    source: str
    address: str
    port: int
    answerer: str
    expected: bool

    @property
    def family(self) -> socket.AddressFamily:
        """AF_INET or AF_INET6."""
        return socket.AF_INET6 if ":" in self.address else socket.AF_INET

    @property
    def patience(self) -> float:
        """Seconds after which silence is the answer."""
        return _PATIENCE_WHERE_ANSWERED if self.expected else _PATIENCE_WHERE_SILENT


def run(probes: Sequence[Probe], open_member: Callable[[str], Namespace]) -> dict[Probe, bool]:
    """Whether each probe reached its answerer. Takes as long as the slowest alone."""
    calls = _dial(probes, open_member)
    poll = select.poll()
    waiting = {call.sock.fileno(): call for call in calls}
    for fd in waiting:
        poll.register(fd, select.POLLOUT)
    while waiting:
        wait = min(call.deadline for call in waiting.values()) - time.monotonic()
        for fd, _ in poll.poll(max(wait, 0) * 1000):
            poll.modify(fd, waiting[fd].proceed())
        for fd, call in list(waiting.items()):
            if call.done or call.deadline <= time.monotonic():
                poll.unregister(fd)
                waiting.pop(fd).sock.close()
    return {call.probe: call.reached for call in calls}


def _dial(probes: Sequence[Probe], open_member: Callable[[str], Namespace]) -> list[_Call]:
    """Start every connection, from within its source's namespace; that is entered once for all of them."""
    calls = []
    for source in sorted({probe.source for probe in probes}):
        with open_member(source) as namespace, namespace.entered():
            calls += [_Call(probe) for probe in probes if probe.source == source]
    return calls


class _Call:
    """One probe on its way: connecting, then asking, then done."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.deadline = time.monotonic() + probe.patience
        self.reached = False
        self.sock = socket.socket(probe.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.done = self.sock.connect_ex((probe.address, probe.port)) not in (0, errno.EINPROGRESS)
        self._asked = False

    def proceed(self) -> int:
        """The socket has news: take the next step. The poll event to wait for next; 0 once there is none."""
        try:
            if self._asked:
                answer = self.sock.recv(4096)
                self.reached = answer.endswith(f"\n{self.probe.answerer} is well\n".encode())
                self.done = True
            else:
                self.sock.sendall(_REQUEST)
                self._asked = True
        except OSError:  # refused, no route, no neighbour: not reached, whatever the word for it
            self.done = True
        return 0 if self.done else select.POLLIN
