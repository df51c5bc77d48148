"""The surroundings of pools from an API server: found without asking, the same while nothing changes, kept on disk."""

from __future__ import annotations

import threading
import time

import pytest
from tests.kube.api_objects import POOLS, RESERVED, SUBNETS
from tests.kube.api_server import PODS, pod
from tests.kube.cluster_bench import NODE, QUICK, Lines, soon, until

from underlay.errors import PodMismatch, TryAgain
from underlay.ipam.pools.surroundings import Owner
from underlay.kube.client import Client
from underlay.kube.kubeconfig import Kubeconfig
from underlay.kube.pool_cluster import PoolCluster

ONE_BY_ONE = ("get", "create", "patch", "update")
SETS, CLAIMS = "statefulsets", "ipamclaims"
MACHINES, INSTANCES = "virtualmachines", "virtualmachineinstances"


def named(name, namespace="", **more):
    metadata = {"name": name, **more.pop("metadata", {})}
    return {"metadata": metadata | ({"namespace": namespace} if namespace else {}), **more}


def pool(name, **spec):
    return named(name, spec={"subnet": "10.1.0.0/16", "ips": ["10.1.0.10-10.1.0.19"], **spec})


@pytest.fixture
def make(server, benches, tmp_path):
    made = []

    def around(*, listed=True):
        log = Lines()
        access = Kubeconfig(server.kubeconfig(tmp_path / "pools-kubeconfig"), log)
        client = Client(access, "tests")
        path = str(tmp_path / "state" / "pools.db")
        pods = benches.make(server)
        one = PoolCluster(client, NODE, path, log, pods, timing=QUICK)
        one.log = log
        made.append((one, client))
        one.start()
        if listed:
            assert until(lambda: not one.fault() and not pods.fault())
        return one

    def close():
        for one, client in made:
            one.stop()
            client.close()
            one.close()
        made.clear()

    around.close = close
    yield around
    close()


@pytest.fixture
def filled(server):
    server.put(POOLS, pool("a", ipVersion=4) | {"status": {"allocatedIPCount": 0}})
    server.put(RESERVED, named("r", spec={"ips": ["10.1.0.11"]}))
    server.put(SUBNETS, named("s", spec={"subnet": "10.2.0.0/16", "ips": ["10.2.0.1-10.2.0.9"]}))
    told = {"labels": {"team": "t1"}, "annotations": {"x": "y", "ipam.spidernet.io/default-ipv4-ippool": '["a"]'}}
    server.put("namespaces", named("shop", metadata=told))
    server.put("nodes", named(NODE, metadata={"labels": {"zone": "z1"}}))
    server.put("nodes", named("other", metadata={"labels": {"zone": "z2"}}))
    owner = [{"kind": "StatefulSet", "name": "db", "controller": True, "uid": "s1"}]
    server.put(PODS, pod("db-0", node=NODE, namespace="shop", uid="u1", ownerReferences=owner))
    return server


def test_pools_node_and_pods_are_what_the_server_tells(filled, make):
    made = make()
    catalogue = made.catalogue()
    assert catalogue.pools["a"].ranges == ((0x0A01000A, 0x0A010013),)
    assert [one.name for one in catalogue.reserved] == ["r"]
    assert catalogue.subnets["s"].listed == 9
    assert (catalogue.node.name, catalogue.node.labels, catalogue.faults) == (NODE, {"zone": "z1"}, ())
    subject = made.subject("shop", "db-0", "u1", soon())
    assert (subject.namespace_labels, subject.owner) == ({"team": "t1"}, Owner("StatefulSet", "db", "s1"))
    assert subject.namespace_annotations == {"ipam.spidernet.io/default-ipv4-ippool": '["a"]'}
    assert subject.keeper == "StatefulSet/shop/db-0"
    assert [each for each in filled.requests if each.verb in ONE_BY_ONE] == []
    with pytest.raises(PodMismatch):
        made.subject("shop", "db-0", "u2", soon())


def test_the_catalogue_is_the_same_until_what_it_says_changes(filled, make):
    made = make()
    first = made.catalogue()
    counted = filled.put(POOLS, pool("a", ipVersion=4) | {"status": {"allocatedIPCount": 1}})
    filled.put("nodes", named(NODE, metadata={"labels": {"zone": "z1"}}, status={"beat": 1}))
    cache = made._pools
    assert until(lambda: cache.find(("", "a")).version == counted["metadata"]["resourceVersion"])
    filled.put("namespaces", named("new"))
    assert made.catalogue() is first
    terminating = {"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"}
    filled.put(POOLS, pool("a") | {"metadata": terminating})
    assert until(lambda: made.catalogue().pools["a"].terminating)
    filled.put("nodes", named(NODE, metadata={"labels": {"zone": "z3"}}))
    assert until(lambda: made.catalogue().node.labels == {"zone": "z3"})
    filled.delete(POOLS, "", "a")
    assert until(lambda: not made.catalogue().pools)
    filled.objects.lose_history()
    before = made.catalogue()
    assert until(lambda: len(filled.asked("list", POOLS)) == 2)
    time.sleep(0.05)
    assert made.catalogue() is before


def test_a_pool_that_cannot_be_read_is_named_and_the_others_count(filled, make):
    filled.put(POOLS, pool("bad", gateway="10.9.0.1"))
    filled.put(POOLS, named("worse", spec={"ips": 5}))
    made = make()
    catalogue = made.catalogue()
    assert list(catalogue.pools) == ["a"]
    assert len(catalogue.faults) == 2
    assert "SpiderIPPool 'bad': \"spec.gateway\" '10.9.0.1' is no address of the subnet" in catalogue.faults[0]
    assert "SpiderIPPool 'worse'" in catalogue.faults[1]
    filled.put(POOLS, pool("bad"))
    assert until(lambda: "bad" in made.catalogue().pools)
    assert "two pools list the same addresses; each is handed out once" in made.log.events()
    assert made.log.events().count("object cannot be read") == 2


def test_a_namespace_that_the_watch_has_not_told_of_is_asked_for(filled, make):
    made = make()
    filled.put(PODS, pod("web", node=NODE, namespace="late", uid="u2"))
    filled.forbidden.add(("watch", "namespaces"))
    filled.cut()
    assert until(lambda: made._namespaces.state == "away")
    told = {"annotations": {"ipam.spidernet.io/default-ipv4-ippool": "[]"}}
    filled.put("namespaces", named("late", metadata=told))
    assert made.subject("late", "web", "u2", soon()).namespace_annotations == told["annotations"]
    assert len(filled.asked("get", "namespaces")) == 1
    filled.forbidden.add(("get", "namespaces"))
    with pytest.raises(TryAgain, match="namespace late is not known yet"):
        made.subject("late", "web", "u2", soon())


def test_without_definitions_it_says_so_and_pods_are_to_try_again(filled, make):
    filled.unserved.add(POOLS)
    made = make(listed=False)
    assert until(lambda: "has no spiderippools" in made.fault())
    assert "SpiderIPPools: the API server has no spiderippools" in made.catalogue().faults[0]
    with pytest.raises(TryAgain, match="the address pools are not known yet") as caught:
        made.subject("shop", "db-0", "u1", soon())
    assert "deploy/crds" in caught.value.hint
    filled.unserved.clear()
    assert until(lambda: not made.fault())
    assert list(made.catalogue().pools) == ["a"]
    assert made.catalogue().faults == ()


def test_a_restart_without_the_server_knows_what_was_known(filled, make, benches):
    before = make().catalogue()
    make.close()
    benches.close()
    filled.stop()
    made = make(listed=False)
    assert (made.fault(), made.catalogue()) == ("", before)
    assert made.subject("shop", "db-0", "u1", soon()).namespace_labels == {"team": "t1"}


def test_keepers_are_wanted_as_long_as_their_objects_say(filled, make):
    filled.put(SETS, named("db", "shop", spec={"replicas": 2, "ordinals": {"start": 1}, "template": {"x": 1}}))
    filled.put(MACHINES, named("vm1", "shop"))
    filled.put(INSTANCES, named("vm2", "shop"))
    filled.put(CLAIMS, named("c", "shop"))
    made = make()
    assert filled.asked("list", SETS) == []  # nobody asked
    keepers = {
        "StatefulSet/shop/db-0": False, "StatefulSet/shop/db-1": True, "StatefulSet/shop/db-2": True,
        "StatefulSet/shop/db-3": False, "StatefulSet/shop/other-0": False,
        "VirtualMachine/shop/vm1": True, "VirtualMachine/shop/vm2": True, "VirtualMachine/shop/vm3": False,
        "IPAMClaim/shop/c": True, "IPAMClaim/shop/d": False,
    }  # fmt: skip
    assert made.wanted("StatefulSet/shop/other-0") is None  # not listed yet
    assert until(lambda: {keeper: made.wanted(keeper) for keeper in keepers} == keepers)
    filled.put(SETS, named("db", "shop", spec={"replicas": 0}))
    assert until(lambda: made.wanted("StatefulSet/shop/db-1") is False)
    filled.stop()
    assert until(lambda: made.wanted("StatefulSet/shop/other-0") is None)
    assert made.wanted("VirtualMachine/shop/vm1") is True


def test_what_is_not_installed_may_come_back_and_its_keepers_are_not_forgotten(filled, make):
    filled.unserved.add(MACHINES)
    made = make()
    made.wanted("VirtualMachine/shop/vm1")
    assert until(lambda: all(cache.cause or cache.ever for cache in made._keepers["VirtualMachine"]))
    assert until(lambda: made._keepers["VirtualMachine"][1].state == "watching")
    assert made.wanted("VirtualMachine/shop/vm1") is None
    assert made.wanted("Nobody/shop/x") is None
    assert made.wanted("x") is None  # a block may say anything
    assert made.wanted("Pod/shop/web/u1") is False


def test_a_node_that_the_server_does_not_know_hands_nothing_out(filled, make):
    """Its addresses would be taken from it as from a node that is gone."""
    made = make()
    filled.delete("nodes", "", NODE)
    assert until(made.nameless)
    with pytest.raises(TryAgain, match=f"there is no Node '{NODE}'") as caught:
        made.subject("shop", "db-0", "u1", soon())
    assert "kube.node_name" in caught.value.hint
    filled.put("nodes", named(NODE))
    assert until(lambda: not made.nameless())
    assert made.subject("shop", "db-0", "u1", soon()).name == "db-0"


def test_who_asks_for_a_new_kind_of_keeper_at_the_end_leaves_no_thread(filled, make):
    made = make()
    made.stop()
    before = set(threading.enumerate())
    assert made.wanted("StatefulSet/shop/db-0") is None
    assert set(threading.enumerate()) <= before
