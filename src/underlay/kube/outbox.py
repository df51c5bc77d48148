"""What has yet to be written to the API server: in memory, in order, and kept on disk until it is there.

StatusWrite   network-status of one pod; a newer one takes the place of an older one
EventWrite    one Event, or that it has happened again (``count`` above 1)
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from underlay.kube.kept import Kept
    from underlay.kube.resources import Key
    from underlay.kube.source import Log

MOST_EVENTS: Final = 1000


class StatusWrite(msgspec.Struct, frozen=True, tag_field="write", tag="status"):
    """``uid`` is the API object's, which a static pod's runtime does not know: hence ``static``."""

    namespace: str
    name: str
    uid: str
    static: bool
    status: str

    @property
    def lane(self) -> Key:
        """The pod: what concerns one pod is written in order."""
        return self.namespace, self.name

    @property
    def thing(self) -> tuple[str, ...]:
        """What there is one write of at a time."""
        return self.namespace, self.name, self.uid


class EventWrite(msgspec.Struct, frozen=True, tag_field="write", tag="event"):
    """``event`` is the Event's own name, decided before the first try, so that it is made once; ``first`` and ``last``
    are RFC 3339 times. ``made``: it is there already, and its count is what is new. ``namespace`` is where the Event
    lies, and the object of ``kind`` that it is about unless that has none.
    """

    namespace: str
    name: str
    uid: str
    event: str
    type: str
    reason: str
    message: str
    first: str
    last: str
    count: int = 1
    made: bool = False
    kind: Literal["Pod", "Node"] = "Pod"

    @property
    def lane(self) -> Key:
        """The pod, or node: what concerns one pod is written in order."""
        return self.namespace, self.name

    @property
    def thing(self) -> tuple[str, ...]:
        """What there is one write of at a time."""
        return (self.event,)


Write = StatusWrite | EventWrite
_DECODER: Final = msgspec.json.Decoder(Write)


class Outbox:
    """Thread-safe; ``changed`` is notified of every new entry."""

    def __init__(self, kept: Kept, log: Log) -> None:
        self._kept = kept
        self._log = log
        self.changed = threading.Condition()
        self._writes: dict[int, Write] = {}
        self._numbers: dict[tuple[str, ...], int] = {}  # by what a later write of the same thing is found by
        for number, body in kept.outbox():
            try:
                self._add(number, _DECODER.decode(body))
            except msgspec.DecodeError:
                kept.posted([number])
        self._last = max(self._writes, default=0)

    def __len__(self) -> int:
        return len(self._writes)

    def post(self, write: Write) -> None:
        """Append; what it makes obsolete goes: the pod's older status, the oldest Event where there are too many."""
        with self.changed:
            older = self._numbers.get(write.thing)
            self._remove([older] if older is not None else self._too_many(write))
            self._last += 1
            self._add(self._last, write)
            self._kept.post(self._last, msgspec.json.encode(write))
            self.changed.notify_all()

    def waiting_event(self, event: str, change: Callable[[EventWrite], EventWrite]) -> bool:
        """Replace the waiting write of that Event, where there is one, by what ``change`` makes of it."""
        with self.changed:
            number = self._numbers.get((event,))
            waiting = None if number is None else self._writes[number]
            if number is None or not isinstance(waiting, EventWrite):
                return False
            self._replace(number, change(waiting))
            return True

    def make_anew(self, number: int) -> None:
        """The Event that a write counts is not there any more: it is made again, as it is to be told by now."""
        with self.changed:
            now = self._writes.get(number)
            if isinstance(now, EventWrite):
                self._replace(number, msgspec.structs.replace(now, made=False))

    def lanes(self) -> set[Key]:
        """Those that anything waits in."""
        with self.changed:
            return {each.lane for each in self._writes.values()}

    def drop_status(self, namespace: str, name: str, uid: str) -> None:
        """Forget the statuses of a pod that wait: of that UID, of a static pod, or of all UIDs for an empty one."""
        with self.changed:
            self._remove([
                number for number, each in self._writes.items()
                if isinstance(each, StatusWrite) and each.lane == (namespace, name)
                and (not uid or each.static or each.uid == uid)
            ])  # fmt: skip

    def done(self, number: int, write: Write) -> None:
        """It is written, or never will be. An Event that happened again meanwhile has its new count still to go."""
        with self.changed:
            now = self._writes.get(number)
            if now is write:
                self._remove([number])
            elif isinstance(now, EventWrite):
                self._replace(number, msgspec.structs.replace(now, made=True))

    def first(self, is_due: Callable[[Key], bool]) -> tuple[int, Write] | None:
        """The oldest write that is the oldest of its lane, and whose lane is due."""
        with self.changed:
            passed: set[Key] = set()
            for number, each in self._writes.items():
                if each.lane in passed:
                    continue
                if is_due(each.lane):
                    return number, each
                passed.add(each.lane)
        return None

    def _add(self, number: int, write: Write) -> None:
        self._writes[number] = write
        self._numbers[write.thing] = number

    def _replace(self, number: int, write: Write) -> None:
        self._writes[number] = write
        self._kept.post(number, msgspec.json.encode(write))

    def _remove(self, numbers: list[int]) -> None:
        for number in numbers:
            self._numbers.pop(self._writes.pop(number).thing, None)
        if numbers:
            self._kept.posted(numbers)

    def _too_many(self, write: Write) -> list[int]:
        if isinstance(write, StatusWrite) or len(self._writes) < MOST_EVENTS:
            return []
        events = [number for number, each in self._writes.items() if isinstance(each, EventWrite)]
        if len(events) < MOST_EVENTS:
            return []
        self._log("warn", "too many Events wait for the API server, the oldest is dropped", waiting=len(events))
        return events[:1]
