"""Three nodes against a model: pods, crashes, lost answers, outages, dead nodes, edited pools, clocks that jump.

After every step no address has two users, and what a node may hand out it owns; in the end all drains to free.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.ipam.pools.simulation import World

from underlay.errors import NoAddressLeft, TryAgain
from underlay.ipam.pools.lease import HELD

if TYPE_CHECKING:
    from collections.abc import Callable

NODES = st.sampled_from(["one", "two", "three"])
KEEPERS = st.sampled_from(["", "", "StatefulSet/default/db-0", "StatefulSet/default/db-1"])
POOLS = st.sampled_from([["a"], ["b"], ["a", "b"], ["b", "a"]])
CHANCES = st.sampled_from([0.0, 0.3])
TOPS = st.integers(3, 24)


class Cluster(RuleBasedStateMachine):
    """The judge of two users is World.live; what a pod was told is its own until it is deleted."""

    def __init__(self) -> None:
        super().__init__()
        self.made = World(1, a=["10.0.0.1-10.0.0.20"], b=["10.0.0.13-10.0.0.40"])
        for name in ("one", "two", "three"):
            self.made.node(name)
        self.pods: dict[str, tuple[str, str]] = {}  # container: its node and address
        self.given_up: set[str] = set()
        self.count = 0

    @rule(name=NODES, keeper=KEEPERS, pools=POOLS, seconds=st.sampled_from([0.05, 4.0, 20.0]))
    def add(self, name: str, keeper: str, pools: list[str], seconds: float) -> None:
        node = self.made.nodes[name]
        self.count += 1
        container = f"c{self.count}"
        if name in self.given_up:
            return  # it might give what it had to a second pod
        with contextlib.suppress(NoAddressLeft, TryAgain):
            self.pods[container] = name, node.add(container, pools, keeper, seconds).shown

    @rule(name=NODES, count=st.integers(2, 12), pools=POOLS)
    def add_many_at_once(self, name: str, count: int, pools: list[str]) -> None:
        def add(container: str) -> None:
            with contextlib.suppress(NoAddressLeft, TryAgain):
                self.pods[container] = name, self.made.nodes[name].add(container, pools, seconds=5.0).shown

        if name in self.given_up:
            return
        names = [f"c{self.count + n}" for n in range(1, count + 1)]
        self.count += count
        self.made.on_all(6, {name: [lambda one=one: add(one) for one in names]})  # type: ignore[misc]

    @precondition(lambda self: self.pods)
    @rule(data=st.data(), times=st.integers(1, 2))
    def delete(self, data: st.DataObject, times: int) -> None:
        container = data.draw(st.sampled_from(sorted(self.pods)))
        name, _ = self.pods.pop(container)
        for _ in range(times):
            self.made.nodes[name].delete(container)

    @precondition(lambda self: self.pods)
    @rule(data=st.data(), count=st.integers(1, 12), pools=POOLS)
    def make_again_elsewhere(self, data: st.DataObject, count: int, pools: list[str]) -> None:
        """All at once, as a rollout does it: who waits is served by what ends on its node, or by another."""

        def make_again(before: str, container: str, after: str, again: str) -> None:
            self.made.nodes[before].delete(container)
            if after in self.given_up:
                return  # as in add
            with contextlib.suppress(NoAddressLeft, TryAgain):
                self.pods[again] = after, self.made.nodes[after].add(again, pools, seconds=5.0).shown

        work: dict[str, list[Callable[[], None]]] = {name: [] for name in self.made.nodes}
        for container in data.draw(st.permutations(sorted(self.pods)))[:count]:
            before, _ = self.pods.pop(container)
            after = data.draw(NODES)
            self.count += 1
            work[after].append(partial(make_again, before, container, after, f"c{self.count}"))
        self.made.on_all(6, work)

    @rule(name=NODES)
    def delete_a_stranger(self, name: str) -> None:
        assert self.made.nodes[name].leases.release("never-added", "eth0") == []

    @rule(name=NODES)
    def crash(self, name: str) -> None:
        self.made.nodes[name].kill()
        self.made.nodes[name].start(patience=0.1)

    @rule(name=NODES, while_busy=st.floats(0.0, 0.03))
    def crash_while_it_is_busy(self, name: str, while_busy: float) -> None:
        """An ADD is on its way; the runtime deletes it afterwards, as it has no answer."""
        if name in self.given_up:
            return
        node = self.made.nodes[name]
        self.count += 1
        container = f"c{self.count}"
        task = self.made.time.start(lambda: node.add(container, ["a"], seconds=2.0))
        self.made.time.sleep(while_busy)
        node.kill()
        with contextlib.suppress(BaseException):
            self.made.time.join(task)
        node.start(patience=0.1)
        node.delete(container)

    @rule(name=NODES)
    def lose_a_node(self, name: str) -> None:
        """It is down, its pods are gone, the controller takes its addresses; then it boots."""
        node = self.made.nodes[name]
        node.kill()
        for container in [one for one, (at, _) in self.pods.items() if at == name]:
            self.made.dead(node, container)
            del self.pods[container]
        self.made.time.sleep(1.5)  # what it had written is carried out by now, or never
        self.made.evict(name)
        node.boot += 1
        self.made.time.sleep(1.0)
        node.start(patience=0.1)
        for lease in node.leases.everything():
            if lease.state == HELD:
                node.leases.drop([lease])

    @precondition(lambda self: self.made.api.cut_off - self.given_up)
    @rule(data=st.data())
    def give_up_a_node_that_is_cut_off(self, data: st.DataObject) -> None:
        """By time, as its administrator wants it: its pods run on, and what others are given of theirs is no fault."""
        name = data.draw(st.sampled_from(sorted(self.made.api.cut_off - self.given_up)))
        for container in [one for one, (at, _) in self.pods.items() if at == name]:
            self.made.dead(self.made.nodes[name], container)
        self.made.evict(name)
        self.given_up.add(name)

    @precondition(lambda self: self.given_up and not self.made.api.weather.away)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        """It has heard of it by now; what it has lost and nobody has taken is its own again."""
        name = data.draw(st.sampled_from(sorted(self.given_up)))
        self.made.api.cut_off.discard(name)
        self.made.time.sleep(30.0)
        self.given_up.discard(name)
        node, owners = self.made.nodes[name], self.made.owners()
        for lease in node.leases.everything():
            if lease.state == HELD and owners.get(lease.address) == name:
                self.made.live(node, lease)

    @rule(lost=CHANCES, dropped=CHANCES, late=CHANCES, watch=st.sampled_from([0.005, 0.2, 3.0]))
    def change_the_weather(self, lost: float, dropped: float, late: float, watch: float) -> None:
        weather = self.made.api.weather
        weather.lost, weather.dropped, weather.late, weather.watch = lost, dropped, late, watch

    @rule(away=st.booleans())
    def go_away_or_come_back(self, away: bool) -> None:
        self.made.api.weather.away = away

    @rule(name=NODES, cut=st.booleans())
    def cut_off_or_join(self, name: str, cut: bool) -> None:
        cut = cut or name in self.given_up  # until it comes back
        (self.made.api.cut_off.add if cut else self.made.api.cut_off.discard)(name)

    @rule(seconds=st.sampled_from([0.0, 0.5, 5.0, 40.0, 400.0]), jump=st.sampled_from([0.0, 0.0, 1e6, -1e6]))
    def wait(self, seconds: float, jump: float) -> None:
        self.made.time.set_by += jump
        self.made.time.sleep(seconds)

    @rule()
    def remove_what_is_empty(self) -> None:
        """As the controller does, though it waits for an hour; and nodes may yet hear of it late."""
        self.made.sweep()

    @rule(top=TOPS)
    def edit(self, top: int) -> None:
        self.made.define("a", [f"10.0.0.2-10.0.0.{top}"])

    @rule(name=NODES, gone=st.sampled_from(["StatefulSet/default/db-0", "StatefulSet/default/db-1"]))
    def scale_down(self, name: str, gone: str) -> None:
        self.made.nodes[name].leases.tidy(lambda keeper: keeper != gone)

    @invariant()
    def every_pod_has_what_it_was_told(self) -> None:
        held = {
            lease.container_id: (name, lease.shown)
            for name, node in self.made.nodes.items()
            for lease in node.leases.everything()
            if lease.state == HELD
        }
        assert held == self.pods

    @invariant()
    def what_may_be_handed_out_is_owned(self) -> None:
        self.made.check(self.given_up)

    def teardown(self) -> None:
        made = self.made
        made.api.weather.__init__()  # type: ignore[misc]
        made.api.cut_off.clear()
        made.define("a", ["10.0.0.1-10.0.0.20"])
        for container, (name, _) in self.pods.items():
            made.nodes[name].delete(container)
        for _ in range(2):  # what was on its way to its keeper arrives in between
            made.time.sleep(10)
            for node in made.nodes.values():
                node.leases.tidy(lambda keeper: False)
        made.time.sleep(1000)
        for block in list(made.api.truth.blocks.values()):  # what a node that was lost had kept is the controller's
            ownerless = {at: None for at in block.leases if at not in block.owned}
            made.api.truth.report(block.key, ownerless)
        made.time.sleep(1)
        assert made.drained()
        last = {made.nodes[name].add(f"last-{name}-{n}", ["a", "b"]).address for n in range(13) for name in made.nodes}
        assert len(last) == 39
        made.check()
        made.stop()


TestCluster = Cluster.TestCase
TestCluster.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
