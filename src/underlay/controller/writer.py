"""Writes to the API server what is wanted: a few at a time, each object now and then, and only while leading.

    want(writes) ──▶ those due, oldest first ──▶ a few threads ──▶ POST, PATCH, DELETE
                       ▲   an object again after ``gap``; a fault: after a while, ever longer; the others go on
                       └── 429, 503, no answer: all wait

``want`` says everything that is wanted now. What is no longer wanted is not written; what has just been written is not
written again before the watch has had time to show it.
"""

from __future__ import annotations

import heapq
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from underlay.kube.backoff import Backoff
from underlay.kube.client import MERGE_PATCH
from underlay.kube.faults import Refused, Unreachable
from underlay.kube.resources import JSON

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from underlay.controller.writes import Thing, Write
    from underlay.kube.client import Client
    from underlay.kube.source import Log

_REQUEST_SECONDS: Final = 10.0
_SETTLING: Final = 10.0
_LONGEST: Final = 60.0
_LONGEST_END: Final = 5.0
_EVERYBODY: Final = frozenset({401, 429, 503})  # says nothing about the one object
_OVERTAKEN: Final = frozenset({404, 409})  # somebody else was quicker: the watch will show it


@dataclass(frozen=True, slots=True)
class Pace:
    """``gap``: seconds between two writes of one thing, one more for every ``per_second`` bytes of it; ``rate``: writes
    a second; ``threads``: at a time.
    """

    gap: float = 2.0
    per_second: int = 50_000
    rate: float = 200.0
    threads: int = 4


@dataclass(slots=True)
class _History:
    """What is remembered of one thing."""

    due: float = 0.0
    done: Write | None = None
    done_at: float = 0.0
    backoff: Backoff = field(default_factory=lambda: Backoff(0.5, _LONGEST))
    cause: str = ""


class Writer:
    """Thread-safe. ``until()`` is the monotonic time up to which writing is allowed; ``written`` is called after each
    write, from the thread that wrote.
    """

    def __init__(
        self, client: Client, log: Log, until: Callable[[], float], *, pace: Pace | None = None,
        written: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._client = client
        self._log = log
        self._until = until
        self._pace = pace or Pace()
        self._written = written
        self._changed = threading.Condition()
        self._wanted: list[tuple[float, int, Write]] = []
        self._history: dict[Thing, _History] = {}
        self._busy: set[Thing] = set()
        self._behind: dict[Thing, tuple[int, Write]] = {}  # wanted while that thing is busy
        self._slot = 0.0
        self._pause = Backoff(0.2, 15.0)
        self._paused_until = 0.0
        self._away = ""
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._run, name=f"writer-{n}", daemon=True) for n in range(self._pace.threads)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Begin no write any more, and wait for those under way."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(_LONGEST_END)

    def want(self, writes: Iterable[Write]) -> None:
        """From now on these are wanted, and no others."""
        now = time.monotonic()
        with self._changed:
            heap: list[tuple[float, int, Write]] = []
            things: set[Thing] = set()
            for number, write in enumerate(writes):
                things.add(write.thing)
                known = self._history.get(write.thing)
                if known is not None and known.done == write and now < known.done_at + _SETTLING:
                    continue
                heap.append((known.due if known else 0.0, number, write))
            heapq.heapify(heap)
            self._wanted = heap
            self._behind.clear()
            self._forget(things, now)
            self._changed.notify_all()

    def waiting(self) -> int:
        """How many writes are wanted and not done."""
        with self._changed:
            return len(self._wanted) + len(self._behind) + len(self._busy)

    # -- the threads ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (write := self._next()) is not None:
            try:
                self._try(write)
            finally:
                self._is_over(write.thing)
            self._written()

    def _is_over(self, thing: Thing) -> None:
        """One more try of a thing has ended, and what was wanted of it meanwhile has its turn."""
        with self._changed:
            self._busy.discard(thing)
            behind, known = self._behind.pop(thing, None), self._history.get(thing)
            if behind is not None and (known is None or known.done != behind[1]):
                heapq.heappush(self._wanted, (known.due if known else 0.0, *behind))
            self._changed.notify_all()

    def _next(self) -> Write | None:
        """The next that is due; None at the end."""
        with self._changed:
            while not self._stopping:
                now = time.monotonic()
                begin = max(self._paused_until, self._slot)
                if self._wanted and now >= self._until():
                    self._changed.wait(0.2)  # not leading
                elif not self._wanted:
                    self._changed.wait()
                elif now < (due := max(begin, self._wanted[0][0])):
                    self._changed.wait(due - now)
                else:
                    _, number, write = heapq.heappop(self._wanted)
                    if write.thing in self._busy:
                        self._behind[write.thing] = (number, write)
                        continue
                    self._busy.add(write.thing)
                    self._slot = max(self._slot, now - 1.0) + 1.0 / self._pace.rate
                    return write
        return None

    def _try(self, write: Write) -> None:
        now = time.monotonic()
        deadline = min(now + _REQUEST_SECONDS, self._until())
        if deadline <= now:
            return  # another one leads by now
        try:
            self._send(write, deadline)
        except Unreachable as fault:
            self._all_wait(str(fault), None)
        except Refused as fault:
            if fault.status in _EVERYBODY:
                self._all_wait(str(fault), fault.after)
            elif write.method == "DELETE" and fault.status == 404:
                self._done(write)
            else:
                self._later(write, fault)
        else:
            self._done(write)

    def _send(self, write: Write, deadline: float) -> None:
        kind = MERGE_PATCH if write.method == "PATCH" else JSON
        self._client.call(write.method, write.target, deadline, accept=JSON, body=write.body, kind=kind)

    def _done(self, write: Write) -> None:
        now = time.monotonic()
        with self._changed:
            known = self._history.setdefault(write.thing, _History())
            known.done, known.done_at = write, now
            known.due = now + self._pace.gap + len(write.body) / self._pace.per_second
            known.backoff.reset()
            known.cause = ""
            self._pause.reset()
            away, self._away = self._away, ""
        if away:
            self._log("info", "API server takes writes again")

    def _later(self, write: Write, fault: Refused) -> None:
        with self._changed:
            known = self._history.setdefault(write.thing, _History())
            overtaken = fault.status in _OVERTAKEN
            known.due = time.monotonic() + (self._pace.gap if overtaken else known.backoff.next(fault.after))
            news = str(fault) != known.cause
            known.cause = str(fault)
        if news and not overtaken:
            self._log("warn", "write is refused", object=str(write.thing), method=write.method, cause=str(fault))

    def _all_wait(self, cause: str, wish: float | None) -> None:
        with self._changed:
            self._paused_until = time.monotonic() + self._pause.next(wish)
            news, self._away = cause != self._away, cause
        if news and not self._stopping:
            self._log("warn", "writes wait for the API server", cause=cause)

    def _forget(self, things: set[Thing], now: float) -> None:
        """The history of what nobody wants any more, once its gap is over."""
        gone = [
            thing for thing, known in self._history.items()
            if thing not in things and known.due < now and known.done_at + _SETTLING < now
        ]  # fmt: skip
        for thing in gone:
            del self._history[thing]
