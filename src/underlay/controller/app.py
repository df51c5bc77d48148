"""The controller: what no node can do for itself, by one of several at a time.

    watches ─▶ Known, every moment that something changed ─▶ views, upkeep, applications ─▶ Writer   while leading
                                                          └▶ dead nodes, ownerless leases,            while leading
                                                             empty blocks ─────────────────▶ blocks
                                                          └▶ around(): what the webhook judges by     always

Nothing here is on the path of an ADD. Whatever is decided is a function of what was last told, so a controller that
begins to lead goes on where another one stopped.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from underlay import __version__
from underlay.cni import shapes
from underlay.controller import upkeep, view_writes, writes
from underlay.controller.applications import SHRINK_SECONDS, Applications
from underlay.controller.dead_nodes import DeadNodes
from underlay.controller.election import Election, Terms
from underlay.controller.empty_blocks import AFTER_SECONDS, EmptyBlocks
from underlay.controller.idle_pools import IdlePools
from underlay.controller.known import Watching
from underlay.controller.ownerless import Ownerless
from underlay.controller.unready import Unready
from underlay.controller.upkeep import Upkeep
from underlay.controller.writer import Pace, Writer
from underlay.kube.block_store import ApiBlocks
from underlay.kube.client import Client
from underlay.kube.reflector import Timing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from underlay.controller.known import Known
    from underlay.controller.watched import Document
    from underlay.controller.writes import Write
    from underlay.kube.access import Access
    from underlay.kube.source import Log
    from underlay.multus.lint_pools import Around

LEASE: Final = "underlay-controller"
_STUCK_SECONDS: Final = 120.0
_LONGEST_END: Final = 15.0


@dataclass(frozen=True, slots=True)
class Settings:
    """``namespace`` is the Lease's, ``identity`` who stands for election. Seconds: ``grace`` before a pool in deletion
    goes, ``shrink`` before an application's pool gets smaller, ``settle`` before a new leader makes pools, ``again``
    between two questions whether an application or a keeper is gone, ``look`` between two looks where nothing has
    changed, ``least`` where something has; ``empty`` before a block that nothing is in is removed; ``unready`` that a
    node may be not ready before its pods' addresses are taken, None where they never are.
    """

    namespace: str
    identity: str
    terms: Terms = field(default_factory=Terms)
    pace: Pace = field(default_factory=Pace)
    timing: Timing = field(default_factory=Timing)
    grace: float = upkeep.GRACE_SECONDS
    shrink: float = SHRINK_SECONDS
    settle: float = 2.0
    again: float = 15.0
    look: float = 10.0
    least: float = 0.5
    empty: float = AFTER_SECONDS
    unready: float | None = None


class Controller:
    """One candidate with its watches."""

    def __init__(self, access: Access, log: Log, settings: Settings) -> None:
        self._log = log
        self._settings = settings
        self._client = client = Client(access, f"underlay-controller/{__version__}")
        self._stopping = threading.Event()
        self._views = _Loop("views", self._write, settings, self._stopping, log)
        self._blocks = _Loop("blocks", self._tidy, settings, self._stopping, log)
        self._store = ApiBlocks(client, log, settings.timing)
        self._watching = Watching(client, self._store, log, self._changed, settings.timing)
        self._election = Election(
            client, namespace=settings.namespace, name=LEASE, identity=settings.identity, log=log,
            terms=settings.terms, changed=self._changed,
        )  # fmt: skip
        self._writer = Writer(client, log, lambda: self._election.until, pace=settings.pace, written=self._changed)
        self._upkeep = Upkeep(grace=settings.grace)
        unready = Unready(settings.unready)
        self._dead = DeadNodes(client, self._store, log, lambda: self._election.until, unready=unready)
        self._ownerless = Ownerless(client, self._store, log, lambda: self._election.until, again=settings.again)
        self._empty = EmptyBlocks(client, log, lambda: self._election.until, after=settings.empty)
        self._applications = Applications(log, shrink=settings.shrink)
        self._idle_pools = IdlePools(client, log, lambda: self._election.until, again=settings.again)
        self._idle: list[Document] = []
        self._led_since: float | None = None

    def start(self) -> None:
        """Begin to watch, and stand for election; returns at once."""
        shapes.make_ready()
        self._watching.start()
        self._store.start()
        self._election.start()
        self._writer.start()
        self._views.start()
        self._blocks.start()

    def stop(self) -> None:
        """Finish the writes under way, then leave the Lease to others."""
        self._stopping.set()
        for loop in (self._views, self._blocks):
            loop.stop()
        self._writer.stop()
        self._election.stop()
        self._watching.stop()
        self._store.stop()
        self._client.close()
        self._watching.join()
        self._store.join()

    def fault(self) -> str:
        """Why there is no whole picture of the cluster yet; "" where there is."""
        return self._watching.fault() or ("" if self._store.ready() else f"underlayipblocks: {self._store.fault()}")

    def stuck(self) -> str:
        """Which of its threads has not come round for minutes; "" for none."""
        return next((loop.name for loop in (self._views, self._blocks) if loop.stuck()), "")

    def leads(self) -> bool:
        """Whether it is this one that writes."""
        return self._election.leads()

    def around(self) -> Around | None:
        """What the webhook judges by; None while too little is known."""
        return None if self.fault() else upkeep.around(self._watching.known())

    # -- the loops -----------------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        self._views.wake()
        self._blocks.wake()

    def _known(self) -> Known | None:
        return self._watching.known() if self._election.leads() and not self.fault() else None

    def _write(self) -> None:
        known = self._known()
        if known is None:
            self._led_since = None
            self._writer.want([])
            return
        self._led_since = self._led_since or time.monotonic()
        parts = (view_writes.of_views, self._upkeep.writes, self._of_applications)
        self._writer.want([write for part in parts for write in self._of(part, known)])

    def _of(self, part: Callable[[Known], Iterable[Write]], known: Known) -> list[Write]:
        """A part's writes, all or none."""
        with self._apart(part):
            return list(part(known))
        return []

    def _of_applications(self, known: Known) -> list[Write]:
        """None at first: what an earlier leader wrote at its end may not be shown yet."""
        if self._led_since is None or time.monotonic() - self._led_since < self._settings.settle:
            return []
        plan = self._applications.plan(known)
        self._idle = plan.idle
        going = (pool for pool in plan.idle if self._idle_pools.gone(pool))
        return [*plan.writes, *(writes.delete(writes.POOLS, pool) for pool in going)]

    def _tidy(self) -> None:
        known = self._known()
        if known is None:
            return
        for look in (self._dead.look, self._ownerless.look, self._empty.look):
            with self._apart(look):
                look(known)
        with self._apart(self._idle_pools.look):
            self._idle_pools.look(self._idle)

    @contextmanager
    def _apart(self, part: Callable[..., object]) -> Iterator[None]:
        """A fault of ours in one part is no reason to leave the others undone."""
        try:
            yield
        except Exception as error:
            self._log("error", "look failed", part=part.__qualname__, error=repr(error))


class _Loop:
    """A thread that does something when it is woken, and now and then, but not all the time."""

    def __init__(
        self, name: str, act: Callable[[], None], settings: Settings, stopping: threading.Event, log: Log
    ) -> None:
        self.name = name
        self._act = act
        self._settings = settings
        self._stopping = stopping
        self._log = log
        self._woken = threading.Event()
        self._began = 0.0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._woken.set()

    def stop(self) -> None:
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(_LONGEST_END)

    def stuck(self) -> bool:
        return bool(self._began) and time.monotonic() - self._began > _STUCK_SECONDS

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._woken.wait(self._settings.look)
            self._woken.clear()
            if self._stopping.is_set():
                break
            self._began = began = time.monotonic()
            try:
                self._act()
            except Exception as error:  # a fault of ours in one look must not be the last look
                self._log("error", "look failed", part=self.name, error=repr(error))
            self._began = 0.0
            # a third of the time at most
            self._stopping.wait(max(self._settings.least, 2 * (time.monotonic() - began)))
