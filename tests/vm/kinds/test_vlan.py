"""vlan on a kernel that has it: every key, read back by ip, with tagged traffic to the LAN."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest
from tests.plugins.conftest import Conf, Node, Tap, addresses, meta
from tests.plugins.killing import outlive_kills

from underlay.errors import CheckFailed, DeviceInUse, InterfaceExists, KernelError, NotAvailable
from underlay.net import link, link_info
from underlay.net.netns import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Netns

V4, V6 = "172.18.7.5/16", "fd00:18::7:5/64"
NUMBER = 100


def vlan(*cidrs: str, **keys: Any) -> Conf:
    """VLAN 100 of the node's eth0. A key that is None is left out."""
    conf = {"type": "vlan", "master": "eth0", "vlanId": NUMBER, "ipam": addresses(*cidrs) if cidrs else None} | keys
    return {key: value for key, value in conf.items() if value is not None}


@pytest.fixture
def tagged(lan: Netns) -> Netns:
    """The LAN with its addresses in VLAN 100 alone."""
    lan.batch(
        "addr flush dev br0", f"link add link br0 name br0.{NUMBER} type vlan id {NUMBER}", f"link set br0.{NUMBER} up",
        f"addr add 172.18.0.1/16 dev br0.{NUMBER}", f"addr add fd00:18::1/64 dev br0.{NUMBER} nodad",
    )  # fmt: skip
    return lan


@pytest.mark.parametrize("number", [0, 1, 100, 4094])
def test_a_message_of_ours_makes_it_as_iproute2_shows_it(uplink: Netns, pod: Netns, number: int) -> None:
    with Namespace.open(uplink.path) as host, Namespace.open(pod.path) as sandbox:
        parent = link.get(host.rtnl, "eth0")
        assert parent is not None
        info = link_info.vlan(number)
        host.rtnl.batch([link.create_upper(info, name="net1", parent=parent.index, mtu=1400, netns_fd=sandbox.fd)])
        shown = pod.link("net1")
        told = shown["linkinfo"]
        assert (told["info_kind"], told["info_data"]["id"], told["info_data"]["protocol"]) == ("vlan", number, "802.1Q")
        assert (shown["address"], shown["mtu"], shown["link_index"]) == (parent.mac, 1400, parent.index)
        found = link.get(sandbox.rtnl, "net1")
        assert found is not None
        assert (found.kind, found.vlan, found.parent, found.mac) == ("vlan", number, parent.index, parent.mac)


def test_the_pod_speaks_in_the_vlan_and_nothing_is_left(node: Node, pod: Netns, tagged: Netns) -> None:
    before = node.state(pod)
    result = node.add(pod, "eth0", vlan(V4, V6))
    mac = node.ns.link("eth0")["address"]
    assert result["interfaces"] == [{"name": "eth0", "mac": mac, "sandbox": pod.path}]
    assert pod.link("eth0")["linkinfo"]["info_data"]["id"] == NUMBER
    assert pod.pings("172.18.0.1")
    assert pod.pings("fd00:18::1")
    node.check(pod, "eth0")
    assert node.delete(pod, "eth0") == []
    assert node.state(pod) == before


def is_tagged_announcement(mac: str) -> Callable[[bytes], bool]:
    """A broadcast ARP packet of that address."""
    source = bytes.fromhex(mac.replace(":", ""))
    return lambda frame: frame[:12] == b"\xff" * 6 + source and b"\x08\x06" in (frame[12:14], frame[16:18])


def test_the_wire_hears_who_has_the_addresses(node: Node, pod: Netns, tagged: Netns) -> None:
    tap = Tap(tagged, f"br0.{NUMBER}")
    try:
        mac = node.add(pod, "net1", vlan(V4))["interfaces"][0]["mac"]
        assert tap.until(is_tagged_announcement(mac))
    finally:
        tap.close()


def test_veth_behind_it_makes_the_way_to_the_node(node: Node, pod: Netns, tagged: Netns) -> None:
    node.add(pod, "eth0", vlan(V4), meta("veth", mac_prefix="0a:1b"))
    assert pod.link("eth0")["address"] == "0a:1b:ac:12:07:05"
    assert pod.pings("172.18.0.11")
    assert pod.pings("172.18.0.1")
    node.check(pod, "eth0")
    assert node.delete(pod, "eth0") == []


def test_a_parent_in_the_pod_is_built_upon_there(node: Node, overlay: Netns) -> None:
    node.add(overlay, "net1", vlan(V4, linkInContainer=True))
    shown = overlay.link("net1")
    assert (shown["link"], shown.get("link_netnsid")) == ("eth0", None)
    node.check(overlay, "net1")
    assert node.delete(overlay, "net1") == []


def test_the_mtu_is_the_parents_or_a_smaller_one(node: Node, pod: Netns) -> None:
    node.ns.batch("link set eth0 mtu 1400")
    node.add(pod, "net1", vlan(V4))
    node.add(pod, "net2", vlan(V6, vlanId=101, mtu=1300))
    assert (pod.link("net1")["mtu"], pod.link("net2")["mtu"]) == (1400, 1300)
    node.check(pod, "net2")
    assert node.refused(pod, "net3", vlan(vlanId=102, mtu=1401)).message == '"mtu" 1401 is larger than the 1400 of eth0'


def test_a_vlan_is_for_one_pod_at_a_time(node: Node, pod: Netns, pod2: Netns) -> None:
    node.add(pod, "eth0", vlan(V4))
    error = node.refused(pod2, "eth0", vlan("172.18.7.6/16"), container="other")
    assert isinstance(error, DeviceInUse)
    assert error.message == "VLAN 100 of eth0 is taken already, on the node or by another pod"
    assert node.delete(pod, "eth0") == []
    node.add(pod2, "eth0", vlan("172.18.7.6/16"), container="other")


def test_a_vlan_that_the_node_has_is_refused(node: Node, pod: Netns) -> None:
    node.ns.batch(f"link add link eth0 name eth0.{NUMBER} type vlan id {NUMBER}")
    assert isinstance(node.refused(pod, "net1", vlan(V4)), DeviceInUse)


def test_a_parent_that_is_down_is_told(node: Node, pod: Netns) -> None:
    node.ns.batch("link add eth9 type veth peer name eth9p")
    error = node.refused(pod, "net1", vlan(V4, master="eth9"))
    assert isinstance(error, KernelError)
    assert error.errno == errno.ENETDOWN
    assert error.hint == "Bring it up: ip link set eth9 up."
    with pytest.raises(NotAvailable, match="eth9"):
        node.plainly("STATUS", "vlan", "", "", vlan(master="eth9", cniVersion="1.1.0"))
    assert node.plainly("STATUS", "vlan", "", "", vlan(cniVersion="1.1.0")) is None


def test_a_name_that_the_pod_has_is_refused_and_what_has_it_stays(node: Node, overlay: Netns) -> None:
    assert isinstance(node.refused(overlay, "eth0", vlan(V4)), InterfaceExists)


DEVIATIONS: dict[str, tuple[list[str], str]] = {
    "the NIC is gone": (["link del net1"], "no NIC net1"),
    "the NIC is down": (["link set net1 down"], "net1 is down"),
    "another MTU": (["link set net1 mtu 1300"], "MTU 1300, not 1400"),
    "another address": (["link set net1 address 02:00:00:00:00:77"], "hardware address 02:00:00:00:00:77"),
    "no address": (["addr del 172.18.7.5/16 dev net1"], "lost its address 172.18.7.5/16"),
    "no route": (["route del default"], "lost its route to 0.0.0.0/0 via 172.18.0.1"),
    "no VLAN": (["link del net1", "link add net1 type veth peer name other"], "no vlan but veth"),
}


@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_check_names_the_deviation(node: Node, pod: Netns, deviation: str) -> None:
    acts, words = DEVIATIONS[deviation]
    node.add(pod, "net1", vlan(V4, mtu=1400))
    node.check(pod, "net1")
    pod.batch(*acts)
    with pytest.raises(CheckFailed) as caught:
        node.check(pod, "net1")
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("keys", "words"), [({"vlanId": 101}, "net1 is VLAN 100, not 101"), ({"master": "eth9"}, "does not lie on eth9")]
)
def test_check_names_another_vlan_or_parent(node: Node, pod: Netns, keys: Conf, words: str) -> None:
    node.ns.batch("link add eth9 type veth peer name eth9p")
    prev = node.plainly("ADD", "vlan", pod.path, "net1", vlan(V4))
    with pytest.raises(CheckFailed, match=words):
        node.plainly("CHECK", "vlan", pod.path, "net1", vlan(V4, **keys), prev)


def test_gc_gives_back_the_addresses_that_nobody_holds(node: Node, pod: Netns, tmp_path: Path) -> None:
    ipam = {"type": "host-local", "subnet": "172.18.0.0/16", "rangeStart": "172.18.9.1", "dataDir": str(tmp_path)}
    conf = vlan(ipam=ipam, cniVersion="1.1.0")
    node.plainly("ADD", "vlan", pod.path, "net1", conf)
    held = tmp_path / "plain" / "172.18.9.1"
    node.plainly("GC", "vlan", "", "", conf | {"cni.dev/valid-attachments": []})
    assert not held.exists()


def test_del_twice_and_of_what_is_no_vlan_is_no_fault(node: Node, overlay: Netns) -> None:
    before = node.state(overlay)
    prev = node.plainly("ADD", "vlan", overlay.path, "net1", vlan(V4))
    for netns in (overlay.path, overlay.path, "", "/run/netns/gone"):
        node.plainly("DEL", "vlan", netns, "net1", vlan(V4), prev)
        assert node.state(overlay) == before
    node.plainly("DEL", "vlan", overlay.path, "eth0", vlan(V4, master="gone"))
    assert node.state(overlay) == before


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_nothing_is_left_whenever_the_process_is_killed(node: Node, pod: Netns, verb: str) -> None:
    assert outlive_kills(node, pod, verb, vlan(V4, V6), lambda: node.state(pod)) > 3
