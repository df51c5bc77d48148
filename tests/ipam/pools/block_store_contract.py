"""What every store of blocks must do: in memory, and over HTTP. A subclass gives the fixtures ``store`` (ready, of no
blocks) and ``remove`` (deletes a block as an administrator would).
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from underlay.cni.address import Address, parse
from underlay.ipam.pools.block import Block, BlockConflict, Key, Want, key_of, swaps_of
from underlay.ipam.pools.lease import HELD, KEPT, Lease

if TYPE_CHECKING:
    from collections.abc import Callable

    from underlay.ipam.pools.block import BlockStore

K4 = Key(4, 10 << 24 | 6 << 16 | 168 << 8 | 16)
V4 = K4.first


def soon() -> float:
    return time.monotonic() + 10


def eventually(true: Callable[[], bool]) -> None:
    limit = time.monotonic() + 10
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.005)


def lease(value: int, family: int = 4, **more: object) -> Lease:
    fields = {"uid": "u-1", "container_id": "c" * 64, "ifname": "net1", "pod": "default/web-0", "network": "lan",
              "boot": "b-1", "since": 1_700_000_000_123_456_789}  # fmt: skip
    return Lease(Address(family, value), "rack-7", HELD, **{**fields, **more})  # type: ignore[arg-type]


def full(key: Key) -> Block:
    at = key.first
    kept = Lease(Address(key.family, at + 1), "rack-7", KEPT, ifname="net1", keeper="StatefulSet/default/db-0", since=5)
    return Block(
        key,
        7,
        {at: "node-a", at + 1: "node-a", at + 15: "node.b.example"},
        {at + 15: Want("node-a"), at + 1: Want("node.b.example", "StatefulSet/default/db-0")},
        {at + 2: 1_700_000_000_123_456_789},
        {at: lease(at, key.family), at + 1: kept},
    )


def plain(block: Block) -> Block:
    """As it was before it was written."""
    return replace(block, version="", revision=swaps_of(block.revision))


class BlockStoreContract:
    ticks = 0.0  # seconds by which the store's clock goes on for sure

    def test_a_block_that_does_not_exist_reads_as_empty(self, store: BlockStore) -> None:
        assert store.read(K4, soon()) == Block(K4)
        assert store.ready()
        assert list(store.known()) == []

    @pytest.mark.parametrize(
        "first", ["10.6.168.16", "0.0.0.0", "255.255.255.240", "fd00::10", "::", "2001:db8::ffff:0"]
    )
    def test_what_is_written_is_read_whole(self, store: BlockStore, first: str) -> None:
        address = parse(first)
        assert address is not None
        before = full(key_of(address))
        written = store.swap(Block(before.key), before, soon())
        assert written.version
        assert plain(written) == before
        assert store.read(before.key, soon()) == written
        eventually(lambda: list(store.known()) == [written])

    def test_a_swap_replaces_and_takes_away(self, store: BlockStore) -> None:
        first = store.swap(Block(K4), full(K4), soon())
        after = Block(K4, first.revision + 1, {V4 + 3: "c"}, {}, {}, {V4 + 3: lease(V4 + 3)})
        second = store.swap(first, after, soon())
        assert second.version != first.version
        assert replace(second, version="") == after
        assert plain(second).revision == 8
        assert store.read(K4, soon()) == second

    def test_whoever_comes_second_writes_nothing(self, store: BlockStore) -> None:
        first = store.swap(Block(K4), Block(K4, 1, {V4: "a"}), soon())
        with pytest.raises(BlockConflict):
            store.swap(Block(K4), Block(K4, 1, {V4: "b"}), soon())
        second = store.swap(first, Block(K4, first.revision + 1, {V4: "c"}), soon())
        with pytest.raises(BlockConflict):
            store.swap(first, Block(K4, 2, {V4: "d"}), soon())
        assert store.read(K4, soon()) == second

    def test_of_many_at_once_one_is_first(self, store: BlockStore) -> None:
        before = store.swap(Block(K4), Block(K4, 1), soon())
        won: list[Block] = []
        lost: list[str] = []

        def rival(name: str) -> None:
            try:
                won.append(store.swap(before, Block(K4, 2, {V4: name}), soon()))
            except BlockConflict:
                lost.append(name)

        threads = [threading.Thread(target=rival, args=(f"n{n}",)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, 7)
        assert store.read(K4, soon()) == won[0]

    def test_a_report_concerns_its_own_addresses_alone(self, store: BlockStore) -> None:
        before = store.swap(Block(K4), full(K4), soon())
        news = lease(V4 + 15, pod="default/other", keeper="VirtualMachine/default/vm")
        store.report(K4, {V4 + 15: news, V4: None, V4 + 9: None}, soon())
        after = store.read(K4, soon())
        kept = before.leases[V4 + 1]
        assert replace(after, version=before.version) == replace(before, leases={V4 + 1: kept, V4 + 15: news})
        eventually(lambda: list(store.known()) == [after])

    def test_a_report_replaces_what_was_reported(self, store: BlockStore) -> None:
        store.swap(Block(K4), full(K4), soon())
        news = Lease(Address(4, V4), "other", KEPT, keeper="StatefulSet/default/db-0", since=9)
        store.report(K4, {V4: news}, soon())
        assert store.read(K4, soon()).leases[V4] == news

    def test_a_swap_does_not_undo_a_report_that_it_has_not_seen(self, store: BlockStore) -> None:
        before = store.swap(Block(K4), Block(K4, 1, {V4: "a"}), soon())
        store.report(K4, {V4: lease(V4)}, soon())
        with pytest.raises(BlockConflict):
            store.swap(before, Block(K4, 2, {V4: "a", V4 + 1: "a"}), soon())

    def test_a_report_makes_no_block(self, store: BlockStore) -> None:
        store.report(K4, {V4: lease(V4)}, soon())
        assert store.read(K4, soon()) == Block(K4)

    def test_the_watch_tells_everything_in_its_order(self, store: BlockStore, remove: Callable[[Key], None]) -> None:
        told: list[Block] = []
        store.follow(told.append)
        first = store.swap(Block(K4), Block(K4, 1, {V4: "a"}), soon())
        second = store.swap(first, Block(K4, first.revision + 1, {V4: "b"}), soon())
        eventually(lambda: told[-1:] == [second])
        assert told == [first, second][-len(told) :]  # a watch may pass over what was overtaken
        remove(K4)
        eventually(lambda: told[-1].version == "")
        assert told[-1] == Block(K4, second.revision)
        assert list(store.known()) == []

    def test_a_block_that_was_deleted_is_not_written_by_what_was_known_of_it(
        self, store: BlockStore, remove: Callable[[Key], None]
    ) -> None:
        before = store.swap(Block(K4), Block(K4, 1, {V4: "a"}), soon())
        remove(K4)
        with pytest.raises(BlockConflict):
            store.swap(before, Block(K4, 2, {V4: "b"}), soon())
        assert store.swap(Block(K4), Block(K4, 1, {V4: "b"}), soon()).owned == {V4: "b"}

    def test_a_block_that_is_made_again_goes_on_above_what_it_was(
        self, store: BlockStore, remove: Callable[[Key], None]
    ) -> None:
        before = store.swap(Block(K4), Block(K4, 1, {V4: "a"}), soon())
        for _ in range(5):
            before = store.swap(before, replace(before, revision=before.revision + 1), soon())
        assert before.revision == store.read(K4, soon()).revision
        remove(K4)
        time.sleep(self.ticks)
        again = store.swap(Block(K4), Block(K4, 1, {V4: "b"}), soon())
        assert again.revision > before.revision
        assert plain(again).revision == 1
        assert store.swap(again, replace(again, revision=again.revision + 1), soon()).revision == again.revision + 1
