"""One resource as last told by the API server: in memory, kept on disk, and waited for.

    listing ──list──▶ watching ──fault──▶ away ──list or watch──▶ watching
    kept on disk ──▶ (found at once, in every state)

What is found is the state of a moment ago; what is not found is another question: whether it does not exist or is not
told yet. ``absent`` are the names that the API server has said do not exist; a watch keeps that true.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Generic, Literal

from underlay.kube import resources
from underlay.kube.resources import Entry, Key, Value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from underlay.kube.kept import Kept, Nowhere, Restored

State = Literal["listing", "watching", "away"]
_MOST_ABSENT = 1000


class Cache(Generic[Value]):
    """Thread-safe; written to by one thread, its :class:`~underlay.kube.reflector.Reflector`. ``restored`` makes values
    of what was kept; ``changes`` is another number whenever a value has come, gone or become another. ``gone`` is told
    of what exists no more, be its name in use again, from that thread.
    """

    def __init__(
        self,
        kind: str,
        kept: Kept | Nowhere,
        restored: Restored = resources.restored,
        *,
        gone: Callable[[Entry[Value]], None] | None = None,
    ) -> None:
        self.kind = kind
        self.cause = "the first list is not there yet"
        self._state: State = "listing"
        self._kept = kept
        self._lock = threading.Lock()
        self._listed = threading.Event()
        self._waiting: dict[Key, list[threading.Event]] = {}
        self.changes = 0
        self._gone = gone
        self._entries: dict[Key, Entry[Value]] = {entry.key: entry for entry in kept.objects(kind, restored)}
        self._absent: set[Key] = kept.absent(kind)
        self._ever = kept.synchronised(kind)

    @property
    def state(self) -> State:
        """Whether it is being told of changes now."""
        return self._state

    @property
    def ever(self) -> bool:
        """Whether it was whole once, be it before a restart."""
        return self._ever

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: Key) -> Entry[Value] | None:
        """The object as last told, without waiting."""
        return self._entries.get(key)

    def values(self) -> list[Value]:
        """Every object as last told."""
        with self._lock:
            return [entry.value for entry in self._entries.values()]

    def is_absent(self, key: Key) -> bool:
        """Whether the API server has said that it does not exist, and has not told otherwise since."""
        return key in self._absent and key not in self._entries

    def wait(self, key: Key, fits: Callable[[Entry[Value]], bool], deadline: float) -> Entry[Value] | None:
        """The object, as soon as it is there and fits; None at the deadline, and at once while away."""
        while True:
            found = self._entries.get(key)
            if found is not None and fits(found):
                return found
            told = threading.Event()
            with self._lock:
                if self._state == "away":
                    return None
                if self._entries.get(key) is not found:
                    continue
                self._waiting.setdefault(key, []).append(told)
            try:
                if not told.wait(max(0.0, deadline - time.monotonic())):
                    return None
            finally:
                self._no_longer(key, told)

    def wait_listed(self, deadline: float) -> None:
        """Return when the first list has come, or has failed, or at the deadline."""
        self._listed.wait(max(0.0, deadline - time.monotonic()))

    def replace(self, entries: Iterable[Entry[Value]]) -> None:
        """Everything, as listed."""
        now = {entry.key: entry for entry in entries}
        with self._lock:
            if not self._ever or _said(self._entries) != _said(now):
                self.changes += 1
            before, self._entries = self._entries, now
            self._absent -= now.keys()
            self._ever = True
            self._wake(*self._waiting)
        self._kept.replace(self.kind, now.values())
        for key, entry in before.items():
            self._tell_gone(entry, now.get(key))

    def put(self, entry: Entry[Value]) -> None:
        """An object that is new or has changed."""
        with self._lock:
            before = self._entries.get(entry.key)
            # Most changes are none to us.
            changed = before is None or (before.uid, before.value) != (entry.uid, entry.value)
            self._entries[entry.key] = entry
            self.changes += changed
            self._absent.discard(entry.key)
            self._wake(entry.key)
        if changed:
            self._kept.put(self.kind, entry)
        self._tell_gone(before, entry)

    def remove(self, key: Key) -> None:
        """An object that exists no more."""
        with self._lock:
            before = self._entries.pop(key, None)
            self.changes += before is not None
            self._wake(key)
        self._kept.remove(self.kind, key)
        self._tell_gone(before, None)

    def note_absent(self, key: Key) -> None:
        """The API server says that it does not exist."""
        with self._lock:
            if key in self._absent or len(self._absent) >= _MOST_ABSENT:
                return
            self._absent.add(key)
        self._kept.note_absent(self.kind, key)

    def becomes(self, state: State, cause: str = "") -> None:
        """Another state; ``cause`` says why it is away."""
        with self._lock:
            self._state, self.cause = state, cause
            (self._listed.clear if state == "listing" else self._listed.set)()
            self._wake(*self._waiting)

    def _tell_gone(self, before: Entry[Value] | None, now: Entry[Value] | None) -> None:
        if self._gone is not None and before is not None and (now is None or now.uid != before.uid):
            self._gone(before)

    def _wake(self, *keys: Key) -> None:
        for key in keys:
            for told in self._waiting.get(key, ()):
                told.set()

    def _no_longer(self, key: Key, told: threading.Event) -> None:
        with self._lock:
            self._waiting[key].remove(told)
            if not self._waiting[key]:
                del self._waiting[key]


def _said(entries: dict[Key, Entry[Value]]) -> dict[Key, tuple[str, Value]]:
    return {key: (entry.uid, entry.value) for key, entry in entries.items()}
