"""One lock per key, made when it is wanted and dropped when nobody wants it any more."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable


class KeyedLocks:
    """Mutual exclusion by key: ADD and DEL of one attachment never run side by side."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[Hashable, tuple[threading.Lock, int]] = {}

    def acquire(self, key: Hashable, timeout: float) -> bool:
        """Take the key's lock; False when it is not free within ``timeout`` seconds (0: now or not at all)."""
        with self._guard:
            lock, users = self._locks.get(key) or (threading.Lock(), 0)
            self._locks[key] = (lock, users + 1)
            if lock.acquire(blocking=False):
                return True
        if timeout > 0 and lock.acquire(timeout=timeout):
            return True
        self._leave(key)
        return False

    def release(self, key: Hashable) -> None:
        """Give the key's lock back."""
        self._locks[key][0].release()
        self._leave(key)

    def taken(self, key: Hashable) -> bool:
        """Whether somebody holds the key's lock, or waits for it, at this moment."""
        return key in self._locks

    def _leave(self, key: Hashable) -> None:
        with self._guard:
            lock, users = self._locks[key]
            if users == 1:
                del self._locks[key]
            else:
                self._locks[key] = (lock, users - 1)
