"""A daemon in a container, through the shim: the node's root is a tree, CNI_NETNS and the plugins are only in there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from tests.multus.multus_node import ShimAndDaemon
from tests.node_root import NodeRoot

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Netns

RESULT = {"cniVersion": "0.4.0", "interfaces": [{"name": "eth0", "sandbox": "SANDBOX"}],
          "ips": [{"version": "4", "address": "10.244.0.9/24", "interface": 0}]}  # fmt: skip
CONF = {"cniVersion": "1.0.0", "name": "multus-net", "type": "multus",
        "delegates": [{"cniVersion": "0.4.0", "name": "overlay", "type": "overlay"}]}  # fmt: skip
UNDERLAY = {"cniVersion": "1.0.0", "type": "macvlan", "master": "eth0",
            "ipam": {"type": "host-local", "subnet": "172.18.0.0/16", "rangeStart": "172.18.7.1"}}  # fmt: skip
ARGS = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web"


@pytest.fixture
def root(pod: Netns, uplink: Netns, tmp_path: Path) -> Iterator[NodeRoot]:
    made = NodeRoot(tmp_path / "node")
    made.bind("/run/netns", "run/sandboxes")
    printed = json.dumps(RESULT).replace("SANDBOX", "'$CNI_NETNS'")
    made.plugin("overlay", f"""printf '%s %s\\n' "$CNI_COMMAND" "$(readlink -f $CNI_NETNS)" >>/seen/calls
        [ -e $CNI_NETNS ] || exit 1
        [ $CNI_COMMAND = ADD ] && printf '{printed}'; exit 0""")  # fmt: skip
    yield made
    made.close()


@pytest.fixture
def node(root: NodeRoot, uplink: Netns, tmp_path: Path) -> Iterator[ShimAndDaemon]:
    (tmp_path / "d").mkdir()
    made = ShimAndDaemon(uplink, tmp_path / "d", "--chroot-dir", str(root.path))
    yield made
    made.close()


def test_executed_and_built_in_plugins_serve_a_pod_of_the_node(node: ShimAndDaemon, root: NodeRoot, pod: Netns) -> None:
    node.network("default", "underlay", UNDERLAY)
    node.pod("default", "web", {"k8s.v1.cni.cncf.io/networks": "underlay"})
    netns = f"/var/run/sandboxes/{pod.name}"
    ok, printed = node.call("ADD", CONF, netns=netns, args=ARGS)
    assert ok, printed
    assert [ip["address"] for ip in printed["ips"]] == ["10.244.0.9/24"]
    assert root.seen("calls") == [f"ADD /run/sandboxes/{pod.name}"]
    (net1,) = pod.ip("-4", "addr", "show", "dev", "net1")
    assert [each["local"] for each in net1["addr_info"]] == ["172.18.7.1"]
    assert (root.path / "var/lib/cni/networks/underlay/172.18.7.1").exists()
    assert [each["interface"] for each in node.status("default", "web")] == ["eth0", "net1"]

    ok, printed = node.call("CHECK", CONF, netns=netns, args=ARGS)
    assert ok, printed
    ok, printed = node.call("DEL", CONF, netns=netns, args=ARGS)
    assert ok, printed
    assert pod.link("net1") is None
    assert not (root.path / "var/lib/cni/networks/underlay/172.18.7.1").exists()
    assert [line.split()[0] for line in root.seen("calls")] == ["ADD", "CHECK", "DEL"]


def test_a_plugin_that_only_the_container_has_is_missing_on_the_node(node: ShimAndDaemon, pod: Netns) -> None:
    conf = {**CONF, "delegates": [{"cniVersion": "0.4.0", "name": "overlay", "type": "bridge"}]}
    ok, printed = node.call("ADD", conf, netns=f"/var/run/sandboxes/{pod.name}", args="")
    assert not ok
    assert printed["code"] == 106
    assert "'bridge' is not built in and not found" in printed["msg"]
