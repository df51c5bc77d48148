"""Blocks in memory, for one process."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from underlay.ipam.pools.block import Block, BlockConflict, Key, StoreUnreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from underlay.ipam.pools.lease import Lease


class MemoryBlocks:
    """A :class:`~underlay.ipam.pools.block.BlockStore`. ``away``: every request is StoreUnreachable."""

    def __init__(self, *blocks: Block) -> None:
        self._lock = threading.Lock()
        self._blocks = {block.key: replace(block, version="1") for block in blocks}
        self._followers: list[Callable[[Block], None]] = []
        self.away = False
        self.swaps = 0

    def known(self) -> Iterable[Block]:
        with self._lock:
            return tuple(self._blocks.values())

    def ready(self) -> bool:
        return True

    def follow(self, changed: Callable[[Block], None]) -> None:
        self._followers.append(changed)

    def read(self, key: Key, deadline: float) -> Block:
        self._reach()
        with self._lock:
            return self._blocks.get(key, Block(key))

    def swap(self, before: Block, after: Block, deadline: float) -> Block:
        self._reach()
        with self._lock:
            if self._blocks.get(before.key, Block(before.key)).version != before.version:
                raise BlockConflict
            self.swaps += 1
            return self._put(after)

    def report(self, key: Key, leases: Mapping[int, Lease | None], deadline: float) -> None:
        self._reach()
        with self._lock:
            block = self._blocks.get(key)
            if block is not None:
                told = {**block.leases, **leases}
                self._put(replace(block, leases={value: one for value, one in told.items() if one is not None}))

    def _put(self, block: Block) -> Block:
        written = replace(block, version=str(int(block.version or "0") + 1))
        self._blocks[block.key] = written
        for changed in self._followers:
            changed(written)
        return written

    def _reach(self) -> None:
        if self.away:
            raise StoreUnreachable("away, as wanted")
