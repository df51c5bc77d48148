"""The blocks as this node knows them: what the watch showed, and what reads and writes of its own have shown since."""

from __future__ import annotations

from typing import TYPE_CHECKING

from underlay.cni.address import Address
from underlay.ipam.pools import intervals
from underlay.ipam.pools.block import BITS, SIZE, Block, Key
from underlay.ipam.pools.index import identity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from underlay.ipam.pools.intervals import Intervals


def numbers(ranges: Intervals) -> Intervals:
    """Which blocks hold the addresses, each as its lowest address without the last BITS."""
    return intervals.union((start >> BITS, end >> BITS) for start, end in ranges)


def part(key: Key, ranges: Intervals) -> list[int]:
    """The addresses of the block that lie in ``ranges``, lowest first."""
    inside = intervals.common(((key.first, key.first + SIZE - 1),), ranges)
    return [value for start, end in inside for value in range(start, end + 1)]


class View:
    """Not thread-safe. ``now`` is whatever clock the user counts by."""

    def __init__(self) -> None:
        self._blocks: dict[Key, Block] = {}
        self._since: dict[Key, float] = {}
        self._keepers: dict[tuple[str, str], set[Address]] = {}

    def get(self, key: Key) -> Block:
        """The block, an empty one where none is known."""
        return self._blocks.get(key) or Block(key)

    def since(self, key: Key) -> float:
        """When the block's owners were last seen to change."""
        return self._since.get(key, float("-inf"))

    def put(self, block: Block, now: float) -> bool:
        """Know a block from now on; False where it is older than what is known."""
        before = self._blocks.get(block.key)
        if before is not None:
            if block.revision < before.revision:
                return False
            self._forget_keepers(before)
        if before is None or before.owned != block.owned:
            self._since[block.key] = now
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

    def reported(self, keeper: str, ifname: str) -> tuple[Address, ...]:
        """Where a lease of that keeper and NIC is reported, lowest first."""
        return tuple(sorted(self._keepers.get(identity(keeper, ifname), ())))

    def of_pool(self, family: int, ranges: Intervals) -> Iterator[Block]:
        """The blocks that are known and hold an address of ``ranges``."""
        wanted = numbers(ranges)
        if intervals.size(wanted) <= len(self._blocks):
            for start, end in wanted:
                for number in range(start, end + 1):
                    block = self._blocks.get(Key(family, number << BITS))
                    if block is not None:
                        yield block
            return
        for key, block in self._blocks.items():
            if key.family == family and intervals.holds(wanted, key.first >> BITS):
                yield block

    def __len__(self) -> int:
        return len(self._blocks)

    def _forget_keepers(self, block: Block) -> None:
        for value, lease in block.leases.items():
            if lease.keeper:
                key = identity(lease.keeper, lease.ifname)
                known = self._keepers.get(key, set())
                known.discard(Address(block.key.family, value))
                if not known:
                    self._keepers.pop(key, None)
