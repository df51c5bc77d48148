"""Pods through the shim and a daemon that listens to an API server in the node's own network namespace."""

from __future__ import annotations

import json
import socket

import pytest
from tests import published
from tests.kube.api_objects import POOLS
from tests.kube.api_server import EVENTS, NETWORKS, PODS, ApiServer, Fault, network, pod
from tests.kube.cluster_bench import NODE, until
from tests.kube.pool_nodes import WATCHED, owners, reported
from tests.multus.multus_node import ShimAndDaemon

STATUS = "k8s.v1.cni.cncf.io/network-status"
CONF = {"cniVersion": "1.0.0", "name": "multus", "type": "multus", "clusterNetwork": "cluster-net"}
PER_POD = ("get", "create", "patch", "update")


@pytest.fixture
def api(uplink):
    def listen(host, port):
        with uplink.entered():
            return socket.create_server((host, port))

    with ApiServer(listen=listen) as server:
        ipam = {"type": "static", "addresses": [{"address": "172.18.8.1/16"}]}
        cluster = {"type": "macvlan", "master": "eth0", "ipam": ipam}
        server.put(NETWORKS, network("cluster-net", cluster, namespace="kube-system"))
        server.put(NETWORKS, network("more", {"type": "macvlan", "master": "eth0"}))
        yield server


@pytest.fixture
def pools():
    """Where the daemon takes pools from."""
    return "manifests"


@pytest.fixture
def node(uplink, api, tmp_path, pools):
    config = api.kubeconfig(tmp_path / "kubeconfig")
    made = ShimAndDaemon(uplink, tmp_path, "--kubeconfig", config, "--node-name", NODE, "--pools", pools)
    yield made
    made.close()


def args(name, uid):
    return f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_UID={uid}"


def status_of(api, name):
    found = api.get(PODS, "default", name)["metadata"]["annotations"].get(STATUS)
    return [each["interface"] for each in json.loads(found)] if found else None


def nics(ns):
    return sorted(each["ifname"] for each in ns.ip("link", "show") if each["ifname"] != "lo")


def address(ns, ifname):
    (link,) = ns.ip("addr", "show", "dev", ifname, "scope", "global")
    return next(each["local"] for each in link["addr_info"] if each.get("family") == "inet")


def heard(node):
    log = (node.directory / "daemon.log").read_text()
    return log.count('"event":"listed"') + log.count('"event": "listed"')


def test_an_add_with_warm_caches_asks_nothing_and_is_followed_by_its_status_alone(node, api, new_netns):
    api.put(PODS, pod("web", node=NODE, uid="u1", networks="more"))
    assert until(lambda: heard(node) == 2, 20)
    ns = new_netns("pod")
    ok, printed = node.call("ADD", CONF, netns=ns.path, args=args("web", "u1"))
    assert ok, printed
    assert nics(ns) == ["eth0", "net1"]
    assert until(lambda: status_of(api, "web") == ["eth0", "net1"])
    asked = [each for each in api.requests if each.verb in PER_POD and each.resource != EVENTS]
    assert [(each.verb, each.resource) for each in asked] == [("patch", "pods/status")]


def test_while_the_server_is_away_known_pods_start_and_del_completes_and_the_status_follows(node, api, new_netns):
    for name in ("web-1", "web-2"):
        api.put(PODS, pod(name, node=NODE, uid=f"u-{name}", networks="more" if name == "web-2" else ""))
    assert until(lambda: heard(node) == 2, 20)
    api.stop()
    spaces = {name: new_netns(name) for name in ("web-1", "web-2")}
    for name, ns in spaces.items():
        ok, printed = node.call("ADD", CONF, netns=ns.path, container=name, args=args(name, f"u-{name}"))
        assert ok, printed
    assert node.call("STATUS", {**CONF, "cniVersion": "1.1.0"})[0]
    unknown, printed = node.call("ADD", CONF, netns=spaces["web-1"].path, container="x", args=args("x", "u-x"))
    assert not unknown
    assert printed["code"] == 11
    assert "pod default/x is not known yet" in printed["msg"]
    ns = spaces["web-1"]
    assert node.call("DEL", CONF, netns=ns.path, container="web-1", args=args("web-1", "u-web-1")) == (True, None)
    assert nics(ns) == []
    api.start()
    assert until(lambda: status_of(api, "web-2") == ["eth0", "net1"], 30)
    assert status_of(api, "web-1") is None


def test_a_requested_network_that_cannot_be_known_fails_the_pod(node, api, new_netns):
    api.put(PODS, pod("web", node=NODE, uid="u1", networks="missing"))
    assert until(lambda: heard(node) == 2, 20)
    ns = new_netns("pod")
    ok, printed = node.call("ADD", CONF, netns=ns.path, args=args("web", "u1"))
    assert not ok
    assert "missing" in printed["msg"]
    api.faults.append(Fault(path="/other", times=100, status=503))
    api.put(PODS, pod("web", node=NODE, uid="u1", networks="other"))
    assert until(lambda: "other" in node.call("ADD", CONF, netns=ns.path, args=args("web", "u1"))[1]["msg"])
    assert node.call("ADD", CONF, netns=ns.path, args=args("web", "u1"))[1]["code"] == 11
    assert nics(ns) == []


def test_pools_are_chosen_by_the_annotations_and_labels_that_the_server_tells(node, api, new_netns):
    ranges = {"any": "172.18.9.1-172.18.9.9", "shop": "172.18.10.1-172.18.10.9"}
    for name, ips in ranges.items():
        spec = {"subnet": "172.18.0.0/16", "ips": [ips], "default": name == "any"}
        spec |= {"podAffinity": {"matchLabels": {"app": "db-0"}}} if name == "shop" else {}
        node.write(f"manifests/{name}.json", published.pool(name, **spec))
    pooled = {"type": "macvlan", "master": "eth0", "ipam": {"type": "spiderpool"}}
    api.put(NETWORKS, network("pooled", pooled))
    wish = {"ipam.spidernet.io/ippools": json.dumps([{"interface": "net1", "ipv4": ["shop"]}])}
    owner = [{"kind": "StatefulSet", "name": "db", "controller": True}]
    api.put(PODS, pod("db-0", node=NODE, uid="u1", networks="pooled", annotations=wish, ownerReferences=owner))
    api.put(PODS, pod("web", node=NODE, uid="u2", networks="pooled"))
    assert until(lambda: heard(node) == 2, 20)
    held = {}
    for name, uid in (("db-0", "u1"), ("web", "u2")):
        ns = new_netns(name)
        ok, printed = node.call("ADD", CONF, netns=ns.path, container=name, args=args(name, uid))
        assert ok, printed
        held[name] = address(ns, "net1")
    assert held == {"db-0": "172.18.10.1", "web": "172.18.9.1"}


@pytest.mark.parametrize("pools", ["cluster"])
def test_nics_get_addresses_of_the_clusters_pools_by_the_namespaces_word(node, api, new_netns):
    for name, ips in {"shop": "172.18.10.1-172.18.10.9", "other": "172.18.11.1-172.18.11.9"}.items():
        api.put(POOLS, published.pool(name, subnet="172.18.0.0/16", ips=[ips], default=name == "other"))
    word = {"ipam.spidernet.io/default-ipv4-ippool": '["shop"]'}
    api.put("nodes", {"metadata": {"name": NODE}})
    api.put("namespaces", {"metadata": {"name": "default", "annotations": word}})
    api.put(NETWORKS, network("pooled", {"type": "macvlan", "master": "eth0", "ipam": {"type": "spiderpool"}}))
    api.put(PODS, pod("web", node=NODE, uid="u1", networks="pooled,pooled"))
    assert until(lambda: heard(node) == WATCHED, 20)
    ns = new_netns("web")
    ok, printed = node.call("ADD", CONF, netns=ns.path, args=args("web", "u1"))
    assert ok, printed
    held = {address(ns, "net1"), address(ns, "net2")}
    assert len(held) == 2
    assert owners(api).items() >= dict.fromkeys(held, NODE).items()
    assert until(lambda: reported(api) == dict.fromkeys(held, "default/web"))
    assert node.call("CHECK", CONF | {"prevResult": printed}, netns=ns.path, args=args("web", "u1")) == (True, None)
    assert node.call("DEL", CONF, netns=ns.path, args=args("web", "u1")) == (True, None)
    assert nics(ns) == []
    assert until(lambda: reported(api) == {})
