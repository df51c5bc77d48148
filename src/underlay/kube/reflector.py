"""A thread that keeps a cache as the API server has it: list, then watch, for ever (Kubernetes API concepts,
"Efficient detection of changes").

    list, in pages ──▶ watch from its version on ──ends──▶ watch from the last version
         ▲                  │ 410 Gone: history is lost        │ cut, silent, 429, 5xx: the same after a while
         └──────────────────┘                                  └──▶ away, until it works again
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol

from underlay.kube.backoff import Backoff
from underlay.kube.faults import Refused, Unreachable
from underlay.kube.resources import Entry, Value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from underlay.kube.cache import State
    from underlay.kube.client import Client, Watch
    from underlay.kube.resources import Key
    from underlay.kube.source import Log

_LONGEST_END = 5.0  # seconds; a thread that is about to connect ends with the process
_BRIEF = 1.0  # seconds; a watch that ends sooner, and without a word, is not repeated at once


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds, but for ``page``, which is objects.

    ``patience`` is how long a look-up that finds nothing waits for the watch; ``ask`` what one request on its path may
    take; ``page_time`` one page of a list; a watch is ended by the server after up to twice ``watch``, and by us after
    ``silence`` (the API server sends a bookmark a minute); ``first`` and ``most`` are the back-off's; a resource whose
    definition is not there is asked for again after ``unserved``.
    """

    patience: float = 1.5
    ask: float = 10.0
    page: int = 250
    page_time: float = 60.0
    watch: int = 300
    silence: float = 150.0
    first: float = 0.2
    most: float = 15.0
    unserved: float = 30.0


class Listed(Protocol[Value]):
    """What a reflector asks for: a resource."""

    @property
    def plural(self) -> str:
        """Its name in paths."""

    @property
    def accept(self) -> str:
        """The media types of objects, best first."""

    @property
    def accept_list(self) -> str:
        """The same of pages."""

    def list_target(self, *, limit: int, version: str | None, more: str) -> str:
        """Path and query of a page; ``version`` "0": whatever the server has at hand, None: the newest."""

    def watch_target(self, *, version: str, seconds: int) -> str:
        """Path and query of a watch from ``version`` on, that the server ends after ``seconds``."""

    def page(self, raw: bytes) -> tuple[list[Entry[Value]], str, str]:
        """The objects of a page, its resourceVersion, and the token of the next page, "" at the last."""

    def happening(self, line: bytes) -> tuple[str, Entry[Value]]:
        """One line of a watch: ADDED, MODIFIED, DELETED or BOOKMARK, and its object. Raises Refused for ERROR."""


class Told(Protocol[Value]):
    """What a reflector keeps up to date, from its one thread."""

    cause: str

    @property
    def state(self) -> State:
        """What :meth:`becomes` said last."""

    def replace(self, entries: Sequence[Entry[Value]]) -> None:
        """Everything, as listed."""

    def put(self, entry: Entry[Value]) -> None:
        """An object that is new or has changed."""

    def remove(self, key: Key) -> None:
        """An object that exists no more."""

    def becomes(self, state: State, cause: str = "") -> None:
        """Another state; ``cause`` says why it is away."""


class Reflector(Generic[Value]):
    """The thread of one resource. ``newest``: a list is as new as the question, not what the server has at hand."""

    def __init__(
        self, client: Client, resource: Listed[Value], cache: Told[Value], log: Log, timing: Timing, *,
        newest: bool = False,
    ) -> None:  # fmt: skip
        self._client = client
        self._resource: Listed[Value] = resource
        self._cache: Told[Value] = cache
        self._log = log
        self._timing = timing
        self._backoff = Backoff(timing.first, timing.most)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch-{resource.plural}"[:15], daemon=True)
        self._version = ""  # of the last word heard; "" : list first
        self._at_hand = None if newest else "0"
        self._stale_will_do: str | None = self._at_hand

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Do not begin anything new. The connection is the client's to cut."""
        self._stopping.set()

    def join(self) -> None:
        """Wait for the thread's end; after :meth:`stop`, and after the client is closed."""
        if self._thread.is_alive():
            self._thread.join(_LONGEST_END)

    def _run(self) -> None:
        while not self._stopping.is_set():
            wish = None
            try:
                if not self._version:
                    self._list()
                if self._follow():
                    continue
            except Refused as fault:
                wish = self._timing.unserved if fault.status == 404 else fault.after
                self._refused(fault)
            except Unreachable as fault:
                self._away(str(fault))
            self._stopping.wait(self._backoff.next(wish))

    def _list(self) -> None:
        """Every page, then all at once into the cache; a cache that is half one list and half another is never seen."""
        entries: list[Entry[Value]] = []
        more = ""
        while True:
            target = self._resource.list_target(limit=self._timing.page, version=self._stale_will_do, more=more)
            deadline = time.monotonic() + self._timing.page_time
            raw = self._client.call("GET", target, deadline, accept=self._resource.accept_list)
            page, version, more = self._resource.page(raw)
            entries += page
            if not more:
                break
        self._cache.replace(entries)
        self._version = version
        self._stale_will_do = self._at_hand
        self._log("info", "listed", resource=self._resource.plural, objects=len(entries), version=version)

    def _follow(self) -> bool:
        """One watch, to its end; whether it went well enough for the next one to begin at once."""
        seconds = random.randint(self._timing.watch, 2 * self._timing.watch)  # noqa: S311 - not all nodes at once
        target = self._resource.watch_target(version=self._version, seconds=seconds)
        began, heard = time.monotonic(), False
        watch = self._client.watch(target, accept=self._resource.accept, idle=self._timing.silence)
        try:
            self._watching()
            heard = self._take(watch)
        finally:
            watch.close()
        return heard or time.monotonic() - began >= _BRIEF

    def _take(self, watch: Watch) -> bool:
        heard = False
        for line in watch.lines():
            if self._stopping.is_set():
                break
            what, entry = self._resource.happening(line)
            if what in ("ADDED", "MODIFIED"):
                self._cache.put(entry)
            elif what == "DELETED":
                self._cache.remove(entry.key)
            self._version = entry.version or self._version
            if not heard:
                heard = True
                self._backoff.reset()
        return heard

    def _watching(self) -> None:
        if self._cache.state == "away":
            self._log("info", "API server is back", resource=self._resource.plural)
        self._cache.becomes("watching")

    def _refused(self, fault: Refused) -> None:
        if fault.status == 410:
            self._log("info", "watch history is lost, listing anew", resource=self._resource.plural)
            self._version = ""
            self._stale_will_do = None  # what the server has at hand is what was too old
            self._cache.becomes("listing", "the history is lost")
            return
        if fault.status == 404:
            self._becomes_away("info", "not watched", f"the API server has no {self._resource.plural}")
            return
        self._away(f"the API server refuses {self._resource.plural}: {fault}")

    def _away(self, cause: str) -> None:
        self._becomes_away("warn", "API server is away", cause)

    def _becomes_away(self, level: str, words: str, cause: str) -> None:
        if self._stopping.is_set():
            return
        if self._cache.state != "away" or self._cache.cause != cause:
            self._log(level, words, resource=self._resource.plural, cause=cause)
        self._cache.becomes("away", cause)
