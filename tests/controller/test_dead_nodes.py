"""What a node that is down owned becomes free, once the API server itself says that it is down and has no pod."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.controller.pictures import blocks, lease, node, picture, pod
from tests.controller.store import MemoryBlocks
from tests.kube.api_objects import PODS
from tests.kube.api_server import Fault
from tests.kube.api_server import pod as a_pod

from underlay.cni.address import parse
from underlay.controller.dead_nodes import DeadNodes, evicted, suspects
from underlay.ipam.pools.block import Block, Want, key_of
from underlay.ipam.pools.lease import KEPT

if TYPE_CHECKING:
    from collections.abc import Callable

NODES = "nodes"
OUT = "node.kubernetes.io/out-of-service"


def value(address: str) -> int:
    found = parse(address)
    assert found is not None
    return found.value


def block(**values: Any) -> Block:
    return Block(key_of(parse("10.0.0.0")), version="1", **values)  # type: ignore[arg-type]


A, B, C = (value(f"10.0.0.{n}") for n in (1, 2, 3))


# -- pure --------------------------------------------------------------------------------------------------------------


def test_who_owns_or_wants_something_and_is_gone_or_marked_is_a_suspect():
    owned = [lease(f"10.0.0.{n}", node=name) for n, name in enumerate(("gone", "there", "marked"))]
    known = picture(*owned, node("there", "node.kubernetes.io/unreachable"), node("marked", OUT), node("idle", OUT))
    assert suspects(known) == {"gone", "marked"}


def test_addresses_become_free_and_rest_and_wants_and_leases_go():
    held = lease("10.0.0.1", node="n1").lease
    before = block(revision=4, owned={A: "n1", B: "n2"}, wanted={B: Want("n1")}, leases={A: held}, resting={C: 5})
    after = evicted(before, "n1", {"n1"}, 77)
    assert after == block(revision=5, owned={B: "n2"}, resting={A: 77, C: 5})


def test_a_want_alone_is_a_change_too():
    before = block(revision=4, owned={B: "n2"}, wanted={B: Want("n1")})
    assert evicted(before, "n1", {"n1"}, 77) == block(revision=5, owned={B: "n2"})


def test_an_address_that_is_wanted_goes_to_whoever_wants_it():
    before = block(owned={A: "n1", B: "n1"}, wanted={A: Want("n2"), B: Want("n3")})
    after = evicted(before, "n1", {"n1", "n3"}, 77)
    assert (after.owned, after.wanted) == ({A: "n2"}, {})  # n3 is dead, too
    assert after.resting == {A: 77, B: 77}


KEEPER = "StatefulSet/default/db-0"


def test_what_is_for_a_keeper_is_kept_for_it_and_owned_by_nobody():
    held = lease("10.0.0.1", node="n1", keeper=KEEPER, boot="b").lease
    assert held is not None
    after = evicted(block(owned={A: "n1"}, wanted={A: Want("n2")}, leases={A: held}), "n1", {"n1"}, 77)
    assert (after.owned, after.wanted) == ({}, {})
    assert after.leases == {A: held._replace(state=KEPT, uid="", container_id="", boot="")}


def test_what_is_for_a_keeper_goes_to_the_node_that_asks_on_its_behalf():
    kept = lease("10.0.0.1", node="n1", state=KEPT, keeper=KEEPER).lease
    assert kept is not None
    after = evicted(block(owned={A: "n1"}, wanted={A: Want("n2", KEEPER)}, leases={A: kept}), "n1", {"n1"}, 77)
    assert (after.owned, after.leases[A].keeper) == ({A: "n2"}, KEEPER)


def test_a_block_of_others_is_the_same_block():
    before = block(owned={A: "n2"}, wanted={A: Want("n3")})
    assert evicted(before, "n1", {"n1"}, 77) is before


NAMES = st.sampled_from(["n1", "n2", "n3"])
VALUES = st.integers(A - 1, A + 14)


@given(st.dictionaries(VALUES, NAMES), st.dictionaries(VALUES, NAMES))
def test_nobody_elses_address_changes_hands(owned, wanted):
    before = block(owned=owned, wanted={each: Want(name) for each, name in wanted.items()})
    after = evicted(before, "n1", {"n1"}, 77)
    assert {each: name for each, name in owned.items() if name != "n1"}.items() <= after.owned.items()
    assert "n1" not in after.owned.values()
    assert "n1" not in {want.node for want in after.wanted.values()}
    for each in owned:
        if owned[each] == "n1":
            assert after.owned.get(each) in (None, wanted.get(each))
            assert after.resting[each] == 77


# -- over HTTP ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def dead(client, log, server) -> Callable[..., tuple[DeadNodes, MemoryBlocks]]:
    def make(*owned: Any, **keys: Any) -> tuple[DeadNodes, MemoryBlocks]:
        store = MemoryBlocks(*blocks(*owned))
        return DeadNodes(client(), store, log, lambda: 1e12, **keys), store

    return make


def look(dead: DeadNodes, store: MemoryBlocks, *nodes: Any) -> None:
    known = picture(*nodes)
    for suspect in dead._suspects.values():
        suspect.due = 0.0
    object.__setattr__(known, "blocks", tuple(store.known()))
    dead.look(known)


def owners(store: MemoryBlocks) -> set[str]:
    return {name for each in store.known() for name in each.owned.values()}


def test_a_node_whose_object_is_gone_loses_everything(dead, server, log):
    looking, store = dead(lease("10.0.0.1", node="n1"), lease("10.0.1.1", node="n1"), lease("10.0.0.2", node="n2"))
    server.put(NODES, {"metadata": {"name": "n2"}})
    look(looking, store, node("n2"))
    assert owners(store) == {"n2"}
    assert [lease.shown for each in store.known() for lease in each.leases.values()] == ["10.0.0.2"]
    (line,) = [fields for _, event, fields in log if event == "addresses taken from a node that is down"]
    assert line == {"node": "n1", "addresses": 2}
    requests = len(server.requests)
    look(looking, store, node("n2"))
    assert len(server.requests) == requests  # nobody is a suspect any more


def test_the_cache_alone_takes_nothing(dead, server, log):
    looking, store = dead(lease("10.0.0.1", node="n1"))
    server.put(NODES, {"metadata": {"name": "n1"}, "spec": {"taints": [{"key": "node.kubernetes.io/unreachable"}]}})
    look(looking, store)
    look(looking, store)
    assert owners(store) == {"n1"}
    assert log.events().count("node seems to be down, its addresses stay its own") == 1


def test_a_marked_node_keeps_its_addresses_while_it_has_a_pod(dead, server):
    looking, store = dead(lease("10.0.0.1", node="n1"))
    server.put(NODES, {"metadata": {"name": "n1"}, "spec": {"taints": [{"key": OUT, "effect": "NoExecute"}]}})
    server.put(PODS, a_pod("web", node="n1"))
    proxy = a_pod("proxy", node="n1")
    proxy["spec"]["hostNetwork"] = True
    server.put(PODS, proxy)
    server.put(PODS, a_pod("job", node="n1") | {"status": {"phase": "Succeeded"}})
    server.put(PODS, a_pod("elsewhere", node="n2"))
    look(looking, store, node("n1", OUT))
    assert owners(store) == {"n1"}
    server.delete(PODS, "default", "web")
    look(looking, store, node("n1", OUT))
    assert owners(store) == set()


def test_a_node_that_bears_another_name_is_not_dead(dead, server):
    """Its daemon was told a name of which there is no Node: the pods that it serves are on another one, and live."""
    looking, store = dead(lease("10.0.0.1", node="typo", uid="u1"))
    server.put(PODS, a_pod("web", node="n1", uid="u1"))
    look(looking, store, pod("web", uid="u1"))
    assert owners(store) == {"typo"}
    assert server.requests == []
    look(looking, store, pod("web", uid="another"))
    assert owners(store) == set()


@pytest.mark.parametrize("fault", [
    {"path": "/nodes/", "status": 500}, {"path": "/nodes/", "status": 403}, {"path": "/nodes/", "cut": 0},
    {"path": "/api/v1/pods", "status": 503},
])  # fmt: skip
def test_an_api_server_that_does_not_answer_takes_nothing(dead, server, fault):
    looking, store = dead(lease("10.0.0.1", node="n1"))
    server.faults.append(Fault(**fault))
    look(looking, store)
    assert owners(store) == {"n1"}
    look(looking, store)
    assert owners(store) == set()


def test_a_block_that_others_have_changed_is_seen_to_at_the_next_look(dead, server):
    looking, store = dead(lease("10.0.0.1", node="n1"))
    stale = tuple(store.known())
    store.report(stale[0].key, {B: lease("10.0.0.2").lease}, 0)
    known = picture()
    object.__setattr__(known, "blocks", stale)
    looking.look(known)
    assert owners(store) == {"n1"}
    look(looking, store)
    assert owners(store) == set()


def test_who_does_not_lead_asks_and_writes_nothing(client, log, server):
    store = MemoryBlocks(*blocks(lease("10.0.0.1", node="n1")))
    look(DeadNodes(client(), store, log, lambda: 0.0), store)
    assert (owners(store), server.requests) == ({"n1"}, [])
