"""What pods held on a node that is not ready is given away after the time that is set, and no sooner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.controller.pictures import Owned, a_node, ago, blocks, lease, node, picture, pod
from tests.controller.store import MemoryBlocks
from tests.kube.api_objects import PODS
from tests.kube.api_server import Fault
from tests.kube.api_server import pod as a_pod

from underlay.controller.asking import Left
from underlay.controller.dead_nodes import DeadNodes, is_used
from underlay.controller.unready import Unready
from underlay.ipam.pools.lease import KEPT
from underlay.ipam.pools.seek import owning

if TYPE_CHECKING:
    from collections.abc import Callable

NODES = "nodes"
AFTER = 600.0
SET = "StatefulSet/default/db-0"


class Bench:
    """A controller's look at node n1 and its pods; ``passes`` is the leader's own time."""

    def __init__(self, server: Any, client: Any, log: Any, owned: tuple[Any, ...], after: float | None) -> None:
        self.server = server
        self.store = MemoryBlocks(*blocks(*owned))
        self.now = 1000.0
        unready = Unready(after, monotonic=lambda: self.now)
        self._dead = DeadNodes(
            client, self.store, log, lambda: 1e12, unready=unready, monotonic=lambda: self.now
        )  # fmt: skip

    def look(self, cached: float, *pods: Any, live: float | None = None, shown: tuple[Any, ...] = ()) -> dict[str, str]:
        """``cached``, ``live``: for how many seconds it has been unready; ``shown``: the blocks of a watch that is
        behind. Returns who owns what afterwards.
        """
        self.server.put(NODES, a_node("n1", unready=cached if live is None else live))
        self.server.put(NODES, a_node("n2"))
        known = picture(node("n1", unready=cached), node("n2"), *pods)
        object.__setattr__(known, "blocks", shown or tuple(self.store.known()))
        self._dead.look(known)
        return self.owners()

    def passes(self, seconds: float) -> None:
        self.now += seconds

    def owners(self) -> dict[str, str]:
        return {f"10.0.0.{value & 255}": name for each in self.store.known() for value, name in each.owned.items()}

    def takes(self, address: str, name: str) -> None:
        """A node owns one more, by its own swap."""
        (before,) = self.store.known()
        self.store.swap(before, owning(before, [before.key.first + int(address.rpartition(".")[2])], name, 0), 0)


@pytest.fixture
def bench(server, client, log) -> Callable[..., Bench]:
    def make(*owned: Any, after: float | None = AFTER) -> Bench:
        made = Bench(server, client(), log, owned, after)
        made.look(1.0)  # it is first seen to be unready
        made.passes(AFTER)
        return made

    return make


def terminating(name: str, since: float = 10.0) -> dict[str, Any]:
    """``since``: how many seconds ago it ought to have ended; negative: in so many seconds."""
    return a_pod(name, node="n1", uid=f"uid-{name}", deletionTimestamp=ago(since), finalizers=["x"])


LATE = AFTER + 60


def test_node_down_by_time_alone_gives_nothing_back_unless_it_is_wanted(bench, server):
    made = bench(lease("10.0.0.1"), lease("10.0.0.2", node="n2"), after=None)
    assert made.look(1e6) == {"10.0.0.1": "n1", "10.0.0.2": "n2"}
    assert server.requests == []


def test_node_down_gives_back_all_once_no_pod_is_left(bench, log):
    made = bench(lease("10.0.0.1"), Owned("10.0.0.2", "n1"), lease("10.0.0.3", node="n2"))
    assert made.look(LATE) == {"10.0.0.3": "n2"}
    assert ("warn", "addresses taken from a node that is not ready", {"node": "n1", "addresses": 2}) in log


def test_terminating_too_long_on_a_node_that_is_down_gives_back(bench, server):
    server.put(PODS, terminating("web"))
    made = bench(lease("10.0.0.1", pod="default/web"))
    assert made.look(LATE, pod("web")) == {}


def test_terminating_within_its_grace_period_gives_nothing_back(bench, server):
    server.put(PODS, terminating("web", -60))
    made = bench(lease("10.0.0.1", pod="default/web"))
    assert made.look(LATE, pod("web")) == {"10.0.0.1": "n1"}


def test_where_other_pods_live_on_each_address_is_judged_by_itself(bench, server):
    """What is owned and not reported stays: the node may have handed it out meanwhile."""
    server.put(PODS, terminating("web"))
    server.put(PODS, a_pod("lives", node="n1", uid="uid-lives"))
    kept = lease("10.0.0.4", pod="default/db-0", uid="", state=KEPT, keeper=SET)
    made = bench(
        lease("10.0.0.1", pod="default/web"), lease("10.0.0.2", pod="default/lives"),
        lease("10.0.0.3", pod="default/gone"), kept, Owned("10.0.0.5", "n1"),
    )  # fmt: skip
    assert made.look(LATE, pod("web"), pod("lives")) == {"10.0.0.2": "n1", "10.0.0.5": "n1"}
    (block,) = made.store.known()
    assert {one.shown: (one.state, one.keeper) for one in block.leases.values()} == {
        "10.0.0.2": ("held", ""), "10.0.0.4": ("kept", SET),
    }  # fmt: skip
    server.delete(PODS, "default", "lives")
    made.passes(60)
    assert made.look(LATE, pod("web")) == {}


def test_a_pod_made_again_under_the_same_name_elsewhere_does_not_hold_on(bench, server):
    server.put(PODS, a_pod("web", node="n2", uid="new"))
    made = bench(lease("10.0.0.1", pod="default/web", uid="old"))
    assert made.look(LATE, pod("web", uid="new")) == {}


def test_whoever_holds_by_the_nodes_report_and_is_elsewhere_has_a_daemon_with_the_wrong_name(bench, server):
    server.put(PODS, a_pod("web", node="n2", uid="uid-web"))
    server.put(PODS, a_pod("lives", node="n1", uid="uid-lives"))
    made = bench(lease("10.0.0.1", pod="default/web"), lease("10.0.0.2", pod="default/gone"))
    assert made.look(LATE, pod("web"), pod("lives")) == {"10.0.0.1": "n1"}
    server.delete(PODS, "default", "lives")
    made.passes(60)
    assert made.look(LATE, pod("web")) == {"10.0.0.1": "n1"}


@pytest.mark.parametrize(("cached", "live"), [(AFTER - 60, AFTER - 60), (LATE, 0.0), (LATE, AFTER - 60)])
def test_only_the_api_servers_own_word_of_now_counts(bench, cached, live):
    assert bench(lease("10.0.0.1")).look(cached, live=live) == {"10.0.0.1": "n1"}


def test_a_clock_that_is_ahead_takes_nothing(server, client, log):
    made = Bench(server, client(), log, (lease("10.0.0.1"),), AFTER)
    assert made.look(LATE) == {"10.0.0.1": "n1"}
    made.passes(AFTER - 1)
    assert made.look(LATE) == {"10.0.0.1": "n1"}
    made.passes(2)
    assert made.look(LATE) == {}


def test_a_node_that_takes_addresses_is_in_touch_and_is_left_alone_for_as_long_again(bench):
    """Its kubelet is not ready, its daemon is, and knows of a container that still runs."""
    made = bench(lease("10.0.0.1"))
    assert made.look(LATE) == {}
    made.takes("10.0.0.1", "n1")
    for _ in range(3):
        made.passes(60)
        assert made.look(LATE) == {"10.0.0.1": "n1"}
    made.passes(AFTER)
    assert made.look(LATE) == {}


def test_a_watch_that_is_behind_is_not_taken_for_the_node(bench, server):
    server.put(PODS, terminating("web"))
    server.put(PODS, a_pod("lives", node="n1", uid="uid-lives"))
    made = bench(lease("10.0.0.1", pod="default/web"), lease("10.0.0.2", pod="default/lives"))
    behind = tuple(made.store.known())
    assert made.look(LATE, pod("web"), pod("lives")) == {"10.0.0.2": "n1"}
    made.passes(60)
    assert made.look(LATE, pod("web"), pod("lives"), shown=behind) == {"10.0.0.2": "n1"}
    server.delete(PODS, "default", "lives")
    made.passes(60)
    assert made.look(LATE, pod("web")) == {}


def test_a_node_that_was_ready_in_between_begins_anew(bench):
    made = bench(lease("10.0.0.1"))
    made.look(0.0)
    assert made.look(LATE) == {"10.0.0.1": "n1"}


@pytest.mark.parametrize("fault", [
    {"path": "/nodes/", "status": 500}, {"path": "/nodes/", "cut": 0}, {"path": "/api/v1/pods", "status": 503},
])  # fmt: skip
def test_an_api_server_that_does_not_answer_gives_nothing_away(bench, server, fault):
    made = bench(lease("10.0.0.1"))
    server.faults.append(Fault(**fault))
    assert made.look(LATE) == {"10.0.0.1": "n1"}
    made.passes(60)
    assert made.look(LATE) == {}


def test_what_ended_of_itself_or_is_in_the_hosts_network_lives_on_nothing(bench, server):
    server.put(PODS, a_pod("job", node="n1", uid="uid-job") | {"status": {"phase": "Succeeded"}})
    proxy = a_pod("proxy", node="n1")
    proxy["spec"]["hostNetwork"] = True
    server.put(PODS, proxy)
    made = bench(lease("10.0.0.1", pod="default/job"), lease("10.0.0.2", pod="default/gone"))
    assert made.look(LATE, pod("job")) == {}


NAMES, UIDS = st.sampled_from(["default/a", "default/b"]), st.sampled_from(["u1", "u2"])


@given(
    UIDS | st.just(""), NAMES | st.just(""), st.sampled_from(["held", KEPT]),
    st.lists(st.builds(Left, NAMES, UIDS | st.just("u3"), st.booleans())),
)  # fmt: skip
def test_what_a_living_pod_may_use_is_never_taken(uid, named, state, living):
    """A pod uses what is reported under its UID; under its name, where its UID is not what its node is told."""
    one = lease("10.0.0.1", pod=named, uid=uid or "-", state=state, keeper=SET).lease
    assert one is not None
    one = one._replace(uid=uid)
    for each in living:
        if each.uid == uid or (each.static and each.pod == named):
            assert is_used(one, living)
    assert not is_used(one, [])
