"""STATUS, GC and CHECK over every network, not the cluster's alone."""

from __future__ import annotations

import json
import os

import pytest
from tests.multus.multus_node import InProcess
from tests.multus.test_handler import CLUSTER, NETWORKS, args, conf, host_local, nics, second


@pytest.fixture
def node(uplink, tmp_path):
    made = InProcess(uplink, tmp_path)
    made.write("net.d/10-cluster.conf", CLUSTER)
    yield made
    made.close()


def held(node, network: str) -> list[str]:
    """The reservations of a network of host-local."""
    return sorted(name for name in os.listdir(node.directory / "ipam" / network) if name.startswith("172"))


def script(node, name: str, *lines: str) -> str:
    """An executable that speaks CNI 1.1; returns its directory."""
    probe = 'echo \'{"cniVersion": "1.1.0", "supportedVersions": ["1.0.0", "1.1.0"]}\''
    body = ["#!/bin/sh", f'case "$CNI_COMMAND" in VERSION) {probe}; exit 0;; esac', *lines]
    node.write(f"bin/{name}", "\n".join(body) + "\n").chmod(0o755)
    return str(node.directory / "bin")


def test_status_names_every_network_that_cannot_serve(node):
    node.network("kube-system", "one", second(master="nosuch1"))
    node.network("kube-system", "two", second(master="nosuch2"))
    ok, error = node.call("STATUS", conf(defaultNetworks=["one", "two"]))
    assert (ok, error["code"]) == (False, 50)
    assert "network kube-system/one: " in error["msg"]
    assert "nosuch1" in error["msg"]
    assert "network kube-system/two: " in error["msg"]


@pytest.mark.parametrize(("other", "code"), [({}, 51), ({"master": "nosuch1"}, 50)])
def test_what_cannot_serve_counts_more_than_what_serves_badly(node, other, code):
    given = script(node, "ailing", 'echo \'{"code": 51, "msg": "the switch is gone"}\'; exit 1')
    node.network("kube-system", "one", {"cniVersion": "1.1.0", "type": "ailing"})
    node.network("kube-system", "two", second(**other))
    ok, error = node.call("STATUS", conf(defaultNetworks=["one", "two"], binDir=given))
    assert (ok, error["code"]) == (False, code)
    assert "network kube-system/one: plugin 'ailing': the switch is gone" in error["msg"]


def test_status_names_a_definition_that_is_no_json(node):
    node.network("kube-system", "one", "{")
    ok, error = node.call("STATUS", conf(defaultNetworks=["one"]))
    assert (ok, error["code"]) == (False, 50)
    assert "network kube-system/one: " in error["msg"]


def test_status_names_a_configuration_file_that_cannot_be_read(node):
    (node.conf_dir / "10-cluster.conf").unlink()
    (node.conf_dir / "10-cluster.conf").mkdir()
    ok, error = node.call("STATUS", conf())
    assert (ok, error["code"]) == (False, 50)
    assert "'cluster-net'" in error["msg"]


def test_gc_gives_back_what_a_pods_own_network_holds_for_nobody(node, pod):
    node.network("default", "a", {**second(), "ipam": host_local(node)})
    node.pod("default", "web", {NETWORKS: "a"})
    assert node.call("ADD", conf(), netns=pod.path, args=args("web"))[0]
    (mine,) = held(node, "a")
    node.write("ipam/a/172.18.9.7", "dead\r\nnet1")
    listed = {"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]}
    assert node.call("GC", {**conf(), **listed}) == (True, None)
    assert held(node, "a") == [mine]
    assert nics(pod) == ["eth0", "net1"]


def test_gc_tells_an_executable_of_the_pods_own_network_what_is_valid(node, pod):
    given = conf(binDir=script(node, "keeper", 'cat > "$0.$CNI_COMMAND"', 'echo \'{"cniVersion": "1.1.0"}\''))
    node.network("default", "a", {"cniVersion": "1.1.0", "type": "keeper"})
    node.pod("default", "web", {NETWORKS: "a"})
    assert node.call("ADD", given, netns=pod.path, args=args("web"))[0]
    listed = [{"containerID": "c1", "ifname": "eth0"}]
    assert node.call("GC", {**given, "cni.dev/valid-attachments": listed}) == (True, None)
    seen = json.loads((node.directory / "bin" / "keeper.GC").read_text())
    assert {"containerID": "c1", "ifname": "net1"} in seen["cni.dev/valid-attachments"]


def test_gc_leaves_alone_what_another_multus_attached_before(node, pod):
    """Their pods are on the runtime's list, and not in the ledger."""
    node.network("default", "a", {**second(), "ipam": host_local(node)})
    node.network("kube-system", "extra", {**second(), "ipam": host_local(node)})
    node.pod("default", "web", {NETWORKS: "a"})
    given = conf(defaultNetworks=["extra"])
    assert node.call("ADD", given, netns=pod.path, args=args("web"))[0]
    node.write("ipam/a/172.18.9.7", "theirs\r\nfast0")
    node.write("ipam/extra/172.18.9.7", "theirs\r\nnet1")
    node.write("ipam/extra/172.18.9.8", "dead\r\nnet1")
    listed = [{"containerID": "c1", "ifname": "eth0"}, {"containerID": "theirs", "ifname": "eth0"}]
    assert node.call("GC", {**given, "cni.dev/valid-attachments": listed}) == (True, None)
    assert "172.18.9.7" in held(node, "a")
    assert "172.18.9.7" in held(node, "extra")
    assert "172.18.9.8" not in held(node, "extra")


def test_check_goes_to_every_attachment(node, pod):
    for name, address in (("a", "172.18.8.1/16"), ("b", "172.18.8.2/16")):
        node.network("default", name, second(address))
    node.pod("default", "web", {NETWORKS: "a,b"})
    ok, result = node.call("ADD", conf(), netns=pod.path, args=args("web"))
    assert ok, result
    assert node.call("CHECK", conf(prevResult=result), netns=pod.path, args=args("web")) == (True, None)
    for nic in ("net2", "net1", "eth0"):
        pod.batch(f"link del {nic}")
        ok, error = node.call("CHECK", conf(prevResult=result), netns=pod.path, args=args("web"))
        assert (ok, error["code"]) == (False, 108)
        assert nic in error["msg"]


def test_a_delete_of_an_unknown_container_gives_back_what_the_cluster_network_holds(node):
    """The pod was made again since: its networks are another's, the configuration's are the container's too."""
    node.write("net.d/10-cluster.conf", {**CLUSTER, "ipam": host_local(node)})
    node.write("ipam/cluster-net/172.18.9.7", "c1\r\neth0")
    node.pod("default", "web", {}, uid="new")
    assert node.call("DEL", conf(), args=args("web", "old")) == (True, None)
    assert held(node, "cluster-net") == []
