"""veth: every key, the pair's life over several NICs, what CHECK notices, what DEL takes away without a ledger too."""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from tests.plugins.conftest import CONTAINER, Conf, Node, macvlan, meta, setting

from underlay.errors import CheckFailed, InvalidConfig, LimitedConnectivity

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Netns

V4, V6 = "172.18.7.5/16", "fd00:18::7:5/64"
HOST_END = f"veth{CONTAINER[:11]}"


def routes(ns: Netns, table: str, family: str = "-4", dev: str = "veth0") -> dict[str, str]:
    """Destination to gateway ("" for none) of a table's routes by one device."""
    try:
        listed = ns.ip(family, "route", "show", "table", table, "dev", dev)
    except RuntimeError:  # a table that was never used
        return {}
    return {each["dst"]: each.get("gateway", "") for each in listed if not each["dst"].startswith(("fe80", "ff00"))}


def rules_from(ns: Netns, family: str = "-4") -> dict[str, str]:
    """Source to table of the rules that have a source."""
    return {each["src"]: each["table"] for each in ns.ip(family, "rule", "show") if each["src"] != "all"}


def default_devices(ns: Netns, family: str = "-4") -> list[str]:
    listed = ns.ip(family, "route", "show", "default")
    return [hop["dev"] for each in listed for hop in each.get("nexthops", [each])]


def first(node: Node, pod: Netns, ifname: str = "eth0", *cidrs: str, **keys: Any) -> Conf:
    return node.add(pod, ifname, macvlan(*(cidrs or (V4, V6))), meta("veth", **keys))


def second(node: Node, pod: Netns, ifname: str = "net1", *cidrs: str, **keys: Any) -> Conf:
    return node.add(pod, ifname, macvlan(*(cidrs or ("172.18.7.6/16", "fd00:18::7:6/64"))), meta("veth", **keys))


def test_every_interface_that_was_made_is_in_the_result(node: Node, pod: Netns) -> None:
    before = {each["ifname"] for each in node.ns.ip("link", "show")}
    result = first(node, pod)
    made = {(each["ifname"], each["address"], pod.path) for each in pod.ip("link", "show") if each["ifname"] != "lo"}
    made |= {
        (each["ifname"], each["address"], "") for each in node.ns.ip("link", "show") if each["ifname"] not in before
    }
    told = {(each["name"], each["mac"], each.get("sandbox", "")) for each in result["interfaces"]}
    assert told == made
    assert {name for name, _, _ in told} == {"eth0", "veth0", HOST_END}
    assert [each["interface"] for each in result["ips"]] == [0, 0]
    assert [each["name"] for each in second(node, pod)["interfaces"]] == ["net1"]


def test_the_pair_is_as_the_field_knows_it(node: Node, pod: Netns) -> None:
    first(node, pod)
    for end, ns in (("veth0", pod), (HOST_END, node.ns)):
        link = ns.link(end)
        assert link["mtu"] == 1500
        assert link["linkinfo"]["info_kind"] == "veth"
        assert "UP" in link["flags"]
        assert int(link["address"][:2], 16) & 3 == 2  # local, unicast
        # 3: set by somebody, so that systemd leaves it alone
        assert ns.run("cat", f"/sys/class/net/{end}/addr_assign_type", check=False).stdout.strip() in ("3", "")


def test_blanks_around_a_subnet_are_tolerated_and_subnets_without_a_family_are_skipped(node: Node, pod: Netns) -> None:
    first(
        node, pod, "eth0", V4,
        overlay_hijack_subnet=[" 10.240.0.0/12", "fd00:240::/48 "], service_hijack_subnet=["\t10.96.0.0/16\n"],
        additional_hijack_subnet=["10.7.0.0/16 ", "10.240.0.0/12", "fd00:7::/48"],
    )  # fmt: skip
    assert routes(pod, "main") == {
        "172.18.0.11": "", "10.240.0.0/12": "172.18.0.11", "10.96.0.0/16": "172.18.0.11", "10.7.0.0/16": "172.18.0.11"
    }  # fmt: skip
    assert routes(pod, "main", "-6") == {}


def test_host_bits_of_a_subnet_do_not_matter(node: Node, pod: Netns) -> None:
    first(node, pod, "eth0", V4, overlay_hijack_subnet=["10.240.3.4/12"])
    assert "10.240.0.0/12" in routes(pod, "main")
    node.check(pod, "eth0")


@pytest.mark.parametrize(
    ("migrate", "order", "moved"),
    [
        (-1, ("eth0", "net1"), "net1"),
        (-1, ("net1", "eth0"), None),
        (7, ("eth0", "net1"), "net1"),
        (7, ("net1", "eth0"), None),
        (None, ("eth0", "net1"), "net1"),
        (0, ("eth0", "net1"), None),
        (0, ("net1", "eth0"), None),
        (1, ("eth0", "net1"), "net1"),
        (1, ("net1", "eth0"), "eth0"),
    ],
)
def test_a_further_nics_routes_move_by_name_never_or_always(
    node: Node, pod: Netns, migrate: int | None, order: tuple[str, str], moved: str | None
) -> None:
    before = node.state(pod)
    keys = {} if migrate is None else {"migrate_route": migrate}
    first(node, pod, order[0], **keys)
    second(node, pod, order[1], **keys)
    assert moved in (None, order[1])
    table = "100"
    for family, source, gateway in (("-4", "172.18.7.6", "172.18.0.1"), ("-6", "fd00:18::7:6", "fd00:18::1")):
        assert rules_from(pod, family) == ({source: table} if moved else {})
        there = routes(pod, table, family, order[1])
        assert there.get("default") == (gateway if moved else None)
        assert set(default_devices(pod, family)) == ({order[0]} if moved else set(order))
        assert ("10.96.0.0/16" if family == "-4" else "fd00:96::/108") in routes(pod, table, family)
    for ifname in order:
        node.check(pod, ifname)
    for ifname in reversed(order):
        assert node.delete(pod, ifname) == []
    assert without_settings(node.state(pod)) == without_settings(before)


def test_net10_comes_after_net2_and_other_names_last_each_with_a_table_of_its_own(node: Node, pod: Netns) -> None:
    before = node.state(pod)
    names = ["net2", "net10", "net1", "storage", "data0"]
    for number, ifname in enumerate(names):
        node.add(pod, ifname, macvlan(f"172.18.7.{number + 1}/16"), meta("veth"))
    # net10 gives way to net2, net1 does not; the other two get the lowest free tables
    assert rules_from(pod) == {"172.18.7.2": "109", "172.18.7.4": "101", "172.18.7.5": "102"}
    assert set(default_devices(pod)) == {"net2", "net1"}
    for table in ("100", "101", "102", "109"):
        assert "10.96.0.0/16" in routes(pod, table)
    for ifname in names:
        node.check(pod, ifname)
    for ifname in reversed(names):
        assert node.delete(pod, ifname) == []
    assert without_settings(node.state(pod)) == without_settings(before)


def test_a_table_that_somebody_fills_is_left_to_him(node: Node, pod: Netns) -> None:
    first(node, pod)
    pod.batch("route add 10.1.0.0/16 via 172.18.0.1 table 100", "rule add from 10.2.0.0/16 lookup 101")
    second(node, pod)
    assert rules_from(pod) == {"10.2.0.0": "101", "172.18.7.6": "102"}
    assert node.delete(pod, "net1") == []
    assert pod.ip("route", "show", "table", "100")[0]["dst"] == "10.1.0.0/16"


RP_FILTERS: list[tuple[Conf | None, str, str]] = [
    (None, "2", "2"),
    ({}, "0", "0"),
    ({"set_host": True}, "2", "2"),
    ({"set_host": True, "value": 1}, "1", "1"),
    ({"set_host": True, "value": 0}, "0", "0"),
    ({"set_host": True, "value": 9}, "2", "2"),
    ({"set_host": False}, "0", "keep"),
    ({"set_host": False, "value": 1}, "1", "keep"),
    ({"set_host": False, "value": -1}, "2", "keep"),
]


@pytest.mark.parametrize("kind", ["veth", "router"])
@pytest.mark.parametrize(("given", "in_pod", "on_host"), RP_FILTERS)
def test_the_reverse_path_filter_is_set_in_the_pod_and_on_the_node_as_asked(
    node: Node, overlay: Netns, kind: str, given: Conf | None, in_pod: str, on_host: str
) -> None:
    for ns in (node.ns, overlay):
        ns.run("sh", "-c", "for each in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 >$each; done")
    keys = {} if given is None else {"rp_filter": given}
    if given == {}:
        keys, in_pod, on_host = {"rp_filter": {}}, "0", "keep"
    node.add(overlay, "net1", macvlan(V4), meta(kind, **keys))

    def values(ns: Netns) -> set[str]:
        return {line.partition(":")[2] for line in node.snapshot(ns).sysctls}

    assert values(overlay) == {in_pod}
    assert values(node.ns) == {"1" if on_host == "keep" else on_host}
    node.check(overlay, "net1")


@pytest.mark.parametrize(
    ("prefix", "cidrs", "mac"),
    [
        ("0a:1b", (V4,), "0a:1b:ac:12:07:05"),
        ("0A-1B", (V4, V6), "0a:1b:ac:12:07:05"),
        ("0a:1b", ("fd00:18::1:7:5/64",), "0a:1b:00:07:00:05"),
        ("0a:1b", (V6, V4), "0a:1b:00:07:00:05"),
    ],
)
@pytest.mark.parametrize("only", [False, True])
def test_the_hardware_address_is_the_prefix_and_the_first_address(
    node: Node, pod: Netns, prefix: str, cidrs: tuple[str, ...], mac: str, only: bool
) -> None:
    before = node.state(pod)
    conf = {"type": "veth", "mac_prefix": prefix, "only_op_mac": True} if only else meta("veth", mac_prefix=prefix)
    result = node.add(pod, "eth0", macvlan(*cidrs), conf)
    assert pod.link("eth0")["address"] == result["interfaces"][0]["mac"] == mac
    assert (pod.link("veth0") is None) is only
    node.check(pod, "eth0")
    assert node.delete(pod, "eth0") == []
    assert without_settings(node.state(pod)) == without_settings(before)


def without_settings(state: tuple[Any, ...]) -> list[Any]:
    """The state without rp_filter, which DEL leaves as others may rely on it."""
    return [(one.links, one.addresses, one.routes, one.rules, one.neighbours) for one, _ in state]


def test_skip_call_hands_prevresult_on_and_touches_nothing(node: Node, pod: Netns) -> None:
    prev = node.plainly("ADD", "macvlan", pod.path, "eth0", macvlan(V4))
    before = node.state(pod)
    for kind in ("veth", "router"):
        conf = {"type": kind, "skip_call": True, "mac_prefix": "0a:1b"}
        assert node.plainly("ADD", kind, pod.path, "eth0", conf, prev) == prev
        node.plainly("CHECK", kind, pod.path, "eth0", conf, prev)
        assert node.state(pod) == before


DEVIATIONS: dict[str, tuple[str, list[str], str]] = {
    "the pair is gone": ("pod", ["link del veth0"], "no veth0"),
    "its end is down": ("pod", ["link set veth0 down"], "lost"),
    "the node's end is down": ("node", [f"link set {HOST_END} down"], "lost"),
    "the node's route": ("node", ["route del 172.18.7.5/32"], "node has lost the route to 172.18.7.5/32"),
    "the node's IPv6 route": ("node", ["route del fd00:18::7:5/128"], "node has lost the route to fd00:18::7:5/128"),
    "the node's neighbour": ("node", [f"neigh del 172.18.7.5 dev {HOST_END}"], "lost the neighbour 172.18.7.5"),
    "another neighbour": (
        "node", [f"neigh replace 172.18.7.5 lladdr 02:00:00:00:00:09 dev {HOST_END}"], "node has lost the neighbour"
    ),
    "the pod's neighbour": ("pod", ["neigh del 172.18.0.11 dev veth0"], "pod has lost the neighbour 172.18.0.11"),
    "the pod's route to the node": ("pod", ["route del 172.18.0.11/32"], "pod has lost the route to 172.18.0.11/32"),
    "a hijack route": ("pod", ["route del 10.96.0.0/16"], "pod has lost the route to 10.96.0.0/16"),
    "an IPv6 hijack route": ("pod", ["route del fd00:96::/108"], "pod has lost the route to fd00:96::/108"),
    "a hijack route's way": ("pod", ["route replace 10.96.0.0/16 via 172.18.0.1"], "pod has lost the route to 10.96"),
}  # fmt: skip


@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_check_names_the_deviation(node: Node, pod: Netns, deviation: str) -> None:
    where, acts, words = DEVIATIONS[deviation]
    first(node, pod)
    node.check(pod, "eth0")
    (pod if where == "pod" else node.ns).batch(*acts)
    with pytest.raises(CheckFailed) as caught:
        node.check(pod, "eth0")
    assert words in caught.value.message


FURTHER_DEVIATIONS = {
    "the rule": (["rule del from 172.18.7.6 lookup 100"], "the rule from 172.18.7.6/32 to all"),
    "a route of its table": (["route del 10.96.0.0/16 table 100"], "the route to 10.96.0.0/16"),
    "the default route of its table": (["route del default table 100"], "lost its route to 0.0.0.0/0"),
    "its IPv6 table": (["route flush table 100"], "lost"),
}


@pytest.mark.parametrize("deviation", FURTHER_DEVIATIONS)
def test_check_names_the_deviation_of_a_further_nic(node: Node, pod: Netns, deviation: str) -> None:
    acts, words = FURTHER_DEVIATIONS[deviation]
    first(node, pod)
    second(node, pod)
    node.check(pod, "net1")
    pod.batch(*acts)
    with pytest.raises(CheckFailed) as caught:
        node.check(pod, "net1")
    assert words in caught.value.message


def test_check_names_a_changed_reverse_path_filter(node: Node, pod: Netns) -> None:
    first(node, pod)
    pod.run("sysctl", "-qw", "net.ipv4.conf.veth0.rp_filter=1")
    with pytest.raises(CheckFailed, match="rp_filter of veth0 in the pod is not 2"):
        node.check(pod, "eth0")


def test_check_finds_all_on_a_node_that_has_an_address_for_each_of_its_nics(node: Node, pod: Netns, lan: Netns) -> None:
    node.ns.batch(
        f"link add eth1 type veth peer name lan1 netns {lan.name}",
        "link set eth1 up",
        "addr add 172.19.0.11/16 dev eth1",
        "addr add fd00:19::11/64 dev eth1 nodad",
    )
    lan.batch("link set lan1 master br0 up")
    ipam = {"type": "static", "addresses": [{"address": "172.19.7.5/16"}, {"address": "fd00:19::7:5/64"}]}
    node.add(pod, "eth0", macvlan(master="eth1", ipam=ipam), meta("veth"))
    node.check(pod, "eth0")
    pod.batch("route del 10.240.0.0/12")
    with pytest.raises(CheckFailed, match="has lost the route to 10"):
        node.check(pod, "eth0")


def test_a_further_nic_leaves_what_the_first_made(node: Node, pod: Netns) -> None:
    first(node, pod)
    before = node.state(pod)
    second(node, pod)
    assert node.delete(pod, "net1") == []
    assert node.state(pod) == before
    node.check(pod, "eth0")


def test_a_further_nic_may_bring_a_family_that_the_first_has_not(node: Node, pod: Netns) -> None:
    first(node, pod, "eth0", V4)
    before = node.state(pod)
    second(node, pod)
    assert pod.run("ping", "-c1", "-W3", "-I", "fd00:18::7:6", "fd00:18::11").returncode == 0
    node.check(pod, "net1")
    assert node.delete(pod, "net1") == []
    assert without_settings(node.state(pod)) == without_settings(before)
    node.check(pod, "eth0")


def test_ipam_routes_in_a_table_of_their_own_are_no_deviation(node: Node, pod: Netns) -> None:
    first(node, pod)
    conf = macvlan("172.18.7.6/16")
    conf["ipam"]["routes"] = [{"dst": "10.77.0.0/16", "table": 177}]
    node.add(pod, "net1", conf, meta("veth"), version="1.1.0")
    node.check(pod, "net1")
    assert node.delete(pod, "net1") == []


def vanish(pod: Netns) -> None:
    """The sandbox ends; its name stays for the fixture to take away."""
    subprocess.run(["ip", "netns", "del", pod.name], check=True)
    subprocess.run(["ip", "netns", "add", pod.name], check=True)


@pytest.mark.parametrize("netns", ["", "/run/netns/gone", "the name"])
def test_del_after_the_namespace_leaves_the_node_as_it_was(node: Node, pod: Netns, netns: str) -> None:
    before = without_settings(node.state(pod))[0]
    first(node, pod)
    second(node, pod)
    vanish(pod)
    for ifname in ("net1", "eth0"):
        assert node.delete(pod.path if netns == "the name" else netns, ifname) == []
    assert without_settings(node.state(pod))[0] == before
    assert node.ledger.rows() == []


BROKEN: dict[str, Callable[[Conf], Conf]] = {
    "as it was": lambda conf: conf,
    "with a subnet that is none": lambda conf: conf | {"overlay_hijack_subnet": ["nonsense"]},
    "without subnets": lambda conf: {"type": conf["type"]},
    "with a wrong type": lambda conf: conf | {"migrate_route": "x", "host_rule_table": "x"},
}


@pytest.mark.parametrize("told", [True, False], ids=["prevResult", "no prevResult"])
@pytest.mark.parametrize("how", BROKEN)
def test_del_without_a_ledger_takes_everything_away(node: Node, pod: Netns, how: str, told: bool) -> None:
    before = without_settings(node.state(pod))
    nics = {"eth0": [macvlan(V4, V6), meta("veth")], "net1": [macvlan("172.18.7.6/16"), meta("veth")]}
    results = {ifname: node.chain_plainly(pod, ifname, *chain)[-1] for ifname, chain in nics.items()}
    for ifname in ("net1", "eth0"):
        prev = results[ifname] if told else None
        for _ in range(2):
            node.plainly("DEL", "veth", pod.path, ifname, BROKEN[how](meta("veth")), prev)
        if told and ifname == "net1":
            assert pod.link("veth0")
            assert "10.96.0.0/16" not in routes(pod, "100")
            assert rules_from(pod) == {}
            assert routes(node.ns, "main", "-4", HOST_END) == {"172.18.7.5": ""}
        node.plainly("DEL", "macvlan", pod.path, ifname, nics[ifname][0], prev)
    assert without_settings(node.state(pod)) == before


def test_del_without_add_and_without_namespace_is_no_fault(node: Node, pod: Netns) -> None:
    before = node.state(pod)
    for netns in (pod.path, "", "/run/netns/gone"):
        node.plainly("DEL", "veth", netns, "eth0", meta("veth"))
    assert node.state(pod) == before


def test_an_object_of_a_dead_pod_in_the_way_on_the_node_is_replaced(node: Node, pod: Netns) -> None:
    node.ns.batch("link add stale type veth peer name stale1", "link set stale up", "route add 172.18.7.5/32 dev stale")
    first(node, pod)
    assert routes(node.ns, "main", "-4", HOST_END) == {"172.18.7.5": ""}
    node.check(pod, "eth0")


def test_a_name_taken_on_the_node_is_told(node: Node, pod: Netns) -> None:
    node.ns.batch(f"link add {HOST_END} type veth peer name other")
    error = node.refused(pod, "eth0", macvlan(V4), meta("veth"))
    assert error.code == 103
    assert HOST_END in error.message


def test_a_veth0_of_somebody_else_is_told_and_stays(node: Node, pod: Netns) -> None:
    pod.batch("link add veth0 type veth peer name other")
    error = node.refused(pod, "eth0", macvlan(V4), meta("veth"))
    assert isinstance(error, InvalidConfig)
    assert "the pod's veth0 is not the end of a pair with this node" in error.message


def test_a_pod_of_a_family_that_the_node_lacks_is_refused(node: Node, pod: Netns) -> None:
    node.ns.batch("addr del fd00:18::11/64 dev eth0")
    error = node.refused(pod, "eth0", macvlan(V4, V6), meta("veth"))
    assert isinstance(error, InvalidConfig)
    assert "IPv6" in error.message
    first(node, pod, "eth0", V4)


def test_status_is_51_where_the_node_lacks_a_family_of_the_cluster(node: Node) -> None:
    conf = meta("veth", cniVersion="1.1.0")
    assert node.plainly("STATUS", "veth", "", "", conf) is None
    node.ns.batch("addr del fd00:18::11/64 dev eth0")
    with pytest.raises(LimitedConnectivity) as caught:
        node.plainly("STATUS", "veth", "", "", conf)
    assert caught.value.code == 51
    with contextlib.suppress(RuntimeError):
        node.ns.batch("link set eth0 up")
    assert node.plainly("STATUS", "veth", "", "", conf | {
        "overlay_hijack_subnet": ["10.240.0.0/12"], "service_hijack_subnet": ["10.96.0.0/16"]}) is None  # fmt: skip


@pytest.mark.parametrize(
    "name", ["docker0", "cbr0", "virbr0", "cni0", "veth9", "cali9", "kube-ipvs0", "flannel.1", "cilium_host"]
)
def test_an_interface_of_a_container_network_is_no_way_to_the_node(node: Node, pod: Netns, name: str) -> None:
    node.ns.batch(
        f"link add {name} type veth peer name peer", f"link set {name} up", f"addr add 192.168.9.1/24 dev {name}"
    )
    first(node, pod, "eth0", V4)
    assert "192.168.9.1" not in routes(pod, "main")


def test_every_other_address_of_the_node_is_reached_by_the_pair(node: Node, pod: Netns) -> None:
    node.ns.batch(
        "link add eth7 type veth peer name peer7", "link set eth7 up", "addr add 192.168.9.1/24 dev eth7",
        "addr add 172.18.0.12/16 dev eth0", "addr add fd00:9::1/64 dev eth7 nodad",
    )  # fmt: skip
    first(node, pod)
    assert {"172.18.0.11", "172.18.0.12", "192.168.9.1"} < set(routes(pod, "main"))
    assert {"fd00:18::11", "fd00:9::1"} < set(routes(pod, "main", "-6"))
    for address in ("192.168.9.1", "172.18.0.12", "fd00:9::1"):
        assert pod.pings(address)
    assert setting(pod, "ipv6/conf/all/disable_ipv6") == "0"
