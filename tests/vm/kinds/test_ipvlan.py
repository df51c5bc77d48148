"""ipvlan on a kernel that has it: every mode and key, read back by ip, with traffic to the LAN."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.plugins.conftest import Conf, Node, Tap, addresses, macvlan, meta
from tests.plugins.killing import outlive_kills
from tests.plugins.test_macvlan import is_announcement

from underlay.errors import AddressInUse, CheckFailed, InterfaceExists, InvalidConfig, KernelError, NotAvailable
from underlay.net import link, link_info
from underlay.net.netns import Namespace

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Netns

V4, V6 = "172.18.7.5/16", "fd00:18::7:5/64"
MODES = ("l2", "l3", "l3s")


def ipvlan(*cidrs: str, **keys: Any) -> Conf:
    """ipvlan over the node's eth0. A key that is None is left out."""
    conf = {"type": "ipvlan", "master": "eth0", "ipam": addresses(*cidrs) if cidrs else None} | keys
    return {key: value for key, value in conf.items() if value is not None}


@pytest.mark.parametrize("mode", MODES)
def test_a_message_of_ours_makes_it_as_iproute2_shows_it(uplink: Netns, pod: Netns, mode: str) -> None:
    with Namespace.open(uplink.path) as host, Namespace.open(pod.path) as sandbox:
        parent = link.get(host.rtnl, "eth0")
        assert parent is not None
        info = link_info.ipvlan(mode)
        host.rtnl.batch([link.create_upper(info, name="net1", parent=parent.index, mtu=1400, netns_fd=sandbox.fd)])
        shown = pod.link("net1")
        assert (shown["linkinfo"]["info_kind"], shown["linkinfo"]["info_data"]["mode"]) == ("ipvlan", mode)
        assert (shown["address"], shown["mtu"], shown["link_index"]) == (parent.mac, 1400, parent.index)
        found = link.get(sandbox.rtnl, "net1")
        assert found is not None
        assert (found.kind, found.mode, found.parent, found.mac) == ("ipvlan", mode, parent.index, parent.mac)


@pytest.mark.parametrize("mode", [None, *MODES])
def test_the_mode_is_the_one_asked_for_and_l2_by_itself(node: Node, pod: Netns, mode: str | None) -> None:
    before = node.state(pod)
    result = node.add(pod, "net1", ipvlan(V4, V6, mode=mode))
    shown = pod.link("net1")
    assert shown["linkinfo"]["info_data"]["mode"] == (mode or "l2")
    mac = node.ns.link("eth0")["address"]
    assert result["interfaces"] == [{"name": "net1", "mac": mac, "sandbox": pod.path}]
    assert [each["address"] for each in result["ips"]] == [V4, V6]
    node.check(pod, "net1")
    assert node.delete(pod, "net1") == []
    assert node.state(pod) == before


def test_pods_reach_each_other_and_the_lan(node: Node, pod: Netns, pod2: Netns, lan: Netns) -> None:
    node.add(pod, "eth0", ipvlan(V4, V6))
    node.add(pod2, "eth0", ipvlan("172.18.7.6/16", "fd00:18::7:6/64"), container="other")
    for address in ("172.18.0.1", "fd00:18::1", "172.18.7.6", "fd00:18::7:6"):
        assert pod.pings(address), address
    mac = node.ns.link("eth0")["address"]
    assert lan.ip("neigh", "show", "172.18.7.5")[0]["lladdr"] == mac


@pytest.mark.parametrize("mode", ["l3", "l3s"])
def test_in_mode_l3_the_node_routes(node: Node, pod: Netns, lan: Netns, mode: str) -> None:
    lan.batch("route add 172.20.0.0/16 via 172.18.0.11")
    ipam = {"type": "static", "addresses": [{"address": "172.20.7.5/16"}], "routes": [{"dst": "0.0.0.0/0"}]}
    node.add(pod, "eth0", ipvlan(ipam=ipam, mode=mode))
    assert pod.pings("172.18.0.1")
    assert lan.pings("172.20.7.5")
    node.check(pod, "eth0")


def test_the_wire_hears_who_has_the_addresses(node: Node, pod: Netns, wire: Tap) -> None:
    mac = node.add(pod, "net1", ipvlan(V4, V6))["interfaces"][0]["mac"]
    assert len(wire.until(is_announcement(mac, "172.18.7.5"), is_announcement(mac, "fd00:18::7:5"))) == 2


def test_veth_behind_it_makes_the_way_to_the_node(node: Node, pod: Netns) -> None:
    node.add(pod, "eth0", ipvlan(V4, V6), meta("veth"))
    assert pod.pings("172.18.0.11")
    assert node.ns.pings("172.18.7.5")
    node.check(pod, "eth0")
    assert node.delete(pod, "eth0") == []
    assert pod.link("veth0") is None


def test_router_behind_it_keeps_the_clusters_nic(node: Node, overlay: Netns) -> None:
    node.add(overlay, "net1", ipvlan(V4), meta("router"))
    assert overlay.pings("172.18.0.1")
    assert node.ns.pings("172.18.7.5")
    node.check(overlay, "net1")
    assert node.delete(overlay, "net1") == []


def test_a_hardware_address_of_its_own_is_refused_by_the_key(node: Node, pod: Netns) -> None:
    error = node.refused(pod, "eth0", ipvlan(V4), meta("veth", mac_prefix="0a:1b"))
    assert isinstance(error, InvalidConfig)
    assert error.message == '"mac_prefix" is given, but the hardware address of eth0 (ipvlan) is fixed'


def test_a_plugin_before_it_gives_the_parent_and_the_addresses(node: Node, pod: Netns) -> None:
    mac = node.ns.link("eth0")["address"]
    prev = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "mac": mac}],
        "ips": [{"address": V4, "gateway": "172.18.0.1"}],
        "routes": [{"dst": "10.9.0.0/16"}],
    }
    result = node.plainly("ADD", "ipvlan", pod.path, "net1", ipvlan(master=None), prev)
    assert result["interfaces"] == [{"name": "net1", "mac": mac, "sandbox": pod.path}]
    assert result["ips"] == [{"address": V4, "gateway": "172.18.0.1", "interface": 0}]
    assert pod.ip("route", "show", "10.9.0.0/16")[0]["gateway"] == "172.18.0.1"
    assert pod.pings("172.18.0.1")
    node.plainly("CHECK", "ipvlan", pod.path, "net1", ipvlan(master=None), result)
    node.plainly("DEL", "ipvlan", pod.path, "net1", ipvlan(master=None), result)
    assert pod.link("net1") is None


def test_a_parent_in_the_pod_is_built_upon_there(node: Node, overlay: Netns) -> None:
    node.add(overlay, "net1", ipvlan(V4, master=None, linkInContainer=True))
    shown = overlay.link("net1")
    assert (shown["link"], shown.get("link_netnsid")) == ("eth0", None)
    node.check(overlay, "net1")
    assert node.delete(overlay, "net1") == []


def test_one_on_another_lies_beside_it(node: Node, pod: Netns) -> None:
    node.add(pod, "net1", ipvlan())
    node.add(pod, "net2", ipvlan(V4, master="net1", linkInContainer=True))
    node.check(pod, "net2")
    assert pod.pings("172.18.0.1")


def test_the_mtu_is_the_parents_or_a_smaller_one(node: Node, pod: Netns) -> None:
    node.ns.batch("link set eth0 mtu 1400")
    node.add(pod, "net1", ipvlan(V4))
    node.add(pod, "net2", ipvlan(V6, mtu=1300))
    assert (pod.link("net1")["mtu"], pod.link("net2")["mtu"]) == (1400, 1300)
    node.check(pod, "net2")
    assert node.refused(pod, "net3", ipvlan(mtu=1401)).message == '"mtu" 1401 is larger than the 1400 of eth0'


def test_an_address_that_a_pod_on_the_parent_has_is_refused(node: Node, pod: Netns, pod2: Netns) -> None:
    node.add(pod, "net1", ipvlan(V4))
    error = node.refused(pod2, "net1", ipvlan(V4), container="other")
    assert isinstance(error, AddressInUse)
    assert "172.18.7.5" in error.message


def test_a_parent_that_a_macvlan_has_is_refused_with_the_reason(node: Node, pod: Netns, pod2: Netns) -> None:
    node.add(pod, "net1", macvlan())
    error = node.refused(pod2, "net1", ipvlan(), container="other")
    assert isinstance(error, KernelError)
    assert "carry a macvlan" in error.hint
    assert node.delete(pod, "net1") == []
    node.add(pod, "net1", ipvlan())
    assert "ipvlan" in node.refused(pod2, "net1", macvlan(), container="other").hint


def test_a_name_that_the_pod_has_is_refused_and_what_has_it_stays(node: Node, overlay: Netns) -> None:
    error = node.refused(overlay, "eth0", ipvlan(V4))
    assert isinstance(error, InterfaceExists)


DEVIATIONS: dict[str, tuple[list[str], str]] = {
    "the NIC is gone": (["link del net1"], "no NIC net1"),
    "the NIC is down": (["link set net1 down"], "net1 is down"),
    "another MTU": (["link set net1 mtu 1300"], "MTU 1300, not 1400"),
    "another mode": (["link set net1 type ipvlan mode l3"], "mode l3, not l2"),
    "no address": (["addr del 172.18.7.5/16 dev net1"], "lost its address 172.18.7.5/16"),
    "no route": (["route del default"], "lost its route to 0.0.0.0/0 via 172.18.0.1"),
    "no ipvlan": (["link del net1", "link add net1 type veth peer name other"], "no ipvlan but veth"),
}


@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_check_names_the_deviation(node: Node, pod: Netns, deviation: str) -> None:
    acts, words = DEVIATIONS[deviation]
    node.add(pod, "net1", ipvlan(V4, mtu=1400))
    node.check(pod, "net1")
    pod.batch(*acts)
    with pytest.raises(CheckFailed) as caught:
        node.check(pod, "net1")
    assert words in caught.value.message


def test_check_tells_that_another_network_changed_the_mode(node: Node, pod: Netns, pod2: Netns) -> None:
    node.add(pod, "net1", ipvlan(V4))
    node.add(pod2, "net1", ipvlan("172.18.7.6/16", mode="l3"), container="other")
    with pytest.raises(CheckFailed, match="in mode l3, not l2") as caught:
        node.check(pod, "net1")
    assert "same" in caught.value.hint


def test_status_is_50_where_there_is_no_parent(node: Node) -> None:
    conf = ipvlan(cniVersion="1.1.0")
    assert node.plainly("STATUS", "ipvlan", "", "", conf) is None
    with pytest.raises(NotAvailable, match="\"master\" 'eth7' does not exist"):
        node.plainly("STATUS", "ipvlan", "", "", conf | {"master": "eth7"})


def test_gc_gives_back_the_addresses_that_nobody_holds(node: Node, pod: Netns, tmp_path: Path) -> None:
    ipam = {"type": "host-local", "subnet": "172.18.0.0/16", "rangeStart": "172.18.9.1", "dataDir": str(tmp_path)}
    conf = ipvlan(ipam=ipam, cniVersion="1.1.0")
    node.plainly("ADD", "ipvlan", pod.path, "net1", conf)
    held = tmp_path / "plain" / "172.18.9.1"
    valid = {"cni.dev/valid-attachments": [{"containerID": "c0ffee0123456789", "ifname": "net1"}]}
    node.plainly("GC", "ipvlan", "", "", conf | valid)
    assert held.exists()
    node.plainly("GC", "ipvlan", "", "", conf | {"cni.dev/valid-attachments": []})
    assert not held.exists()


def test_del_twice_and_of_what_is_no_ipvlan_is_no_fault(node: Node, overlay: Netns) -> None:
    before = node.state(overlay)
    prev = node.plainly("ADD", "ipvlan", overlay.path, "net1", ipvlan(V4))
    for netns in (overlay.path, overlay.path, "", "/run/netns/gone"):
        node.plainly("DEL", "ipvlan", netns, "net1", ipvlan(V4), prev)
        assert node.state(overlay) == before
    node.plainly("DEL", "ipvlan", overlay.path, "eth0", ipvlan(V4))
    assert node.state(overlay) == before


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_nothing_is_left_whenever_the_process_is_killed(node: Node, pod: Netns, verb: str) -> None:
    assert outlive_kills(node, pod, verb, ipvlan(V4, V6), lambda: node.state(pod)) > 3
