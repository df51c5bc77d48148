"""Registers resources with the kubelet, again whenever it is another one, or has stopped listening.

    kubelet.sock appears ──▶ Register ──▶ the kubelet connects to our socket, and listens ──▶ registered
    another file there, or nobody listens for a while ──▶ Register

The kubelet connects to us before it answers Register, so that call waits in a thread of its own.
"""

from __future__ import annotations

import os
import queue
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from underlay.device_plugin import api
from underlay.kube import grpc
from underlay.kube.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable

    from underlay.kube.source import Log

_CALL: Final = 15.0  # seconds; the kubelet waits 10 s for our socket
_UNHEARD: Final = 10.0  # seconds a registered resource may be without a listener
Identity = tuple[int, int]


@dataclass(slots=True)
class _Standing:
    """How it stands with one resource: ``kubelet`` has it registered, ``calling`` is the one being asked,
    ``outdated`` whether what that one is told has changed meanwhile, ``failed`` did not take it and is left alone until
    ``not_before``; ``unheard`` is since when nobody listens.
    """

    kubelet: Identity | None = None
    calling: Identity | None = None
    outdated: bool = False
    failed: Identity | None = None
    not_before: float = 0.0
    unheard: float | None = None
    backoff: Backoff = field(default_factory=lambda: Backoff(first=0.5, most=30.0))


class Registrar:
    """Keeps resources registered. All but the calls is the caller's thread; ``wake`` is called when one has ended."""

    def __init__(self, directory: str, log: Log, wake: Callable[[], None]) -> None:
        self._socket = os.path.join(directory, api.KUBELET)
        self._log = log
        self._wake = wake
        self._standing: dict[str, _Standing] = {}
        self._ended: queue.SimpleQueue[tuple[str, grpc.CallFailed | None]] = queue.SimpleQueue()
        self._threads: set[threading.Thread] = set()

    def tend(self, resource: str, endpoint: str, listeners: int, now: float) -> None:
        """Register the resource if that is due. ``now`` is on the ``time.monotonic`` clock."""
        self._settle(now)
        standing = self._standing.setdefault(resource, _Standing())
        kubelet = self._identity()
        if kubelet is None or standing.calling is not None:
            return
        if standing.failed == kubelet and now < standing.not_before:
            return
        if standing.kubelet == kubelet and not self._deserted(standing, listeners, now):
            return
        standing.calling, standing.outdated, standing.unheard = kubelet, False, None
        deadline = now + _CALL
        thread = threading.Thread(
            target=self._register, args=(resource, endpoint, deadline), name="register", daemon=True
        )
        self._threads.add(thread)
        thread.start()

    def again(self, resource: str) -> None:
        """Our socket is another one: what the kubelet was told is not so any more."""
        standing = self._standing.setdefault(resource, _Standing())
        standing.kubelet, standing.outdated = None, True

    def close(self, seconds: float) -> None:
        """Wait for calls that run."""
        for thread in self._threads:
            thread.join(seconds)

    def _identity(self) -> Identity | None:
        try:
            status = os.stat(self._socket)
        except OSError:
            return None
        return status.st_ino, status.st_ctime_ns

    def _deserted(self, standing: _Standing, listeners: int, now: float) -> bool:
        if listeners:
            standing.unheard = None
            return False
        if standing.unheard is None:
            standing.unheard = now
        return now - standing.unheard > _UNHEARD

    def _register(self, resource: str, endpoint: str, deadline: float) -> None:
        try:
            grpc.call(self._socket, api.REGISTER, api.registration(endpoint, resource), deadline)
        except grpc.CallFailed as failure:
            self._ended.put((resource, failure))
        else:
            self._ended.put((resource, None))
        self._wake()

    def _settle(self, now: float) -> None:
        """What the calls that have ended have come to."""
        self._threads = {each for each in self._threads if each.is_alive()}
        while not self._ended.empty():
            resource, failure = self._ended.get()
            standing = self._standing[resource]
            if failure is None:
                standing.kubelet = None if standing.outdated else standing.calling
                standing.backoff.reset()
                self._log("info", "registered with the kubelet", resource=resource)
            else:
                wait = standing.backoff.next()
                standing.failed, standing.not_before = standing.calling, now + wait
                self._log(
                    "warn", "the kubelet did not take the registration", resource=resource, socket=self._socket,
                    cause=str(failure), status=failure.status, again_in=round(wait, 1),
                )  # fmt: skip
            standing.calling = None
