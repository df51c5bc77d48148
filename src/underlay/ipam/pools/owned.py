"""Own more of a pool, while an ADD waits: one compare-and-swap for all that wait, or another node hands over.

    free addresses are known     swap ─▶ owned             409: read it, take the next block
    others report some free      want them, and wait       ─▶ owned │ refused: the next │ no answer: TryAgain
    all are in use               NoAddressLeft             once what may just have been given back is reported too
    given back here meanwhile    taken                     whatever else is waited for

Of the pools of an ADD each is asked before any is waited for.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from contextlib import nullcontext
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple

from underlay.cni.address import Address, text
from underlay.errors import NoAddressLeft, TryAgain
from underlay.ipam.pools import intervals, seek
from underlay.ipam.pools.block import SIZE, Key, StoreRefuses, StoreUnreachable, Want, key_of
from underlay.ipam.pools.lease import KEPT, keepers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from underlay.ipam.pools.block import Block
    from underlay.ipam.pools.intervals import Intervals
    from underlay.ipam.pools.lease import Lease
    from underlay.ipam.pools.objects import Pool
    from underlay.ipam.pools.ownership import Ownership

    Take = Callable[[], Lease | None]

PATIENCE: Final = 5.0  # seconds that an ADD waits for other nodes, per pool
_ANSWER: Final = 1.0  # a want that is not answered by then: others are asked too
GATHER_SECONDS: Final = 1.0  # leases that change are reported together after that
_REPORTED: Final = GATHER_SECONDS + 0.5  # seconds after which what changed is known to have been reported
_KEEPER_SECONDS: Final = 1.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.3
_REFUSED: Final = 10.0  # seconds that an address which was refused is not asked for again


class _Patience(NamedTuple):
    """Until when an ADD waits, monotonic: for the answers of others, and for news that anything is free at all; anew
    whenever something came from others, which ``growth`` counts.
    """

    answers: float
    news: float
    patient: bool
    growth: int


class OwnedBlocks:
    """The :class:`~underlay.ipam.pools.shares.Blocks` of a node in a cluster. Thread-safe. ``blocking`` lends an ADD's
    place in its thread pool while it waits: what it waits for may be a DEL.
    """

    def __init__(
        self,
        ownership: Ownership,
        *,
        realtime_ns: Callable[[], int] = time.time_ns,
        blocking: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.dirty: dict[Key, float] = {}  # where leases are to be reported, and when, monotonic
        self._own = ownership
        self._realtime_ns = realtime_ns
        self._blocking = blocking
        self._waiting: Counter[str] = Counter()
        self._flights: set[str] = set()
        self._asked: dict[Address, float] = {}
        self._chance = random.Random(ownership.node)  # noqa: S311 - spreads load, guards nothing

    # -- Blocks --------------------------------------------------------------------------------------------------------

    def owned(self, pool: Pool) -> Intervals:
        """What the node owns of the pool."""
        return intervals.common(pool.ranges, self._own.owned(pool.family))

    def more(self, pool: Pool, take: Take, deadline: float, *, patient: bool = False) -> Lease | None:
        """Own more, by one's own request or by that of another ADD which is under way, or take what the node's own pods
        give back meanwhile, whichever comes first. Raises TryAgain.
        """
        with self._blocking():
            return self._more(pool, take, deadline, patient)

    def elsewhere(self, pools: Sequence[Pool], who: Lease, deadline: float) -> bool:
        """Have what is kept for ``who`` handed over. Raises TryAgain."""
        own = self._own
        for keeper in keepers(who):
            with own.changed:
                found = [(one, own.view.get(key_of(one)).owned.get(one.value))
                         for one in own.view.reported(keeper, who.ifname)]  # fmt: skip
            for address, owner in found:
                fits = (pool for pool in pools if pool.family == address.family)
                if owner != own.node and any(intervals.holds(pool.ranges, address.value) for pool in fits):
                    with self._blocking():
                        return self._summon(address, keeper, who.pod, deadline)
        return False

    def spare(self, pool: Pool) -> int:
        """What nobody owns of the pool, or others own and report no lease of."""
        own = self._own
        with own.changed:
            silent = seek.silent(pool, own.view, own.node)
            return seek.supply(pool, own.view, own.node).free + sum(map(len, silent.values()))

    def touched(self, leases: Iterable[Lease], *, freed: bool = False) -> None:
        """To be reported: soon, and at once where somebody may come for it on another node. Who waits here is first."""
        own, now = self._own, self._own.monotonic()
        with own.changed:
            wake = not self.dirty or (freed and bool(self._flights))
            for lease in leases:
                key = key_of(lease.address)
                self.dirty[key] = now if lease.keeper else self.dirty.get(key, now + GATHER_SECONDS)
                wake = wake or bool(lease.keeper)
                if own.view.get(key).wanted:
                    own.asked.add(key)
                    wake = True
            if wake:
                own.changed.notify_all()

    # -- for the background --------------------------------------------------------------------------------------------

    def flying(self, pool: str) -> bool:
        """Whether an ADD is at it."""
        return pool in self._flights

    def own(self, block: Block, values: Sequence[int], deadline: float) -> bool:
        """Own ``values`` of a block as it is known; False where somebody was faster. Raises StoreUnreachable."""
        own = self._own
        after = seek.owning(block, values, own.node, self._realtime_ns())
        with own.turn(deadline):
            own.check_away()
            try:
                return own.swap(block, after, deadline)
            except StoreRefuses:
                raise
            except StoreUnreachable:
                own.read(block.key, deadline)  # the answer may be all that was lost
        return not own.view.get(block.key).of(own.node).isdisjoint(values)

    def obtain(self, address: Address, deadline: float) -> str:
        """Own that very address, if nobody does and it is kept for nobody. Whose it is then: "" for this node's, or a
        node's name. Raises NoAddressLeft where it is kept, TryAgain where no answer came.
        """
        own, key = self._own, key_of(address)
        try:
            while own.monotonic() < deadline:
                with own.changed:
                    block = own.view.get(key)
                owner, lease = block.owned.get(address.value, ""), block.leases.get(address.value)
                if owner:
                    return "" if owner == own.node else owner
                if lease is not None:
                    raise NoAddressLeft(
                        f"{address} cannot be reserved: it is {lease.owner()}", hint="Release it first."
                    )
                self.own(block, [address.value], deadline)
        except StoreUnreachable as error:
            raise TryAgain(f"{address} is not this node's, and cannot be owned: {error}") from error
        raise TryAgain(f"{address} is not this node's, and others were faster each time")

    def free(self, pool: Pool, avoid: set[Key] | None = None) -> tuple[Block, list[int]]:
        """As :func:`seek.free`, for this node. With the lock of :attr:`Ownership.changed`."""
        own = self._own
        block, values = seek.free(pool, own.view, own.node, list(own.shares()), avoid or ())
        return block, values if len(values) == SIZE else values[: 1 + self._waiting[pool.name]]

    # -- inside --------------------------------------------------------------------------------------------------------

    def _more(self, pool: Pool, take: Take, deadline: float, patient: bool) -> Lease | None:
        own = self._own
        with own.changed:
            patience = self._patience(deadline, patient)
            while pool.name in self._flights:
                if (lease := take()) is not None:
                    return lease
                if own.growth != patience.growth:
                    patience = self._patience(deadline, patient)
                now = own.monotonic()
                if now >= deadline:
                    raise TryAgain(f"pool {pool.name!r} has no address left on this node, and no more came in time")
                if now >= patience.news and not self._hopes(pool):
                    return None
                self._waiting[pool.name] += 1
                own.changed.wait((patience.news if now < patience.news else deadline) - now)
                self._waiting[pool.name] -= 1
            self._flights.add(pool.name)
        try:
            return self._fly(pool, take, deadline, patience)
        except StoreUnreachable as error:
            raise TryAgain(f"pool {pool.name!r} has no address left on this node, and more is not to be had: {error}",
                           hint="It goes on when the API server answers again.") from error  # fmt: skip
        finally:
            with own.changed:
                self._flights.discard(pool.name)
                own.changed.notify_all()

    def _fly(self, pool: Pool, take: Take, deadline: float, patience: _Patience) -> Lease | None:
        own, avoid, pause = self._own, set[Key](), _FIRST_PAUSE
        while True:
            with own.changed:
                if (lease := take()) is not None:
                    return lease
                if own.growth != patience.growth:
                    patience = self._patience(deadline, patience.patient)
                block, values = self.free(pool, avoid)
                if not values and avoid:  # rivals are there too: not all at the same moment again
                    own.changed.wait(pause * self._chance.uniform(0.5, 1.0))
                    avoid, pause = set(), min(pause * 2, _LONGEST_PAUSE)
                    continue
            if values:
                if not self.own(block, values, deadline):
                    avoid.add(block.key)
            elif not self._ask(pool, patience):
                return None

    def _hopes(self, pool: Pool) -> bool:
        """Whether there may be more for those who wait for another ADD's request, with the lock."""
        own = self._own
        return bool(self.free(pool)[1] or seek.silent(pool, own.view, own.node))

    def _patience(self, deadline: float, patient: bool) -> _Patience:
        own, now = self._own, self._own.monotonic()
        news = now + _REPORTED if patient else now
        return _Patience(min(deadline, now + PATIENCE), min(deadline, news), patient, own.growth)

    def _ask(self, pool: Pool, patience: _Patience) -> bool:
        """Ask others for what they report to be free, or wait for what they were asked; False where there is nothing.

        Raises TryAgain where they have not answered in time.
        """
        own = self._own
        with own.changed:
            now = own.monotonic()
            open_ = self._open(pool, now)
            silent = seek.silent(pool, own.view, own.node)
            if not silent:
                if now >= patience.news:
                    return False
                self._watch(patience.news - now)
                return True
            wantable, sure_at = self._wantable(silent, now)
            if now >= patience.answers:
                raise TryAgain(f"pool {pool.name!r} has no free address, and other nodes have not handed one over yet")
            missing = 1 + self._waiting[pool.name] - sum(1 for at in open_.values() if now - at < _ANSWER)
            if missing <= 0 or not wantable:
                self._watch(min(patience.answers, now + _ANSWER, sure_at) - now)
                return True
            key, values = next(iter(wantable.items()))
            block, values = own.view.get(key), values[:missing]
            self._asked |= {Address(pool.family, value): now for value in values}
        self._want(block, values, "", patience.answers)
        return True

    def _wantable(self, silent: Mapping[Key, Sequence[int]], now: float) -> tuple[Mapping[Key, list[int]], float]:
        """What nobody wants yet and would be reported by now if it were used; and when there may be more of that."""
        view, found, sure_at = self._own.view, dict[Key, list[int]](), inf
        for key, values in silent.items():
            wanted = view.get(key).wanted
            for value in values:
                at = view.since(key, value) + _REPORTED
                if value in wanted or Address(key.family, value) in self._asked:
                    continue
                if at <= now:
                    found.setdefault(key, []).append(value)
                else:
                    sure_at = min(sure_at, at)
        return found, sure_at

    def _open(self, pool: Pool, now: float) -> Mapping[Address, float]:
        """What was asked for in the pool and not answered; what was refused is not asked for again at once."""
        own = self._own
        self._asked = {one: at for one, at in self._asked.items() if now - at < _REFUSED}
        return {
            one: at
            for one, at in self._asked.items()
            if one.family == pool.family and intervals.holds(pool.ranges, one.value)
            and own.view.get(key_of(one)).wanted.get(one.value, Want("")).node == own.node
        }  # fmt: skip

    def _watch(self, seconds: float) -> None:
        """Wait for news of any block, with the lock."""
        self._own.watchers += 1
        try:
            self._own.changed.wait(max(0.001, seconds))
        finally:
            self._own.watchers -= 1

    def _want(self, block: Block, values: Sequence[int], keeper: str, deadline: float) -> None:
        """Name this node in ``wanted``. Raises StoreUnreachable."""
        own = self._own
        after = seek.wanting(block, values, Want(own.node, keeper))
        with own.turn(deadline):
            if not own.swap(block, after, deadline):
                with own.changed:
                    for value in values:
                        self._asked.pop(Address(block.key.family, value), None)

    def _summon(self, address: Address, keeper: str, pod: str, deadline: float) -> bool:
        own, key, value = self._own, key_of(address), address.value
        limit = min(deadline, own.monotonic() + _KEEPER_SECONDS)
        owner = own.view.get(key).owned.get(value, "")
        try:
            while own.monotonic() < limit:
                with own.changed:
                    block = own.view.get(key)
                    owner = block.owned.get(value, "")
                    if owner == own.node:
                        return True
                    if owner and block.wanted.get(value, Want("")).node == own.node:
                        self._watch(limit - own.monotonic())
                        continue
                    kept = block.leases.get(value)
                if kept is None or kept.keeper != keeper:
                    return False  # it was let go of meanwhile
                if kept.adopted and kept.pod != pod:  # of a machine two pods may exist, and the other one use it
                    raise TryAgain(f"{text(*address)} is {kept.owner()}, for {keeper}, from another IPAM",
                                   hint="It comes once the controller has seen that pod go.")  # fmt: skip
                if owner:
                    self._want(block, [value], keeper, deadline)
                else:
                    self._own_kept(block, kept, deadline)
        except StoreUnreachable as error:
            where = f"at node {owner!r}, which cannot be asked" if owner else "by no node, and cannot be owned"
            raise TryAgain(f"{text(*address)} is kept for {keeper} {where}: {error}") from error
        if not owner:
            raise TryAgain(f"{text(*address)} is kept for {keeper} by no node, and others wrote its block each time")
        raise TryAgain(f"{text(*address)} is kept for {keeper} at node {owner!r}, which has not handed it over yet",
                       hint="It comes as soon as that node has taken the earlier pod down.")  # fmt: skip

    def _own_kept(self, block: Block, kept: Lease, deadline: float) -> None:
        """The node that it was kept at has gone."""
        own = self._own
        after = seek.owning(block, [kept.value], own.node, self._realtime_ns())
        kept = kept._replace(state=KEPT, uid="", container_id="", boot="")
        after = seek.reporting(after, {kept.value: kept})
        with own.turn(deadline):
            own.swap(block, after, deadline)
