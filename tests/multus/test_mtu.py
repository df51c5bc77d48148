"""The MTU in network-status: of NICs that built-in plugins made, whose results do not say it, and of others."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.multus.multus_node import InProcess
from tests.multus.test_handler import NETWORKS, args, conf
from tests.multus.test_hotplug import META, OVERLAY, change, macvlan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


SAYS = """#!/bin/sh
[ "$CNI_COMMAND" = ADD ] || exit 0
echo '{"cniVersion": "1.1.0", "interfaces": [{"name": "net1", "mtu": 1450, "sandbox": "/run/netns/pod"}]}'
"""


def network(*plugins: dict[str, Any], version: str = "1.0.0") -> dict[str, Any]:
    return {"cniVersion": version, "plugins": list(plugins)}


@pytest.fixture
def node(uplink: Any, tmp_path: Path) -> Iterator[InProcess]:
    made = InProcess(uplink, tmp_path)
    made.write("net.d/10-cluster.conf", OVERLAY)
    yield made
    made.close()


def add(node: InProcess, pod: Any, annotation: str) -> dict[str, Any]:
    node.pod("default", "web", {NETWORKS: annotation})
    ok, result = node.call("ADD", conf(), netns=pod.path, args=args("web"))
    assert ok, result
    return result


def written(node: InProcess) -> dict[str, int]:
    """The MTUs of the status, by NIC."""
    return {each["interface"]: each["mtu"] for each in node.status("default", "web") if "mtu" in each}


def real(pod: Any, *nics: str) -> dict[str, int]:
    """The MTUs as the kernel has them."""
    return {each["ifname"]: each["mtu"] for each in pod.ip("link", "show") if each["ifname"] in nics}


@pytest.mark.parametrize(
    ("plugins", "mtu"),
    [
        ([macvlan(1)], 1500),
        ([macvlan(1, mtu=1400)], 1400),
        ([macvlan(1, mode="passthru")], 1500),
        ([macvlan(1, mtu=1400), {"type": "veth", **META}], 1400),
        ([macvlan(1, mtu=1400), {"type": "router", **META, "mac_prefix": "0a:1b"}], 1400),
        ([macvlan(1, mtu=1400), {"type": "tuning", "mtu": 1300}], 1300),
        ([macvlan(1, mtu=1400), {"type": "tuning", "mtu": 1300}, {"type": "router", **META}], 1300),
    ],
)
def test_the_status_tells_the_mtu_of_a_nic_that_a_built_in_plugin_made(
    node: InProcess, pod: Any, plugins: list[dict[str, Any]], mtu: int
) -> None:
    node.network("default", "a", network(*plugins))
    add(node, pod, "a")
    assert real(pod, "net1") == {"net1": mtu}
    assert written(node) == {"net1": mtu}
    assert node.call("DEL", conf(), netns=pod.path, args=args("web")) == (True, None)


def test_the_result_stays_as_the_reference_prints_it(node: InProcess, pod: Any) -> None:
    node.write("net.d/10-cluster.conf", {**macvlan(1, mtu=1400), "cniVersion": "1.1.0", "name": "cluster-net"})
    result = add(node, pod, "")
    assert [sorted(each) for each in result["interfaces"]] == [["mac", "name", "sandbox"]]
    assert written(node) == {"eth0": 1400}


def test_an_executed_plugin_has_the_mtu_that_its_result_says(node: InProcess, pod: Any) -> None:
    script = node.write("bin/says", SAYS)
    script.chmod(0o755)
    node.network("default", "a", network({"type": "says"}, version="1.1.0"))
    node.pod("default", "web", {NETWORKS: "a"})
    ok, result = node.call("ADD", conf(binDir=str(script.parent)), netns=pod.path, args=args("web"))
    assert ok, result
    assert written(node) == {"net1": 1450}


def test_the_mtu_outlasts_a_change_and_a_daemon_that_starts_anew(
    node: InProcess, pod: Any, uplink: Any, tmp_path: Path
) -> None:
    node.network("default", "a", network(macvlan(1, mtu=1400), {"type": "router", **META}))
    node.network("default", "b", network(macvlan(2, mtu=1350), {"type": "router", **META}))
    node.network("default", "c", network(macvlan(3), {"type": "router", **META}))
    add(node, pod, "a,b")
    assert written(node) == {"net1": 1400, "net2": 1350}
    node.close()
    again = InProcess(uplink, tmp_path)
    try:
        change(again, "b,c")
        assert written(again) == {"net2": 1350, "net1": 1500} == real(pod, "net1", "net2")
        change(again, json.dumps([{"name": "b"}]))  # net2's router is laid anew: net1 was there before
        assert written(again) == {"net2": 1350}
    finally:
        again.close()
