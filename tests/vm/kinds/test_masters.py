"""What a pod's NIC may be built on beside a NIC: a VLAN of one, and a bond."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.plugins.conftest import Conf, Node, addresses, macvlan, meta

if TYPE_CHECKING:
    from tests.conftest import Netns

V4, V6 = "172.19.7.5/16", "fd00:19::7:5/64"


@pytest.fixture
def vlan_of_eth0(node: Node, lan: Netns) -> str:
    """VLAN 100 on the node and in the LAN, where 172.19.0.1 and fd00:19::1 are."""
    node.ns.batch(
        "link add link eth0 name eth0.100 type vlan id 100",
        "link set eth0.100 up",
        "addr add 172.19.0.11/16 dev eth0.100",
    )
    lan.batch(
        "link add link br0 name br0.100 type vlan id 100", "link set br0.100 up", "addr add 172.19.0.1/16 dev br0.100",
        "addr add fd00:19::1/64 dev br0.100 nodad",
    )  # fmt: skip
    return "eth0.100"


@pytest.fixture
def bond(node: Node, lan: Netns) -> str:
    """Two further wires from the node to the LAN, of which the bond uses one."""
    node.ns.batch(
        "link add bond0 type bond mode active-backup miimon 50",
        *(f"link add port{each} type veth peer name wire{each} netns {lan.name}" for each in (1, 2)),
        *(f"link set port{each} master bond0" for each in (1, 2)),
        *(f"link set port{each} up" for each in (1, 2)),
        "link set bond0 up",
    )
    lan.batch(*(f"link set wire{each} master br0 up" for each in (1, 2)), "addr add 172.19.0.1/16 dev br0",
              "addr add fd00:19::1/64 dev br0 nodad")  # fmt: skip
    return "bond0"


def on(master: str, kind: str = "macvlan") -> Conf:
    """A NIC with addresses of the network 172.19.0.0/16."""
    return macvlan(V4, V6, type=kind, master=master, ipam=addresses(V4, V6) | {"routes": []})


def holds(node: Node, pod: Netns, master: str, kind: str) -> None:
    """It is on that parent, it speaks to the LAN, and DEL leaves nothing."""
    before = node.state(pod)
    node.add(pod, "net1", on(master, kind))
    index = pod.link("net1")["link_index"]
    assert next(each["ifname"] for each in node.ns.ip("link", "show") if each["ifindex"] == index) == master
    assert pod.pings("172.19.0.1")
    assert pod.pings("fd00:19::1")
    node.check(pod, "net1")
    assert node.delete(pod, "net1") == []
    assert node.state(pod) == before


@pytest.mark.parametrize("kind", ["macvlan", "ipvlan"])
def test_a_vlan_is_a_parent(node: Node, pod: Netns, vlan_of_eth0: str, kind: str) -> None:
    holds(node, pod, vlan_of_eth0, kind)


@pytest.mark.parametrize("kind", ["macvlan", "ipvlan"])
def test_a_bond_is_a_parent(node: Node, pod: Netns, bond: str, kind: str) -> None:
    holds(node, pod, bond, kind)


def test_a_vlan_of_a_bond_is_a_pods_nic(node: Node, pod: Netns, bond: str, lan: Netns) -> None:
    lan.batch("link add link br0 name br0.7 type vlan id 7", "link set br0.7 up", "addr add 172.20.0.1/16 dev br0.7")
    ipam = {"type": "static", "addresses": [{"address": "172.20.7.5/16"}]}
    node.add(pod, "net1", {"type": "vlan", "master": bond, "vlanId": 7, "ipam": ipam})
    assert pod.pings("172.20.0.1")
    assert node.delete(pod, "net1") == []


def test_the_pod_stays_reachable_when_the_bond_changes_its_wire(node: Node, pod: Netns, bond: str) -> None:
    node.add(pod, "net1", on(bond))
    active = node.ns.link(bond)["linkinfo"]["info_data"]["active_slave"]
    node.ns.batch(f"link set {active} down")
    assert any(pod.pings("172.19.0.1") for _ in range(3))
    assert node.ns.link(bond)["linkinfo"]["info_data"]["active_slave"] != active
    node.check(pod, "net1")


def test_veth_repairs_the_way_to_the_node_of_a_macvlan_on_a_vlan(node: Node, pod: Netns, vlan_of_eth0: str) -> None:
    node.add(pod, "eth0", on(vlan_of_eth0), meta("veth"))
    assert pod.pings("172.19.0.11")
    assert node.ns.pings("172.19.7.5")
    node.check(pod, "eth0")
    assert node.delete(pod, "eth0") == []
