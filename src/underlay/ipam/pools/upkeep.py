"""What a node does about its addresses while no ADD waits: one thread, or a simulation, calls :meth:`Upkeep.step`.

    answer     others want what this node owns: it is theirs, or refused                      at once
    report     leases that have changed, into their blocks        a second later, kept ones at once
    warm       own more where few are left, as long as the pool has plenty                    every second
    give back  what has not been used for five minutes, but for the warm ones                 every ten seconds
    reclaim    what pods hold here and nobody owns: a block was deleted, a cluster joined     every ten seconds

An API that does not answer delays all of it, and no ADD.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from underlay.cni.address import Address
from underlay.errors import StateUnwritable
from underlay.ipam.pools import intervals, seek
from underlay.ipam.pools.block import StoreRefuses, StoreUnreachable, key_of
from underlay.ipam.pools.lease import HELD, KEPT
from underlay.ipam.pools.plugin import CONFLICT, nobody

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from underlay.ipam.pools.block import Block, Key
    from underlay.ipam.pools.lease import Lease
    from underlay.ipam.pools.leases import Leases
    from underlay.ipam.pools.objects import Pool
    from underlay.ipam.pools.owned import OwnedBlocks
    from underlay.ipam.pools.ownership import Ownership, Share
    from underlay.ipam.pools.plugin import Teller

WARM: Final = 4  # free addresses that a node in use of a pool has at hand
IDLE_SECONDS: Final = 300.0
_WARM_SECONDS, _SCAN_SECONDS, _FAULT_SECONDS = 1.0, 10.0, 0.2
_TRIES: Final = 5
_REQUEST: Final = 5.0


class Upkeep:
    """The background of one node; to be used from one thread. ``log(level, event, **fields)``; ``tell`` tells a pod's
    owner of what it holds and another node owns.
    """

    def __init__(
        self,
        ownership: Ownership,
        blocks: OwnedBlocks,
        leases: Leases,
        *,
        log: Callable[..., None],
        tell: Teller = nobody,
        realtime_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._own = ownership
        self._tell = tell
        self._blocks = blocks
        self._leases = leases
        self._log = log
        self._realtime_ns = realtime_ns
        self._used: dict[Address, float] = {}  # when what is owned was last seen in use, or first seen
        self._kept: dict[Address, Lease] = {}  # leaving, and for whom it was kept
        self._told: dict[Address, Lease | None] = {}  # the last report of what is owned, since the last scan
        self._disputed: set[Address] = set()  # and logged
        self._fault = ""
        self._next_warm = self._next_scan = self._not_before = float("-inf")

    def run(self, stopped: Callable[[], bool]) -> None:
        """Until ``stopped``; notify :attr:`Ownership.changed` to have that looked at."""
        own = self._own
        while not stopped():
            self.step(own.monotonic())
            with own.changed:
                left = self.due() - own.monotonic()
                if left > 0 and not stopped():
                    own.changed.wait(left)

    def due(self) -> float:
        """When the next step is, monotonic."""
        own = self._own
        with own.changed:
            soonest = min([self._next_warm, self._next_scan, *self._blocks.dirty.values()])
            return max(own.away_until, self._not_before, float("-inf") if own.asked else soonest)

    def step(self, now: float) -> None:
        """Do what is due."""
        own = self._own
        self._not_before = now + _FAULT_SECONDS  # unless all goes well
        if not own.reconcile() or now < own.away_until:
            return
        try:
            self._answer()
            self._report(now)
            if now >= self._next_scan:
                self._next_scan = now + _SCAN_SECONDS
                self._scan(now)
            if now >= self._next_warm:
                self._next_warm = now + _WARM_SECONDS
                self._keep_warm()
        except StoreUnreachable as error:
            self._note(f"the API server does not answer, addresses are handed out from what is owned: {error}")
        except StateUnwritable as error:
            self._note(f"owned addresses are not written: {error.message}")
        else:
            self._fault, self._not_before = "", now

    def _note(self, fault: str) -> None:
        """Log a fault once, not with every step."""
        if not self._fault:
            self._log("warn", "what this node owns is not kept up", cause=fault)
        self._fault = fault

    # -- answer --------------------------------------------------------------------------------------------------------

    def _answer(self) -> None:
        own = self._own
        while True:
            with own.changed:
                if not own.asked:
                    return
                key = own.asked.pop()
            try:
                self._hand_over(key)
            except (StoreUnreachable, StateUnwritable):
                with own.changed:
                    own.asked.add(key)
                raise

    def _hand_over(self, key: Key) -> None:
        """Give others what they want of a block, or another address of it, as far as it is free."""
        block, share = self._own.view.get(key), self._own.shares().get(key)
        asked = {at: want for at, want in block.wanted.items() if want.node != self._own.node}
        if share is None or not asked.keys() & (share.owned | share.leaving):
            return
        here = {value: self._leases.at(Address(key.family, value)) for value in share.owned}
        named = {
            at: lease for at, want in asked.items() if (lease := here.get(at)) and lease.keeper == want.keeper != ""
        }
        kept = [lease for lease in named.values() if lease.state == KEPT]
        able = [at for at in share.owned if here[at] is None or here[at] in kept]
        met = [at for at in able if at in asked]
        instead = sorted(at for at in able if at not in asked)
        missing = sum(1 for at, want in asked.items() if at in share.owned and at not in able and not want.keeper)
        self._give(key, [*met, *instead[:missing]], kept)

    def _give(self, key: Key, values: Collection[int], kept: Sequence[Lease] = ()) -> None:
        """Withhold, and write that it has left. What is refused stays, as it surely was not written: but not what was
        kept here until now. Raises StateUnwritable, StoreUnreachable.
        """
        self._withhold(key, values, kept)
        try:
            self._part(key)
        except StoreRefuses:
            if staying := [one for one in values if Address(key.family, one) not in self._kept]:
                self._own.restore(key, staying)
            raise

    def _withhold(self, key: Key, values: Collection[int], kept: Sequence[Lease] = ()) -> None:
        """Have what is free of ``values`` leave. ``kept`` goes to its keeper elsewhere. Raises StateUnwritable."""
        if not values:
            return
        self._own.withhold(key, values)
        addresses = [Address(key.family, value) for value in values]
        try:
            self._kept |= {lease.address: lease for lease in self._leases.drop(kept)}
        finally:
            free = self._leases.free(addresses)
            back = [one.value for one in addresses if one not in free]
            if back:
                self._own.restore(key, back)

    def _part(self, key: Key) -> None:
        """Write that what is leaving has left, and what is refused. Raises StoreUnreachable."""
        own = self._own
        deadline = own.monotonic() + _REQUEST
        with own.turn(deadline):
            if not own.view.get(key).version:
                own.read(key, deadline)
            for _ in range(_TRIES):
                block, share = own.view.get(key), own.shares().get(key)
                after = self._parted(block, share) if share is not None else block
                if after.owned == block.owned and after.wanted == block.wanted:
                    break
                if share is not None and share.leaving and share.revision < block.revision:
                    own.withhold(key, share.leaving)  # as of the revision that the swap may end
                if own.swap(block, after, deadline):
                    self._told |= {Address(key.family, at): after.leases.get(at) for at in after.of(own.node)}
                    break
        for address in [one for one in self._kept if key_of(one) == key]:
            if own.view.get(key).owned.get(address.value) != own.node:
                del self._kept[address]

    def _parted(self, block: Block, share: Share) -> Block:
        family = block.key.family
        rested = self._leases.free(Address(family, value) for value in share.leaving)
        leaving = {one.value: at for one, at in sorted(rested.items())}  # and what somebody holds after all stays
        reported = {value: lease for value, lease in block.leases.items() if value in leaving and lease.state == KEPT}
        kept = reported | {one.value: lease for one, lease in self._kept.items() if key_of(one) == block.key}
        here = {value: self._leases.at(Address(family, value)) for value in share.owned}
        free = self._leases.free(Address(family, value) for value in share.owned)
        pending = [
            at
            for at, want in block.wanted.items()
            if Address(family, at) in free or ((one := here.get(at)) and one.keeper == want.keeper != "")
        ]  # not to be refused: it is not withheld yet, or its keeper's own pod has yet to end
        after = seek.parting(block, leaving, self._own.node, pending, kept)
        return seek.reporting(after, {value: _told(lease) for value, lease in here.items()})

    # -- report --------------------------------------------------------------------------------------------------------

    def _report(self, now: float) -> None:
        own, dirty = self._own, self._blocks.dirty
        with own.changed:
            ready = [(key, dirty.pop(key)) for key in [key for key, at in dirty.items() if at <= now]]
        for n, (key, _) in enumerate(ready):
            try:
                self._report_block(key)
            except StoreUnreachable as error:
                own.away(error)
                with own.changed:
                    for left, at in ready[n:]:
                        dirty.setdefault(left, at)
                raise

    def _report_block(self, key: Key) -> None:
        own = self._own
        block = own.view.get(key)
        here = {one: _told(self._leases.at(one)) for at in block.of(own.node) if (one := Address(key.family, at))}
        news = {one: lease for one, lease in here.items() if self._told.get(one, block.leases.get(one.value)) != lease}
        if news and block.version:
            own.store.report(key, {one.value: lease for one, lease in news.items()}, own.monotonic() + _REQUEST)
            self._told |= news  # the view shows it later

    # -- warm, idle and lost -------------------------------------------------------------------------------------------

    def _keep_warm(self) -> None:
        own = self._own
        used = {lease.pool for lease in self._leases.taken()}
        for pool in self._leases.pools():
            if pool.name not in used or pool.disabled or pool.terminating or self._blocks.flying(pool.name):
                continue
            if self._leases.left(pool) < WARM:
                with own.changed:
                    plenty = seek.supply(pool, own.view, own.node).portion >= 2 * WARM
                    block, values = self._blocks.free(pool) if plenty else (None, [])
                if block is not None and values:
                    self._blocks.own(block, values, own.monotonic() + _REQUEST)

    def _scan(self, now: float) -> None:
        self._told.clear()
        for key, share in self._own.shares().items():
            if share.leaving:  # a swap before was not answered
                self._part(key)
            elif key not in self._blocks.dirty:
                self._report_block(key)
        self._give_back(now)
        self._reclaim()
        self._end_superseded()

    def _give_back(self, now: float) -> None:
        shares = self._own.shares()
        owned = [Address(key.family, value) for key, share in shares.items() for value in share.owned]
        free = self._leases.free(owned)
        self._used = {one: self._used.get(one, now) if one in free else now for one in owned}
        spare = self._spare(free)
        for key in sorted(shares, key=lambda key: sum(Address(key.family, at) not in free for at in shares[key].owned)):
            here = (Address(key.family, at) for at in sorted(shares[key].owned))
            idle = [one for one in here if one in free and now - self._used[one] >= IDLE_SECONDS]
            going = [one.value for one in idle if spare.take(one)]
            if going:
                self._read(key)  # of an API that does not answer what is withheld would be lost to ADDs
                self._give(key, going)

    def _read(self, key: Key) -> None:
        deadline = self._own.monotonic() + _REQUEST
        with self._own.turn(deadline):
            self._own.read(key, deadline)

    def _spare(self, free: Iterable[Address]) -> _Spare:
        used = {lease.pool for lease in self._leases.taken()}
        pools = self._leases.pools()
        left = {pool.name: self._leases.left(pool) - (WARM if pool.name in used else 0) for pool in pools}
        return _Spare(pools, left)

    def _reclaim(self) -> None:
        own = self._own
        lost: dict[Key, list[int]] = {}
        told, self._disputed = self._disputed, set()
        for lease in self._leases.taken():
            key = key_of(lease.address)
            owner = own.view.get(key).owned.get(lease.value)
            if owner is None:
                lost.setdefault(key, []).append(lease.value)
            elif owner != own.node and lease.state == KEPT:  # its keeper has gone where the address went
                self._leases.drop([lease])
            elif owner != own.node:
                self._disputed.add(lease.address)
                if lease.address not in told:
                    self._dispute(lease, owner)
        for key, values in lost.items():
            self._blocks.own(own.view.get(key), values, own.monotonic() + _REQUEST)

    def _dispute(self, lease: Lease, owner: str) -> None:
        """The node was given up, or a block deleted, while nothing could be heard here: its pods go on."""
        self._log("error", "address in use here is owned by another node", address=lease.shown, owner=owner,
                  pod=lease.pod)  # fmt: skip
        words = f"{lease.shown} is node {owner}'s by now, where another pod may use it: delete this one"
        self._tell(lease.pod, lease.uid, CONFLICT, words)

    def _end_superseded(self) -> None:
        """What is kept for somebody who has another address on another node by now."""
        own = self._own
        for lease in [one for one in self._leases.everything() if one.state == KEPT]:
            with own.changed:
                blocks = [(one, own.view.get(key_of(one))) for one in own.view.reported(lease.keeper, lease.ifname)]
            others = [block.leases.get(at.value) for at, block in blocks if block.owned.get(at.value) != own.node]
            if any(
                one is not None and one.family == lease.family and one.state == HELD and one.since > lease.since
                for one in others
            ):
                self._leases.drop([lease])


class _Spare:
    """How many addresses of each pool may be given back."""

    def __init__(self, pools: Iterable[Pool], left: Mapping[str, int]) -> None:
        self._pools = tuple(pools)
        self._left = dict(left)

    def take(self, address: Address) -> bool:
        """Whether this one may be, counting it. What is of no pool any more always may."""
        listing = [
            pool.name
            for pool in self._pools
            if pool.family == address.family and intervals.holds(pool.ranges, address.value)
        ]
        if any(self._left[name] <= 0 for name in listing):
            return False
        for name in listing:
            self._left[name] -= 1
        return True


def _told(lease: Lease | None) -> Lease | None:
    return lease if lease is not None and lease.state in (HELD, KEPT) else None
