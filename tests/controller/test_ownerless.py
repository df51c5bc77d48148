"""Leases of addresses that no node owns end when nobody is to come back for them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.controller.pictures import blocks, lease, picture, pod
from tests.controller.store import MemoryBlocks
from tests.kube.api_server import Fault
from tests.kube.api_server import pod as a_pod

from underlay.controller import asking
from underlay.controller.ownerless import Ownerless, keepers, settled
from underlay.ipam.pools.lease import KEPT

SET = "StatefulSet/shop/db-1"


def kept(address: str, keeper: str = SET, node: str = "", **more: Any) -> Any:
    return lease(address, pod="", node=node, state=KEPT, keeper=keeper, **more)


def soon() -> float:
    import time

    return time.monotonic() + 10


def test_only_what_nobody_owns_is_looked_at():
    known = picture(kept("10.0.0.1"), kept("10.0.0.2", "IPAMClaim/shop/c", node="n1"), lease("10.0.0.3", node=""))
    assert keepers(known) == {SET}
    (block,) = known.blocks
    after = settled(block, set())
    assert [one.shown for one in after.leases.values()] == ["10.0.0.1", "10.0.0.2"]
    assert [one.shown for one in settled(block, {SET, "IPAMClaim/shop/c"}).leases.values()] == ["10.0.0.2"]
    assert settled(after, set()).leases == after.leases
    assert after.revision == block.revision + 1


@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from(["", "n1"]), st.sampled_from(["", SET])), max_size=9))
def test_what_a_node_owns_is_never_touched(drawn):
    owned = [lease(f"10.0.0.{n}", node=node, keeper=keeper) for n, node, keeper in drawn]
    for block in blocks(*owned):
        after = settled(block, {SET})
        assert after.owned == block.owned
        assert {at: one for at, one in block.leases.items() if at in block.owned} == after.leases


WEB = "Pod/default/web/uid-web"


def adopted(address: str, keeper: str = WEB, pod: str = "default/web", **more: Any) -> Any:
    return lease(address, pod=pod, node="", container_id="", keeper=keeper, **more)


def test_of_adopted_leases_those_are_asked_about_whose_pod_seems_to_be_gone():
    assert keepers(picture(adopted("10.0.0.1"), pod("web"))) == set()
    assert keepers(picture(adopted("10.0.0.1"), pod("web", uid="another"))) == {WEB}
    assert keepers(picture(adopted("10.0.0.1", SET))) == {WEB}
    mirror = pod("web", uid="another", annotations={"kubernetes.io/config.mirror": "hash"})
    assert keepers(picture(adopted("10.0.0.1"), mirror)) == set()


def test_an_adopted_lease_ends_with_its_pod_and_its_address_rests():
    (block,) = blocks(adopted("10.0.0.1"), adopted("10.0.0.2", SET), adopted("10.0.0.3", "Pod/a/b/c", "a/b", uid="c"))
    assert settled(block, {SET}, 7) is block
    after = settled(block, {WEB}, 7)
    assert {one.shown: (one.state, one.keeper, one.uid) for one in after.leases.values()} == {
        "10.0.0.2": ("kept", SET, ""), "10.0.0.3": ("held", "Pod/a/b/c", "c"),
    }  # fmt: skip
    assert set(after.resting.values()) == {7}
    assert len(after.resting) == 2


def test_an_adopted_pod_that_is_gone_by_the_api_servers_word_holds_nothing(looking, server):
    made = looking(adopted("10.0.0.1"))
    server.put("pods", a_pod("web", node="n1", uid="uid-web"))
    assert left(made) == ["10.0.0.1"]
    server.delete("pods", "default", "web")
    server.put("pods", a_pod("web", node="n1", uid="mirror", annotations={"kubernetes.io/config.mirror": "hash"}))
    assert left(made) == ["10.0.0.1"]
    server.put("pods", a_pod("web", node="n1", uid="another"))
    assert left(made) == []


@pytest.fixture
def looking(client, log, server):
    def make(*owned: Any) -> tuple[Ownerless, MemoryBlocks]:
        store = MemoryBlocks(*blocks(*owned))
        return Ownerless(client(), store, log, lambda: 1e12, again=0.0), store

    return make


def left(looking: tuple[Ownerless, MemoryBlocks]) -> list[str]:
    tidying, store = looking
    known = picture()
    object.__setattr__(known, "blocks", tuple(store.known()))
    tidying.look(known)
    return [one.shown for block in store.known() for one in block.leases.values()]


def a_set(replicas: int, start: int = 0) -> dict[str, Any]:
    return {"metadata": {"name": "db", "namespace": "shop"},
            "spec": {"replicas": replicas, "ordinals": {"start": start}}}  # fmt: skip


@pytest.mark.parametrize(("replicas", "start", "stays"), [(2, 0, True), (1, 0, False), (1, 1, True), (3, 2, False)])
def test_a_sets_address_stays_as_long_as_the_set_counts_the_pod(looking, server, replicas, start, stays):
    server.put("statefulsets", a_set(replicas, start))
    assert left(looking(kept("10.0.0.1"))) == (["10.0.0.1"] if stays else [])


@pytest.mark.parametrize("keeper", [SET, "VirtualMachine/shop/vm", "IPAMClaim/shop/c"])
def test_who_is_gone_needs_no_address(looking, server, keeper):
    assert left(looking(kept("10.0.0.1", keeper))) == []


def test_a_machine_that_runs_without_its_object_keeps_its_address(looking, server):
    made = looking(kept("10.0.0.1", "VirtualMachine/shop/vm"))
    server.put("virtualmachineinstances", {"metadata": {"name": "vm", "namespace": "shop"}})
    assert left(made) == ["10.0.0.1"]
    server.put("virtualmachines", {"metadata": {"name": "vm", "namespace": "shop"}})
    server.delete("virtualmachineinstances", "shop", "vm")
    assert left(made) == ["10.0.0.1"]


@pytest.mark.parametrize("keeper", ["Reserved/shop/web", "Unheard/shop/x", "Reserved/", "x"])
def test_a_reservation_stays(looking, server, keeper):
    assert left(looking(kept("10.0.0.1", keeper))) == ["10.0.0.1"]
    assert server.requests == []


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 403}, {"cut": 0}])
def test_without_an_answer_nothing_ends(looking, server, fault):
    made = looking(kept("10.0.0.1"))
    server.faults.append(Fault(path="/statefulsets/", **fault))
    assert left(made) == ["10.0.0.1"]
    assert left(made) == []


def test_a_kind_that_the_server_does_not_know_is_not_gone(client, server, monkeypatch):
    """Its 404 is no Status object."""
    from underlay.kube.faults import Refused

    def plain(*_: Any, **__: Any) -> bytes:
        raise Refused(404, "", "404 page not found")

    asked = client()
    monkeypatch.setattr(asked, "call", plain)
    with pytest.raises(Refused):
        asking.keeper_is_gone(asked, "VirtualMachine/shop/vm", soon())


def test_a_set_that_is_scaled_up_again_is_wanted_again(looking, server):
    made = looking(kept("10.0.0.1"))
    server.put("statefulsets", a_set(1))
    made[1].away = True
    assert left(made) == ["10.0.0.1"]
    server.put("statefulsets", a_set(2))
    made[1].away = False
    assert left(made) == ["10.0.0.1"]
