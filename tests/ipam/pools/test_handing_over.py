"""Addresses that go from node to node: for whom they are kept, for whoever has none, and what goes wrong on the way."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from tests.ipam.pools.simulation import Killed, world

from underlay.cni.address import parse, text
from underlay.controller.ownerless import settled
from underlay.errors import NoAddressLeft, TryAgain
from underlay.ipam.pools import seek
from underlay.ipam.pools.block import BlockConflict, StoreRefuses, Want, key_of
from underlay.ipam.pools.journal import Journal
from underlay.ipam.pools.lease import HELD, KEPT, RESERVED, Lease, pod_keeper

if TYPE_CHECKING:
    from collections.abc import Collection

    from tests.ipam.pools.simulation import SimNode, World

    from underlay.ipam.pools.block import Block, Key

DB = "StatefulSet/default/db-0"
SMALL = ["10.0.0.1-10.0.0.40"]


def until(node: SimNode, container: str, keeper: str = "", seconds: float = 60.0) -> str:
    """The address that the runtime gets, which calls again every second where it is told to."""
    limit = node.world.time.now + seconds
    while True:
        try:
            return node.add(container, keeper=keeper).shown
        except TryAgain:
            assert node.world.time.now < limit
            node.world.time.sleep(1)


# -- keepers -----------------------------------------------------------------------------------------------------------


def test_a_stateful_pod_that_moves_gets_its_address() -> None:
    with world(a=SMALL) as made:
        one, two = made.node("one"), made.node("two")
        one.add("other")
        address = one.add("c1", keeper=DB).shown
        made.time.sleep(0.1)
        one.delete("c1")
        made.time.sleep(0.1)
        assert two.add("c2", keeper=DB).shown == address
        assert [lease.shown for lease in one.leases.everything()] != [address]
        made.time.sleep(5)
        made.check()
        two.delete("c2")
        made.time.sleep(0.1)
        assert one.add("c3", keeper=DB).shown == address


def test_until_the_earlier_pod_has_gone_its_successor_is_told_to_try_again() -> None:
    with world(a=SMALL) as made:
        one, two = made.node("one"), made.node("two")
        address = one.add("c1", keeper=DB).shown
        made.time.sleep(0.1)
        with pytest.raises(TryAgain, match=f"{address} is kept for {DB} at node 'one'"):
            two.add("c2", keeper=DB)
        made.time.sleep(20)
        with pytest.raises(TryAgain):
            two.add("c2", keeper=DB)
        one.delete("c1")
        made.time.sleep(0.1)
        assert address not in {two.add(f"other-{n}").shown for n in range(20)}
        assert two.add("c2", keeper=DB).shown == address


def test_an_add_that_has_no_time_left_is_told_to_try_again() -> None:
    with world(a=SMALL) as made:
        one, two = made.node("one"), made.node("two")
        address = one.add("c1", keeper=DB).shown
        made.time.sleep(0.1)
        with pytest.raises(TryAgain, match=f"{address} is kept for {DB} at node 'one'"):
            two.add("c2", keeper=DB, seconds=0.0)


def test_a_pod_that_is_to_have_an_address_of_another_pool_does_not_wait_for_the_old_one() -> None:
    with world(a=SMALL, b=["10.0.1.1-10.0.1.40"]) as made:
        one, two = made.node("one"), made.node("two")
        one.add("c1", keeper=DB)
        made.time.sleep(0.1)
        one.delete("c1")
        made.time.sleep(0.1)
        assert two.add("c2", ["b"], keeper=DB).shown.startswith("10.0.1.")
        made.time.sleep(30)
        assert one.leases.everything() == []  # what was kept has been superseded


def test_what_a_node_that_has_gone_kept_is_found_by_its_keeper_and_by_nobody_else() -> None:
    with world(a=["10.0.0.1-10.0.0.4"]) as made:
        one, two = made.node("one"), made.node("two")
        address = one.add("c1", keeper=DB).shown
        made.time.sleep(0.1)
        one.kill()
        made.dead(one, "c1")
        with pytest.raises(TryAgain):
            two.add("c2", keeper=DB)
        made.evict("one")
        made.time.sleep(0.1)
        others = {two.add(f"other-{n}").shown for n in range(3)}
        assert address not in others
        with pytest.raises(NoAddressLeft):
            two.add("one-too-many")
        assert two.add("c2", keeper=DB).shown == address


def test_a_node_that_comes_back_forgets_what_it_kept_for_those_that_have_moved() -> None:
    with world(a=SMALL) as made:
        one, two = made.node("one"), made.node("two")
        address = one.add("c1", keeper=DB).shown
        one.delete("c1")
        made.time.sleep(1)
        one.kill()
        made.evict("one")
        made.time.sleep(1)
        assert two.add("c2", keeper=DB).shown == address
        one.boot += 1
        one.start()
        made.time.sleep(15)
        assert one.leases.taken() == []
        made.check()


def test_a_reservation_is_found_from_another_node() -> None:
    with world(a=SMALL) as made:
        one, two = made.node("one"), made.node("two")
        lease = one.add("first")
        one.delete("first")
        one.leases.keep(lease.address, "a", f"{RESERVED}/default/web")
        made.time.sleep(0.1)
        assert two.add("web").shown == lease.shown


def adopted(made: World, address: str, pod: str, keeper: str) -> None:
    """What the pod has from another IPAM, as "underlay ipam adopt" writes it."""
    found = parse(address)
    assert found is not None
    lease = Lease(found, "a", HELD, "earlier", "", "eth0", f"default/{pod}", keeper)
    before = made.api.truth.get(key_of(found))
    after = replace(before, revision=before.revision + 1, leases={**before.leases, found.value: lease})
    made.api.truth.swap(before, after)


def test_an_adopted_address_is_found_by_its_pod_and_by_the_sets_next_one_of_that_name() -> None:
    with world(a=SMALL) as made:
        one = made.node("one")
        adopted(made, "10.0.0.7", "web", pod_keeper("default/web", "web"))
        adopted(made, "10.0.0.8", "db-0", DB)
        made.time.sleep(0.1)
        assert one.add("web").shown == "10.0.0.7"
        assert one.add("db-0", keeper=DB).shown == "10.0.0.8"


def test_an_adopted_address_of_a_machine_is_not_its_next_pods_while_the_earlier_one_runs() -> None:
    """Two pods of a machine exist at a time while it moves."""
    with world(a=SMALL) as made:
        one, vm = made.node("one"), "VirtualMachine/default/vm"
        adopted(made, "10.0.0.7", "virt-launcher-vm-x", vm)
        made.time.sleep(0.1)
        with pytest.raises(TryAgain, match=r"10\.0\.0\.7 is held by pod default/virt-launcher-vm-x"):
            one.add("virt-launcher-vm-y", keeper=vm)
        assert made.owners() == {}
        (block,) = made.api.truth.blocks.values()
        made.api.truth.swap(block, settled(block, {pod_keeper("default/virt-launcher-vm-x", "earlier")}))
        made.time.sleep(0.1)
        assert one.add("virt-launcher-vm-y", keeper=vm).shown == "10.0.0.7"


def test_what_nobody_owns_and_others_write_all_the_time_is_not_said_to_be_at_a_node() -> None:
    with world(a=SMALL) as made:
        one = made.node("one")
        adopted(made, "10.0.0.8", "db-0", DB)
        made.time.sleep(0.1)

        def conflict(*_: Any) -> Block:
            made.time.sleep(0.1)
            raise BlockConflict

        one.store.swap = conflict  # type: ignore[method-assign]
        with pytest.raises(TryAgain, match=f"is kept for {DB} by no node, and others wrote its block each time"):
            one.add("db-0", keeper=DB)


def test_a_kept_address_is_not_handed_to_somebody_else() -> None:
    with world(a=["10.0.0.1-10.0.0.3"]) as made:
        one, two = made.node("one"), made.node("two")
        one.add("c1", keeper=DB)
        one.delete("c1")
        got = {until(two, "x"), until(two, "y")}
        assert len(got) == 2
        with pytest.raises(NoAddressLeft):
            two.add("z")
        assert [lease.state for lease in one.leases.everything()] == [KEPT]


def test_who_waits_for_another_node_lends_its_place_to_those_who_are_waited_for() -> None:
    with world(a=["10.0.0.1-10.0.0.2"]) as made:
        one, two = made.node("one"), made.node("two")
        first, kept = one.add("p").shown, one.add("k", keeper=DB).shown
        made.time.sleep(5)
        one.delete("p")
        got: list[str] = []
        task = made.time.start(lambda: got.append(two.add("q").shown))
        made.time.sleep(0.5)
        assert two.lent == 1
        made.time.join(task)
        task = made.time.start(lambda: got.append(until(two, "k2", DB)))
        made.time.sleep(0.5)
        assert two.lent == 1
        one.delete("k")
        made.time.join(task)
        assert (got, two.lent) == ([first, kept], 0)


# -- who waits ---------------------------------------------------------------------------------------------------------


def waiting(node: SimNode, container: str, after: float = 0.3) -> list[tuple[str, float]]:
    """Where the address of an ADD that has waited for ``after`` seconds will be, and when it came."""
    got: list[tuple[str, float]] = []
    node.world.time.start(lambda: got.append((node.add(container).shown, node.world.time.now)))
    node.world.time.sleep(after)
    assert got == []
    return got


def test_who_waits_gets_what_the_node_s_own_pods_give_back_at_once_and_without_a_request() -> None:
    with world(a=["10.0.0.1-10.0.0.2"]) as made:
        one = made.node("one")
        addresses = {name: one.add(name).shown for name in ("p", "q")}
        made.time.sleep(5)
        writes = made.api.truth.writes.total()
        first, second = waiting(one, "r"), waiting(one, "s")
        given_back: dict[str, float] = {}
        for name in ("q", "p"):
            one.delete(name)
            given_back[addresses[name]] = made.time.now
            made.time.sleep(0.2)
        assert dict([*first, *second]) == given_back
        assert made.api.truth.writes.total() == writes


def test_what_is_given_back_after_the_look_and_before_the_wait_is_not_missed() -> None:
    with world(a=["10.0.0.1-10.0.0.2"]) as made:
        one = made.node("one")
        address = one.add("p").shown
        one.add("q")
        made.time.sleep(5)
        more, now = one.blocks.more, made.time.now

        def just_before(*args: Any, patient: bool) -> bool:
            if patient:
                one.delete("p")
            return more(*args, patient=patient)

        one.blocks.more = just_before  # type: ignore[method-assign]
        assert (one.add("r").shown, made.time.now) == (address, now)


def test_who_waits_gets_what_another_add_leaves() -> None:
    """One that has its IPv4 address and no IPv6 one, or whose file cannot be written."""
    with world(a=["10.0.0.1-10.0.0.2"]) as made:
        one = made.node("one")
        who = one.add("p")
        pending = one.leases.take([made.catalogue.pools["a"]], who._replace(container_id="q"), made.time.now + 9)
        got = waiting(one, "r")
        one.leases.abandon([pending])
        made.time.sleep(0.001)
        assert [shown for shown, _ in got] == [pending.shown]
        made.time.sleep(5)
        assert {at.container_id for block in made.api.truth.blocks.values() for at in block.leases.values()} == {
            "p", "r"
        }  # fmt: skip


def test_who_waits_gets_what_could_not_be_handed_over() -> None:
    """The API server refuses the write; until it has, the address is nobody's to take."""
    with world(a=["10.0.0.1-10.0.0.2"]) as made:
        one, two = made.node("one"), made.node("two")
        address = one.add("p").shown
        one.add("q")
        made.time.sleep(5)
        one.delete("p")
        made.time.sleep(2)

        def refuse(*_: Any) -> Block:
            made.time.sleep(0.5)
            raise StoreRefuses("forbidden")

        one.store.swap = refuse  # type: ignore[method-assign]
        made.time.start(lambda: until(two, "r", seconds=9.0))
        made.time.sleep(0.1)
        got = waiting(one, "s")
        made.time.sleep(0.2)
        assert [shown for shown, _ in got] == [address]
        assert made.owners()[one.leases.everything()[0].address] == "one"


def test_an_address_comes_to_who_waits_on_its_node_before_it_is_handed_over() -> None:
    with world(a=["10.0.0.1-10.0.0.3"]) as made:
        one, two = made.node("one"), made.node("two")
        addresses = [one.add(f"p{n}").shown for n in range(3)]
        made.time.sleep(5)
        one.delete("p0")
        made.time.sleep(2)
        assert one.add("q").shown == addresses[0]  # reported to be free for a second yet
        got = waiting(one, "r", 0.1)
        asking = waiting(two, "s", 0.2)
        one.delete("p1")
        made.time.sleep(0.1)
        assert [shown for shown, _ in got] == [addresses[1]]
        assert asking == []
        made.check()


def test_what_others_of_the_node_give_back_makes_no_wait_longer() -> None:
    """Who finds nothing in a full pool hears of it as soon, however many pods of another pool come and go."""
    with world(a=["10.0.0.1-10.0.0.2"], b=["10.0.1.1-10.0.1.40"]) as made:
        one = made.node("one")
        one.add("p")
        one.add("q")
        made.time.sleep(5)

        def come_and_go() -> None:
            for n in range(60):
                one.add(f"r{n}", ["b"])
                made.time.sleep(0.1)
                one.delete(f"r{n}")

        task = made.time.start(come_and_go)
        began = made.time.now
        with pytest.raises(NoAddressLeft):
            one.add("s", ["a"])
        assert made.time.now - began < 2
        made.time.join(task)


# -- rest --------------------------------------------------------------------------------------------------------------


def keep_trying(node: SimNode, name: str, until: float) -> None:
    while node.world.time.now < until:
        with contextlib.suppress(NoAddressLeft, TryAgain):
            node.add(name)


def test_who_has_another_pool_does_not_wait_with_those_who_have_none() -> None:
    with world(a=["10.0.0.1"], b=["10.0.1.1-10.0.1.40"]) as made:
        one, two = made.node("one"), made.node("two")
        one.add("p")
        made.time.sleep(5)
        end = made.time.now + 9
        for n in range(5):
            made.time.start(lambda n=n: keep_trying(two, f"w{n}", end))
        made.time.sleep(0.2)
        began = made.time.now
        assert two.add("r", pools=("a", "b")).pool == "b"
        assert made.time.now - began < 0.1
        made.time.sleep(10)


def test_who_waits_among_many_waits_no_longer_than_alone() -> None:
    with world(a=["10.0.0.1"]) as made:
        one, two = made.node("one"), made.node("two")
        one.add("p")
        made.time.sleep(5)
        end = made.time.now + 9
        for n in range(5):
            made.time.start(lambda n=n: keep_trying(two, f"w{n}", end))
        made.time.sleep(0.2)
        began = made.time.now
        with pytest.raises(NoAddressLeft):
            two.add("r")
        assert made.time.now - began < 2.0
        made.time.sleep(10)


def test_an_address_rests_on_at_its_next_owner() -> None:
    with world(a=["10.0.0.1-10.0.0.2"]) as made:
        one, two = made.node("one"), made.node("two")
        first, second = one.add("p").shown, one.add("q").shown
        made.time.sleep(5)
        one.delete("p")
        made.time.sleep(5)
        assert until(two, "r") == first  # there was no other
        two.delete("r")
        one.delete("q")
        made.time.sleep(29)
        assert two.leases.free([lease.address for lease in two.leases.everything()]) == {}
        assert {until(two, "s"), until(two, "t")} == {first, second}


# -- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fate", ["lost", "dropped", "late"])
def test_no_answer_is_not_the_end(fate: str) -> None:
    """Requests are carried out without an answer, never arrive, or are carried out a second later."""
    with world(3, a=SMALL) as made:
        nodes = [made.node(f"n{n}") for n in range(3)]
        setattr(made.api.weather, fate, 0.3)
        for n in range(36):
            until(nodes[n % 3], f"p{n}")
            made.check()
        for n in range(36):
            nodes[n % 3].delete(f"p{n}")
        made.time.sleep(900)
        setattr(made.api.weather, fate, 0.0)
        made.time.sleep(900)
        made.check()
        assert made.drained()


def test_what_was_given_up_without_an_answer_is_handed_out_by_nobody_until_that_is_known() -> None:
    """A read says that it is owned still; and then the write is carried out."""
    with world(a=["10.0.0.1-10.0.0.2"]) as made:
        one, two, weather = made.node("one"), made.node("two"), made.api.weather
        address = one.add("p").shown
        one.add("q")
        made.time.sleep(5)
        one.delete("p")
        made.time.sleep(2)
        swaps: list[float] = []

        def wanted(block: Block) -> None:
            if block.wanted and not swaps:
                swaps.append(made.time.now)
                made.time.at(made.time.now + 0.008, lambda: setattr(weather, "late", 1.0))
                made.time.at(made.time.now + 0.012, lambda: setattr(weather, "late", 0.0))

        made.api.truth.watches.append(wanted)
        made.time.start(lambda: until(two, "r"))
        while not swaps:
            made.time.sleep(0.001)
        for _ in range(4):
            made.time.sleep(0.02)
            with pytest.raises((NoAddressLeft, TryAgain)):
                one.add("s", seconds=0.001)
        made.time.sleep(5)
        assert [lease.shown for lease in two.leases.everything()] == [address]
        made.check()


def test_a_node_killed_while_it_gives_up_does_not_hand_out_again_what_may_be_gone() -> None:
    with world(a=["10.0.0.1-10.0.0.2"]) as made:
        one, two = made.node("one"), made.node("two")
        address = one.add("p").shown
        one.add("q")
        made.time.sleep(5)
        one.delete("p")
        made.time.sleep(2)
        began = made.time.now

        def at_once(block: Block) -> None:
            if block.wanted and made.time.now > began and one.store.alive:
                made.time.at(made.time.now + 0.008, one_dies)

        def one_dies() -> None:
            one.store.alive = False  # the answer to the hand-over will not find it

        made.api.truth.watches.append(at_once)
        made.time.start(lambda: until(two, "r"))
        made.time.sleep(1)
        made.api.truth.watches.remove(at_once)
        one.start()
        with pytest.raises((NoAddressLeft, TryAgain)):
            one.add("s", seconds=1.0)
        made.time.sleep(10)
        assert [lease.shown for lease in two.leases.everything()] == [address]
        made.check()


def test_what_a_pod_holds_after_all_is_not_given_up_when_its_turn_comes() -> None:
    """The attachments' ledger may know better than the file of the pools, which was lost."""
    with world(a=["10.0.0.1-10.0.0.2"]) as made:
        one, two = made.node("one"), made.node("two")
        first, second = one.add("p"), one.add("q")
        one.delete("q")
        made.time.sleep(5)
        one.ownership.withhold(key_of(second.address), [second.value])
        one.leases.restore([second])
        made.live(one, second)
        made.time.sleep(30)
        with pytest.raises(NoAddressLeft):
            two.add("r")
        one.delete("q")
        assert until(two, "r") == second.shown != first.shown
        made.check()


def test_a_node_killed_while_it_withholds_what_an_add_has_just_taken_keeps_it() -> None:
    """The ADD was first, and its pod has the address; the process that would have noticed is gone."""
    with world(a=["10.0.0.1-10.0.0.2"]) as made:
        one, two = made.node("one"), made.node("two")
        one.add("p")
        one.add("o")
        made.time.sleep(5)
        one.delete("o")
        made.time.sleep(5)
        withhold = one.ownership.withhold

        def add_wins(key: Key, values: Collection[int]) -> None:
            one.add("q")
            withhold(key, values)
            one.kill()
            raise Killed

        one.ownership.withhold = add_wins  # type: ignore[method-assign]
        with pytest.raises((NoAddressLeft, TryAgain)):
            two.add("r", seconds=5.0)
        assert not one.store.alive
        one.start()
        for _ in range(20):
            with pytest.raises((NoAddressLeft, TryAgain)):
                two.add("s", seconds=5.0)
            made.time.sleep(1)
        assert set(made.owners().values()) == {"one"}
        one.delete("q")
        until(two, "t")
        made.check()


def test_a_node_that_is_declared_dead_while_it_gives_up_goes_on() -> None:
    """Its share has gone between the look at it and the act."""
    with world(a=SMALL) as made:
        one = made.node("one")
        one.add("p")
        one.delete("p")
        withhold = one.ownership.withhold

        def too_late(key: Key, values: Collection[int]) -> None:
            made.evict("one")
            made.time.sleep(0.1)
            withhold(key, values)

        one.ownership.withhold = too_late  # type: ignore[method-assign]
        made.time.sleep(900)
        assert made.drained()
        one.ownership.withhold = withhold  # type: ignore[method-assign]
        one.add("q")
        made.check()
        one.delete("q")
        made.time.sleep(900)
        assert made.drained()


def test_what_was_given_up_of_a_block_as_it_had_become_since_is_not_handed_out_after_a_crash() -> None:
    """The block was written by another node between the withholding and the swap that is still under way."""
    with world(a=["10.0.0.1-10.0.0.2"]) as made:
        one, two = made.node("one"), made.node("two")
        one.add("p")
        free = one.add("o").address
        made.time.sleep(5)
        one.delete("o")
        made.time.sleep(40)
        key, truth = key_of(free), made.api.truth
        one.ownership.withhold(key, [free.value])
        truth.swap(truth.get(key), seek.wanting(truth.get(key), [free.value], Want("two")))
        made.api.weather.late = 1.0
        made.time.sleep(0.05)
        one.kill()
        one.start()
        made.api.weather.away = True
        with pytest.raises((NoAddressLeft, TryAgain)):
            one.add("q", seconds=0.1)
        made.time.sleep(1.5)
        assert made.owners()[free] == "two"
        made.api.weather.late, made.api.weather.away = 0.0, False
        assert until(two, "r") == text(*free)
        made.check()


@pytest.mark.parametrize("fault", ["away", "refuses"])
def test_while_nothing_can_be_written_nothing_is_given_back_that_might_be_needed(fault: str) -> None:
    with world(a=["10.0.0.1-10.0.0.200"]) as made:
        one = made.node("one")
        one.add("p")
        owned = len(made.owners())
        made.time.sleep(200)
        setattr(made.api.weather, fault, True)
        made.time.sleep(3600)
        for n in range(owned - 1):
            one.add(f"q{n}", seconds=1.0)
        made.check()
        setattr(made.api.weather, fault, False)
        for n in range(owned - 1):
            one.delete(f"q{n}")
        made.time.sleep(700)
        assert len(made.owners()) < owned


def test_a_node_that_has_lost_its_file_believes_what_it_reported_of_pods_of_this_boot() -> None:
    with world(a=["10.0.0.1-10.0.0.16"]) as made:
        one = made.node("one")
        address = one.add("p").shown
        made.time.sleep(5)
        one.kill()
        one.journal.close()
        one.journal = Journal(":memory:", one.log)
        one.start()
        others = {one.add(f"q{n}").shown for n in range(15)}
        assert address not in others
        assert [lease.shown for lease in one.delete("p")] == [address]
        one.kill()
        one.journal.close()
        one.journal, one.boot = Journal(":memory:", one.log), 2
        for n in range(15):
            made.dead(one, f"q{n}")
        one.start()
        assert len({one.add(f"r{n}").shown for n in range(16)}) == 16


@pytest.mark.parametrize(("keeper", "state"), [(DB, [KEPT]), ("", [])])
def test_what_had_ended_when_a_node_was_killed_is_not_held_again_because_of_an_old_report(
    keeper: str, state: list[str]
) -> None:
    """It died while it gave the address up, and its last report is of before; others have written the block since."""
    with world(a=["10.0.0.1-10.0.0.2"]) as made:
        one, two = made.node("one"), made.node("two")
        one.add("other")
        address = one.add("p", keeper=keeper).address
        made.time.sleep(5)
        key, truth = key_of(address), made.api.truth
        one.delete("p")
        one.ownership.withhold(key, [address.value])
        one.leases.drop([lease for lease in one.leases.everything() if lease.state == KEPT])
        one.kill()
        truth.swap(truth.get(key), seek.wanting(truth.get(key), [address.value], Want("two", keeper)))
        one.start()
        assert [lease.state for lease in one.leases.everything()] == [HELD, *state]
        assert until(two, "q", keeper) == text(*address)
        made.time.sleep(5)
        assert [lease.container_id for lease in one.leases.everything()] == ["other"]
        made.check()


def test_a_block_that_somebody_deletes_is_owned_again_by_those_who_use_it() -> None:
    with world(a=SMALL) as made:
        one, two = made.node("one"), made.node("two")
        held = {one.add(f"p{n}").address for n in range(3)}
        made.time.sleep(5)
        for key in list(made.api.truth.blocks):
            made.api.truth.remove(key)
        made.time.sleep(15)
        assert {address for address, owner in made.owners().items() if owner == "one"} >= held
        for n in range(37):
            until(two, f"q{n}")
        made.check()


def test_a_node_that_was_declared_dead_gives_up_what_it_believed_to_own() -> None:
    with world(a=SMALL) as made:
        one, two = made.node("one"), made.node("two")
        one.add("p")
        made.time.sleep(5)
        one.kill()
        made.dead(one, "p")
        made.evict("one")
        made.time.sleep(1)
        got = {two.add(f"q{n}").shown for n in range(40)}
        assert len(got) == 40
        one.boot += 1
        one.start()
        one.leases.release_all(lambda lease: True)
        with pytest.raises(NoAddressLeft):
            one.add("s")
        made.check()


# -- what is documented of pods and pools, between nodes ---------------------------------------------------------------


def test_an_old_del_after_a_new_pod_of_the_same_name_on_another_node_takes_nothing_from_it() -> None:
    with world(a=SMALL) as made:
        one, two = made.node("one"), made.node("two")
        one.add("old")
        address = two.add("new").shown
        one.delete("old")
        one.delete("old")
        one.delete("new")  # its DEL comes to the wrong node
        made.live(two, two.leases.everything()[0])
        made.time.sleep(700)
        assert [lease.shown for lease in two.leases.everything()] == [address]
        made.check()


def test_a_pool_shrunk_below_its_use_takes_its_addresses_back_one_by_one() -> None:
    with world(a=SMALL) as made:
        one, two = made.node("one"), made.node("two")
        held = [until((one, two)[n % 2], f"p{n}") for n in range(40)]
        made.define("a", ["10.0.0.1-10.0.0.10"])
        assert len(made.users) == len(set(held)) == 40
        for node in (one, two):
            with pytest.raises((NoAddressLeft, TryAgain)):
                node.add("one-too-many")
        for n in range(40):
            (one, two)[n % 2].delete(f"p{n}")
        made.time.sleep(5)
        again = {until(two, f"q{n}") for n in range(10)}
        assert again == {f"10.0.0.{n}" for n in range(1, 11)}
        for n in range(10):
            two.delete(f"q{n}")
        made.time.sleep(700)
        assert made.drained()


def test_a_pool_that_is_deleted_and_made_again_finds_what_is_held() -> None:
    with world(a=SMALL, b=["10.0.1.1"]) as made:
        one, two = made.node("one"), made.node("two")
        held = {one.add(f"p{n}").shown for n in range(20)}
        made.time.sleep(3)
        made.define("a", None)
        made.time.sleep(700)
        made.define("a", SMALL)
        rest = {until(two, f"q{n}") for n in range(20)}
        assert held | rest == {f"10.0.0.{n}" for n in range(1, 41)}
        made.check()


def test_two_pools_that_list_the_same_addresses_hand_each_out_once_on_two_nodes() -> None:
    with world(a=["10.0.0.1-10.0.0.30"], b=["10.0.0.11-10.0.0.40"]) as made:
        one, two = made.node("one"), made.node("two")
        shown = []
        for n in range(20):
            shown.append(one.add(f"p{n}", ["a", "b"]).shown)
            shown.append(two.add(f"q{n}", ["b", "a"]).shown)
        assert len(set(shown)) == 40
        made.check()


def test_an_address_that_is_used_outside_is_handed_over_to_nobody() -> None:
    with world(a=["10.0.0.1-10.0.0.3"]) as made:
        one, two = made.node("one"), made.node("two")
        who = one.add("p")
        pending = one.leases.take([made.catalogue.pools["a"]], who._replace(container_id="q"), made.time.now + 9)
        one.leases.set_aside(pending, "02:00:00:00:00:01", 600.0)
        made.time.sleep(5)
        assert until(two, "r") not in (who.shown, pending.shown)
        with pytest.raises(TryAgain):
            two.add("s")
        made.time.sleep(60)
        assert all(pending.value not in block.wanted for block in made.api.truth.blocks.values())
        made.time.sleep(600)
        assert until(two, "s") == pending.shown
