"""router: every key, tables and order of several NICs, what CHECK notices, what DEL takes away without a ledger too."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from tests.plugins.conftest import Conf, Node, macvlan, meta, setting

from underlay.errors import CheckFailed, InvalidConfig, NotAvailable

if TYPE_CHECKING:
    from tests.conftest import Netns

V4, V6 = "172.18.7.5/16", "fd00:18::7:5/64"
CLUSTER = {"-4": {"10.240.0.0/12", "10.96.0.0/16"}, "-6": {"fd00:240::/48", "fd00:96::/108"}}


def rules(ns: Netns, family: str = "-4") -> set[tuple[str, str, str]]:
    """(from, to, table) of the rules that the kernel did not make."""
    return {
        (_cidr(each, "src"), _cidr(each, "dst"), each["table"])
        for each in ns.ip(family, "rule", "show")
        if each.get("protocol") != "kernel"
    }


def _cidr(each: Conf, key: str) -> str:
    length = each.get(f"{key}len")
    return each.get(key, "") + (f"/{length}" if length is not None else "")


def routes(ns: Netns, table: str, family: str = "-4") -> dict[str, str]:
    """Destination to device of a table's routes."""
    try:
        listed = ns.ip(family, "route", "show", "table", table)
    except RuntimeError:  # a table that was never used
        return {}
    return {each["dst"]: each["dev"] for each in listed if not each["dst"].startswith(("fe80", "ff00"))}


def neighbours(ns: Netns, dev: str) -> dict[str, str]:
    return {each["dst"]: each["lladdr"] for each in ns.ip("neigh", "show", "dev", dev, "nud", "permanent")}


def without_settings(state: tuple[Any, ...]) -> list[Any]:
    """The state without rp_filter, which DEL leaves as others may rely on it."""
    return [(one.links, one.addresses, one.routes, one.rules, one.neighbours) for one, _ in state]


def attach(node: Node, pod: Netns, ifname: str = "net1", *cidrs: str, **keys: Any) -> Conf:
    return node.add(pod, ifname, macvlan(*(cidrs or (V4, V6))), meta("router", **keys))


def test_both_ends_of_the_way_are_made_in_both_families_and_taken_away(node: Node, overlay: Netns) -> None:
    before = without_settings(node.state(overlay))
    result = attach(node, overlay)
    assert [each["name"] for each in result["interfaces"]] == ["net1"]
    end, nic = node.ns.link("cali1")["address"], overlay.link("eth0")["address"]
    assert neighbours(node.ns, "cali1") == {"172.18.7.5": nic, "fd00:18::7:5": nic}
    assert neighbours(overlay, "eth0") == {"172.18.0.11": end, "fd00:18::11": end}
    for family, own in (("-4", "172.18.7.5"), ("-6", "fd00:18::7:5")):
        assert routes(node.ns, "500", family) == {own: "cali1"}
        assert rules(node.ns, family) == {("all", "", "500")}
        assert {one for one in rules(overlay, family) if one[1]} == {
            ("all", one, "100") for one in CLUSTER[family]
        }  # fmt: skip
        assert routes(overlay, "main", family)["default"] == "net1"
        assert routes(overlay, "100", family)["default"] == "eth0"
    node.check(overlay, "net1")
    for address in ("172.18.7.5", "fd00:18::7:5"):
        assert node.ns.pings(address)
    assert node.delete(overlay, "net1") == []
    assert without_settings(node.state(overlay)) == before


def test_the_overlay_nic_may_have_another_name(node: Node, overlay: Netns) -> None:
    overlay.batch("link set eth0 down", "link set eth0 name zeta", "link set zeta up",
                  "route add 169.254.1.1 dev zeta", "route add default via 169.254.1.1 dev zeta")  # fmt: skip
    error = node.refused(overlay, "net1", macvlan(V4), meta("router"))
    assert isinstance(error, InvalidConfig)
    assert '"overlay_interface"' in error.message
    attach(node, overlay, "net1", V4, overlay_interface="zeta")
    # the cluster's NIC comes first whatever it is called, so its routes gave way
    assert routes(overlay, "100")["default"] == "zeta"
    assert routes(overlay, "main")["default"] == "net1"
    node.check(overlay, "net1")


def test_a_network_whose_own_nic_is_the_overlays_is_refused(node: Node, pod: Netns) -> None:
    error = node.refused(pod, "eth0", macvlan(V4), meta("router"))
    assert '"overlay_interface"' in error.message
    assert "veth" in error.hint


def test_the_nodes_table_is_the_one_asked_for(node: Node, overlay: Netns) -> None:
    before = without_settings(node.state(overlay))
    attach(node, overlay, "net1", V4, host_rule_table=7000)
    assert routes(node.ns, "7000") == {"172.18.7.5": "cali1"}
    assert routes(node.ns, "500") == {}
    assert rules(node.ns) == {("all", "", "7000")}
    node.check(overlay, "net1")
    assert node.delete(overlay, "net1") == []
    assert without_settings(node.state(overlay)) == before


@pytest.mark.parametrize("number", [0, 253, 254, 255, -1, 1 << 32])
def test_a_table_that_is_the_kernels_own_is_refused(node: Node, overlay: Netns, number: int) -> None:
    error = node.refused(overlay, "net1", macvlan(V4), meta("router", host_rule_table=number))
    assert (error.code, '"host_rule_table"' in error.message) == (7, True)


def test_for_sriov_nothing_is_made_on_the_node(node: Node, overlay: Netns) -> None:
    before = without_settings(node.state(overlay))
    attach(node, overlay, sriov=True)
    assert without_settings(node.state(overlay))[0] == before[0]
    assert neighbours(overlay, "eth0") == {}
    assert {one[1] for one in rules(overlay) if one[1]} == CLUSTER["-4"]
    assert routes(overlay, "main")["default"] == "net1"
    node.check(overlay, "net1")
    assert node.delete(overlay, "net1") == []
    assert without_settings(node.state(overlay)) == before


@pytest.mark.parametrize(("migrate", "moves"), [(-1, True), (None, True), (5, True), (1, True), (0, False)])
def test_the_overlays_routes_give_way_as_asked(node: Node, overlay: Netns, migrate: int | None, moves: bool) -> None:
    before = without_settings(node.state(overlay))
    attach(node, overlay, **({} if migrate is None else {"migrate_route": migrate}))
    for family, source in (("-4", "10.240.3.5"), ("-6", "fd00:240::5")):
        assert ((source, "", "100") in rules(overlay, family)) is moves
        assert routes(overlay, "100", family).get("default") == ("eth0" if moves else None)
    devices = {each.get("dev") for each in overlay.ip("route", "show", "default")}
    assert devices == ({"net1"} if moves else {"net1", "eth0"})
    node.check(overlay, "net1")
    assert node.delete(overlay, "net1") == []
    assert without_settings(node.state(overlay)) == before


@pytest.mark.parametrize("migrate", [-1, 1])
@pytest.mark.parametrize(
    ("names", "tables"),
    [
        (("net1", "net2"), ("100", "101")),
        (("net2", "net10"), ("101", "109")),
        (("net10", "net2"), ("109", "101")),
        (("data0", "storage"), ("100", "101")),
        (("storage", "net1"), ("100", "101")),
    ],
)
def test_nics_have_tables_of_their_own_whatever_they_are_called(
    node: Node, overlay: Netns, migrate: int, names: tuple[str, str], tables: tuple[str, str]
) -> None:
    before = without_settings(node.state(overlay))
    for number, ifname in enumerate(names):
        attach(node, overlay, ifname, f"172.18.7.{5 + number}/16", migrate_route=migrate)
    cluster = {one[2] for one in rules(overlay) if one[1] in CLUSTER["-4"]}
    assert cluster == {tables[0]}
    assert set(routes(overlay, tables[1])) >= {"172.18.0.11"}
    for ifname in names:
        node.check(overlay, ifname)
    for address in ("172.18.7.5", "172.18.7.6"):
        assert node.ns.pings(address)
    for ifname in reversed(names):
        assert node.delete(overlay, ifname) == []
    assert without_settings(node.state(overlay)) == before


def test_the_newest_nic_by_name_owns_the_default_route(node: Node, overlay: Netns) -> None:
    for number, ifname in enumerate(("net2", "net10")):
        attach(node, overlay, ifname, f"172.18.7.{5 + number}/16")
    assert [each["dev"] for each in overlay.ip("route", "show", "default")] == ["net10"]


def test_a_further_nic_may_bring_a_family_that_the_first_has_not(node: Node, overlay: Netns) -> None:
    attach(node, overlay, "net1", V4)
    before = without_settings(node.state(overlay))
    attach(node, overlay, "net2", "172.18.7.6/16", "fd00:18::7:6/64")
    assert {one[1] for one in rules(overlay, "-6") if one[1] in CLUSTER["-6"]} == CLUSTER["-6"]
    assert node.ns.link("cali1")["address"] == neighbours(overlay, "eth0")["fd00:18::11"]
    assert routes(overlay, "main", "-6")["default"] == "net2"
    assert overlay.run("ip", "-6", "route", "get", "fd00:96::1").stdout.split(" dev ")[1].startswith("eth0")
    for address in ("172.18.7.6", "fd00:18::7:6"):
        assert node.ns.pings(address)
    for ifname in ("net1", "net2"):
        node.check(overlay, ifname)
    assert node.delete(overlay, "net2") == []
    assert without_settings(node.state(overlay)) == before
    node.check(overlay, "net1")


def test_additional_subnets_go_the_clusters_way(node: Node, overlay: Netns) -> None:
    attach(node, overlay, additional_hijack_subnet=["10.7.0.0/16", " fd00:7::/48", "10.96.0.0/16"])
    assert ("all", "10.7.0.0/16", "100") in rules(overlay)
    assert ("all", "fd00:7::/48", "100") in rules(overlay, "-6")
    node.check(overlay, "net1")


@pytest.mark.parametrize(("cidr", "mac"), [(V4, "0a:1b:ac:12:07:05"), (V6, "0a:1b:00:07:00:05")])
@pytest.mark.parametrize("only", [False, True])
def test_the_hardware_address_is_the_prefix_and_the_address(
    node: Node, overlay: Netns, cidr: str, mac: str, only: bool
) -> None:
    conf = (
        {"type": "router", "mac_prefix": "0a:1b", "only_op_mac": True} if only else meta("router", mac_prefix="0a:1b")
    )
    result = node.add(overlay, "net1", macvlan(cidr), conf)
    assert overlay.link("net1")["address"] == result["interfaces"][0]["mac"] == mac
    assert (neighbours(node.ns, "cali1") == {}) is only
    node.check(overlay, "net1")


DEVIATIONS: dict[str, tuple[str, list[str], str]] = {
    "the node's route": ("node", ["route del 172.18.7.5/32 table 500"], "node has lost the route to 172.18.7.5/32"),
    "the node's IPv6 route": ("node", ["route flush table 500"], "node has lost the route to"),
    "the node's rule": ("node", ["rule del lookup 500"], "node has lost the rule from all to all lookup 500"),
    "the node's neighbour": ("node", ["neigh del 172.18.7.5 dev cali1"], "node has lost the neighbour 172.18.7.5"),
    "another neighbour": (
        "node", ["neigh replace fd00:18::7:5 lladdr 02:00:00:00:00:09 dev cali1"], "node has lost the neighbour fd00"
    ),
    "the pod's neighbour": ("pod", ["neigh del 172.18.0.11 dev eth0"], "pod has lost the neighbour 172.18.0.11"),
    "the pod's route to the node": (
        "pod", ["route del 172.18.0.11/32", "route del 172.18.0.11/32 table 100"], "lost the route to 172.18.0.11"
    ),
    "a cluster rule": ("pod", ["rule del to 10.96.0.0/16 lookup 100"], "pod has lost the rule to 10.96.0.0/16"),
    "the overlay's default route": ("pod", ["route del default table 100"], "lost the route to 10.240.0.0/12"),
    "rp_filter": ("sysctl", ["net.ipv4.conf.net1.rp_filter=1"], "rp_filter of net1 in the pod is not 2"),
    "the overlay NIC": ("pod", ["link del eth0"], "eth0"),
}  # fmt: skip


@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_check_names_the_deviation(node: Node, overlay: Netns, deviation: str) -> None:
    where, acts, words = DEVIATIONS[deviation]
    attach(node, overlay)
    node.check(overlay, "net1")
    if where == "sysctl":
        overlay.run("sysctl", "-qw", *acts)
    else:
        (overlay if where == "pod" else node.ns).batch(*acts)
    with pytest.raises((CheckFailed, InvalidConfig)) as caught:
        node.check(overlay, "net1")
    assert words in caught.value.message


def vanish(pod: Netns) -> None:
    """The sandbox ends; its name stays for the fixture to take away."""
    subprocess.run(["ip", "netns", "del", pod.name], check=True)
    subprocess.run(["ip", "netns", "add", pod.name], check=True)


@pytest.mark.parametrize("netns", ["", "/run/netns/gone"])
def test_del_after_the_namespace_leaves_the_node_as_it_was(node: Node, overlay: Netns, netns: str) -> None:
    before = without_settings(node.state(overlay))[0]
    attach(node, overlay)
    attach(node, overlay, "net2", "172.18.7.6/16")
    with open(overlay.path):  # somebody keeps the namespace alive, so that the kernel takes nothing away by itself
        vanish(overlay)
        for ifname in ("net2", "net1"):
            assert node.delete(netns, ifname) == []
        assert without_settings(node.state(overlay))[0] == before
    assert node.ledger.rows() == []


BROKEN = {
    "as it was": lambda conf: conf,
    "with a subnet that is none": lambda conf: conf | {"overlay_hijack_subnet": ["nonsense"]},
    "with a wrong type": lambda conf: conf | {"migrate_route": "x"},
    "with nothing": lambda conf: {"type": "router"},
}


@pytest.mark.parametrize("told", [True, False], ids=["prevResult", "no prevResult"])
@pytest.mark.parametrize("how", BROKEN)
def test_del_without_a_ledger_takes_everything_away(node: Node, overlay: Netns, how: str, told: bool) -> None:
    before = without_settings(node.state(overlay))
    # the second NIC's subnet is not the node's, so the node has a neighbour for it and no route
    nics = {"net1": [macvlan(V4, V6), meta("router")], "net2": [macvlan("192.168.7.6/24"), meta("router")]}
    nics["net2"][0]["ipam"] = {"type": "static", "addresses": [{"address": "192.168.7.6/24"}]}
    results = {ifname: node.chain_plainly(overlay, ifname, *chain)[-1] for ifname, chain in nics.items()}
    assert "192.168.7.6" in neighbours(node.ns, "cali1")
    for ifname in ("net2", "net1"):
        prev = results[ifname] if told else None
        for _ in range(2):
            node.plainly("DEL", "router", overlay.path, ifname, BROKEN[how](meta("router")), prev)
        node.plainly("DEL", "macvlan", overlay.path, ifname, nics[ifname][0], prev)
    after = without_settings(node.state(overlay))
    assert after[0] == before[0]
    assert (after[1][0], after[1][1], after[1][3]) == (before[1][0], before[1][1], before[1][3])
    assert routes(overlay, "main")["default"] == "eth0"


def test_del_without_a_ledger_and_with_another_table_of_the_node(node: Node, overlay: Netns) -> None:
    before = without_settings(node.state(overlay))[0]
    chain = [macvlan(V4, V6), meta("router", host_rule_table=700)]
    prev = node.chain_plainly(overlay, "net1", *chain)[-1]
    node.plainly("DEL", "router", overlay.path, "net1", chain[1], prev)
    assert without_settings(node.state(overlay))[0] == before


def test_the_rule_of_the_node_stays_while_another_pod_uses_it(node: Node, overlay: Netns, new_netns: Any) -> None:
    other = new_netns("pod")
    node.ns.batch(f"link add cali2 type veth peer name eth0 netns {other.name}", "link set cali2 up",
                  "route add 10.240.3.6 dev cali2")  # fmt: skip
    other.batch("link set eth0 up", "addr add 10.240.3.6/32 dev eth0", "route add default dev eth0")
    attach(node, overlay, "net1", V4)
    node.add(other, "net1", macvlan("172.18.7.9/16"), meta("router"), container="other")
    assert node.delete(overlay, "net1") == []
    assert rules(node.ns) == {("all", "", "500")}
    node.check(other, "net1", container="other")
    assert node.delete(other, "net1", container="other") == []
    assert rules(node.ns) == set()


def test_an_object_of_a_dead_pod_in_the_way_on_the_node_is_replaced(node: Node, overlay: Netns) -> None:
    node.ns.batch("link add stale type veth peer name stale1", "link set stale up",
                  "route add 172.18.7.5/32 dev stale table 500")  # fmt: skip
    attach(node, overlay, "net1", V4)
    assert routes(node.ns, "500") == {"172.18.7.5": "cali1"}


def test_status_is_50_where_the_node_has_no_address(node: Node) -> None:
    conf = meta("router", cniVersion="1.1.0")
    assert node.plainly("STATUS", "router", "", "", conf) is None
    node.ns.batch("addr flush dev eth0")
    with pytest.raises(NotAvailable):
        node.plainly("STATUS", "router", "", "", conf)
    assert node.plainly("STATUS", "router", "", "", conf | {"sriov": True}) is None


def test_ipv6_is_switched_on_in_the_pod_where_the_nic_uses_it(node: Node, overlay: Netns) -> None:
    overlay.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
    attach(node, overlay, "net1", V4)
    assert setting(overlay, "ipv6/conf/all/disable_ipv6") == "1"
    attach(node, overlay, "net2", "fd00:18::7:6/64")
    assert setting(overlay, "ipv6/conf/all/disable_ipv6") == "0"
