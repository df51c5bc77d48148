"""Nodes and the controller at one API server: what a pod is given through the shim, and what everybody sees of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from tests.controller.at_the_server import owned_pools, status
from tests.controller.conftest import SETTINGS
from tests.controller.pictures import a_node, ago
from tests.controller.test_adopt import SET, an_endpoint
from tests.kube.api_objects import BLOCKS, ENDPOINTS, POOLS, SUBNETS
from tests.kube.api_server import PODS, ApiServer
from tests.kube.api_server import pod as a_pod
from tests.kube.cluster_bench import Lines, until
from tests.kube.pool_nodes import PoolNode, owners, put_pool, reported, settled

from underlay.controller.app import Controller
from underlay.kube.kubeconfig import Kubeconfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def api(host: Any) -> Iterator[ApiServer]:
    def listen(address: str, port: int) -> socket.socket:
        with host.entered():
            return socket.create_server((address, port), backlog=256)

    with ApiServer(listen=listen) as server:
        server.put("namespaces", {"metadata": {"name": "default"}})
        yield server


@pytest.fixture
def make(host: Any, api: ApiServer, tmp_path: Any) -> Iterator[Callable[..., PoolNode]]:
    made: list[PoolNode] = []

    def node(name: str, *flags: str) -> PoolNode:
        api.put("nodes", {"metadata": {"name": name}})
        made.append(PoolNode(host, tmp_path / name, api, name, *flags))
        return made[-1]

    yield node
    for one in made:
        if one.daemon.poll() is None:
            one.close()


@pytest.fixture
def controller(host: Any, api: ApiServer, tmp_path: Any, request: Any) -> Iterator[Controller]:
    """Within the namespace that the API server listens in: its threads are begun there."""
    log = Lines()
    settings = replace(SETTINGS, grace=1.5, shrink=0.5, **getattr(request, "param", {}))
    running = Controller(Kubeconfig(api.kubeconfig(tmp_path / "controller"), log), log, settings)
    with host.entered():
        running.start()
    assert until(running.leads)
    yield running
    running.stop()
    assert [event for level, event, _ in log if level == "error"] == []


def test_what_a_pod_is_given_is_seen_by_everybody(api, make, controller):
    put_pool(api, "a", 2600, 40)
    node = make("n1")
    settled(node)
    node.make_pods(["web"])
    address = node.address("web")
    assert until(lambda: status(api, "a").get("allocatedIPCount") == 1)
    told = {"pod": "default/web", "podUid": "uid-web", "state": "held"}
    assert json.loads(status(api, "a")["allocatedIPs"]) == {address: told}
    assert until(lambda: api.get(ENDPOINTS, "default", "web"))
    current = api.get(ENDPOINTS, "default", "web")["status"]["current"]
    assert (current["node"], current["uid"]) == ("n1", "uid-web")
    (ip,) = current["ips"]
    assert (ip["interface"], ip["ipv4"], ip["ipv4Pool"]) == ("eth0", f"{address}/16", "a")
    assert node.ipam("DEL", "web")[0]
    api.delete(PODS, "default", "web")
    assert until(lambda: status(api, "a").get("allocatedIPCount") == 0)
    assert until(lambda: api.get(ENDPOINTS, "default", "web") is None)


def test_a_pool_in_deletion_hands_out_nothing_and_goes_when_it_is_empty(api, make, controller):
    put_pool(api, "a", 2600, 40)
    node = make("n1")
    settled(node)
    late = (f"late-{n}" for n in range(100))
    node.make_pods(["web"])
    node.address("web")
    assert until(lambda: api.get(POOLS, "", "a")["metadata"].get("finalizers"))
    api.objects.remove(POOLS, "", "a", {})

    def refused() -> bool:
        """The node may not have heard of it yet, and then the pod goes again."""
        (name,) = node.make_pods([next(late)])
        ok, printed = node.ipam("ADD", name)
        assert node.ipam("DEL", name)[0]
        return not ok and "it is being deleted" in printed["msg"]

    assert until(refused)
    assert api.get(POOLS, "", "a")
    assert node.ipam("DEL", "web")[0]
    assert until(lambda: api.get(POOLS, "", "a") is None, 20)


def test_an_applications_pod_gets_its_address_from_the_pool_that_the_controller_makes(api, make, controller):
    spec = {"subnet": "172.18.0.0/16", "ips": ["172.18.9.10-172.18.9.99"], "gateway": "172.18.0.1"}
    api.put(SUBNETS, {"metadata": {"name": "s"}, "spec": spec})
    owner = [{"kind": "ReplicaSet", "name": "web-5d9f", "uid": "u", "controller": True}]
    node = make("n1")
    settled(node)
    names = [f"web-{n}" for n in range(4)]
    node.make_pods(names, annotations={"ipam.spidernet.io/subnet": '{"ipv4": ["s"]}'}, ownerReferences=owner,
                   labels={"pod-template-hash": "5d9f"})  # fmt: skip
    given = [node.address(name) for name in names]
    assert len(set(given)) == 4
    assert until(lambda: [each["spec"]["ips"] for each in owned_pools(api)] == [["172.18.9.10-172.18.9.14"]])
    (pool,) = owned_pools(api)
    assert until(lambda: status(api, pool["metadata"]["name"]).get("allocatedIPCount") == 4)
    for name in names:
        assert node.ipam("DEL", name)[0]
        api.delete(PODS, "default", name)
    assert until(lambda: owned_pools(api) == [], 30)


def test_a_dead_nodes_addresses_are_handed_out_by_the_others(api, make, controller):
    put_pool(api, "a", 2600, 4)
    one = make("n1")
    settled(one)
    one.make_pods(["a", "b", "c"])
    taken = {one.address(name) for name in "abc"}
    assert until(lambda: status(api, "a").get("allocatedIPCount") == 3)
    one.daemon.kill()
    one.daemon.wait()
    two = make("n2")
    settled(two)
    for name in "abc":
        api.delete(PODS, "default", name)
    api.delete("nodes", "", "n1")
    assert until(lambda: "n1" not in owners(api).values(), 20)
    names = two.make_pods(["d", "e", "f", "g"])
    given = {two.address(name) for name in names}
    assert taken <= given
    assert len(given) == 4


@pytest.mark.parametrize("controller", [{"unready": 1.0}], indirect=True)
def test_node_down_and_back_a_pod_that_still_holds_what_was_given_away_is_named(api, make, controller):
    """Cut off for a while, which the administrator took for down; what nobody has taken meanwhile is its own again."""
    put_pool(api, "a", 2600, 4)
    one, two = make("n1"), make("n2")
    settled(one, two)
    held = {name: one.address(name) for name in one.make_pods(["stuck", "lucky"])}
    assert until(lambda: reported(api) == {address: f"default/{name}" for name, address in held.items()})
    one.daemon.send_signal(signal.SIGSTOP)
    api.put("nodes", a_node("n1", unready=60))
    for name in held:
        api.put(PODS, a_pod(name, node="n1", uid=f"uid-{name}", deletionTimestamp=ago(5), finalizers=["x"]))
    assert until(lambda: "n1" not in owners(api).values(), 20)
    assert until(lambda: owners(api) == {}, 20)
    names = two.make_pods(["d", "e", "f"])
    given = {two.address(name) for name in names}
    taken = {name for name, address in held.items() if owners(api).get(address) == "n2"}
    api.put("nodes", a_node("n1"))
    one.daemon.send_signal(signal.SIGCONT)

    def told() -> set[str]:
        events = [each for each in api.objects.all("events") if each["reason"] == "IPConflict"]
        return {each["involvedObject"]["name"] for each in events if "is node n2's by now" in each["message"]}

    assert len(given) == 3
    assert taken
    assert until(lambda: told() == taken, 20)
    lines = (one.directory / "daemon.log").read_text()
    assert all(f'"pod":"default/{name}"' in lines for name in taken)
    late = one.make_pods(["late"])
    ok, printed = one.ipam("ADD", *late)
    assert not ok or printed["ips"][0]["address"].partition("/")[0] not in given
    assert one.ipam("DEL", *late)[0]
    for name in held:
        assert one.ipam("DEL", name)[0]
        api.delete(PODS, "default", name)
    assert set(two.leases()) == given


def test_terminating_too_long_on_a_ready_node_gives_back_when_its_sandbox_has_gone(api, make, controller, new_netns):
    """Its containers may still use the address as long as the sandbox is there, however late they are."""
    put_pool(api, "a", 2600, 1)
    node = make("n1", "--reclaim-interval", "0.5")
    settled(node)
    node.make_pods(["web"])
    path = f"/run/netns/{new_netns('web').name}-sandbox"
    subprocess.run(["ip", "netns", "add", os.path.basename(path)], check=True)
    assert node.ipam("ADD", "web", netns=path)[0]
    api.put(PODS, a_pod("web", node="n1", uid="uid-web", deletionTimestamp=ago(300), finalizers=["x"]))
    node.make_pods(["next"])
    time.sleep(3.0)
    assert node.ipam("ADD", "next")[1]["code"] == 105
    assert status(api, "a")["allocatedIPCount"] == 1
    subprocess.run(["ip", "netns", "del", os.path.basename(path)], check=True)
    assert until(lambda: node.leases() == {}, 10)
    assert until(lambda: status(api, "a").get("allocatedIPCount") == 0)
    assert node.ipam("ADD", "next")[0]
    assert node.ipam("DEL", "web")[0]  # late, for a pod whose address is another's
    assert list(node.leases().values()) == ["default/next"]


def test_force_delete_gives_back_at_del_and_nothing_before(api, make, controller):
    """The pod's object has gone, its container has not."""
    put_pool(api, "a", 2600, 1)
    one, two = make("n1", "--reclaim-interval", "0.5"), make("n2")
    settled(one, two)
    one.make_pods(["web"])
    address = one.address("web")
    assert until(lambda: reported(api) == {address: "default/web"})
    api.delete(PODS, "default", "web")
    two.make_pods(["next"])
    time.sleep(3.0)
    assert two.ipam("ADD", "next")[1]["code"] == 105
    assert one.leases() == {address: "default/web"}
    assert one.ipam("DEL", "web")[0]
    assert until(lambda: two.ipam("ADD", "next")[0], 20)
    assert two.leases() == {address: "default/next"}


def test_a_sets_pod_finds_its_address_again_after_its_node_has_died(api, make, controller):
    put_pool(api, "a", 2600, 40)
    api.put("statefulsets", {"metadata": {"name": "db", "namespace": "default"}, "spec": {"replicas": 1}})
    owner = [{"kind": "StatefulSet", "name": "db", "controller": True}]
    one, two = make("n1"), make("n2")
    settled(one, two)
    one.make_pods(["db-0"], ownerReferences=owner)
    address = one.address("db-0")
    assert until(lambda: status(api, "a").get("allocatedIPCount") == 1)
    one.daemon.kill()
    one.daemon.wait()
    api.delete(PODS, "default", "db-0")
    api.put("nodes", {"metadata": {"name": "n1"}, "spec": {"taints": [{"key": "node.kubernetes.io/out-of-service"}]}})
    assert until(lambda: "n1" not in owners(api).values(), 20)
    two.make_pods(["db-0"], ownerReferences=owner)
    assert until(lambda: two.ipam("ADD", "db-0")[0], 20)
    assert two.leases() == {address: "default/db-0"}
    assert until(lambda: api.get(ENDPOINTS, "default", "db-0")["status"]["current"]["node"] == "n2")


def test_a_keepers_address_is_free_once_its_set_is_gone(api, make, controller):
    put_pool(api, "a", 2600, 40)
    one = make("n1")
    settled(one)
    one.make_pods(["db-0"], ownerReferences=[{"kind": "StatefulSet", "name": "db", "controller": True}])
    one.address("db-0")
    assert until(lambda: status(api, "a").get("allocatedIPCount") == 1)
    one.daemon.kill()
    one.daemon.wait()
    api.put("statefulsets", {"metadata": {"name": "db", "namespace": "default"}, "spec": {"replicas": 1}})
    api.delete(PODS, "default", "db-0")
    api.delete("nodes", "", "n1")
    assert until(lambda: owners(api) == {}, 20)
    assert status(api, "a").get("allocatedIPCount") == 1
    api.delete("statefulsets", "default", "db")
    assert until(lambda: status(api, "a").get("allocatedIPCount") == 0, 20)
    assert all("leases" not in block["spec"] for block in api.objects.all(BLOCKS))


@pytest.mark.parametrize("controller", [{"empty": 0.3}], indirect=True)
def test_a_block_that_was_removed_is_made_again_by_whoever_needs_it(api, make, controller):
    put_pool(api, "a", 40 * 256 + 16, 16)
    name = "v4-172.18.40.16"
    one, two = make("n1"), make("n2")
    settled(one, two)
    for round_ in range(2):
        api.put(BLOCKS, {"metadata": {"name": name}, "spec": {"revision": 9}})
        assert until(lambda: api.get(BLOCKS, "", name) is None)
        pods = {node: node.make_pods([f"{node.name}-{round_}"])[0] for node in (one, two)}
        given = {node.address(pod): node.name for node, pod in pods.items()}
        assert len(given) == 2
        assert given.items() <= owners(api).items()
        assert until(lambda: len(reported(api)) == 2)
        for node, pod in pods.items():
            assert node.ipam("DEL", pod)[0]
            api.delete(PODS, "default", pod)
        assert until(lambda: reported(api) == {})
        api.delete(BLOCKS, "", name)
        assert until(lambda: api.get(BLOCKS, "", name) is None)


def spiderpools_own(api: ApiServer, **held: str) -> None:
    """Pods on node n1 that run, and what Spiderpool itself wrote of them in pool "a"."""
    for name, address in held.items():
        stateful = name.startswith("db")
        api.put(PODS, a_pod(name, node="n1", uid=f"uid-{name}", **(SET if stateful else {})))
        an_endpoint(api, name, address, "StatefulSet" if stateful else "Pod")
    told = {address: {"pod": f"default/{name}", "podUid": f"uid-{name}"} for name, address in held.items()}
    pool = api.get(POOLS, "", "a")
    api.put(POOLS, {**pool, "status": {"allocatedIPCount": len(told), "allocatedIPs": json.dumps(told)}})


def test_coming_from_spiderpool_nobody_is_given_what_pods_hold_that_run(api, make, controller, tmp_path, host):
    put_pool(api, "a", 40 * 256 + 10, 4)
    api.put("statefulsets", {"metadata": {"name": "db", "namespace": "default"}, "spec": {"replicas": 1}})
    web, stays, db, free = (f"172.18.40.{n}" for n in range(10, 14))
    spiderpools_own(api, web=web, stays=stays, **{"db-0": db})
    assert until(lambda: status(api, "a").get("totalIPCount") == 4)
    told = json.loads(status(api, "a")["allocatedIPs"])
    assert {ip: one["podUid"] for ip, one in told.items()} == {web: "uid-web", stays: "uid-stays", db: "uid-db-0"}
    config = api.kubeconfig(tmp_path / "admin")
    host.run(sys.executable, "-m", "underlay", "ipam", "adopt", "--apply", "--kubeconfig", config)
    one, two = make("n1"), make("n2")
    settled(one, two)

    two.make_pods(["new", "more"])
    assert two.address("new") == free
    assert two.ipam("ADD", "more")[1]["code"] == 105
    assert status(api, "a")["allocatedIPCount"] == 4
    assert api.get(ENDPOINTS, "default", "web")["status"]["current"]["uid"] == "uid-web"

    assert one.address("stays") == stays  # it has a new sandbox
    assert owners(api)[stays] == "n1"

    assert one.ipam("DEL", "web")[0]
    assert two.ipam("ADD", "more")[1]["code"] == 105  # its object is there
    api.delete(PODS, "default", "web")
    assert until(lambda: two.ipam("ADD", "more")[0], 20)
    assert two.leases() == {free: "default/new", web: "default/more"}
    assert until(lambda: api.get(ENDPOINTS, "default", "web") is None)

    api.delete(PODS, "default", "db-0")
    two.make_pods(["db-0"], **SET)
    assert until(lambda: two.ipam("ADD", "db-0")[0], 20)
    assert two.leases()[db] == "default/db-0"

    assert one.ipam("DEL", "stays")[0]
    api.delete(PODS, "default", "stays")
    assert until(lambda: status(api, "a").get("allocatedIPCount") == 3, 20)
