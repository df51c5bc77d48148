"""Address pools of a cluster through the shim: nodes of their own, one API server over HTTP."""

from __future__ import annotations

import os
import socket
import subprocess
import time

import pytest
from tests.kube.api_objects import BLOCKS, POOLS
from tests.kube.api_server import PODS, ApiServer, Fault
from tests.kube.cluster_bench import until
from tests.kube.pool_nodes import PoolNode, at_once, owners, put_pool, reported, settled


@pytest.fixture
def api(host):
    def listen(address, port):
        with host.entered():
            return socket.create_server((address, port), backlog=256)

    with ApiServer(listen=listen) as server:
        server.put("namespaces", {"metadata": {"name": "default"}})
        yield server


@pytest.fixture
def make(host, api, tmp_path):
    made = []

    def node(name, *flags):
        if api.get("nodes", "", name) is None:
            api.put("nodes", {"metadata": {"name": name}})
        one = PoolNode(host, tmp_path / name, api, name, *flags)
        made.append(one)
        return one

    yield node
    for one in made:
        one.close()


def test_add_check_del_gc_and_status(api, make):
    put_pool(api, "a", 2600, 40)
    api.put("nodes", {"metadata": {"name": "n1", "labels": {"zone": "z1"}}})
    node = make("n1")
    settled(node)
    node.make_pods(["web", "other"])
    assert node.ipam("STATUS", "") == (True, None)
    ok, printed = node.ipam("ADD", "web")
    assert ok, printed
    (ip,) = printed["ips"]
    address = ip["address"].partition("/")[0]
    assert owners(api)[address] == "n1"
    assert until(lambda: reported(api) == {address: "default/web"})
    assert node.ipam("CHECK", "web", prevResult=printed) == (True, None)
    other = node.address("other")
    assert node.leases() == {address: "default/web", other: "default/other"}
    valid = [{"containerID": "c-web", "ifname": "eth0"}]
    assert node.ipam("GC", "", **{"cni.dev/valid-attachments": valid})[0]
    assert node.leases() == {address: "default/web"}
    assert node.ipam("DEL", "web") == (True, None)
    assert node.ipam("DEL", "web") == (True, None)
    assert not node.ipam("CHECK", "web", prevResult=printed)[0]
    assert until(lambda: reported(api) == {})


def test_an_add_with_warm_addresses_asks_the_api_server_nothing(api, make):
    put_pool(api, "a", 2600, 200)
    node = make("n1")
    settled(node)
    node.make_pods(["first", "second"])
    node.address("first")
    assert until(lambda: len(reported(api)) == 1 and len(owners(api)) >= 5)
    before = len(api.requests)
    api.faults.append(Fault(path="/", watch=False, delay=3.0, times=100))
    began = time.monotonic()
    node.address("second")
    assert time.monotonic() - began < 2.0
    api.faults.clear()
    assert until(lambda: len(reported(api)) == 2)
    # In the background: it is reported, and another one owned ahead.
    assert {(each.verb, each.resource) for each in api.requests[before:]} == {("patch", BLOCKS)}


def test_exactly_as_many_addresses_as_pods_at_20_parallel(api, make):
    put_pool(api, "a", 2600, 200)
    node = make("n1")
    settled(node)
    pods = node.make_pods(f"p{n}" for n in range(200))
    time.sleep(0.5)  # the watch tells of the pods
    done = at_once((node, "ADD", each) for each in pods)
    assert [printed for ok, printed in done if not ok] == []
    got = [printed["ips"][0]["address"] for _, printed in done]
    assert len(set(got)) == 200
    node.make_pods(["late"])
    ok, printed = node.ipam("ADD", "late")
    assert (ok, printed["code"]) == (False, 105)
    assert "no free address in pool 'a'" in printed["msg"]
    assert not node.ipam("STATUS", "")[0]
    assert all(ok for ok, _ in at_once((node, "DEL", each) for each in pods))
    assert node.leases() == {}
    assert until(lambda: reported(api) == {})


def test_four_nodes_on_one_pool_of_exactly_200(api, make):
    put_pool(api, "a", 2600, 200)
    nodes = [make(f"n{n}") for n in range(4)]
    settled(*nodes)
    calls = [(node, "ADD", each) for node in nodes for each in node.make_pods(f"{node.name}-{n}" for n in range(50))]
    time.sleep(0.5)
    done = at_once(calls, 40)
    assert [printed for ok, printed in done if not ok] == []
    assert len({printed["ips"][0]["address"] for _, printed in done}) == 200
    assert all(ok for ok, _ in at_once([(node, "DEL", name) for node, _, name in calls], 40))
    assert [node.leases() for node in nodes] == [{}] * 4
    assert until(lambda: reported(api) == {})


def test_while_the_api_server_is_away_what_is_owned_is_handed_out(api, make):
    put_pool(api, "a", 2600, 100)
    node = make("n1")
    settled(node)
    node.make_pods(f"p{n}" for n in range(40))
    node.address("p0")
    assert until(lambda: len(reported(api)) == 1)
    assert until(lambda: len(owners(api)) >= 5)  # a few more than it uses
    api.stop()
    mine = len(owners(api))
    assert mine < 40
    for n in range(1, mine):
        node.address(f"p{n}")
    ok, printed = node.ipam("ADD", f"p{mine}")
    assert (ok, printed["code"]) == (False, 11)
    assert "pool 'a' has no address left on this node, and more is not to be had" in printed["msg"]
    assert "API server" in printed["msg"]
    assert node.ipam("DEL", "p1") == (True, None)
    node.address(f"p{mine}")
    api.start()
    assert until(lambda: node.ipam("ADD", f"p{mine + 1}")[0], 30)
    assert until(lambda: len(reported(api)) == mine + 1, 20)


def test_a_daemon_that_starts_without_the_api_server_goes_on_with_what_it_owns(api, make):
    put_pool(api, "a", 2600, 100)
    node = make("n1")
    settled(node)
    node.make_pods(["web", "next"])
    held = node.address("web")
    assert until(lambda: len(reported(api)) == 1 and len(owners(api)) >= 5)
    node.close()
    api.stop()
    node.start()
    assert until(lambda: node.starts() == 2, 20)
    assert node.leases() == {held: "default/web"}
    assert node.address("next") != held
    api.start()
    assert until(lambda: set(reported(api).values()) == {"default/web", "default/next"}, 30)


def test_without_blocks_at_the_api_server_an_add_says_what_to_apply(api, make):
    put_pool(api, "a", 2600, 20)
    api.unserved.add(BLOCKS)
    node = make("n1")
    assert until(node.starts, 20)
    node.make_pods(["web"])
    assert "apply deploy/crds" in node.ipam("ADD", "web")[1].get("msg", "")
    api.unserved.clear()
    api.forbidden.add(("create", BLOCKS))
    assert until(lambda: "cannot create" in node.ipam("ADD", "web")[1].get("msg", ""))
    api.forbidden.clear()
    assert at_once([(node, "ADD", "web")])[0][0]


def test_status_says_why_no_pool_can_be_used(api, make):
    api.unserved.add(POOLS)
    node = make("n1")
    assert until(node.starts, 20)
    ok, printed = node.ipam("STATUS", "")
    assert (ok, printed["code"]) == (False, 50)
    assert "SpiderIPPools: the API server has no spiderippools" in printed["msg"]
    node.make_pods(["web"])
    assert until(lambda: "address pools are not known yet" in node.ipam("ADD", "web")[1]["msg"])


def test_a_pool_that_is_being_deleted_hands_out_nothing_and_takes_back(api, make):
    put_pool(api, "a", 2600, 20)
    node = make("n1")
    settled(node)
    node.make_pods(["web", "next"])
    held = node.address("web")
    stored = api.get(POOLS, "", "a")
    stored["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    api.put(POOLS, stored)
    assert until(lambda: "is being deleted" in str(node.command("explain", "default/next")))
    assert "is being deleted" in node.ipam("ADD", "next")[1]["msg"]
    assert until(lambda: reported(api) == {held: "default/web"})
    assert node.ipam("DEL", "web") == (True, None)
    assert until(lambda: reported(api) == {})


def test_a_pod_that_went_without_del_gives_back_at_once(api, make, new_netns):
    put_pool(api, "a", 2600, 20)
    node = make("n1", "--reclaim-interval", "3600")
    settled(node)
    node.make_pods(["web"])
    path = f"/run/netns/{new_netns('web').name}-sandbox"
    subprocess.run(["ip", "netns", "add", os.path.basename(path)], check=True)
    ok, printed = node.ipam("ADD", "web", netns=path)
    assert ok, printed
    api.delete(PODS, "default", "web")
    time.sleep(2.5)
    assert list(node.leases().values()) == ["default/web"]  # its sandbox is there
    subprocess.run(["ip", "netns", "del", os.path.basename(path)], check=True)
    assert until(lambda: node.leases() == {}, 10)
    assert until(lambda: reported(api) == {})


def test_a_stateful_sets_pod_takes_its_address_along_and_scaling_down_frees_it(api, make):
    put_pool(api, "a", 2600, 64)
    api.put("statefulsets", {"metadata": {"name": "db", "namespace": "default"}, "spec": {"replicas": 1}})
    owner = {"ownerReferences": [{"kind": "StatefulSet", "name": "db", "controller": True}]}
    first, second = make("n1"), make("n2", "--reclaim-interval", "1")
    settled(first, second)
    first.make_pods(["db-0"], **owner)
    held = first.address("db-0")
    assert until(lambda: reported(api) == {held: "default/db-0"})
    assert first.ipam("DEL", "db-0") == (True, None)
    api.delete(PODS, "default", "db-0")
    assert until(lambda: reported(api) == {})  # kept
    second.make_pods(["db-0"], **owner)
    assert at_once([(second, "ADD", "db-0")])[0][1]["ips"][0]["address"] == f"{held}/16"
    assert until(lambda: owners(api)[held] == "n2")
    assert until(lambda: first.leases() == {})
    assert second.ipam("DEL", "db-0") == (True, None)
    assert [each["state"] for each in second.command("list")["leases"]] == ["kept"]
    api.put("statefulsets", {"metadata": {"name": "db", "namespace": "default"}, "spec": {"replicas": 0}})
    assert until(lambda: second.leases() == {}, 20)


def test_a_daemon_that_is_killed_gives_nobody_elses_address_out(api, make):
    put_pool(api, "a", 2600, 64)
    nodes = [make(name) for name in ("n1", "n2")]
    settled(*nodes)
    told = {}
    for node in nodes:
        for name in node.make_pods(f"{node.name}-{n}" for n in range(6)):
            told[name] = node.address(name)
    nodes[0].daemon.kill()
    nodes[0].daemon.wait()
    nodes[0].start()
    for name in nodes[0].make_pods(f"n1-{n}" for n in range(6, 12)):
        told[name] = nodes[0].address(name)
    assert len(set(told.values())) == len(told) == 18
    assert nodes[0].leases() == {told[f"n1-{n}"]: f"default/n1-{n}" for n in range(12)}
    assert until(lambda: len(reported(api)) == 18)
    assert {owners(api)[told[name]] for name in told if name.startswith("n1-")} == {"n1"}


def test_pools_are_explained_and_listed_by_the_node_and_of_all(api, make):
    put_pool(api, "a", 2600, 64)
    put_pool(api, "elsewhere", 3600, 9, nodeName=["n9"])
    api.put(POOLS, {"metadata": {"name": "bad"}, "spec": {"subnet": "172.18.0.0/16", "gateway": "10.0.0.1"}})
    nodes = [make(name) for name in ("n1", "n2")]
    settled(*nodes)
    told = {}
    for node in nodes:
        node.make_pods([f"on-{node.name}"])
        told[node.address(f"on-{node.name}")] = f"default/on-{node.name}"
    explained = nodes[0].command("explain", "default/on-n1")
    lines = {line["pool"]: line for line in explained["lines"]}
    assert (lines["a"]["place"], lines["a"]["free"] > 0) == (1, True)
    assert lines["elsewhere"]["why"] == "nodeName does not list this node, 'n1'"
    assert "SpiderIPPool 'bad'" in explained["unread"][0]
    (mine,) = nodes[0].leases()
    assert nodes[0].command("who", mine)["leases"][0]["pod"] == "default/on-n1"
    assert until(lambda: len(reported(api)) == 2)
    assert until(lambda: len(nodes[0].command("list", "--all")["leases"]) == 2)
    everything = nodes[0].command("list", "--all")["leases"]
    assert {each["address"]: each["pod"] for each in everything} == told
    assert {each["node"] for each in everything} == {"n1", "n2"}


def test_what_is_on_another_node_or_on_none_is_named_and_released_where_it_can_be(api, make):
    put_pool(api, "a", 2600, 64)
    left = {"pool": "a", "state": "kept", "keeper": "Reserved/", "since": "2026-01-01T10:00:00Z"}
    api.put(BLOCKS, {"metadata": {"name": "v4-10.99.0.0"}, "spec": {"revision": 1, "leases": {"10.99.0.5": left}}})
    here, there = make("n1"), make("n2")
    settled(here, there)
    there.make_pods(["web"])
    address = there.address("web")
    assert until(lambda: here.command("who", address)["leases"])
    (found,) = here.command("who", address)["leases"]
    assert (found["pod"], found["node"]) == ("default/web", "n2")
    refused = here.command("release", address, "--force")
    assert "on node n2" in refused
    assert 'Run "underlay ipam release" on n2' in refused
    (ended,) = here.command("release", "10.99.0.5")["leases"]
    assert ended["keeper"] == "Reserved/"
    assert until(lambda: not here.command("who", "10.99.0.5")["leases"])


def test_an_address_that_nobody_owns_yet_can_be_reserved_and_then_only_its_pod_gets_it(api, make):
    put_pool(api, "a", 2600, 64)
    here, there = make("n1"), make("n2")
    settled(here, there)
    vip = "172.18.10.90"
    (reserved,) = here.command("reserve", vip, "--for", "default/web")["leases"]
    assert (reserved["address"], reserved["keeper"]) == (vip, "Reserved/default/web")
    assert owners(api)[vip] == "n1"
    assert "belongs to node n1" in there.command("reserve", vip)
    here.make_pods(["other", "web"])
    assert here.address("other") != vip
    assert here.address("web") == vip
