"""The leases of this node: chosen in memory, made durable before they are used, given back by compare-and-delete.

    take ──▶ (probe) ──▶ confirm        pending ──▶ held          confirm returns when the journal has it
              └───────▶ abandon         pending ──▶ free          as if it had never been taken
    release                             held ──▶ kept │ rest      the container's own leases only, never by a name

Which part of a pool this node may hand out is the affair of :class:`Blocks`: everything where there is no cluster.
A release is written before it counts, so an address that a crash catches on its way is still held afterwards.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from math import isinf
from typing import TYPE_CHECKING, Final

from underlay.cni.address import Address
from underlay.errors import NoAddressLeft, TryAgain
from underlay.ipam.pools import intervals
from underlay.ipam.pools.index import Index
from underlay.ipam.pools.lease import ASIDE, HELD, KEPT, RESERVED, REST, Lease, keepers
from underlay.ipam.pools.space import Space

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from underlay.ipam.pools.intervals import Intervals
    from underlay.ipam.pools.journal import Journal
    from underlay.ipam.pools.lease import State
    from underlay.ipam.pools.objects import Pool
    from underlay.ipam.pools.shares import Blocks
    from underlay.ipam.pools.surroundings import Catalogue

REST_SECONDS: Final = 30.0


class Leases:
    """Thread-safe. ``rest`` is how long a freed address is not used again while others are free, seconds."""

    def __init__(
        self,
        journal: Journal,
        blocks: Blocks,
        *,
        rest: float = REST_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
        realtime_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._journal = journal
        self._blocks = blocks
        self._rest = rest
        self._monotonic = monotonic
        self._realtime_ns = realtime_ns
        self._lock = threading.Lock()
        self._catalogue: Catalogue | None = None
        self._pools: Sequence[Pool] = ()
        self._reserved: Mapping[int, Intervals] = {4: (), 6: ()}
        self._spaces = {4: Space[Lease](rest), 6: Space[Lease](rest)}
        self._index = Index()
        self._resting: list[tuple[float, Lease]] = []
        for lease in journal.leases():
            self._recall(lease)

    # -- the pools ---------------------------------------------------------------------------------------------------

    def follows(self, catalogue: Catalogue) -> bool:
        """Whether these are the pools that count."""
        return catalogue is self._catalogue

    def follow(self, catalogue: Catalogue, cut: Iterable[Pool] = (), *, anew: bool = False) -> None:
        """From now on these pools count, and ``cut``, which are those of applications. Without news: nothing to do."""
        if catalogue is self._catalogue and not anew:
            return
        with self._lock:
            self._catalogue = catalogue
            self._pools = [*catalogue.pools.values(), *cut]
            self._reserved = {family: _reserved(catalogue, family) for family in self._spaces}
            self._configure()
            resting, self._resting = self._resting, []
            for since, lease in sorted(resting):
                if lease.value not in self._spaces[lease.family].taken:
                    self._spaces[lease.family].lay_to_rest(lease.value, lease.pool, since)

    def refresh(self, came: Mapping[Address, int] | None = None) -> None:
        """The blocks have grown or shrunk. ``came``: what others have used until then (realtime ns) of what is new."""
        with self._lock:
            self._configure()
            now, real = self._monotonic(), self._realtime_ns()
            for address, until in sorted((came or {}).items(), key=lambda one: one[1]):
                space, ago = self._spaces[address.family], max(0.0, (real - until) / 1e9)
                if ago < self._rest and address.value not in space.taken:
                    space.lay_to_rest(address.value, "", now - ago)

    def free(self, addresses: Iterable[Address]) -> dict[Address, int]:
        """Those that nobody holds, is to get or waits for, each with when it was last used (realtime ns; 0: it has
        rested). Of addresses that the blocks own no longer, it stays so.
        """
        with self._lock:
            now = self._monotonic()
            skew = self._realtime_ns() - int(now * 1e9)
            for space in self._spaces.values():
                space.end_aside(now)
            idle = {one: self._spaces[one.family].idle(one.value) for one in addresses}
        return {one: 0 if isinf(since) else int(since * 1e9) + skew for one, since in idle.items() if since is not None}

    # -- one NIC -----------------------------------------------------------------------------------------------------

    def of(self, container_id: str, ifname: str) -> list[Lease]:
        """What a NIC holds, IPv4 first."""
        with self._lock:
            return sorted(one for one in self._index.container(container_id).values() if one.ifname == ifname)

    def other_nics(self, container_id: str, ifname: str) -> bool:
        """Whether another NIC of the container holds addresses."""
        with self._lock:
            return any(one.ifname != ifname for one in self._index.container(container_id).values())

    def take(
        self, pools: Sequence[Pool], who: Lease, deadline: float,
        *, avoid: Collection[Address] = (), patient: bool = True,
    ) -> Lease:  # fmt: skip
        """A pending lease of the first pool that has an address, made out as ``who`` is (its address and pool do not
        count). What is kept for its keeper or reserved for its pod comes first, but for ``avoid``. Where there is none,
        ``patient`` waits for what others may just have given back.

        Raises NoAddressLeft, TryAgain.
        """
        lease = self._take_kept(pools, who, avoid)
        if lease is None and not avoid and self._blocks.elsewhere(pools, who, deadline):
            lease = self._take_kept(pools, who, avoid)
        unknown: TryAgain | None = None
        rounds = (False, True) if patient else (False,)
        tries = [(pool, waits) for waits in rounds for pool in pools] if lease is None else ()
        for pool, waits in tries:
            try:
                lease = self._take_from(pool, who, deadline, waits)
            except TryAgain as error:
                unknown = error
            if lease is not None:
                break
        if lease is None:
            raise unknown or NoAddressLeft(_exhausted(pools))
        return lease

    def confirm(self, leases: Sequence[Lease]) -> None:
        """Make pending leases held, all of them or none; whatever else was kept for their keeper becomes free.

        Raises StateUnwritable, and then they are abandoned.
        """
        with self._lock:
            stale = [one for lease in leases for one in self._superseded(lease, leases)]
            leaving = self._leaving(stale, lambda _: REST)
        try:
            self._journal.put([*leases, *(after for _, after in leaving)])
        except BaseException:
            self._stay(leaving)
            self.abandon(leases)
            raise
        with self._lock:
            for lease in leases:
                self._index.add(lease)
            self._left(leaving)
        self._blocks.touched([*leases, *stale], freed=bool(stale))

    def abandon(self, leases: Sequence[Lease]) -> None:
        """Undo :meth:`take`: a kept address is kept again, another is free and need not rest."""
        with self._lock:
            for lease in leases:
                space = self._spaces[lease.family]
                if space.taken.get(lease.value) is not lease:
                    continue
                kept = self._index.by_address.get(lease.address)
                if kept is not None:
                    space.put(lease.value, kept)
                else:
                    space.give_back(lease.value, lease.pool, self._monotonic(), rested=True)
        self._blocks.touched(leases, freed=True)

    def set_aside(self, lease: Lease, mac: str, seconds: float) -> None:
        """A host outside uses the address of this pending lease: nobody is to get it for that time."""
        until = self._realtime_ns() + int(seconds * 1e9)
        self._journal.put([Lease(lease.address, lease.pool, ASIDE, keeper=mac, since=until)])
        with self._lock:
            self._index.remove(lease.address)
            space = self._spaces[lease.family]
            space.taken.pop(lease.value, None)
            space.set_aside(lease.value, self._monotonic() + seconds)
        self._blocks.touched([lease])

    def release(self, container_id: str, ifname: str, addresses: Collection[Address] = ()) -> list[Lease]:
        """Give back ``addresses``, or with none given all, that this NIC holds; returns those given back.

        What has a keeper is kept for it, unless it has another lease by now. Raises StateUnwritable.
        """
        return self._end([one for one in self.of(container_id, ifname) if not addresses or one.address in addresses])

    # -- for people, and for what nobody asks for ----------------------------------------------------------------------

    def everything(self) -> list[Lease]:
        """Every lease, held or kept, by address."""
        with self._lock:
            return sorted(self._index)

    def at(self, address: Address) -> Lease | None:
        """Whose the address is."""
        return self._spaces[address.family].taken.get(address.value)

    def pools(self) -> Sequence[Pool]:
        """The pools that count, without what is reserved."""
        return [self._usable(pool) for pool in self._pools]

    def left(self, pool: Pool) -> int:
        """How many addresses of the pool are free on this node. Takes time with the number held."""
        with self._lock:
            return self._spaces[pool.family].room(pool.name)

    def room(self, pool: Pool) -> int:
        """The same, with those that this node might get."""
        return self.left(pool) + self._blocks.spare(self._usable(pool))

    def taken(self) -> list[Lease]:
        """Every lease, those too that are pending or on their way back."""
        with self._lock:
            return [lease for space in self._spaces.values() for lease in space.taken.values()]

    def release_all(self, which: Callable[[Lease], bool]) -> list[Lease]:
        """Give back every held lease that ``which`` names. Raises StateUnwritable."""
        return self._end([lease for lease in self.everything() if lease.state == HELD and which(lease)])

    def drop(self, leases: Sequence[Lease]) -> list[Lease]:
        """End leases, held or kept, for good: they rest, whoever they were kept for. Raises StateUnwritable."""
        return self._end(leases, keep=False)

    def keep(self, address: Address, pool: str, keeper: str) -> None:
        """Reserve a free address for a keeper. Raises NoAddressLeft where somebody has it or another node owns it,
        StateUnwritable.
        """
        lease = Lease(address, pool, KEPT, keeper=keeper, since=self._realtime_ns())
        with self._lock:
            space = self._spaces[address.family]
            ours = self._catalogue is None or space.holds(pool, address.value)
            if address.value not in space.taken and not ours:
                raise NoAddressLeft(f"{address} of pool {pool!r} is not this node's to hand out",
                                    hint="Reserve it on the node that owns it.")  # fmt: skip
            if not space.claim(address.value, lease):
                words = owner.owner() if (owner := self.at(address)) else "in use by a host outside"
                raise NoAddressLeft(f"{address} cannot be reserved: it is {words}", hint="Release it first.")
        try:
            self._journal.put([lease])
        except BaseException:
            self.abandon([lease])
            raise
        with self._lock:
            self._index.add(lease)
        self._blocks.touched([lease])

    def restore(self, leases: Iterable[Lease]) -> list[Lease]:
        """Hold what others know to be held and the journal does not; returns that. What it says is another's stays."""
        lost: list[Lease] = []
        with self._lock:
            for one in leases:
                if one.value not in (space := self._spaces[one.family]).taken:
                    space.put(one.value, one)
                    lost.append(one)
        try:
            self._journal.put(lost)
        finally:  # not before may anybody end it: the journal would have its beginning after its end
            with self._lock:
                for one in lost:
                    self._index.add(one)
        self._blocks.touched(lost)
        return lost

    def tidy(self, wanted: Callable[[str], bool | None]) -> list[Lease]:
        """Free what is kept for those that ``wanted`` says are gone for good, and forget what has rested."""
        kept = [lease for lease in self.everything() if lease.state == KEPT and not lease.keeper.startswith(RESERVED)]
        gone = self.drop([lease for lease in kept if wanted(lease.keeper) is False])
        self._journal.forget_rested(self._realtime_ns() - int(self._rest * 1e9))
        return gone

    # -- inside --------------------------------------------------------------------------------------------------------

    def _configure(self) -> None:
        """To be called with the lock."""
        for family, space in self._spaces.items():
            pools = [pool for pool in self._pools if pool.family == family]
            reserved = self._reserved[family]
            space.configure({pool.name: intervals.without(self._blocks.owned(pool), reserved) for pool in pools})

    def _usable(self, pool: Pool) -> Pool:
        return replace(pool, ranges=intervals.without(pool.ranges, self._reserved[pool.family]))

    def _take_kept(self, pools: Sequence[Pool], who: Lease, avoid: Collection[Address]) -> Lease | None:
        with self._lock:
            for keeper in keepers(who):
                for address, kept in self._index.keeper(keeper, who.ifname).items():
                    space = self._spaces[address.family]
                    if kept.state != KEPT or address in avoid or space.taken.get(address.value) is not kept:
                        continue
                    fits = (p for p in pools if p.family == address.family and space.holds(p.name, address.value))
                    pool = next(fits, None)
                    if pool is not None:
                        lease = who._replace(address=address, pool=pool.name, keeper=keeper)
                        space.put(address.value, lease)
                        return lease
        return None

    def _take_from(self, pool: Pool, who: Lease, deadline: float, patient: bool) -> Lease | None:
        space = self._spaces[pool.family]

        def take() -> Lease | None:
            with self._lock:
                value = space.take(pool.name, who, self._monotonic())
                if value is None:
                    return None
                lease = who._replace(address=Address(pool.family, value), pool=pool.name)
                space.put(value, lease)
                return lease

        return take() or self._blocks.more(self._usable(pool), take, deadline, patient=patient)

    def _superseded(self, lease: Lease, among: Sequence[Lease]) -> list[Lease]:
        """What was kept for the lease's keeper and NIC in its family and is not used by this ADD: it has moved."""
        if not lease.keeper or lease.keeper.startswith(RESERVED):
            return []
        used = {one.address for one in among}
        known = self._index.keeper(lease.keeper, lease.ifname).values()
        return [one for one in known if one.state == KEPT and one.family == lease.family and one.address not in used]

    def _end(self, leases: Sequence[Lease], *, keep: bool = True) -> list[Lease]:
        """Held and kept leases end; those that another thread has ended meanwhile are left alone."""
        with self._lock:
            leaving = self._leaving(leases, self._afterwards if keep else lambda _: REST)
        try:
            self._journal.put([after for _, after in leaving])
        except BaseException:
            self._stay(leaving)
            raise
        with self._lock:
            self._left(leaving)
        self._blocks.touched([before for before, _ in leaving], freed=True)
        return [before for before, _ in leaving]

    def _leaving(self, leases: Iterable[Lease], afterwards: Callable[[Lease], State]) -> list[tuple[Lease, Lease]]:
        """Each lease and what it becomes. From here on it is nobody's to take or to end, but not free either. One that
        is pending, or leaves already, is another thread's.
        """
        leaving: list[tuple[Lease, Lease]] = []
        for before in leases:
            space = self._spaces[before.family]
            if space.taken.get(before.value) is before and self._index.by_address.get(before.address) is before:
                after = before._replace(state=afterwards(before), since=self._realtime_ns())
                space.put(before.value, after)
                leaving.append((before, after))
        return leaving

    def _stay(self, leaving: Sequence[tuple[Lease, Lease]]) -> None:
        """The disk refused."""
        with self._lock:
            for before, _ in leaving:
                self._spaces[before.family].put(before.value, before)

    def _left(self, leaving: Sequence[tuple[Lease, Lease]]) -> None:
        for _, after in leaving:
            if after.state == KEPT:
                self._index.add(after)
            else:
                self._index.remove(after.address)
                self._spaces[after.family].give_back(after.value, after.pool, self._monotonic())

    def _afterwards(self, lease: Lease) -> State:
        """An address waits for its keeper, but not where that has another one by now."""
        others = self._index.keeper(lease.keeper, lease.ifname).values() if lease.keeper else ()
        moved = any(one.state == HELD and one is not lease and one.family == lease.family for one in others)
        return KEPT if lease.keeper and (lease.keeper.startswith(RESERVED) or not moved) else REST

    def _recall(self, lease: Lease) -> None:
        """What the journal says of an address. A clock that was set since then makes one that rests do so once more at
        most.
        """
        if lease.state == REST:
            rested = min(max(0.0, (self._realtime_ns() - lease.since) / 1e9), self._rest)
            self._resting.append((self._monotonic() - rested, lease))
        elif lease.state == ASIDE:
            left = (lease.since - self._realtime_ns()) / 1e9
            self._spaces[lease.family].set_aside(lease.value, self._monotonic() + max(0.0, left))
        else:
            self._spaces[lease.family].put(lease.value, lease)
            self._index.add(lease)


def _reserved(catalogue: Catalogue, family: int) -> Intervals:
    return intervals.union(part for one in catalogue.reserved for part in (one.v4 if family == 4 else one.v6))


def _exhausted(pools: Sequence[Pool]) -> str:
    names = ", ".join(f"{pool.name!r}" for pool in pools)
    return f"no free address in pool{'s' if len(pools) > 1 else ''} {names}" if pools else "no pool is left to try"
