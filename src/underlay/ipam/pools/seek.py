"""Which addresses a node is to own next, and whom to ask where none is free: pure, over the blocks that are known.

    free     a block of the node's own, else the first free one on its path       a share of it, by what is left
    silent   addresses that others own and report no lease of                     where no address is free

A node's path visits the blocks of a pool in an order of its own (start and step by a hash of the node's name), so
nodes rarely meet, and ends at the first block that nobody knows, which is free: the size of a pool costs nothing. A
block that was given back as a whole comes before it.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import chain
from math import gcd
from typing import TYPE_CHECKING, Final, NamedTuple

from underlay.ipam.pools import intervals
from underlay.ipam.pools.block import BITS, SIZE, Block, Key, Want
from underlay.ipam.pools.view import numbers, part

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from underlay.ipam.pools.intervals import Intervals
    from underlay.ipam.pools.lease import Lease
    from underlay.ipam.pools.objects import Pool
    from underlay.ipam.pools.view import Tally, View

RESTING_KEPT_NS: Final = 600 * 1_000_000_000  # how long a block remembers when an address was last used


class Supply(NamedTuple):
    """``free``: how many addresses of a pool nobody owns; ``nodes``: how many share it, this one included."""

    free: int
    nodes: int

    @property
    def portion(self) -> int:
        """How many a node takes at once: a block where there is plenty, ever fewer as the pool runs out."""
        return max(1, min(SIZE, self.free // (2 * self.nodes)))


def path(family: int, ranges: Intervals, node: str) -> Iterator[Key]:
    """Every block of the pool once, in this node's order."""
    among = numbers(ranges)
    count = intervals.size(among)
    if not count:
        return
    digest = hashlib.sha256(node.encode()).digest()
    at, step = int.from_bytes(digest[:16], "big") % count, int.from_bytes(digest[16:], "big") % count or 1
    while gcd(step, count) != 1:
        step += 1
    for _ in range(count):
        yield Key(family, _nth(among, at) << BITS)
        at = (at + step) % count


def supply(pool: Pool, view: View, node: str) -> Supply:
    """What is left of the pool."""
    tally = view.tally(pool.family, pool.ranges)
    return Supply(tally.size - tally.taken, len(tally.owners) + (node not in tally.owners))


def free(
    pool: Pool, view: View, node: str, mine: Iterable[Key], avoid: Collection[Key] = ()
) -> tuple[Block, list[int]]:
    """A block and which of its free addresses to take; none, of whichever block, where nobody knows of a free one.
    ``mine`` are the node's own blocks, those in ``avoid`` it leaves alone.
    """
    found, tally = supply(pool, view, node), view.tally(pool.family, pool.ranges)
    own = (key for key in mine if key in tally.open)
    for key in chain(own, path(pool.family, pool.ranges, node)) if found.free > 0 else ():
        block = view.get(key)
        if key in avoid or (block.version and key not in tally.open):
            continue
        if not block.version:
            block = _given_back(tally, view, node, avoid) or block
        listed = part(block.key, pool.ranges)
        values = [one for one in listed if one not in block.owned and one not in block.leases]
        values.sort(key=lambda value: (block.resting.get(value, 0), value))
        return block, values[: found.portion]
    return Block(Key(pool.family, 0)), []


def _given_back(tally: Tally, view: View, node: str, avoid: Collection[Key]) -> Block | None:
    """A block that no node owns any of, each node another one: no object is made where one lies idle, so that nodes
    which come and go leave no more than were in use at a time.
    """
    idle = [key for key in tally.open if key not in avoid and not view.get(key).owned]
    return view.get(min(idle, key=lambda key: _order(node, key))) if idle else None


def silent(pool: Pool, view: View, node: str) -> dict[Key, list[int]]:
    """What others own and report no lease of, by block, in this node's order."""
    seen: dict[Key, list[int]] = {}
    for key in view.tally(pool.family, pool.ranges).silent:
        block = view.get(key)
        values = [
            one
            for one in part(key, pool.ranges)
            if block.owned.get(one, node) != node and one not in block.leases
        ]  # fmt: skip
        if values:
            seen[key] = values
    return {key: seen[key] for key in sorted(seen, key=lambda key: _order(node, key))}


def owning(block: Block, values: Iterable[int], node: str, now_ns: int) -> Block:
    """The block with ``values`` owned by the node. When they were last used stays in ``resting``: so they rest on."""
    taken = dict.fromkeys(values, node)
    wanted = {value: want for value, want in block.wanted.items() if value not in taken}
    resting = {value: at for value, at in block.resting.items() if now_ns - at < RESTING_KEPT_NS}
    leases = {value: lease for value, lease in block.leases.items() if value not in taken}
    owned = {**block.owned, **taken}
    return replace(block, revision=block.revision + 1, owned=owned, wanted=wanted, resting=resting, leases=leases)


def wanting(block: Block, values: Iterable[int], want: Want) -> Block:
    """The block with ``values`` wanted."""
    return replace(block, revision=block.revision + 1, wanted={**block.wanted, **dict.fromkeys(values, want)})


def parting(
    block: Block, leaving: Mapping[int, int], node: str, pending: Collection[int], kept: Mapping[int, Lease]
) -> Block:
    """The block without ``leaving`` (with when each was last used, realtime ns; 0: has rested), which the node owns.
    They go to those who want them, or anything else in the block, and are free otherwise; wants that cannot be met are
    refused, but for those of ``pending``. What is ``kept`` stays so for its keeper.
    """
    owned = {value: owner for value, owner in block.owned.items() if value not in leaving}
    leases = {value: lease for value, lease in block.leases.items() if value not in leaving}
    resting = {**block.resting, **{value: at for value, at in leaving.items() if at}}
    wanted = dict(block.wanted)
    asked = {value: want for value, want in wanted.items() if block.owned.get(value) == node and want.node != node}
    others = [value for value in leaving if value not in asked]
    for value, want in asked.items():
        heir = value if value in leaving else others.pop() if others and not want.keeper else None
        if heir is not None:
            owned[heir] = want.node
            if heir in kept and kept[heir].keeper == want.keeper:
                leases[heir] = kept[heir]
        elif value in pending:
            continue
        del wanted[value]
    return replace(block, revision=block.revision + 1, owned=owned, wanted=wanted, resting=resting, leases=leases)


def reporting(block: Block, leases: Mapping[int, Lease | None]) -> Block:
    """The block with what is reported of these addresses, None for nothing."""
    rest = {value: lease for value, lease in block.leases.items() if value not in leases}
    return replace(block, leases=rest | {value: lease for value, lease in leases.items() if lease is not None})


def _order(node: str, key: Key) -> bytes:
    return hashlib.sha256(f"{node}/{key.first}".encode()).digest()


def _nth(among: Intervals, n: int) -> int:
    for start, end in among:
        if n <= end - start:
            return start + n
        n -= end - start + 1
    raise IndexError(n)
