"""A block that nothing has been in for long goes, if that is still so; and the next one of its name is above it."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.controller.pictures import Owned, blocks, lease, picture
from tests.kube.api_objects import BLOCKS
from tests.kube.api_server import Fault

from underlay.controller.empty_blocks import EmptyBlocks, is_empty
from underlay.ipam.pools.block import Block, Key, Want
from underlay.kube import block_objects
from underlay.kube.block_store import ApiBlocks

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = Key(4, 10 << 24)
AT = KEY.first
SECOND = 1_000_000_000


class Bench:
    def __init__(self, server: Any, client: Any, log: Any) -> None:
        self.server = server
        self.now = 0.0
        self.until = 1e12
        self.store = ApiBlocks(client, log)
        self._looking = EmptyBlocks(client, log, lambda: self.until, after=3600.0, monotonic=lambda: self.now)

    def put(self, block: Block) -> Block:
        """As another client would write it."""
        self.server.put(BLOCKS, block_objects.encode(block))
        return self.read()

    def read(self) -> Block:
        return self.store.read(KEY, time.monotonic() + 10)

    def look(self, *seen: Block, after: float = 0.0) -> bool:
        """Look at what the watch has shown; whether the block is there still."""
        self.now += after
        known = picture()
        object.__setattr__(known, "blocks", seen)
        self._looking.look(known)
        return self.server.get(BLOCKS, "", KEY.name) is not None


@pytest.fixture
def bench(server, client, log) -> Callable[[], Bench]:
    return Bench(server, client(), log)


def test_it_goes_after_an_hour_and_no_sooner(bench, log):
    block = bench.put(Block(KEY, 9))
    assert bench.look(block)
    assert bench.look(block, after=3599)
    assert not bench.look(block, after=2)
    assert ("info", "empty blocks removed", {"blocks": 1}) in log
    assert not bench.look()


@pytest.mark.parametrize("content", [
    {"owned": {AT: "n1"}}, {"wanted": {AT: Want("n1")}}, {"resting": {AT: time.time_ns() - SECOND}},
    {"leases": blocks(lease("10.0.0.0", node=""))[0].leases},
])  # fmt: skip
def test_what_somebody_may_miss_stays(bench, content):
    block = bench.put(Block(KEY, 9, **content))
    assert bench.look(block)
    assert bench.look(block, after=1e6)


def test_what_was_used_long_ago_has_rested(bench):
    block = bench.put(Block(KEY, 9, resting={AT: time.time_ns() - 601 * SECOND}))
    assert bench.look(block)
    assert not bench.look(block, after=3601)


def test_whoever_takes_an_address_meanwhile_has_it(bench, log):
    """The watch is late: what it shows is still empty."""
    block = bench.put(Block(KEY, 9))
    bench.look(block)
    owned = bench.put(replace(block, revision=block.revision + 1, owned={AT: "n1"}))
    assert bench.look(block, after=3601)
    assert bench.read() == owned
    assert "empty blocks removed" not in log.events()


def test_a_block_that_was_in_use_in_between_begins_anew(bench):
    block = bench.put(Block(KEY, 9))
    bench.look(block)
    again = bench.put(replace(block, revision=block.revision + 2))
    assert bench.look(again, after=3000)
    assert bench.look(again, after=3000)
    assert not bench.look(again, after=1000)


@pytest.mark.parametrize("fault", [{"status": 403}, {"status": 503}, {"cut": 0}])
def test_an_api_server_that_will_not_is_asked_again_an_hour_later(fault, bench, server, log):
    block = bench.put(Block(KEY, 9))
    bench.look(block)
    server.faults.append(Fault(method="DELETE", **fault, times=2 if "cut" in fault else 1))
    assert bench.look(block, after=3601)
    assert log.events() == ["empty blocks are not removed"]
    assert bench.look(block, after=60)
    assert not bench.look(block, after=3601)


def test_who_does_not_lead_removes_nothing(bench, server):
    block = bench.put(Block(KEY, 9))
    bench.look(block)
    bench.until = 0.0
    assert bench.look(block, after=3601)
    assert server.asked("delete") == []


def test_a_few_go_at_a_time(bench, server):
    seen = []
    for n in range(50):
        server.put(BLOCKS, {"metadata": {"name": f"v4-10.0.{n}.0"}, "spec": {"revision": 1}})
        seen.append(bench.store.read(Key(4, (10 << 24) + (n << 8)), time.monotonic() + 10))
    bench.look(*seen)
    bench.look(*seen, after=3601)
    assert len(server.objects.all(BLOCKS)) == 30


VALUES = st.integers(AT, AT + 15)


@given(
    st.dictionaries(VALUES, st.just("n1")), st.dictionaries(VALUES, st.just(Want("n2"))),
    st.dictionaries(VALUES, st.integers(0, 10**12)), st.sampled_from([{}, blocks(Owned("10.0.0.1", ""))[0].leases]),
)  # fmt: skip
def test_nothing_that_is_owned_wanted_set_aside_or_rests_is_empty(owned, wanted, resting, leases):
    now = 10**12
    block = Block(KEY, 1, owned, wanted, resting, leases)
    if is_empty(block, now):
        assert not owned
        assert not wanted
        assert not leases
        assert all(now - at >= 600 * SECOND for at in resting.values())
    assert is_empty(Block(KEY, 1, resting={AT: now - 600 * SECOND}), now)
