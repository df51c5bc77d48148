"""Devices that one pod alone may have at a time: who recorded an undo entry of a device has it until that is undone.

The kubelet hands a device on as soon as a pod's containers have ended, which may be before its DEL: without this the
DEL of the one would reset what the ADD of the other has set.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from underlay.errors import DeviceInUse, TryAgain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from underlay.delegate.ledger import Ledger, Row
    from underlay.delegate.locks import KeyedLocks


class Claims:
    """The devices as one call may claim them. ``boot``: rows of an earlier one hold nothing any more."""

    def __init__(
        self, ledger: Ledger, locks: KeyedLocks, boot: str, *, deadline: float,
        blocking: Callable[[], AbstractContextManager[None]],
    ) -> None:  # fmt: skip
        self._ledger = ledger
        self._locks = locks
        self._boot = boot
        self._deadline = deadline
        self._blocking = blocking

    @contextmanager
    def claiming(self, device: str) -> Iterator[None]:
        """See :class:`underlay.plugins.context.Devices`."""
        self._lock(device)
        try:
            holder = next((row for row in self._ledger.mentioning(device) if row.boot == self._boot), None)
            if holder is not None:
                raise DeviceInUse(f"device {device} is in use by {_words(holder)}")
            yield
        finally:
            self._locks.release(device)

    def _lock(self, device: str) -> None:
        if self._locks.acquire(device, 0):
            return
        with self._blocking():
            if not self._locks.acquire(device, self._deadline - time.monotonic()):
                raise TryAgain(f"another call that takes device {device} has not ended yet")


def _words(row: Row) -> str:
    pod = f"pod {row.pod_namespace}/{row.pod_name}" if row.pod_name else f"container {row.container_id}"
    leaving = ", whose network is being taken down" if row.state == "deleting" else ""
    return f"{pod} as {row.ifname}{leaving}"
