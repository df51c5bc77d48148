"""Which nodes have not been ready for so long that their administrator wants their pods' addresses back.

    Ready is False or Unknown ──for ``after`` seconds, as it is dated and as this leader has seen it──▶ overdue
                              ──the node owns an address more than before: it is in touch──▶ seen from now on

The second clock is this process's own, which nobody sets: without it one that is an hour ahead would take everything
from a node that missed one heartbeat.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from underlay.cni.address import Address
from underlay.ipam.pools.block import key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from underlay.controller.known import Known
    from underlay.controller.watched import Node
    from underlay.ipam.pools.block import Block, Key


@dataclass(frozen=True, slots=True)
class _Seen:
    """``since`` on the monotonic clock."""

    since: float
    owned: frozenset[Address]


class Unready:
    """Used by one thread. ``after`` seconds; None: no node is ever overdue."""

    def __init__(
        self, after: float | None, *, monotonic: Callable[[], float] = time.monotonic,
        realtime: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._after = after
        self._monotonic = monotonic
        self._realtime = realtime
        self._seen: dict[str, _Seen] = {}
        self._behind: dict[Key, int] = {}  # blocks that were written here, and that the watch shows as they were before

    def look(self, known: Known) -> None:
        """Remember who is not ready."""
        now = self._realtime()
        unready = [name for name, node in known.nodes.items() if node.unready_since <= now]
        if self._after is None or not unready:
            self._seen.clear()
            self._behind.clear()
            return
        behind = ((block, self._behind.get(block.key, -1)) for block in known.blocks)
        self._behind = {block.key: written for block, written in behind if block.revision <= written}
        self._seen = {name: self._now(name, frozenset(owned)) for name, owned in self._owned(known, unready).items()}

    def overdue(self, node: Node | None) -> bool:
        """Whether this is a node that has not been ready for long enough."""
        seen = self._seen.get(node.name) if node is not None else None
        if node is None or seen is None or self._after is None:
            return False
        long_ago = self._realtime() - self._after
        return node.unready_since <= long_ago and self._monotonic() - seen.since >= self._after

    def took(self, name: str, before: Block, values: Collection[int]) -> None:
        """What was taken from it just now, of a block as it was: if it owns that again, it is in touch."""
        self._behind[before.key] = before.revision
        seen = self._seen.get(name)
        if seen is not None:
            taken = {Address(before.key.family, value) for value in values}
            self._seen[name] = _Seen(seen.since, seen.owned - taken)

    def _now(self, name: str, owned: frozenset[Address]) -> _Seen:
        before = self._seen.get(name)
        since = before.since if before is not None and owned <= before.owned else self._monotonic()
        return _Seen(since, owned)

    def _owned(self, known: Known, names: Iterable[str]) -> dict[str, set[Address]]:
        """Who owns what, of blocks that the watch is behind with as it was left."""
        found = {name: {one for one in self._left(name) if key_of(one) in self._behind} for name in names}
        for block in known.blocks:
            if block.key in self._behind:
                continue
            for value, owner in block.owned.items():
                if owner in found:
                    found[owner].add(Address(block.key.family, value))
        return found

    def _left(self, name: str) -> frozenset[Address]:
        seen = self._seen.get(name)
        return seen.owned if seen is not None else frozenset()
