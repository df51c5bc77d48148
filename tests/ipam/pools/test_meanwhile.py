"""What others do with addresses meanwhile: they are given away, another IPAM has them, their block is removed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.ipam.pools.simulation import World, world
from tests.ipam.pools.test_handing_over import until

from underlay.cni.address import Address, text
from underlay.errors import NoAddressLeft
from underlay.ipam.pools.block import Block, key_of
from underlay.ipam.pools.lease import HELD, Lease, pod_keeper

if TYPE_CHECKING:
    from tests.ipam.pools.simulation import SimNode


@pytest.mark.parametrize("restarts", [False, True])
def test_a_node_that_was_cut_off_and_given_up_goes_on_with_what_nobody_has_taken(restarts: bool) -> None:
    """And its own pods that hold what others have by now are named: their owners have to end them."""
    with world(a=["10.0.0.1-10.0.0.6"]) as made:
        one, two = made.node("one"), made.node("two")
        held = {f"p{n}": one.add(f"p{n}").shown for n in range(3)}
        made.time.sleep(5)
        made.api.cut_off.add("one")
        for container in held:
            made.dead(one, container)  # so the administrator says
        made.evict("one")
        got = {two.add(f"q{n}").shown for n in range(4)}
        lost = {container for container, address in held.items() if address in got}
        assert lost
        made.time.sleep(60)
        if restarts:
            one.kill()
            one.start()
        made.api.cut_off.clear()
        made.time.sleep(20)
        made.check()
        assert {owner for address, owner in made.owners().items() if text(*address) in got} == {"two"}
        told = [fields for level, event, fields in one.lines if event == "address in use here is owned by another node"]
        assert sorted(fields["address"] for fields in told) == sorted(held[container] for container in lost)
        assert sorted(pod for pod, _ in one.told) == sorted(f"default/{container}" for container in lost)
        for container in held:
            one.delete(container)
        more = [until(node, f"r-{node.name}-{n}") for n, node in enumerate((one, two))]
        assert not got & set(more)
        made.check()


def test_what_a_pod_has_from_another_ipam_is_its_own_in_its_next_sandbox_and_nobody_elses() -> None:
    """A lease that no node owns and no container has; the next pod of that name is another one."""
    with world(a=["10.0.0.1-10.0.0.4"]) as made:
        first = Address(4, 10 << 24 | 1)
        theirs = [
            Lease(Address(4, first.value + n), "a", HELD, uid, "", "eth0", "default/p", pod_keeper("default/p", uid))
            for n, uid in enumerate(["p", "old"])
        ]
        made.api.truth.swap(Block(key_of(first)), Block(key_of(first), 1, leases={one.value: one for one in theirs}))
        one, two = made.node("one"), made.node("two")
        made.time.sleep(1)
        got = {until(node, f"q{n}") for n, node in enumerate((one, two))}
        assert got == {"10.0.0.3", "10.0.0.4"}
        with pytest.raises(NoAddressLeft):
            two.add("r")
        assert one.add("p").shown == "10.0.0.1"
        one.delete("p")
        one.leases.tidy(lambda keeper: not keeper.startswith("Pod/"))
        assert until(two, "r") == "10.0.0.1"
        made.check()


def emptied(made: World, *nodes: SimNode) -> Block:
    """A block of sixteen that nodes have heard of and nothing is in, at its ninth swap."""
    key = key_of(Address(4, 10 << 24 | 16))
    block = made.api.truth.swap(Block(key), Block(key, 8))
    block = made.api.truth.swap(block, replace(block, revision=block.revision + 1))
    made.time.sleep(1)
    assert all(node.ownership.view.get(key) == block for node in nodes)
    return block


def test_a_block_that_is_made_again_is_not_taken_for_old_news() -> None:
    """One node hears late of all of it: what it asks the API for itself counts."""
    with world(a=["10.0.0.16-10.0.0.31"]) as made:
        one, two = made.node("one"), made.node("two")
        before = emptied(made, one, two)
        made.api.weather.watch = 60.0
        made.sweep()
        assert before.key not in made.api.truth.blocks
        assert two.add("p").shown
        began = made.time.now
        assert one.add("q").shown
        assert made.time.now - began < 1.0
        made.check()


def test_what_is_leaving_a_block_that_was_made_again_stays_so_when_the_old_ones_end_is_heard_of() -> None:
    with world(a=["10.0.0.16-10.0.0.31"]) as made:
        one = made.node("one")
        before = emptied(made, one)
        made.api.weather.watch = 60.0
        made.sweep()
        free = one.add("p").value
        one.add("q")
        one.delete("p")
        own, key = one.ownership, before.key
        again = own.view.get(key)
        assert again.revision > before.revision
        own.withhold(key, [free])  # a swap without an answer may give it away at any moment
        own.accept(Block(key, before.revision))
        own.accept(again)
        assert free not in own.shares()[key].owned
        assert own.shares()[key].leaving == {free}
