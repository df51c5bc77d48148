"""sriov on real virtual functions: what the physical function says of them afterwards, and what goes over the wire."""

from __future__ import annotations

import mmap
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Netns
from tests.plugins.conftest import Conf, Node, addresses, meta
from tests.plugins.killing import outlive_kills
from tests.vm.guest.conftest import DEVICES, LAN, NODE_ADDRESS, PF, Pf, Vf, nic_of, wait_for

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
    (vlan,) = told["vlan_list"]
    assert (vlan["vlan"], vlan["qos"]) == (100, 5)
    assert told["address"] == pod.link("net1")["address"] == MAC
    assert (told["spoofchk"], told["trust"]) == (False, True)
    assert told["rate"] == {"max_tx": 200, "min_tx": 0}
    assert pod.link("net1")["mtu"] == 1400
    node.check(pod, "net1")
    assert node.delete(pod, "net1") == []


def test_two_pods_take_eth0_at_once_and_reach_each_other(node: Node, pf: Pf, pod: Netns, pod2: Netns) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda each: node.add(each[0], "eth0", sriov(each[1], each[2]), container=each[0].name),
                      [(pod, pf.vfs[0], "172.18.7.5/16"), (pod2, pf.vfs[1], "172.18.7.6/16")]))  # fmt: skip
    assert pod.pings("172.18.7.6")
    assert pod2.pings("172.18.7.5")
    assert pod2.pings("172.18.0.1")
    for each in (pod, pod2):
        assert node.delete(each, "eth0", container=each.name) == []


def test_a_vlan_is_on_the_wire(node: Node, pf: Pf, pod: Netns, lan: Netns) -> None:
    lan.batch(
        "link add link lan0 name lan0.100 type vlan id 100",
        "link set lan0.100 up",
        "addr add 172.19.0.1/24 dev lan0.100",
    )
    try:
        conf = sriov(pf.vfs[0], vlan=100, ipam={"type": "static", "addresses": [{"address": "172.19.0.5/24"}]})
        node.add(pod, "net1", conf)
        assert pod.pings("172.19.0.1")
        assert node.delete(pod, "net1") == []
    finally:
        lan.batch("link delete lan0.100")


def spoof_checks(number: int) -> tuple[bool, bool]:
    """What the NIC itself is told to do with forged frames of a VF: by hardware address, and by VLAN.

    Its register DTXSWC, "DMA Tx Switch Control" (Intel 82576 datasheet, 8.15.18): a bit for each of 8 functions each.
    """
    with (DEVICES / PF / "resource0").open("r+b", buffering=0) as file, mmap.mmap(file.fileno(), 0x4000) as registers:
        (value,) = struct.unpack_from("<I", registers, 0x3500)
    return bool(value >> number & 1), bool(value >> number + 8 & 1)


@pytest.mark.parametrize("spoofchk", ["on", "off"])
def test_spoofchk_is_in_the_nics_register_while_the_pod_has_it(node: Node, pf: Pf, pod: Netns, spoofchk: str) -> None:
    """No forged frame is seen to be dropped: QEMU's NIC keeps the bits, and compares no frame with them."""
    before = spoof_checks(0)
    node.add(pod, "net1", sriov(pf.vfs[0], "172.18.7.5/16", spoofchk=spoofchk))
    assert spoof_checks(0) == ((True, True) if spoofchk == "on" else (False, False))
    assert pf.told(0)["spoofchk"] == (spoofchk == "on")
    assert pod.pings("172.18.0.1")
    assert node.delete(pod, "net1") == []
    assert spoof_checks(0) == before


def test_a_namespace_that_is_gone_gives_the_virtual_function_back(node: Node, pf: Pf) -> None:
    subprocess.run(["ip", "netns", "add", "gone"], check=True)
    gone = Netns("gone")
    node.add(gone, "eth0", sriov(pf.vfs[0], "172.18.7.5/16", vlan=7, mac=MAC, mtu=1300))
    subprocess.run(["ip", "netns", "delete", "gone"], check=True)
    wait_for(lambda: any(each.get("parentdev") == pf.vfs[0].address for each in pf.ns.ip("link", "show")))
    assert node.delete(gone.path, "eth0") == []


def test_a_virtual_function_in_use_is_refused_naming_its_pod(node: Node, pf: Pf, pod: Netns, pod2: Netns) -> None:
    args = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=first;K8S_POD_INFRA_CONTAINER_ID=1"
    node.add(pod, "net1", sriov(pf.vfs[0]), args=args)
    error = node.refused(pod2, "net1", sriov(pf.vfs[0], vlan=5), container="other")
    assert error.code == 11
    assert "is in use by " in error.message
    assert error.message.endswith("as net1")
    assert not pf.told(0)["vlan_list"][0].get("vlan")
    assert node.delete(pod, "net1") == []


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"link_state": "enable"}, '"link_state"'),
        ({"vlan": 5, "vlanProto": "802.1ad"}, '"vlanProto"'),
        ({"min_tx_rate": 10, "max_tx_rate": 20}, '"max_tx_rate"'),
        ({"mtu": 9500}, '"mtu"'),
    ],
)
def test_what_the_hardware_refuses_is_named_and_the_function_is_as_it_was(
    node: Node, pf: Pf, pod: Netns, keys: Conf, named: str
) -> None:
    error = node.refused(pod, "net1", sriov(pf.vfs[2], vlan=9) | keys)
    assert named in error.message
    assert error.hint


@pytest.mark.parametrize(
    ("device", "words"),
    [(PF, "is a physical function"), ("0000:ff:1f.7", "is no PCI device"), (LAN, "is no virtual function"),
     ("eth0", "is no PCI address"), ("", "is missing")],
)  # fmt: skip
def test_a_device_that_is_no_virtual_function_is_refused(node: Node, pod: Netns, device: str, words: str) -> None:
    error = node.refused(pod, "net1", {"type": "sriov", "deviceID": device})
    assert words in error.message
    assert error.hint


def test_fifty_rounds_change_nothing(node: Node, pf: Pf, pod: Netns) -> None:
    before = pf.state()
    for number in range(50):
        vf = pf.vfs[number % len(pf.vfs)]
        node.add(pod, "eth0", sriov(vf, vlan=number + 1, mac=MAC, trust="on", spoofchk="off"))
        assert node.delete(pod, "eth0") == []
    assert pf.state() == before


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_nothing_is_left_whenever_the_process_is_killed(node: Node, pf: Pf, pod: Netns, verb: str) -> None:
    conf = sriov(pf.vfs[0], "172.18.7.5/16", vlan=30, mac=MAC, trust="on", mtu=1400)
    assert outlive_kills(node, pod, verb, conf, pf.state) > 5


def test_router_and_veth_repair_the_pods_way_to_its_node(node: Node, pf: Pf, overlay: Netns) -> None:
    router = meta("router", sriov=True)
    node.add(overlay, "net1", sriov(pf.vfs[0], "172.18.7.5/16"), router)
    assert overlay.pings("172.18.0.1")
    node.check(overlay, "net1")
    assert node.delete(overlay, "net1") == []


def test_veth_behind_sriov_reaches_the_node(node: Node, pf: Pf, pod: Netns) -> None:
    node.add(pod, "eth0", sriov(pf.vfs[0], "172.18.7.5/16"), meta("veth"))
    assert pod.link("veth0") is not None
    assert pod.pings(NODE_ADDRESS)
    node.check(pod, "eth0")
    assert node.delete(pod, "eth0") == []


def test_a_function_of_uio_is_set_and_addressed_without_a_nic(node: Node, pf: Pf, pod: Netns) -> None:
    vf = pf.vfs[3]
    mac = pf.ns.link(vf.name)["address"]
    rebind(vf.address, "uio_pci_generic")
    before = pf.told(3)
    try:
        result = node.add(pod, "net1", sriov(vf, "172.18.7.8/16", vlan=44, mac=MAC), version="1.1.0")
        assert (result["interfaces"][0]["mac"], result["ips"][0]["address"]) == (MAC, "172.18.7.8/16")
        assert (pf.told(3)["address"], pf.told(3)["vlan_list"][0]["vlan"]) == (MAC, 44)
        assert pod.link("net1") is None
        node.check(pod, "net1")
        assert node.delete(pod, "net1") == []
        assert pf.told(3) == before
    finally:
        rebind(vf.address, "igbvf")
        wait_for(lambda: any((DEVICES / vf.address).glob("net/*")))
        pf.ns.batch(f"link set {nic_of(vf.address)} address {mac}", f"link set {nic_of(vf.address)} name {vf.name}")


def rebind(address: str, driver: str) -> None:
    """Give a device to another driver."""
    (DEVICES / address / "driver_override").write_text(driver if driver != "igbvf" else "\n")
    if (DEVICES / address / "driver").exists():
        (DEVICES / address / "driver/unbind").write_text(address)
    Path("/sys/bus/pci/drivers_probe").write_text(address)
    wait_for(lambda: (DEVICES / address / "driver").exists())
