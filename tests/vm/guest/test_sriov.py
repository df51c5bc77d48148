"""sriov on real virtual functions: what the physical function says of them afterwards, and what goes over the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.plugins.conftest import Conf, Node, addresses
from tests.vm.guest.conftest import NODE_ADDRESS, Pf, Vf

if TYPE_CHECKING:
    from tests.conftest import Netns

MAC = "02:00:00:00:07:05"


def sriov(vf: Vf, *cidrs: str, **keys: Any) -> Conf:
    """A pod's NIC on a virtual function."""
    return {"type": "sriov", "deviceID": vf.address, "capabilities": {"mac": True}, **keys} | (
        {"ipam": addresses(*cidrs)} if cidrs else {}
    )


def test_a_virtual_function_becomes_the_pods_eth0_and_comes_back(node: Node, pf: Pf, pod: Netns) -> None:
    vf = pf.vfs[0]
    before = pf.ns.link(vf.name)["address"]
    result = node.add(pod, "eth0", sriov(vf, "172.18.7.5/16", "fd00:18::7:5/64"), version="1.1.0")
    nic = pod.link("eth0")
    assert result["interfaces"] == [{"name": "eth0", "mac": before, "sandbox": pod.path, "pciID": vf.address}]
    assert nic["address"] == before
    assert pf.ns.link(vf.name) is None
    node.check(pod, "eth0")
    assert pod.pings("172.18.0.1")
    assert pod.pings("fd00:18::1")
    assert pod.pings(NODE_ADDRESS)
    assert node.delete(pod, "eth0") == []
    assert pod.link("eth0") is None


def test_every_setting_is_read_back_from_the_physical_function_and_restored(node: Node, pf: Pf, pod: Netns) -> None:
    vf = pf.vfs[1]
    keys = {"vlan": 100, "vlanQoS": 5, "mac": MAC, "spoofchk": "off", "trust": "on", "max_tx_rate": 200, "mtu": 1400}
    node.add(pod, "net1", sriov(vf, **keys))
    told = pf.told(vf.number)
    print(told)
    (vlan,) = told["vlan_list"]
    assert (vlan["vlan"], vlan["qos"]) == (100, 5)
    assert told["address"] == pod.link("net1")["address"] == MAC
    assert (told["spoofchk"], told["trust"]) == (False, True)
    assert told["rate"] == {"max_tx": 200, "min_tx": 0}
    assert pod.link("net1")["mtu"] == 1400
    node.check(pod, "net1")
    assert node.delete(pod, "net1") == []
