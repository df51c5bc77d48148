"""Many nodes on one pool: the promised figures, in virtual time, with the allocator that runs on nodes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import pytest
from tests.ipam.pools.rollout import roll_out
from tests.ipam.pools.simulation import World, world

from underlay.cni.address import Address
from underlay.errors import NoAddressLeft, TryAgain
from underlay.ipam.pools.objects import Reserved

if TYPE_CHECKING:
    from collections.abc import Callable

ONCE_MORE = 700.0  # seconds after which everything that nobody uses has been given back


@dataclass
class Phase:
    seconds: float
    writes: int
    hottest: float  # the share of the object that is written most


def run(made: World, pods: int, job: Callable[[str, int], None], settle: float = 10.0) -> Phase:
    """``job`` for every pod of every node, 20 at a time on each, and what follows from it in the background."""
    made.api.truth.writes.clear()
    work = {name: [partial(job, name, n) for n in range(pods)] for name in made.nodes}
    seconds = made.on_all(20, work)
    made.time.sleep(settle)
    writes = made.api.truth.writes
    made.check()
    return Phase(seconds, writes.total(), max(writes.values(), default=0) / max(1, writes.total()))


def life(made: World, nodes: int, pods: int) -> list[Phase]:
    """Create, re-create, delete."""
    for n in range(nodes):
        made.node(f"node-{n}")
    made.time.sleep(1)

    def create(name: str, n: int) -> None:
        made.nodes[name].add(f"{name}-{n}")

    def create_again(name: str, n: int) -> None:
        made.nodes[name].delete(f"{name}-{n}")
        made.nodes[name].add(f"{name}-{n}-again")

    def delete(name: str, n: int) -> None:
        made.nodes[name].delete(f"{name}-{n}-again")

    phases = [run(made, pods, create)]
    assert len(made.users) == nodes * pods
    reported = sum(len(block.leases) for block in made.api.truth.blocks.values())
    assert reported == nodes * pods
    phases.append(run(made, pods, create_again))
    assert len(made.users) == nodes * pods
    phases.append(run(made, pods, delete, ONCE_MORE))
    assert made.drained()
    assert not any(block.leases for block in made.api.truth.blocks.values())
    return phases


@pytest.mark.parametrize("seed", range(5))
def test_four_nodes_get_all_of_a_pool_of_exactly_200(seed: int) -> None:
    with world(seed, a=["10.0.0.1-10.0.0.200"]) as made:
        phases = life(made, 4, 50)
    assert max(phase.seconds for phase in phases) <= 1


@pytest.mark.parametrize("seed", range(3))
def test_ten_nodes_with_100_pods_each_get_all_of_1000_addresses(seed: int) -> None:
    with world(seed, a=["10.0.0.1-10.0.3.232"]) as made:
        phases = life(made, 10, 100)
    assert max(phase.seconds for phase in phases) <= 5
    assert max(phase.writes for phase in phases) <= 300


@pytest.mark.parametrize("even", [True, False], ids=["as-many-on-each", "by-chance"])
@pytest.mark.parametrize("seed", range(1, 11))
def test_a_thousand_pods_made_again_on_other_nodes_get_all_of_1000_addresses(seed: int, even: bool) -> None:
    seen = roll_out(seed, 10, 1000, ["10.0.0.1-10.0.3.232"], even=even)
    assert seen.seconds <= 5
    assert seen.writes <= 300


def test_what_takes_longer_is_reported_more_often() -> None:
    """Pods that are gone for half a second on average: each node reports every second where anything has changed."""
    seen = roll_out(1, 10, 1000, ["10.0.0.1-10.0.3.232"], even=False, gone=1.0)
    assert seen.seconds <= 5
    assert seen.writes <= 400


@pytest.mark.parametrize("pods", [[10, 30, 200, 60], [200, 5, 5, 90], [1, 1, 1, 297]])
def test_the_last_address_is_found_wherever_it_is(pods: list[int]) -> None:
    """Nodes that need few leave those that need many what they had taken in advance."""
    with world(1, a=["10.0.0.1-10.0.1.44"]) as made:
        for n in range(len(pods)):
            made.node(f"node-{n}")
        jobs = {
            f"node-{n}": [partial(made.nodes[f"node-{n}"].add, f"{n}-{one}") for one in range(count)]
            for n, count in enumerate(pods)
        }
        assert made.on_all(20, jobs) <= 15
        assert len(made.users) == 300
        made.check()
        with pytest.raises(NoAddressLeft):
            made.nodes["node-0"].add("one-too-many")


def test_a_hundred_nodes_take_ten_times_as_many_writes_and_none_is_hot() -> None:
    with world(1, a=["10.0.0.1-10.0.39.16"]) as made:
        phases = life(made, 100, 100)
    assert max(phase.seconds for phase in phases) <= 5
    assert max(phase.writes for phase in phases) <= 3000
    assert max(phase.hottest for phase in phases) <= 0.05


def test_with_plenty_a_pod_waits_for_one_request_at_most() -> None:
    with world(1, a=["10.0.0.1-10.0.255.0"]) as made:
        phases = life(made, 10, 100)
        assert max(phase.seconds for phase in phases) <= 0.2
        assert max(phase.writes for phase in phases) <= 200


def test_a_slash_64_costs_as_much_as_a_small_pool() -> None:
    with world(1, a=["fd00::1-fd00::ffff:ffff:ffff:ffff"]) as made:
        phases = life(made, 4, 50)
        assert max(phase.writes for phase in phases) <= 60


def test_while_the_api_is_away_everything_owned_is_handed_out_and_then_try_again_is_said() -> None:
    with world(1, a=["10.0.0.1-10.0.3.232"]) as made:
        node = made.node("n")
        node.add("first")
        made.time.sleep(5)
        made.api.weather.away = True
        owned = len(made.owners())
        assert owned >= 16
        assert run(made, owned - 1, lambda name, n: made.nodes[name].add(f"p{n}") and None, 0.0).seconds < 0.01
        with pytest.raises(TryAgain, match="connection refused"):
            node.add("one-too-many")
        made.api.weather.away = False
        made.time.sleep(6)
        node.add("one-more")
        assert len(made.users) == owned + 1


def test_a_daemon_that_starts_while_the_api_is_away_goes_on_with_what_it_owns() -> None:
    with world(1, a=["10.0.0.1-10.0.3.232"]) as made:
        node = made.node("n")
        node.add("first")
        made.time.sleep(5)
        made.api.weather.away = True
        node.kill()
        node.start()
        assert node.add("second").shown != ""
        made.api.weather.away = False
        made.time.sleep(5)
        made.check()


def test_after_a_boot_nothing_is_handed_out_before_the_api_has_said_what_is_owned() -> None:
    """Whoever declared the node dead meanwhile may have given its addresses to others."""
    with world(1, a=["10.0.0.1-10.0.3.232"]) as made:
        node = made.node("n")
        node.add("first")
        made.time.sleep(5)
        made.api.weather.away = True
        node.kill()
        node.boot += 1
        node.start()
        with pytest.raises(TryAgain):
            node.add("second")
        made.api.weather.away = False
        made.time.sleep(6)
        writes = made.api.truth.writes.total()
        node.add("third")
        assert made.api.truth.writes.total() == writes
        made.check()


def test_what_is_reserved_is_neither_owned_nor_counted_as_room() -> None:
    with world(a=["10.0.0.0-10.0.0.255"]) as made:
        first = Address(4, 0x0A000000).value
        made.catalogue = replace(made.catalogue, reserved=(Reserved("most", ((first, first + 239),), ()),))
        one = made.node("one")
        for n in range(12):
            one.add(f"p{n}")
            made.time.sleep(5)
        assert {address.value >> 4 << 4 for address in made.owners()} == {first + 240}
        for n in range(12, 16):
            one.add(f"p{n}")
        made.time.sleep(5)
        assert one.leases.room(made.catalogue.pools["a"]) == 0


def test_nodes_that_come_and_go_make_no_more_blocks_than_are_in_use_at_a_time() -> None:
    """A pool may have more blocks than there will ever be objects; each node's path begins at another one."""
    with world(a=["fd00::1-fd00::ffff:ffff"]) as made:
        for n in range(8):
            node = made.node(f"node-{n}")
            node.add(f"p{n}")
            made.time.sleep(5)
            node.delete(f"p{n}")
            made.time.sleep(ONCE_MORE)
            node.kill()
        assert made.drained()
        assert len(made.api.truth.blocks) <= 2
