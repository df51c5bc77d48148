"""The project's two reference networks with pools: nothing changed but the NIC."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from tests import published
from tests.multus.multus_node import InProcess

from underlay.cni.config import parse_plugin
from underlay.ipam.allocator import Holder

NETWORKS, DEFAULT = "k8s.v1.cni.cncf.io/networks", "v1.multus-cni.io/default-network"
P = "ipam.spidernet.io/"
CLUSTER = {
    "cniVersion": "1.0.0",
    "name": "cluster-net",
    "type": "macvlan",
    "master": "eth0",
    "ipam": {
        "type": "static",
        "addresses": [{"address": "10.244.3.5/24", "gateway": "10.244.3.1"}],
        "routes": [{"dst": "0.0.0.0/0"}],
    },
}
MULTUS = {"cniVersion": "1.0.0", "name": "m", "type": "multus", "clusterNetwork": "cluster-net"}


@pytest.fixture
def node(uplink, tmp_path):
    made = InProcess(uplink, tmp_path)
    made.write("net.d/10-cluster.conf", CLUSTER)
    for name in published.NAMES:
        made.network("kube-system", name, published.network(name))
    pool(made, "four", subnet="172.18.0.0/16", ips=["172.18.40.10-172.18.40.12"], gateway="172.18.0.1", default=True)
    pool(made, "six", subnet="fd00:18::/64", ips=["fd00:18::40:10-fd00:18::40:ff"], gateway="fd00:18::1", default=True)
    yield made
    made.close()


def pool(node: InProcess, name: str, **spec: Any) -> None:
    node.write(f"manifests/pools/{name}.json", published.pool(name, **spec))


def args(name: str, uid: str = "uid-1") -> str:
    return f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_UID={uid}"


def held(node: InProcess) -> dict[str, str]:
    return {lease.shown: lease.pod for lease in node.pools.leases.everything() if lease.state == "held"}


def addresses(pod: Any, nic: str) -> list[str]:
    (link,) = pod.ip("addr", "show", "dev", nic, "scope", "global")
    return sorted(f"{each['local']}/{each['prefixlen']}" for each in link["addr_info"] if each)


def test_macvlan_and_veth_as_the_pods_only_network(node, pod, lan, snapshot):
    before = snapshot(pod)
    node.pod("default", "web", {DEFAULT: "kube-system/macvlan-standalone"})
    ok, result = node.call("ADD", MULTUS, netns=pod.path, args=args("web"))
    assert ok, result
    assert [ip["address"] for ip in result["ips"]] == ["172.18.40.10/16", "fd00:18::40:10/64"]
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "172.18.0.1"}, {"dst": "::/0", "gw": "fd00:18::1"}]
    assert addresses(pod, "eth0") == ["172.18.40.10/16", "fd00:18::40:10/64"]
    assert pod.pings("172.18.0.1")
    assert pod.pings("fd00:18::1")
    assert node.ns.pings("172.18.40.10")  # what a macvlan alone cannot
    assert held(node) == {"172.18.40.10": "default/web", "fd00:18::40:10": "default/web"}
    checked = node.call("CHECK", MULTUS, netns=pod.path, args=args("web"))
    assert checked == (True, None), checked
    assert node.call("DEL", MULTUS, netns=pod.path, args=args("web"))[0]
    assert held(node) == {}
    assert snapshot(pod) == before
    told = [line for line in node.log if line["event"] == "addresses held"]
    assert told[0]["to"].level == "debug"
    assert told[0]["to"].file == "/var/log/spidernet/spiderpool.log"


def test_macvlan_and_router_as_a_second_network(node, pod):
    routes = [{"dst": "10.99.0.0/16", "gw": "172.18.0.2"}]
    only = ["kube-system/macvlan-vlan0-overlay"]
    pool(node, "net1-pool", subnet="172.18.0.0/16", ips=["172.18.41.1-172.18.41.9"], routes=routes, multusName=only)
    wish = [{"interface": "net1", "ipv4": ["net1-*"], "cleangateway": True}]
    node.pod("default", "web", {NETWORKS: "kube-system/macvlan-vlan0-overlay", P + "ippools": json.dumps(wish)})
    ok, result = node.call("ADD", MULTUS, netns=pod.path, args=args("web"))
    assert ok, result
    assert addresses(pod, "net1") == ["172.18.41.1/16"]
    assert node.status("default", "web")[1]["ips"] == ["172.18.41.1"]
    checked = node.call("CHECK", MULTUS, netns=pod.path, args=args("web"))
    assert checked == (True, None), checked
    assert node.call("DEL", MULTUS, netns=pod.path, args=args("web"))[0]
    assert held(node) == {}


def test_an_exhausted_pool_fails_the_pod_and_leaves_nothing(node, pod, snapshot):
    before = snapshot(pod)
    pool(node, "four", subnet="172.18.0.0/16", ips=["172.18.40.10"], default=True)
    node.pod("default", "a", {DEFAULT: "kube-system/macvlan-standalone"})
    node.pod("default", "b", {DEFAULT: "kube-system/macvlan-standalone"})
    assert node.call("ADD", MULTUS, netns=pod.path, args=args("a"), container="c1")[0]
    ok, error = node.call("ADD", MULTUS, netns=pod.path, args=args("b"), container="c2")
    assert not ok
    assert "no free address in pool 'four'" in error["msg"]
    assert set(held(node).values()) == {"default/a"}
    assert node.call("DEL", MULTUS, netns=pod.path, args=args("a"), container="c1")[0]
    assert snapshot(pod) == before


def test_a_broken_pool_is_named_with_its_field(node, pod):
    pool(node, "four", subnet="172.18.0.0/16", ips=["10.0.0.1"], default=True)
    node.pod("default", "web", {DEFAULT: "kube-system/macvlan-standalone", P + "ippool": '{"ipv4": ["four"]}'})
    ok, error = node.call("ADD", MULTUS, netns=pod.path, args=args("web"))
    assert not ok
    assert "four" in error["msg"]
    assert "spec.ips[0]" in error["msg"]
    assert held(node) == {}


def test_an_address_that_a_host_outside_uses_is_an_event_of_the_pod(node, pod, lan):
    lan.batch("addr add 172.18.40.10/16 dev br0")
    config = published.network("macvlan-standalone")
    config["plugins"][0]["ipam"]["detectIPConflict"] = True
    node.network("kube-system", "asks", config)
    node.pod("default", "web", {DEFAULT: "kube-system/asks"})
    ok, result = node.call("ADD", MULTUS, netns=pod.path, args=args("web"))
    assert ok, result
    assert [ip["address"] for ip in result["ips"]] == ["172.18.40.11/16", "fd00:18::40:10/64"]
    (event,) = [line for line in node.log if line["event"] == "event" and line["reason"] == "IPConflict"]
    assert (event["level"], event["pod"]) == ("warn", "default/web")
    assert f"172.18.40.10 of pool 'four' is in use by {lan.link('br0')['address']} outside" in event["message"]


def test_a_pod_that_nobody_knows_is_not_told_and_gets_its_address(node, lan):
    lan.batch("addr add 172.18.40.10/16 dev br0")
    conf = parse_plugin(json.dumps({**CLUSTER, "ipam": {"type": "spiderpool", "detectIPConflict": True}}).encode())
    known = {"K8S_POD_NAMESPACE": "default", "K8S_POD_NAME": "nobody", "K8S_POD_UID": "uid-1"}
    with node.ns.entered():
        added = node.pools.add(conf, Holder("c1", "eth0"), known, record=[].append, deadline=time.monotonic() + 10)
    assert [ip.address for ip in added.ips] == ["172.18.40.11/16", "fd00:18::40:10/64"]
    assert [line["pod"] for line in node.log if line["event"] == "address in use by a host outside"] == [
        "default/nobody"
    ]
    assert [line for line in node.log if line["event"] == "event"] == []


def test_an_old_del_takes_nothing_from_the_new_pod_of_that_name(node, pod, new_netns):
    annotations = {DEFAULT: "kube-system/macvlan-standalone"}
    node.pod("default", "web", annotations)
    assert node.call("ADD", MULTUS, netns=pod.path, args=args("web"), container="old")[0]
    assert node.call("DEL", MULTUS, args=args("web"), container="old")[0]
    node.pod("default", "web", annotations, uid="uid-2")
    again = new_netns("again")
    assert node.call("ADD", MULTUS, netns=again.path, args=args("web", "uid-2"), container="new")[0]
    mine = held(node)
    assert node.call("DEL", MULTUS, args=args("web"), container="old")[0]
    assert node.call("DEL", MULTUS, args=args("web"), container="never")[0]
    assert held(node) == mine
    assert next(iter(mine)) == "172.18.40.11"  # the old one rests
    assert node.call("DEL", MULTUS, netns=again.path, args=args("web", "uid-2"), container="new")[0]


@pytest.mark.parametrize("ipam", ["spiderpool", "host-local"])
def test_garbage_collection_leaves_a_pod_alone_that_is_attached_meanwhile(node, pod, new_netns, monkeypatch, ipam):
    network = published.network("macvlan-standalone")
    if ipam == "host-local":
        ranges = [[{"subnet": "172.18.0.0/16", "rangeStart": "172.18.50.1", "rangeEnd": "172.18.50.9"}]]
        network["plugins"][0]["ipam"] = {"type": ipam, "ranges": ranges, "dataDir": str(node.directory / "ipam")}
        node.network("kube-system", "macvlan-standalone", network)
    for name in "ab":
        node.pod("default", name, {DEFAULT: "kube-system/macvlan-standalone"})
    assert node.call("ADD", MULTUS, netns=pod.path, args=args("a"), container="c1")[0]
    other, chain, late = new_netns("pod"), node.engine.chain, []

    def attached_meanwhile(*given):
        if given[0].network == "kube-system/macvlan-standalone":
            monkeypatch.setattr(node.engine, "chain", chain)
            late.append(node.call("ADD", MULTUS, netns=other.path, args=args("b"), container="c2"))
        return chain(*given)

    monkeypatch.setattr(node.engine, "chain", attached_meanwhile)
    keep = [{"containerID": "c1", "ifname": "eth0"}]
    assert node.call("GC", {**MULTUS, "cniVersion": "1.1.0", "cni.dev/valid-attachments": keep}) == (True, None)
    ((ok, second),) = late
    assert ok, second
    check = {**MULTUS, "prevResult": second}
    assert node.call("CHECK", check, netns=other.path, args=args("b"), container="c2") == (True, None)
