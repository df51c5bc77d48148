"""macvlan: every key, what it does to the kernel, and what it refuses. Read back by ip and /proc."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest
from tests.plugins.conftest import Conf, Node, Tap, macvlan, setting

from underlay.errors import CheckFailed, InterfaceExists, InvalidConfig, KernelError, NotAvailable, ParentMissing

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Netns

V4, V6 = "172.18.7.5/16", "fd00:18::7:5/64"
MACS = {
    "runtime": "02:00:00:00:00:01",
    "args": "02:00:00:00:00:02",
    "env": "02:00:00:00:00:03",
    "own": "02:00:00:00:00:04",
}


def parent_of(node: Node, pod: Netns, name: str) -> str:
    """The name of the node's interface below a NIC of the pod."""
    index = pod.link(name)["link_index"]
    return next(each["ifname"] for each in node.ns.ip("link", "show") if each["ifindex"] == index)


@pytest.mark.parametrize("mode", ["bridge", "private", "vepa", "passthru"])
def test_the_mode_is_the_one_asked_for(node: Node, pod: Netns, mode: str) -> None:
    before = node.state(pod)
    result = node.add(pod, "net1", macvlan(V4, V6, mode=mode))
    link = pod.link("net1")
    assert link["linkinfo"]["info_data"]["mode"] == mode
    assert result["interfaces"] == [{"name": "net1", "mac": link["address"], "sandbox": pod.path}]
    node.check(pod, "net1")
    assert node.delete(pod, "net1") == []
    assert node.state(pod) == before


@pytest.mark.parametrize("mode", [None, ""])
def test_the_mode_is_bridge_by_itself(node: Node, pod: Netns, mode: str | None) -> None:
    node.add(pod, "net1", macvlan(mode=mode))
    assert pod.link("net1")["linkinfo"]["info_data"]["mode"] == "bridge"


def test_passthru_takes_its_parents_address_or_the_one_asked_for_and_gives_it_back(node: Node, pod: Netns) -> None:
    before, own = node.state(pod), node.ns.link("eth0")["address"]
    for asked, wanted in ((None, own), (MACS["own"], MACS["own"])):
        result = node.add(pod, "net1", macvlan(V4, mode="passthru", mac=asked))
        assert result["interfaces"][0]["mac"] == pod.link("net1")["address"] == wanted
        node.check(pod, "net1")
        assert node.delete(pod, "net1") == []
        assert node.state(pod) == before


def test_passthru_with_an_address_of_its_own_leaves_nothing_when_a_later_plugin_fails(node: Node, pod: Netns) -> None:
    chain = [macvlan(V4, mode="passthru", mac=MACS["own"]), {"type": "veth"}]
    assert node.refused(pod, "net1", *chain).code == 7


def test_a_parent_that_passthru_holds_is_refused_with_the_reason(
    node: Node, pod: Netns, new_netns: Callable[[str], Netns]
) -> None:
    other = new_netns("pod")
    node.add(other, "net1", macvlan(mode="passthru"), container="other")
    error = node.refused(pod, "net1", macvlan())
    assert isinstance(error, KernelError)
    assert "passthru" in error.hint
    assert "eth0" in error.hint


def test_two_nics_of_mode_bridge_reach_each_other_and_two_private_ones_do_not(
    node: Node, pod: Netns, new_netns: Callable[[str], Netns]
) -> None:
    other = new_netns("pod")
    node.add(pod, "net1", macvlan(V4))
    node.add(other, "net1", macvlan("172.18.7.6/16"), container="other")
    node.add(pod, "net2", macvlan("172.19.7.5/16", mode="private"))
    node.add(other, "net2", macvlan("172.19.7.6/16", mode="private"), container="other")
    assert pod.pings("172.18.7.6")
    assert pod.run("ping", "-c1", "-W1", "172.19.7.6", check=False).returncode == 1


def test_the_parent_is_the_nic_of_the_default_route_with_the_lowest_metric(node: Node, pod: Netns, lan: Netns) -> None:
    node.ns.batch(
        "link add eth9 type veth peer name eth9p",
        "link set eth9 up",
        "addr add 10.9.0.1/16 dev eth9",
        "route del default",
        "route add default via 10.9.0.2 dev eth9 metric 50 onlink",
        "route add default via 172.18.0.1 metric 100",
    )
    node.add(pod, "net1", macvlan(master=None))
    assert parent_of(node, pod, "net1") == "eth9"
    node.ns.batch("route del default via 10.9.0.2 dev eth9 metric 50")
    node.add(pod, "net2", macvlan(master=""))
    assert parent_of(node, pod, "net2") == "eth0"


def test_without_an_ipv4_default_route_the_ipv6_one_counts_and_without_any_that_is_told(node: Node, pod: Netns) -> None:
    node.ns.batch("route del default")
    node.add(pod, "net1", macvlan(master=None))
    assert parent_of(node, pod, "net1") == "eth0"
    node.ns.batch("route del ::/0")
    error = node.refused(pod, "net2", macvlan(master=None))
    assert isinstance(error, ParentMissing)
    assert "no default route on this node" in error.message


def test_the_parent_may_be_named_by_an_alternative_name(node: Node, pod: Netns) -> None:
    node.ns.batch("link property add dev eth0 altname data-centre-network-port-0")
    node.add(pod, "net1", macvlan(V4, master="data-centre-network-port-0"))
    assert parent_of(node, pod, "net1") == "eth0"
    node.check(pod, "net1")


def test_a_parent_in_the_pod_is_built_upon_there(node: Node, pod: Netns) -> None:
    node.add(pod, "net1", macvlan())
    before = node.state(pod)
    node.add(pod, "net2", macvlan(V4, master="net1", linkInContainer=True))
    # a macvlan on a macvlan lies on the wire's own NIC, so the kernel shows the node's
    assert parent_of(node, pod, "net2") == "eth0"
    assert node.delete(pod, "net2") == []
    assert node.state(pod) == before


def test_a_parent_in_the_pod_may_be_that_of_the_pods_default_route(node: Node, overlay: Netns) -> None:
    node.add(overlay, "net1", macvlan(V4, master=None, linkInContainer=True))
    assert overlay.link("net1")["link"] == "eth0"
    assert overlay.link("net1").get("link_netnsid") is None
    node.check(overlay, "net1")
    assert node.delete(overlay, "net1") == []


def test_a_parent_missing_in_the_pod_is_told_with_the_place(node: Node, pod: Netns) -> None:
    for master, words in (
        ("eth0", "\"master\" 'eth0' does not exist in the pod"),
        (None, "no default route in the pod"),
    ):
        error = node.refused(pod, "net1", macvlan(master=master, linkInContainer=True))
        assert isinstance(error, ParentMissing)
        assert words in error.message


def test_the_mtu_is_the_parents_or_a_smaller_one(node: Node, pod: Netns) -> None:
    node.ns.batch("link set eth0 mtu 1400")
    node.add(pod, "net1", macvlan(V4))
    node.add(pod, "net2", macvlan("172.18.7.6/16", V6, mtu=1300))
    assert (pod.link("net1")["mtu"], pod.link("net2")["mtu"]) == (1400, 1300)
    node.check(pod, "net2")
    error = node.refused(pod, "net3", macvlan(mtu=1401))
    assert isinstance(error, InvalidConfig)
    assert error.message == '"mtu" 1401 is larger than the 1400 of eth0'


@pytest.mark.parametrize(("mtu", "cidr", "least"), [(67, V4, 68), (1279, V6, 1280)])
def test_an_mtu_too_small_for_an_address_family_is_refused_by_name(
    node: Node, pod: Netns, mtu: int, cidr: str, least: int
) -> None:
    error = node.refused(pod, "net1", macvlan(cidr, mtu=mtu))
    assert isinstance(error, InvalidConfig)
    assert '"mtu"' in error.message
    assert str(least) in error.message


def test_the_broadcast_queue_is_set(node: Node, pod: Netns) -> None:
    node.add(pod, "net1", macvlan(bcqueuelen=4000))
    assert pod.link("net1")["linkinfo"]["info_data"]["bcqueuelen"] == 4000


@pytest.mark.parametrize(
    ("places", "wins"),
    [
        ({"runtime", "args", "env", "own"}, "runtime"),
        ({"args", "env", "own"}, "args"),
        ({"env", "own"}, "env"),
        ({"own"}, "own"),
    ],
)
def test_of_all_places_for_the_hardware_address_the_nearest_to_the_pod_counts(
    node: Node, pod: Netns, places: set[str], wins: str
) -> None:
    conf = macvlan(V4, capabilities={"mac": True})
    if "own" in places:
        conf["mac"] = MACS["own"]
    if "args" in places:
        conf["args"] = {"cni": {"mac": MACS["args"]}}
    env = f"IgnoreUnknown=true;MAC={MACS['env']}" if "env" in places else ""
    runtime = {"mac": MACS["runtime"]} if "runtime" in places else None
    result = node.add(pod, "net1", conf, args=env, runtime=runtime)
    assert pod.link("net1")["address"] == result["interfaces"][0]["mac"] == MACS[wins]
    node.check(pod, "net1")


def test_the_runtimes_hardware_address_counts_only_for_a_network_that_declares_it(node: Node, pod: Netns) -> None:
    node.add(pod, "net1", macvlan(), runtime={"mac": MACS["runtime"]})
    assert pod.link("net1")["address"] != MACS["runtime"]


@pytest.mark.parametrize("text", ["02-00-00-00-00-0A", "0200.0000.000a", "02:00:00:00:00:0A"])
def test_a_hardware_address_may_be_written_in_the_fields_forms(node: Node, pod: Netns, text: str) -> None:
    assert node.add(pod, "net1", macvlan(mac=text))["interfaces"][0]["mac"] == "02:00:00:00:00:0a"
    assert pod.link("net1")["address"] == "02:00:00:00:00:0a"
    node.check(pod, "net1")


def test_without_ipam_the_nic_is_up_and_has_no_address(node: Node, pod: Netns) -> None:
    result = node.add(pod, "net1", macvlan())
    assert "ips" not in result
    assert "UP" in pod.link("net1")["flags"]
    shown = pod.ip("addr", "show", "dev", "net1")[0]["addr_info"]
    assert [one for one in shown if one["scope"] == "global"] == []
    node.check(pod, "net1")
    assert node.delete(pod, "net1") == []
    assert pod.link("net1") is None


def is_announcement(mac: str, address: str) -> Callable[[bytes], bool]:
    """A gratuitous ARP packet, or an unsolicited advertisement to all nodes with the override flag."""
    source = bytes.fromhex(mac.replace(":", ""))
    if ":" not in address:
        packed = socket.inet_aton(address)
        return lambda frame: frame[6:14] == source + b"\x08\x06" and frame[28:32] == frame[38:42] == packed
    packed = socket.inet_pton(socket.AF_INET6, address)
    return lambda frame: (
        frame[:2] == b"\x33\x33"
        and frame[6:14] == source + b"\x86\xdd"
        and frame[54] == 136
        and frame[58] & 0x60 == 0x20
        and frame[62:78] == packed
        and frame[80:86] == source
    )


def test_the_wire_hears_who_has_the_addresses(node: Node, pod: Netns, wire: Tap) -> None:
    result = node.add(pod, "net1", macvlan(V4, V6))
    mac = result["interfaces"][0]["mac"]
    assert len(wire.until(is_announcement(mac, "172.18.7.5"), is_announcement(mac, "fd00:18::7:5"))) == 2
    assert [event for level, event, _ in node.log.lines if level == "warn"] == []


def test_an_announcement_without_a_link_is_logged_since_nobody_hears_it(node: Node, pod: Netns, lan: Netns) -> None:
    lan.batch("link set lan0 down")
    mac = node.add(pod, "net1", macvlan(V4))["interfaces"][0]["mac"]
    assert ("warn", "addresses announced without a link", {"mac": mac}) in node.log.lines


def test_a_neighbour_that_knew_an_earlier_pod_reaches_the_new_one_at_once(node: Node, pod: Netns, lan: Netns) -> None:
    lan.batch(
        *(f"neigh add {each} lladdr 02:00:00:00:00:99 dev br0 nud stale" for each in ("172.18.7.5", "fd00:18::7:5"))
    )
    mac = node.add(pod, "net1", macvlan(V4, V6))["interfaces"][0]["mac"]
    for address in ("172.18.7.5", "fd00:18::7:5"):
        assert lan.pings(address)
        assert lan.ip("neigh", "show", address)[0]["lladdr"] == mac


def test_router_advertisements_are_ignored_unless_asked_for(node: Node, pod: Netns) -> None:
    node.add(pod, "net1", macvlan(V4, V6))
    node.add(pod, "net2", macvlan(acceptRA=True))
    assert [setting(pod, f"ipv6/conf/{nic}/accept_ra") for nic in ("net1", "net2")] == ["0", "1"]


def test_dual_stack_is_usable_at_once(node: Node, pod: Netns) -> None:
    node.add(pod, "net1", macvlan(V4, V6))
    shown = {one["local"]: one for one in pod.ip("addr", "show", "dev", "net1")[0]["addr_info"]}
    assert not shown["fd00:18::7:5"].get("tentative")
    assert shown["fd00:18::7:5"]["nodad"] is True
    assert shown["172.18.7.5"]["broadcast"] == "172.18.255.255"


def test_ipv6_is_switched_on_where_the_sandbox_has_it_off(node: Node, pod: Netns) -> None:
    off = [f"net/ipv6/conf/{each}/disable_ipv6=1" for each in ("all", "default")]
    pod.run("sysctl", "-qw", *(each.replace("/", ".") for each in off))
    node.add(pod, "net1", macvlan(V6))
    assert pod.ip("-6", "addr", "show", "dev", "net1", "scope", "global")[0]["addr_info"][0]["local"] == "fd00:18::7:5"
    assert setting(pod, "ipv6/conf/lo/disable_ipv6") == "0"


def test_what_a_failed_add_switched_on_is_off_again(node: Node, pod: Netns) -> None:
    for each in ("all", "default"):
        pod.run("sysctl", "-qw", f"net.ipv6.conf.{each}.disable_ipv6=1")
    node.refused(pod, "net1", macvlan(V6), {"type": "veth"})


def test_a_name_that_the_node_has_too_is_free_in_the_pod(node: Node, pod: Netns) -> None:
    before = node.state(pod)
    node.add(pod, "eth0", macvlan(V4))
    assert pod.link("eth0")["linkinfo"]["info_kind"] == "macvlan"
    node.check(pod, "eth0")
    assert node.delete(pod, "eth0") == []
    assert node.state(pod) == before


@pytest.mark.parametrize("keys", [{}, {"mode": "passthru"}, {"linkInContainer": True, "master": "eth0"}])
def test_a_name_that_the_pod_has_is_refused_and_what_has_it_stays(node: Node, overlay: Netns, keys: Conf) -> None:
    error = node.refused(overlay, "eth0", macvlan(V4, **keys))
    assert isinstance(error, InterfaceExists)
    assert error.message == "the pod already has a NIC eth0"


DEVIATIONS: dict[str, tuple[list[str], str]] = {
    "the NIC is gone": (["link del net1"], "no NIC net1"),
    "the NIC is down": (["link set net1 down"], "net1 is down"),
    "another hardware address": (["link set net1 address 02:00:00:00:00:77"], "hardware address 02:00:00:00:00:77"),
    "another MTU": (["link set net1 mtu 1300"], "MTU 1300, not 1400"),
    "another mode": (["link set net1 type macvlan mode private"], "mode private, not bridge"),
    "no IPv4 address": (["addr del 172.18.7.5/16 dev net1"], "lost its address 172.18.7.5/16"),
    "no IPv6 address": (["addr del fd00:18::7:5/64 dev net1"], "lost its address fd00:18::7:5/64"),
    "another length": (["addr del 172.18.7.5/16 dev net1", "addr add 172.18.7.5/24 dev net1"], "172.18.7.5/16"),
    "no IPv4 route": (["route del default"], "lost its route to 0.0.0.0/0 via 172.18.0.1"),
    "no IPv6 route": (["route del ::/0"], "lost its route to ::/0 via fd00:18::1"),
    "another gateway": (["route replace default via 172.18.0.9"], "lost its route to 0.0.0.0/0"),
    "no macvlan": (["link del net1", "link add net1 type veth peer name other"], "no macvlan but veth"),
}


@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_check_names_the_deviation(node: Node, pod: Netns, deviation: str) -> None:
    acts, words = DEVIATIONS[deviation]
    node.add(pod, "net1", macvlan(V4, V6, mtu=1400))
    node.check(pod, "net1")
    pod.batch(*acts)
    with pytest.raises(CheckFailed) as caught:
        node.check(pod, "net1")
    assert words in caught.value.message
    assert caught.value.code == 108


def test_check_names_another_parent(node: Node, pod: Netns) -> None:
    node.ns.batch("link add eth9 type veth peer name eth9p", "link set eth9 up")
    prev = node.plainly("ADD", "macvlan", pod.path, "net1", macvlan(V4))
    with pytest.raises(CheckFailed, match="net1 does not lie on eth9"):
        node.plainly("CHECK", "macvlan", pod.path, "net1", macvlan(V4, master="eth9"), prev)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda prev: prev | {"interfaces": []}, "does not list net1"),
        (
            lambda prev: prev | {"interfaces": [prev["interfaces"][0] | {"sandbox": "/run/netns/other"}]},
            "was made in /run",
        ),
        (lambda prev: prev | {"ips": []}, "172.18.7.5/16 of the configuration is not in prevResult"),
    ],
)
def test_check_compares_with_prevresult(node: Node, pod: Netns, change: Callable[[Conf], Conf], words: str) -> None:
    prev = node.plainly("ADD", "macvlan", pod.path, "net1", macvlan(V4))
    with pytest.raises(CheckFailed, match=words):
        node.plainly("CHECK", "macvlan", pod.path, "net1", macvlan(V4), change(prev))


@pytest.mark.parametrize(
    ("keys", "words"),
    [({"master": "eth7"}, "\"master\" 'eth7' does not exist"), ({"master": None}, "no default route on this node")],
)
def test_status_is_50_where_there_is_no_parent(node: Node, keys: Conf, words: str) -> None:
    node.ns.batch("route del default", "route del ::/0")
    with pytest.raises(NotAvailable) as caught:
        node.plainly("STATUS", "macvlan", "", "", macvlan(cniVersion="1.1.0", **keys))
    assert caught.value.code == 50
    assert words in caught.value.message


def test_status_is_50_where_the_parents_mtu_is_smaller_than_asked_for(node: Node) -> None:
    with pytest.raises(NotAvailable, match='"mtu" 1501 is larger than the 1500 of eth0'):
        node.plainly("STATUS", "macvlan", "", "", macvlan(cniVersion="1.1.0", mtu=1501))


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"mtu": 1500},
        {"master": "eth7", "linkInContainer": True, "mtu": 9000},
        {"ipam": {"type": "host-local", "subnet": "172.18.0.0/16"}},
    ],
)
def test_status_is_good_where_add_could_work(node: Node, tmp_path: Any, keys: Conf) -> None:
    if "ipam" in keys:
        keys["ipam"]["dataDir"] = str(tmp_path)
    assert node.plainly("STATUS", "macvlan", "", "", macvlan(cniVersion="1.1.0", **keys)) is None


def test_gc_gives_back_the_addresses_that_nobody_holds(
    node: Node, pod: Netns, tmp_path: Any, new_netns: Callable[[str], Netns]
) -> None:
    ipam = {"type": "host-local", "subnet": "172.18.0.0/16", "rangeStart": "172.18.9.1", "dataDir": str(tmp_path)}
    conf = macvlan(ipam=ipam, cniVersion="1.1.0")
    node.plainly("ADD", "macvlan", pod.path, "net1", conf)
    held = tmp_path / "plain" / "172.18.9.1"
    valid = {"cni.dev/valid-attachments": [{"containerID": "c0ffee0123456789", "ifname": "net1"}]}
    node.plainly("GC", "macvlan", "", "", conf | valid)
    assert held.exists()
    node.plainly("GC", "macvlan", "", "", conf | {"cni.dev/valid-attachments": []})
    assert not held.exists()


def test_del_twice_and_without_add_is_no_fault(node: Node, pod: Netns) -> None:
    before = node.state(pod)
    conf = macvlan(V4)
    node.plainly("DEL", "macvlan", pod.path, "net1", conf)
    prev = node.plainly("ADD", "macvlan", pod.path, "net1", conf)
    for netns in (pod.path, pod.path, "", "/run/netns/gone"):
        node.plainly("DEL", "macvlan", netns, "net1", conf, prev)
        assert node.state(pod) == before


def test_del_leaves_a_nic_alone_that_is_no_macvlan(node: Node, overlay: Netns) -> None:
    before = node.state(overlay)
    node.plainly("DEL", "macvlan", overlay.path, "eth0", macvlan(V4))
    assert node.state(overlay) == before


def test_del_after_the_namespace_gives_the_address_back(
    node: Node, tmp_path: Any, new_netns: Callable[[str], Netns]
) -> None:
    import subprocess

    pod = new_netns("pod")
    ipam = {"type": "host-local", "subnet": "172.18.0.0/16", "rangeStart": "172.18.9.1", "dataDir": str(tmp_path)}
    prev = node.plainly("ADD", "macvlan", pod.path, "net1", macvlan(ipam=ipam))
    subprocess.run(["ip", "netns", "del", pod.name], check=True)
    subprocess.run(["ip", "netns", "add", pod.name], check=True)  # the fixture takes it away
    for netns in ("", "/run/netns/gone"):
        node.plainly("DEL", "macvlan", netns, "net1", macvlan(ipam=ipam), prev)
    assert not (tmp_path / "plain" / "172.18.9.1").exists()
