"""Blocks at an API server over HTTP: who writes first wins, what is unknown is said to be, and watches tell it all."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.ipam.pools.block_store_contract import BlockStoreContract
from tests.kube.api_objects import BLOCKS
from tests.kube.api_server import Fault
from tests.kube.cluster_bench import QUICK, Lines, soon, until

from underlay.cni.address import Address
from underlay.ipam.pools.block import Block, BlockConflict, Key, StoreRefuses, StoreUnreachable, Want, swaps_of
from underlay.ipam.pools.lease import HELD, Lease
from underlay.kube.block_store import ApiBlocks
from underlay.kube.client import Client
from underlay.kube.kubeconfig import Kubeconfig

KEY = Key(4, 0x0A06A810)
FIRST = KEY.first
NAME = "v4-10.6.168.16"
PATH = f"/{BLOCKS}"


@pytest.fixture
def make(server, tmp_path):
    made = []

    def store(*, start=True):
        access = Kubeconfig(server.kubeconfig(tmp_path / "kubeconfig"), Lines())
        client = Client(access, "tests")
        one = ApiBlocks(client, Lines(), QUICK)
        made.append((one, client))
        if start:
            one.start()
        return one

    yield store
    for one, client in made:
        one.stop()
        client.close()
        one.join()


class TestApiBlocks(BlockStoreContract):
    ticks = 1.1

    @pytest.fixture
    def store(self, make):
        store = make()
        assert until(store.ready)
        return store

    @pytest.fixture
    def remove(self, server):
        return lambda key: server.delete(BLOCKS, "", key.name)


def own(block, *values, node="n1"):
    return replace(block, revision=block.revision + 1, owned={**block.owned, **dict.fromkeys(values, node)})


def lease(value, pod="default/web", **more):
    return Lease(Address(4, value), "a", HELD, "u1", "c1", "eth0", pod, **more)


def test_of_two_that_create_a_block_one_does(make, server):
    one, other = make(start=False), make(start=False)
    nothing = one.read(KEY, soon())
    assert nothing == Block(KEY)
    made = one.swap(nothing, own(nothing, FIRST), soon())
    assert (made.owned, swaps_of(made.revision)) == ({FIRST: "n1"}, 1)
    with pytest.raises(BlockConflict):
        other.swap(nothing, own(nothing, FIRST, node="n2"), soon())
    assert other.read(KEY, soon()) == made
    stored = server.get(BLOCKS, "", NAME)
    assert (stored["kind"], stored["apiVersion"]) == ("UnderlayIPBlock", "underlay.io/v1alpha1")
    assert stored["spec"] == {"revision": 1, "owned": {"10.6.168.16": "n1"}}


def test_of_two_that_change_a_block_one_does(make):
    one, other = make(start=False), make(start=False)
    before = one.swap(Block(KEY), own(Block(KEY), FIRST, FIRST + 1), soon())
    wanted = replace(before, wanted={FIRST: Want("n2", "StatefulSet/default/db-0")}, revision=before.revision + 1)
    after = other.swap(before, wanted, soon())
    with pytest.raises(BlockConflict):
        one.swap(before, replace(before, owned={FIRST: "n1"}), soon())
    given = replace(after, owned={FIRST: "n2"}, wanted={}, resting={FIRST + 1: 5}, revision=after.revision + 1)
    assert one.swap(after, given, soon()) == replace(given, version=one.read(KEY, soon()).version)


def test_a_report_conflicts_with_nobody_and_makes_no_block(make, server):
    store = make(start=False)
    store.report(KEY, {FIRST: lease(FIRST)}, soon())
    assert server.get(BLOCKS, "", NAME) is None
    before = store.swap(Block(KEY), own(Block(KEY), FIRST, FIRST + 1), soon())
    store.report(KEY, {FIRST: lease(FIRST, keeper="StatefulSet/default/db-0"), FIRST + 1: lease(FIRST + 1)}, soon())
    store.report(KEY, {FIRST: lease(FIRST, "default/next"), FIRST + 1: None}, soon())
    now = store.read(KEY, soon())
    assert now == replace(before, leases={FIRST: lease(FIRST, "default/next")}, version=now.version)


def test_what_is_not_known_to_have_happened_is_said_to_be_unknown(make, server):
    store = make(start=False)
    server.faults.append(Fault(path=PATH, method="POST", after=True))
    with pytest.raises(StoreUnreachable):
        store.swap(Block(KEY), own(Block(KEY), FIRST), soon())
    assert store.read(KEY, soon()).of("n1") == {FIRST}  # it has
    for fault in (Fault(path=PATH, status=503), Fault(path=PATH, status=429), Fault(path=PATH, cut=3)):
        server.faults.append(fault)
        with pytest.raises(StoreUnreachable) as caught:
            store.read(KEY, soon())
        assert not isinstance(caught.value, StoreRefuses)
    server.faults.append(Fault(path=PATH, delay=0.5))
    with pytest.raises(StoreUnreachable, match="timed out"):
        store.read(KEY, soon(0.05))
    server.forbidden.add(("patch", BLOCKS))
    with pytest.raises(StoreRefuses, match="cannot patch"):
        store.report(KEY, {FIRST: None}, soon())
    server.stop()
    with pytest.raises(StoreUnreachable, match="API server"):
        store.report(KEY, {FIRST: None}, soon())


def test_without_the_definition_it_says_what_to_do(make, server):
    server.unserved.add(BLOCKS)
    store = make()
    for ask in (
        lambda: store.swap(Block(KEY), own(Block(KEY), FIRST), soon()),
        lambda: store.swap(replace(Block(KEY), version="1"), own(Block(KEY), FIRST), soon()),
        lambda: store.read(KEY, soon()),
        lambda: store.report(KEY, {FIRST: None}, soon()),
    ):
        with pytest.raises(StoreRefuses, match="apply deploy/crds"):
            ask()
    assert until(lambda: "has no underlayipblocks" in store.fault())
    assert not store.ready()


def test_a_block_that_has_gone_is_a_conflict(make, server):
    store = make(start=False)
    before = store.swap(Block(KEY), own(Block(KEY), FIRST), soon())
    server.delete(BLOCKS, "", NAME)
    with pytest.raises(BlockConflict):
        store.swap(before, own(before, FIRST + 1), soon())


def test_a_connection_that_was_closed_while_idle_is_no_fault(make, server):
    store = make(start=False)
    before = store.swap(Block(KEY), own(Block(KEY), FIRST), soon())
    server.cut()
    assert store.swap(before, own(before, FIRST + 1), soon()).of("n1") == {FIRST, FIRST + 1}


def test_the_watch_tells_of_every_change_and_of_what_was_missed(make, server):
    server.put(BLOCKS, {"metadata": {"name": "v4-10.0.0.0"}, "spec": {"revision": 4, "owned": {"10.0.0.1": "n9"}}})
    server.put(BLOCKS, {"metadata": {"name": "somebody-elses"}})
    store, told = make(start=False), []
    store.follow(told.append)
    assert (store.ready(), list(store.known())) == (False, [])
    store.start()
    assert until(store.ready)
    assert [(block.key.name, block.owned) for block in told] == [("v4-10.0.0.0", {0x0A000001: "n9"})]
    made = store.swap(Block(KEY), own(Block(KEY), FIRST), soon())
    store.report(KEY, {FIRST: lease(FIRST)}, soon())
    assert until(lambda: len(told) == 3)
    assert told[1:] == [made, store.read(KEY, soon())]
    assert sorted(block.key.name for block in store.known()) == ["v4-10.0.0.0", NAME]
    server.delete(BLOCKS, "", NAME)
    assert until(lambda: told[-1] == Block(KEY, made.revision))
    server.stop()
    assert until(store.fault)
    server.delete(BLOCKS, "", "v4-10.0.0.0")
    server.objects.lose_history()
    server.start()
    assert until(lambda: told[-1] == Block(Key(4, 0x0A000000), told[0].revision))
    assert (list(store.known()), store.ready()) == ([], True)
    assert until(lambda: not store.fault())


def test_lists_are_as_new_as_the_question(make, server):
    store = make()
    assert until(store.ready)
    server.objects.lose_history()
    assert until(lambda: len(server.asked("list", BLOCKS)) == 2)
    assert ["resourceVersion" in each.query for each in server.asked("list", BLOCKS)] == [False, False]


def test_a_version_that_is_behind_is_no_version_to_swap(make):
    store = make()
    first = store.swap(Block(KEY), own(Block(KEY), FIRST), soon())
    store.report(KEY, {FIRST: lease(FIRST)}, soon())
    with pytest.raises(BlockConflict):
        store.swap(first, own(first, FIRST + 1), soon())
