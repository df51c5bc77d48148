import errno

import pytest

from underlay.errors import KernelError
from underlay.net import link, neigh, route, route_copy, rule
from underlay.net.netns import Namespace


@pytest.fixture
def node(uplink):
    with Namespace.open(uplink.path) as ns:
        yield ns


@pytest.fixture
def eth0(node):
    return link.index_of(node.rtnl, "eth0")


def shown(ns, table="all", family="-4"):
    return {each["dst"]: each for each in ns.ip(family, "route", "show", "table", str(table))}


def test_a_route_has_every_part_it_was_given(uplink, node, eth0):
    node.rtnl.batch(
        [
            route.add("10.1.0.0/16", dev=eth0),
            route.add("10.2.3.4/16", dev=eth0, via="172.18.0.9", src="172.18.0.11", mtu=1400, advmss=1300, priority=50),
            route.add("10.3.0.0/16", dev=eth0, via="192.0.2.1", onlink=True, table=5000),
            route.add("fd00:9::5/64", dev=eth0, via="fd00:18::9", mtu=1400, table=500),
            route.add("fd00:10::/64", dev=eth0),
        ]
    )
    main, all_tables = shown(uplink, "main"), shown(uplink)
    assert (main["10.1.0.0/16"]["scope"], main["10.1.0.0/16"]["protocol"]) == ("link", "117")
    second = main["10.2.0.0/16"]
    assert (second["gateway"], second["prefsrc"], second["metric"]) == ("172.18.0.9", "172.18.0.11", 50)
    assert second["metrics"] == [{"mtu": 1400, "advmss": 1300}]
    assert (all_tables["10.3.0.0/16"]["table"], all_tables["10.3.0.0/16"]["flags"]) == ("5000", ["onlink"])
    six = shown(uplink, family="-6")
    assert (six["fd00:9::/64"]["table"], six["fd00:9::/64"]["gateway"]) == ("500", "fd00:18::9")
    assert six["fd00:10::/64"]["protocol"] == "117"


def test_a_route_by_way_of_the_other_family(uplink, node, eth0):
    node.rtnl.batch([route.add("10.1.0.0/16", dev=eth0, via="fd00:18::9")])
    assert shown(uplink)["10.1.0.0/16"]["via"] == {"family": "inet6", "host": "fd00:18::9"}
    found = {each.dst: each for each in route.dump(node.rtnl, family=2, table=254)}
    assert found["10.1.0.0/16"].gateway == "fd00:18::9"


def test_add_append_and_replace_differ_as_in_iproute2(uplink, node, eth0):
    node.rtnl.batch([route.add("10.1.0.0/16", dev=eth0, via="172.18.0.5")])
    with pytest.raises(KernelError, match=r"add route 10.1.0.0/16 via 172.18.0.6 dev eth0: File exists"):
        node.rtnl.batch([route.add("10.1.0.0/16", dev=eth0, via="172.18.0.6")])
    node.rtnl.batch([route.add("10.1.0.0/16", dev=eth0, via="172.18.0.7", append=True)])
    gateways = [each["gateway"] for each in uplink.ip("route", "show", "10.1.0.0/16")]
    assert gateways == ["172.18.0.5", "172.18.0.7"]
    node.rtnl.batch([route.add("10.1.0.0/16", dev=eth0, via="172.18.0.8", replace=True)])
    gateways = [each["gateway"] for each in uplink.ip("route", "show", "10.1.0.0/16")]
    assert gateways == ["172.18.0.8", "172.18.0.7"]


def test_deleting_takes_only_our_own_routes(uplink, node, eth0):
    uplink.batch("route add 10.1.0.0/16 dev eth0", "route add fd00:9::/64 dev eth0")
    for dst in ("10.1.0.0/16", "fd00:9::/64"):
        with pytest.raises(KernelError) as raised:
            node.rtnl.batch([route.delete(dst, dev=eth0)])
        assert raised.value.errno == errno.ESRCH
    node.rtnl.batch([route.delete("10.1.0.0/16", protocol=0), route.delete("fd00:9::/64", protocol=0)])
    node.rtnl.batch([route.add("10.1.0.0/16", dev=eth0), route.add("10.1.0.0/16", dev=eth0, table=500)])
    node.rtnl.batch([route.delete("10.1.0.0/16", dev=eth0, table=500)])
    assert shown(uplink)["10.1.0.0/16"].get("table", "main") == "main"
    assert "fd00:9::/64" not in shown(uplink, family="-6")


def without(each, *keys):
    return {key: value for key, value in each.items() if key not in keys}


ODD_ROUTES = [
    "route add 10.1.0.0/16 dev eth0 proto static scope link src 172.18.0.11 metric 77",
    "route add 10.2.0.0/16 via 172.18.0.9 dev eth0 mtu 1400 advmss 1300 rto_min 30ms",
    "route add 10.3.0.0/16 via 192.0.2.1 dev eth0 onlink",
    "route add 10.4.0.0/16 nexthop via 172.18.0.5 dev eth0 weight 3 nexthop via 172.18.0.6 dev eth0",
    "route add 10.5.0.0/16 tos 0x10 dev eth0",
    "route add 10.6.0.0/16 via inet6 fd00:18::9 dev eth0",
    "route add blackhole 10.7.0.0/16",
    "route add fd00:1::/64 dev eth0 metric 77 proto static",
    "route add fd00:2::/64 via fd00:18::9 dev eth0 mtu 1400",
    "route add fd00:3::/64 nexthop via fd00:18::5 dev eth0 weight 3 nexthop via fd00:18::6 dev eth0",
    "route add fd00:4::/64 dev eth0 expires 1000",
    "route add fd00:5::/64 via fd00:18::9 dev eth0 pref high",
]


@pytest.mark.parametrize("odd", ODD_ROUTES, ids=lambda line: line.split(" ", 2)[2])
def test_a_route_is_taken_away_and_put_back_to_the_letter(uplink, node, eth0, odd):
    before = {family: uplink.ip(family, "route", "show", "table", "main") for family in ("-4", "-6")}
    uplink.batch(odd)
    with_it = {family: uplink.ip(family, "route", "show", "table", "main") for family in ("-4", "-6")}
    dst = next(word for word in odd.split() if "/" in word)
    family = 10 if ":" in dst else 2
    found = next(each for each in route.dump(node.rtnl, family=family, table=254) if each.dst == dst)
    node.rtnl.batch([route_copy.remove(found)])
    assert {name: uplink.ip(name, "route", "show", "table", "main") for name in ("-4", "-6")} == before
    node.rtnl.batch([route_copy.put(found.raw, eth0 if found.dev else 0)])
    after = {name: uplink.ip(name, "route", "show", "table", "main") for name in ("-4", "-6")}
    for name in ("-4", "-6"):
        listed = [[without(each, "expires") for each in state[name]] for state in (after, with_it)]
        assert sorted(listed[0], key=str) == sorted(listed[1], key=str)
    if "expires" in odd:
        assert 900 < next(each for each in after["-6"] if each["dst"] == dst)["expires"] <= 1000
    with pytest.raises(KernelError) as raised:
        node.rtnl.batch([route_copy.put(found.raw, eth0 if found.dev else 0)])
    assert raised.value.errno == errno.EEXIST


@pytest.mark.parametrize("odd", ODD_ROUTES, ids=lambda line: line.split(" ", 2)[2])
def test_a_route_is_copied_into_another_table_as_ours(uplink, node, odd):
    uplink.batch(odd)
    dst = next(word for word in odd.split() if "/" in word)
    family = 10 if ":" in dst else 2
    found = next(each for each in route.dump(node.rtnl, family=family, table=254) if each.dst == dst)
    node.rtnl.batch([route_copy.copy(found, table=5000), route_copy.copy(found, table=101, protocol=found.protocol)])
    name = "-6" if family == 10 else "-4"
    original = next(each for each in uplink.ip(name, "route", "show", "table", "main") if each["dst"] == dst)
    ours = uplink.ip(name, "route", "show", "table", "5000")
    theirs = uplink.ip(name, "route", "show", "table", "101")
    hidden = ("protocol", "expires", "table")
    assert [without(each, *hidden) for each in ours] == [without(original, *hidden)]
    assert [without(each, *hidden) for each in theirs] == [without(original, *hidden)]
    assert ours[0]["protocol"] == "117"
    assert theirs[0].get("protocol") == original.get("protocol")


def test_a_route_by_a_next_hop_object_is_put_back(uplink, node, eth0):
    uplink.batch("nexthop add id 7 via 172.18.0.9 dev eth0", "route add 10.1.0.0/16 nhid 7")
    found = next(each for each in route.dump(node.rtnl, family=2, table=254) if each.dst == "10.1.0.0/16")
    before = uplink.ip("route", "show", "10.1.0.0/16")
    node.rtnl.batch([route_copy.remove(found), route_copy.put(found.raw, eth0)])
    assert uplink.ip("route", "show", "10.1.0.0/16") == before


def test_a_route_is_put_back_on_another_device(uplink, node):
    uplink.batch("link add a0 type veth peer name a1", "link set a0 up", "route add 10.1.0.0/16 dev eth0")
    found = next(each for each in route.dump(node.rtnl, family=2, table=254) if each.dst == "10.1.0.0/16")
    node.rtnl.batch([route_copy.put(found.raw, link.index_of(node.rtnl, "a0"))])
    assert {each["dev"] for each in uplink.ip("route", "show", "10.1.0.0/16")} == {"eth0", "a0"}


def test_multipath_routes_are_made_and_read(uplink, node, eth0):
    hops = [route.NextHop(eth0, "172.18.0.5", 3), route.NextHop(eth0, "172.18.0.6")]
    node.rtnl.batch([route.add_multipath("10.1.0.0/16", hops)])
    listed = uplink.ip("route", "show", "10.1.0.0/16")[0]["nexthops"]
    assert [(each["gateway"], each["weight"]) for each in listed] == [("172.18.0.5", 3), ("172.18.0.6", 1)]
    found = next(each for each in route.dump(node.rtnl, family=2, table=254) if each.dst == "10.1.0.0/16")
    assert (list(found.nexthops), found.dev, found.gateway) == (hops, eth0, "")


def test_a_dump_is_filtered_by_table_device_and_family(node, eth0):
    node.rtnl.batch([route.add("10.1.0.0/16", dev=eth0, table=500), route.add("fd00:9::/64", dev=eth0, table=500)])
    assert [each.dst for each in route.dump(node.rtnl, family=2, table=500)] == ["10.1.0.0/16"]
    assert [each.dst for each in route.dump(node.rtnl, family=0, table=500)] == ["10.1.0.0/16", "fd00:9::/64"]
    assert route.dump(node.rtnl, family=0, table=501) == []
    assert {each.dev for each in route.dump(node.rtnl, family=0, dev=eth0)} == {eth0}
    everywhere = route.dump(node.rtnl, family=2)
    assert {each.table for each in everywhere} == {route.MAIN, route.LOCAL, 500}
    default = next(each for each in everywhere if each.is_default)
    assert (default.dst, default.gateway, default.scope) == ("0.0.0.0/0", "172.18.0.1", route.SCOPE_GLOBAL)
    assert [each.dst for each in route.default_routes(node.rtnl, 10)] == ["::/0"]


def test_metrics_are_read_back(node, eth0):
    node.rtnl.batch([route.add("10.1.0.0/16", dev=eth0, mtu=1400, advmss=1300)])
    found = next(each for each in route.dump(node.rtnl, family=2, table=254) if each.dst == "10.1.0.0/16")
    assert (found.mtu, found.advmss, found.protocol) == (1400, 1300, route.PROTOCOL)
    assert next(each for each in route.dump(node.rtnl, family=2, table=254) if each.is_default).mtu == 0


def test_a_lookup_tells_source_device_and_gateway(uplink, node, eth0):
    found = route.lookup(node.rtnl, "172.18.7.5")
    assert (found.src, found.dev, found.gateway) == ("172.18.0.11", eth0, "")
    found = route.lookup(node.rtnl, "2001:db8::1")
    assert (found.src, found.dev, found.gateway) == ("fd00:18::11", eth0, "fd00:18::1")
    uplink.batch("route add unreachable 203.0.113.0/24")
    answers = route.lookups(node.rtnl, ["192.0.2.1", "203.0.113.1", "fd00:18::5"])
    assert [each and each.src for each in answers] == ["172.18.0.11", None, "fd00:18::11"]
    with pytest.raises(KernelError, match=r"find the route to 203.0.113.1: No route to host"):
        route.lookup(node.rtnl, "203.0.113.1")


def rules(ns, family="-4"):
    return [
        (each["priority"], each["src"], each.get("dst"), each["table"], each.get("protocol"))
        for each in ns.ip(family, "rule", "show")
    ]


def test_rules_are_made_read_and_deleted(uplink, node):
    node.rtnl.batch(
        [
            rule.add(family=4, table=500, priority=1000),
            rule.add(family=4, table=101, src="172.18.7.5/32"),
            rule.add(family=4, table=102, dst="10.240.0.0/12", priority=900),
            rule.add(family=6, table=5000, src="fd00:18::7/128", dst="fd00:9::/64"),
        ]
    )
    made = rules(uplink)
    assert (1000, "all", None, "500", "117") in made
    assert any(each[1:] == ("172.18.7.5", None, "101", "117") for each in made)
    assert (900, "all", "10.240.0.0", "102", "117") in made
    assert any(each[1:] == ("fd00:18::7", "fd00:9::", "5000", "117") for each in rules(uplink, "-6"))
    found = {(each.table, each.src, each.dst, each.protocol, each.plain) for each in rule.dump(node.rtnl, 4)}
    assert (101, "172.18.7.5/32", "", 117, True) in found
    assert (102, "", "10.240.0.0/12", 117, True) in found
    assert (254, "", "", 2, True) in found
    with pytest.raises(KernelError, match="add rule from all lookup 500: File exists"):
        node.rtnl.batch([rule.add(family=4, table=500, priority=1000)])
    node.rtnl.batch(
        [
            rule.delete(family=4, table=500, priority=1000),
            rule.delete(family=4, table=101, src="172.18.7.5/32"),
            rule.delete(family=4, table=102, dst="10.240.0.0/12", priority=900),
            rule.delete(family=6, table=5000, src="fd00:18::7/128", dst="fd00:9::/64"),
        ]
    )
    assert [each[3] for each in rules(uplink)] == ["local", "main", "default"]
    assert [each[3] for each in rules(uplink, "-6")] == ["local", "main"]


def test_deleting_takes_only_our_own_rules(uplink, node):
    uplink.batch("rule add from 10.0.0.0/8 lookup 500 priority 700")
    with pytest.raises(KernelError, match=r"delete rule from 10.0.0.0/8 lookup 500: No such file"):
        node.rtnl.batch([rule.delete(family=4, table=500, src="10.0.0.0/8")])
    assert (700, "10.0.0.0", None, "500", "unspec") in rules(uplink)


def test_a_rule_with_further_selectors_is_not_plain(uplink, node):
    uplink.batch("rule add fwmark 1 lookup 500", "rule add iif lo lookup 501", "rule add blackhole from 10.0.0.0/8")
    assert not any(each.plain for each in rule.dump(node.rtnl, 4) if each.priority not in (0, 32766, 32767))


def test_a_selector_of_the_other_family_is_refused_by_name():
    with pytest.raises(ValueError, match="'fd00::/64' is not of the rule's family"):
        rule.add(family=4, table=500, src="fd00::/64")


def test_neighbours_are_set_replaced_read_and_deleted(uplink, node, eth0):
    for address in ("172.18.7.5", "fd00:18::7"):
        node.rtnl.batch(
            [
                neigh.replace(index=eth0, address=address, mac="02:00:00:00:00:01"),
                neigh.replace(index=eth0, address=address, mac="02:00:00:00:00:02"),
            ]
        )
        shown = next(each for each in uplink.ip("neigh", "show", "nud", "permanent") if each["dst"] == address)
        assert (shown["lladdr"], shown["dev"], shown["state"]) == ("02:00:00:00:00:02", "eth0", ["PERMANENT"])
    found = {each.address: each for each in neigh.dump(node.rtnl, index=eth0) if each.permanent and each.protocol}
    assert {address: each.mac for address, each in found.items()} == {
        "172.18.7.5": "02:00:00:00:00:02",
        "fd00:18::7": "02:00:00:00:00:02",
    }
    assert {each.family for each in neigh.dump(node.rtnl, family=10)} <= {10}
    assert "172.18.7.5" not in {each.address for each in neigh.dump(node.rtnl, index=1)}
    node.rtnl.batch([neigh.delete(eth0, "172.18.7.5"), neigh.delete(eth0, "fd00:18::7")])
    assert not [each for each in uplink.ip("neigh", "show", "nud", "permanent") if each["dst"] in found]
    with pytest.raises(KernelError, match=r"delete neighbour 172.18.7.5 dev eth0: No such file"):
        node.rtnl.batch([neigh.delete(eth0, "172.18.7.5")])


def test_what_hangs_on_a_missing_link_names_its_number(node):
    with pytest.raises(KernelError, match=r"set neighbour 10.0.0.1 lladdr 02:00:00:00:00:01 dev #9999: No such device"):
        node.rtnl.batch([neigh.replace(index=9999, address="10.0.0.1", mac="02:00:00:00:00:01")])
