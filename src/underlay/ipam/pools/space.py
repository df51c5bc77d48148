"""Which address is free, in memory: one family, all pools of a node.

    order    1 the lowest address that is free and rested: never used, or given back longer than ``rest`` seconds ago
             2 only where a pool has none: the one that rests longest
    never    an address somebody holds, is kept for, or that was set aside; whichever pool it was taken by

An address is held once a family, not once a pool, so two pools that list it never hand it out twice. Every pool has a
frontier: above it nothing was ever handed out, so a range of any size costs nothing. Below it, what was given back
rests in a queue, and then lies in a heap. What is wrong in queue or heap by the time it comes up (taken by name
meanwhile) is passed over then. Budget: 5 µs an act; a pool whose ranges change begins at its first address again.

Not thread-safe: :class:`~underlay.ipam.pools.leases.Leases` locks. ``now``: seconds on a clock that never goes back.
"""

from __future__ import annotations

from collections import OrderedDict
from heapq import heappop, heappush
from math import inf
from typing import TYPE_CHECKING, Generic, TypeVar

from underlay.ipam.pools import intervals

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from underlay.ipam.pools.intervals import Intervals

T = TypeVar("T")


class _Free:
    """What one pool may hand out."""

    __slots__ = ("at", "heap", "heaped", "neighbours", "next", "ranges", "resting")

    def __init__(self, ranges: Intervals, resting: OrderedDict[int, float]) -> None:
        self.ranges = ranges
        # Address: since when, longest first. A plain dict would look at all it has lost to find its first.
        self.resting = resting
        self.at = 0  # the range that the frontier is in
        self.next = ranges[0][0] if ranges else 0  # the frontier: the lowest address never looked at
        self.heap: list[int] = []
        self.heaped: set[int] = set()
        self.neighbours: tuple[_Free, ...] = ()

    def wake(self, before: float) -> None:
        """What began to rest before that has rested."""
        resting = self.resting
        while resting:
            value, since = next(iter(resting.items()))
            if since > before:
                return
            del resting[value]
            self.ready(value)

    def ready(self, value: int) -> None:
        """The address may be handed out; one that the frontier has yet to reach will be found by it."""
        if value < self.next and value not in self.heaped and intervals.holds(self.ranges, value):
            self.heaped.add(value)
            heappush(self.heap, value)


class Space(Generic[T]):
    """Addresses as numbers, each with whatever its owner is described by (``T``)."""

    def __init__(self, rest: float) -> None:
        self.taken: dict[int, T] = {}
        self.rest = rest
        self._aside: dict[int, float] = {}
        self._free: dict[str, _Free] = {}

    def configure(self, pools: Mapping[str, Intervals]) -> None:
        """From now on these are the pools, and what each may hand out. What is held stays held."""
        before, self._free = self._free, {}
        for name, ranges in pools.items():
            known = before.get(name)
            same = known is not None and known.ranges == ranges
            self._free[name] = known if known and same else _Free(ranges, known.resting if known else OrderedDict())
            self._free[name].neighbours = ()
        for cluster in _clusters(self._free):
            for one in cluster:
                one.neighbours = tuple(other for other in cluster if other is not one)

    def take(self, pool: str, owner: T, now: float) -> int | None:
        """The next free address of the pool, held by ``owner`` from now on; None where it has none."""
        free = self._free.get(pool)
        if free is None:
            return None
        if self._aside:
            self.end_aside(now)
        free.wake(now - self.rest)
        value = self._from_heap(free)
        if value is None:
            value = self._from_frontier(free)
        if value is None:
            value = self._from_resting(free)
        if value is not None:
            self.taken[value] = owner
        return value

    def claim(self, value: int, owner: T) -> bool:
        """Hold that address; False where somebody does, or it is set aside."""
        if value in self.taken or value in self._aside:
            return False
        self.taken[value] = owner
        return True

    def put(self, value: int, owner: T) -> None:
        """Note who holds the address, whoever did before."""
        self.taken[value] = owner

    def give_back(self, value: int, pool: str, now: float, *, rested: bool = False) -> None:
        """Nobody holds the address any more. ``rested``: it was never used, so it need not rest."""
        if self.taken.pop(value, None) is None:
            return
        if not rested:
            self.lay_to_rest(value, pool, now)
            return
        for free in self._listing(value, pool):
            free.ready(value)

    def lay_to_rest(self, value: int, pool: str, since: float) -> None:
        """A free address was in use until ``since``. To be called in the order of time."""
        for free in self._listing(value, pool):
            free.resting[value] = since
            free.resting.move_to_end(value)

    def set_aside(self, value: int, until: float) -> None:
        """Hand the address out to nobody before ``until``: somebody outside uses it."""
        self._aside[value] = until

    def end_aside(self, now: float) -> None:
        """What was set aside until then may be handed out."""
        for value in [value for value, until in self._aside.items() if until <= now]:
            del self._aside[value]
            for free in self._free.values():
                free.ready(value)

    def idle(self, value: int) -> float | None:
        """Since when the address rests, minus infinity for one that has; None where it is held or set aside."""
        if value in self.taken or value in self._aside:
            return None
        return max((free.resting.get(value, -inf) for free in self._free.values()), default=-inf)

    def holds(self, pool: str, value: int) -> bool:
        """Whether the pool may hand the address out, be it free or not."""
        free = self._free.get(pool)
        return free is not None and intervals.holds(free.ranges, value)

    def room(self, pool: str) -> int:
        """How many addresses of the pool nobody holds, resting ones included. Takes time with the number held."""
        free = self._free.get(pool)
        if free is None:
            return 0
        gone = sum(1 for value in (*self.taken, *self._aside) if intervals.holds(free.ranges, value))
        return max(0, intervals.size(free.ranges) - gone)

    def _listing(self, value: int, pool: str) -> list[_Free]:
        """The pools that may hand the address out: ``pool`` and those that overlap it; any, where ``pool`` has gone or
        lists the address no more.
        """
        free = self._free.get(pool)
        known = free is not None and intervals.holds(free.ranges, value)
        among = (free, *free.neighbours) if free is not None and known else self._free.values()
        return [one for one in among if intervals.holds(one.ranges, value)]

    def _from_heap(self, free: _Free) -> int | None:
        while free.heap:
            value = heappop(free.heap)
            free.heaped.discard(value)
            if value not in self.taken and value not in self._aside and value not in free.resting:
                return value
        return None

    def _from_frontier(self, free: _Free) -> int | None:
        taken, aside, resting = self.taken, self._aside, free.resting
        while free.at < len(free.ranges):
            start, end = free.ranges[free.at]
            value = max(free.next, start)
            while value <= end:
                if value not in taken and value not in aside and value not in resting:
                    free.next = value + 1
                    return value
                value += 1
            free.next = value
            free.at += 1
        return None

    def _from_resting(self, free: _Free) -> int | None:
        while free.resting:
            value, _ = free.resting.popitem(last=False)
            if value not in self.taken and value not in self._aside and intervals.holds(free.ranges, value):
                return value
        return None


def _clusters(pools: Mapping[str, _Free]) -> Iterator[list[_Free]]:
    """Pools that have addresses in common, directly or by way of others."""
    flat: Iterable[tuple[int, int, str]] = sorted(
        (start, end, name) for name, free in pools.items() for start, end in free.ranges
    )
    cluster_of: dict[str, list[str]] = {}
    reach, owner = -1, ""
    for start, end, name in flat:
        mine = cluster_of.setdefault(name, [name])
        if start <= reach and cluster_of[owner] is not mine:
            joined = cluster_of[owner]
            joined += mine
            for member in mine:
                cluster_of[member] = joined
        if end > reach:
            reach, owner = end, name
    seen: set[int] = set()
    for members in cluster_of.values():
        if len(members) > 1 and id(members) not in seen:
            seen.add(id(members))
            yield [pools[name] for name in members]
