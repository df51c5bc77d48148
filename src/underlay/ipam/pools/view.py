"""The blocks as this node knows them: what the watch showed, and what reads and writes of its own have shown since."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from underlay.cni.address import Address
from underlay.ipam.pools import intervals
from underlay.ipam.pools.block import BITS, SIZE, Block, Key
from underlay.ipam.pools.index import identity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from underlay.ipam.pools.intervals import Intervals

TALLIES: Final = 64  # pools that are counted at a time


def numbers(ranges: Intervals) -> Intervals:
    """Which blocks hold the addresses, each as its lowest address without the last BITS."""
    return intervals.union((start >> BITS, end >> BITS) for start, end in ranges)


def part(key: Key, ranges: Intervals) -> list[int]:
    """The addresses of the block that lie in ``ranges``, lowest first."""
    inside = intervals.common(((key.first, key.first + SIZE - 1),), ranges)
    return [value for start, end in inside for value in range(start, end + 1)]


class Tally:
    """What the known blocks say of one set of addresses, kept up to date block by block.

    ``taken``: how many are owned, or have a lease and no owner; ``owners``: how many each node owns;
    ``open``: known blocks with a free address; ``silent``: those with an owned one that no lease is reported of.
    """

    def __init__(self, family: int, ranges: Intervals) -> None:
        self.size = intervals.size(ranges)
        self.taken = 0
        self.owners: Counter[str] = Counter()
        self.open: dict[Key, None] = {}  # in the order they came, which a set has not
        self.silent: dict[Key, None] = {}
        self._counted: dict[Key, tuple[int, Mapping[str, int]]] = {}
        self._family = family
        self._ranges = ranges
        self._numbers = numbers(ranges)

    def holds(self, key: Key) -> bool:
        """Whether an address of the set lies in the block."""
        return key.family == self._family and intervals.holds(self._numbers, key.first >> BITS)

    def replace(self, key: Key, after: Block | None) -> None:
        """A block that lies in the set has changed, come or gone (None)."""
        taken, owners = self._counted.pop(key, (0, {}))
        self.taken -= taken
        for owner, count in owners.items():
            self.owners[owner] -= count
            if not self.owners[owner]:
                del self.owners[owner]
        self.open.pop(key, None)
        self.silent.pop(key, None)
        if after is not None:
            self._count(after)

    def _count(self, block: Block) -> None:
        listed = part(block.key, self._ranges)
        owned, leases = block.owned, block.leases
        if len(listed) < SIZE:
            owned = {value: owned[value] for value in listed if value in owned}
            leases = {value: leases[value] for value in listed if value in leases}
        taken, owners = len(owned.keys() | leases.keys()), Counter(owned.values())
        self._counted[block.key] = taken, owners
        self.taken += taken
        self.owners.update(owners)
        if taken < len(listed):
            self.open[block.key] = None
        if not owned.keys() <= leases.keys():
            self.silent[block.key] = None


class View:
    """Not thread-safe. ``now`` is whatever clock the user counts by."""

    def __init__(self) -> None:
        self._blocks: dict[Key, Block] = {}
        self._since: dict[Key, dict[int, float]] = {}
        self._keepers: dict[tuple[str, str], set[Address]] = {}
        self._tallies: dict[tuple[int, Intervals], Tally] = {}

    def get(self, key: Key) -> Block:
        """The block, an empty one where none is known."""
        return self._blocks.get(key) or Block(key)

    def since(self, key: Key, value: int) -> float:
        """When an address of the block was last seen to get another owner."""
        return self._since.get(key, {}).get(value, float("-inf"))

    def put(self, block: Block, now: float) -> bool:
        """Know a block from now on; False where it is older than what is known."""
        before = self._blocks.get(block.key)
        if before is not None:
            if block.revision < before.revision:
                return False
            self._forget_keepers(before)
        self._count(block.key, block)
        known = before.owned if before is not None else {}
        if known != block.owned:
            since = self._since.setdefault(block.key, {})
            since.update((value, now) for value, owner in block.owned.items() if known.get(value) != owner)
        self._blocks[block.key] = block
        for value, lease in block.leases.items():
            if lease.keeper:
                address = Address(block.key.family, value)
                self._keepers.setdefault(identity(lease.keeper, lease.ifname), set()).add(address)
        return True

    def drop(self, key: Key) -> None:
        """There is no such block any more."""
        before = self._blocks.pop(key, None)
        self._since.pop(key, None)
        if before is not None:
            self._forget_keepers(before)
            self._count(key, None)

    def reported(self, keeper: str, ifname: str) -> tuple[Address, ...]:
        """Where a lease of that keeper and NIC is reported, lowest first."""
        return tuple(sorted(self._keepers.get(identity(keeper, ifname), ())))

    def tally(self, family: int, ranges: Intervals) -> Tally:
        """What is known of these addresses."""
        tally = self._tallies.get((family, ranges))
        if tally is None:
            if len(self._tallies) >= TALLIES:
                self._tallies.clear()
            tally = self._tallies[family, ranges] = Tally(family, ranges)
            for block in self._blocks.values():
                if tally.holds(block.key):
                    tally.replace(block.key, block)
        return tally

    def _count(self, key: Key, after: Block | None) -> None:
        for tally in self._tallies.values():
            if tally.holds(key):
                tally.replace(key, after)

    def _forget_keepers(self, block: Block) -> None:
        for value, lease in block.leases.items():
            if lease.keeper:
                key = identity(lease.keeper, lease.ifname)
                known = self._keepers.get(key, set())
                known.discard(Address(block.key.family, value))
                if not known:
                    self._keepers.pop(key, None)
