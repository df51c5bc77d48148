"""Take back what nobody will ask for any more: of an earlier boot, of a broken-off call, of a dead sandbox.

    at_start   before the socket opens   earlier boot, its reservations · adding, deleting · dead sandbox
    sweep      every few seconds         adding, deleting without a call that works on them · dead sandbox, seen twice

A sandbox is dead when its path is gone or leads to another namespace (SO_NETNS_COOKIE). One that merely cannot be
looked at is alive.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from underlay.delegate.engine import by_origin
from underlay.delegate.ledger import signed
from underlay.delegate.report import Report
from underlay.errors import KernelError, NamespaceGone, StateUnwritable, UnderlayError
from underlay.ipam.store import release_before
from underlay.net.netns import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from underlay.delegate.engine import Engine
    from underlay.delegate.ledger import Row

_DEADLINE: Final = 10.0  # seconds for one sandbox; what does not end by then is tried again
_FIRST_PAUSE: Final = 5.0
_LONGEST_PAUSE: Final = 600.0


class Reclaimer:
    """Used by one thread at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._seen_dead: set[int] = set()
        self._again: dict[int, tuple[float, float]] = {}  # row id: when to try again, pause before that

    def at_start(self) -> None:
        """Bring the node into the state that the ledger says, before anything new is attached."""
        rows = self._engine.ledger.rows()
        mine = [row for row in rows if row.boot == self._engine.boot_id]
        self._take_back([row for row in rows if row.boot != self._engine.boot_id], "earlier boot", netns="")
        dead = self._dead(mine)
        self._take_back([row for row in mine if row.id in dead], "dead sandbox")
        self._take_back(_unfinished(mine, dead), "unfinished call", meant=_is_unfinished)
        self._after_reboot(mine)

    def sweep(self) -> None:
        """One pass of the loop; calls that are under way are not waited for."""
        rows = self._engine.ledger.rows()
        here = {row.id for row in rows}
        self._again = {row_id: when for row_id, when in self._again.items() if row_id in here}
        earlier = [row for row in rows if row.boot != self._engine.boot_id]
        mine = [row for row in rows if row.boot == self._engine.boot_id]
        dead = self._dead(mine)
        twice, self._seen_dead = dead & self._seen_dead, dead
        self._take_back(self._due(earlier), "earlier boot", netns="", wait=False)
        self._take_back(self._due([row for row in mine if row.id in twice]), "dead sandbox", wait=False)
        self._take_back(self._due(_unfinished(mine, dead)), "unfinished call", wait=False, meant=_is_unfinished)

    def _dead(self, rows: Sequence[Row]) -> set[int]:
        """The rows whose sandbox is certainly gone."""
        cookies: dict[str, int | None] = {}
        for path in {row.netns for row in rows if row.cookie}:
            try:
                with Namespace.open(self._engine.executor.root.locate(path)) as sandbox:
                    cookies[path] = signed(sandbox.cookie)
            except NamespaceGone:
                cookies[path] = 0
            except KernelError:
                cookies[path] = None
        return {row.id for row in rows if row.cookie and cookies[row.netns] not in (row.cookie, None)}

    def _due(self, rows: Sequence[Row]) -> list[Row]:
        now = time.monotonic()
        return [row for row in rows if self._again.get(row.id, (0.0, 0.0))[0] <= now]

    def _take_back(
        self, rows: Sequence[Row], why: str, *, netns: str | None = None, wait: bool = True,
        meant: Callable[[Row], bool] = bool,
    ) -> None:  # fmt: skip
        for group in by_origin(rows):
            first = group[0]
            report = Report()
            deadline = time.monotonic() + _DEADLINE
            errors = self._engine.reclaim(group, deadline, report, netns=netns, wait=wait, meant=meant)
            if not report.networks:
                continue  # somebody else is at it, or has done it
            fields: dict[str, object] = {"why": why, "container": first.container_id, "owner": first.owner}
            fields["networks"] = report.networks
            if errors:
                self._later(group, errors, fields)
            else:
                self._engine.log("info", "reclaimed", **fields)

    def _later(self, group: Sequence[Row], errors: Sequence[UnderlayError], fields: dict[str, object]) -> None:
        _, pause = self._again.get(group[0].id, (0.0, _FIRST_PAUSE / 2))
        pause = min(pause * 2, _LONGEST_PAUSE)
        for row in group:
            self._again[row.id] = (time.monotonic() + pause, pause)
        faults = [error.message for error in errors]
        self._engine.log("warn", "not reclaimed", **fields, again_in_s=pause, faults=faults)

    def _after_reboot(self, mine: Sequence[Row]) -> None:
        """In the first start of a boot: no reservation that is older than the boot has a container any more."""
        ledger, boot = self._engine.ledger, self._engine.boot_id
        stores = ledger.stores()
        last = [place for kind, place in stores if kind == "boot"]
        if last == [boot]:
            return
        keep = frozenset((row.container_id, row.ifname) for row in mine)
        booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        faults = [self._release(place, booted, keep) for kind, place in stores if last and kind == "directory"]
        if any(faults):
            return  # the next start tries again
        try:
            ledger.note_boot(boot)
        except StateUnwritable as error:
            self._engine.log("warn", "ledger cannot be written", error=error.message)

    def _release(self, place: str, booted: float, keep: frozenset[tuple[str, str]]) -> bool:
        """Whether the directory could not be looked through."""
        try:
            here = self._engine.executor.root.locate(place)
            freed = release_before(here, booted, keep=keep, deadline=time.monotonic() + _DEADLINE)
        except (UnderlayError, OSError) as error:
            self._engine.log("warn", "reservations of an earlier boot not released", store=place, error=str(error))
            return True
        self._engine.log("info", "reservations of an earlier boot released", store=place, addresses=freed)
        return False


def _is_unfinished(row: Row) -> bool:
    return row.state != "added"


def _unfinished(rows: Sequence[Row], dead: set[int]) -> list[Row]:
    return [row for row in rows if row.state != "added" and row.id not in dead]
