"""A store of blocks in memory: :class:`Truth` is what the API server has; each node has a store of its own on it."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from underlay.ipam.pools.block import Block, BlockConflict, Key, revision_of, swaps_of
from underlay.ipam.pools.seek import reporting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from underlay.ipam.pools.lease import Lease


class Truth:
    """The objects as the API server has them, and how often each was written, or tried to be."""

    def __init__(self) -> None:
        self.blocks: dict[Key, Block] = {}
        self.writes: Counter[Key] = Counter()
        self.watches: list[Callable[[Block], None]] = []
        self._version = 0
        self._made = 0
        self._lock = threading.Lock()

    def get(self, key: Key) -> Block:
        return self.blocks.get(key, Block(key))

    def swap(self, before: Block, after: Block) -> Block:
        with self._lock:
            self.writes[before.key] += 1
            if self.get(before.key).version != before.version:
                raise BlockConflict
            if not before.version:
                self._made += 1  # its clock
                after = replace(after, revision=revision_of(self._made, swaps_of(after.revision)))
            return self._put(after)

    def report(self, key: Key, leases: Mapping[int, Lease | None]) -> None:
        with self._lock:
            self.writes[key] += 1
            if key in self.blocks:
                self._put(reporting(self.blocks[key], leases))

    def remove(self, key: Key) -> None:
        with self._lock:
            gone = self.blocks.pop(key)
            for tell in self.watches:
                tell(Block(key, gone.revision))

    def _put(self, block: Block) -> Block:
        self._version += 1
        written = replace(block, version=str(self._version))
        self.blocks[block.key] = written
        for tell in self.watches:
            tell(written)
        return written


class MemoryStore:
    """Sees everything at once."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth

    def known(self) -> Iterable[Block]:
        return list(self.truth.blocks.values())

    def ready(self) -> bool:
        return True

    def follow(self, changed: Callable[[Block], None]) -> None:
        self.truth.watches.append(changed)

    def read(self, key: Key, deadline: float) -> Block:
        return self.truth.get(key)

    def swap(self, before: Block, after: Block, deadline: float) -> Block:
        return self.truth.swap(before, after)

    def report(self, key: Key, leases: Mapping[int, Lease | None], deadline: float) -> None:
        self.truth.report(key, leases)
