import errno

import pytest

from underlay.errors import KernelError
from underlay.net import addr, link, link_info, netconf
from underlay.net.netns import Namespace
from underlay.net.veth import create as create_veth


@pytest.fixture
def node(uplink):
    with Namespace.open(uplink.path) as ns:
        yield ns


@pytest.fixture
def sandbox(pod):
    with Namespace.open(pod.path) as ns:
        yield ns


def veth(**changes):
    ends = {"name": "a0", "mac": "02:00:00:00:00:0a", "peer_name": "a1", "peer_mac": "02:00:00:00:00:0b"}
    return create_veth(**{**ends, "mtu": 1450, "peer_netns_fd": None, **changes})


def test_links_are_read_as_iproute2_shows_them(uplink, lan, node):
    with Namespace.open(lan.path) as ns:
        for netns, found in ((uplink, link.dump(node.rtnl)), (lan, link.dump(ns.rtnl))):
            shown = {each["ifname"]: each for each in netns.ip("link", "show")}
            assert {each.name for each in found} == set(shown)
            for each in found:
                other = shown[each.name]
                assert each.index == other["ifindex"]
                assert each.mac == other["address"]
                assert each.mtu == other["mtu"]
                assert each.kind == other.get("linkinfo", {}).get("info_kind", "")
                assert each.up == ("UP" in other["flags"])
                assert each.carrier == ("LOWER_UP" in other["flags"])
                assert each.parent_nsid == other.get("link_netnsid")
                assert each.parent == other.get("link_index")
        bridge, port = link.get(ns.rtnl, "br0"), link.get(ns.rtnl, "lan0")
        assert (bridge.kind, port.master) == ("bridge", bridge.index)


def test_one_link_is_found_by_name_alternative_name_or_index(uplink, node):
    uplink.batch("link property add dev eth0 altname a-rather-long-name-of-a-nic")
    found = link.get(node.rtnl, "eth0")
    assert link.get(node.rtnl, "a-rather-long-name-of-a-nic") == found
    assert link.get_index(node.rtnl, found.index) == found
    assert link.get_indexes(node.rtnl, [found.index, 99999]) == [found]
    assert link.name_of(node.rtnl, found.index) == "eth0"
    assert link.index_of(node.rtnl, "eth0") == found.index


def test_a_missing_link_is_none_or_a_named_error(node):
    assert link.get(node.rtnl, "nope") is None
    assert link.get(node.rtnl, "") is None
    assert link.get_index(node.rtnl, 99999) is None
    assert link.get_many(node.rtnl, ["nope", "lo"])[0] is None
    with pytest.raises(KernelError, match="find link nope: No such device"):
        link.index_of(node.rtnl, "nope")
    with pytest.raises(KernelError, match="find link #99999: No such device"):
        link.name_of(node.rtnl, 99999)


@pytest.mark.parametrize("mode", sorted(link_info.MACVLAN_MODES))
def test_a_macvlan_is_made_in_the_pod_in_one_message(uplink, pod, node, sandbox, mode):
    parent = link.get(node.rtnl, "eth0")
    mac = "" if mode == "passthru" else link.random_mac()
    node.rtnl.batch(
        [
            link.create_upper(
                link_info.macvlan(mode), name="net1", parent=parent.index, mac=mac, mtu=1400, netns_fd=sandbox.fd
            )
        ]
    )
    shown = pod.link("net1")
    assert shown["linkinfo"]["info_kind"] == "macvlan"
    assert shown["linkinfo"]["info_data"]["mode"] == mode
    assert shown["address"] == (mac or parent.mac)
    assert shown["mtu"] == 1400
    assert "UP" not in shown["flags"]
    found = link.get(sandbox.rtnl, "net1")
    assert (found.kind, found.mode, found.mac) == ("macvlan", mode, mac or parent.mac)
    assert found.parent == parent.index
    assert found.parent_nsid is not None
    assert uplink.link("net1") is None


def test_a_macvlans_broadcast_queue_is_set(pod, node, sandbox):
    parent = link.index_of(node.rtnl, "eth0")
    node.rtnl.batch(
        [link.create_upper(link_info.macvlan("bridge", 2000), name="net1", parent=parent, netns_fd=sandbox.fd)]
    )
    assert pod.link("net1")["linkinfo"]["info_data"]["bcqueuelen"] == 2000


def test_a_taken_name_or_index_is_refused(pod, node, sandbox):
    parent = link.index_of(node.rtnl, "eth0")
    index = link.random_index()
    create = link.create_upper(
        link_info.macvlan("bridge"), name="net1", parent=parent, netns_fd=sandbox.fd, index=index
    )
    node.rtnl.batch([create])
    assert pod.link("net1")["ifindex"] == index
    with pytest.raises(KernelError, match="create macvlan net1 on dev eth0: File exists") as raised:
        node.rtnl.batch([create])
    assert raised.value.errno == errno.EEXIST
    other = link.create_upper(link_info.macvlan("bridge"), name="net2", parent=parent, netns_fd=sandbox.fd, index=index)
    with pytest.raises(KernelError, match="create macvlan net2 on dev eth0: File exists"):
        node.rtnl.batch([other])


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (lambda: link_info.macvlan("routed"), "'routed' is no macvlan mode: private, vepa, bridge, passthru"),
        (lambda: link_info.ipvlan("bridge"), "'bridge' is no ipvlan mode: l2, l3, l3s"),
        (lambda: link_info.vlan(4095), "4095 is no VLAN: 0 to 4094"),
        (lambda: link_info.vlan(-1), "-1 is no VLAN: 0 to 4094"),
    ],
)
def test_what_no_link_can_be_is_refused_by_name(refused, words):
    with pytest.raises(ValueError, match=words):
        refused()


def test_a_veth_pair_has_the_wanted_ends(uplink, pod, node, sandbox):
    made = link.make(node.rtnl, veth(peer_netns_fd=sandbox.fd), "a0")
    here, there = uplink.link("a0"), pod.link("a1")
    assert (here["address"], there["address"]) == ("02:00:00:00:00:0a", "02:00:00:00:00:0b")
    assert (here["mtu"], there["mtu"]) == (1450, 1450)
    assert "UP" in here["flags"]
    assert "UP" not in there["flags"]
    assert (made.index, made.parent) == (here["ifindex"], there["ifindex"])
    sandbox.rtnl.batch([link.change(index=made.parent, up=True)])
    assert "LOWER_UP" in pod.link("a1")["flags"]


def test_a_veth_pairs_indexes_can_be_chosen(uplink, pod, node, sandbox):
    node.rtnl.batch([veth(peer_netns_fd=sandbox.fd, index=70001, peer_index=70002, up=False)])
    assert (uplink.link("a0")["ifindex"], pod.link("a1")["ifindex"]) == (70001, 70002)
    assert "UP" not in uplink.link("a0")["flags"]


def test_making_a_link_that_exists_raises_the_creations_error(node):
    node.rtnl.batch([veth()])
    with pytest.raises(KernelError, match="create veth pair a0 - a1: File exists"):
        link.make(node.rtnl, veth(), "a0")


def test_a_link_is_changed(uplink, pod, node, sandbox):
    made = link.make(node.rtnl, veth(up=False), "a0")
    node.rtnl.batch(
        [
            link.change(name="a0", mac="02:00:00:00:00:99", mtu=1300, promisc=True, group=7),
            link.change(index=made.index, new_name="b0"),
            link.change(name="b0", up=True),
        ]
    )
    shown = uplink.link("b0")
    assert (shown["address"], shown["mtu"], shown["group"]) == ("02:00:00:00:00:99", 1300, "7")
    assert {"UP", "PROMISC"} <= set(shown["flags"])
    node.rtnl.batch([link.change(index=made.index, up=False, promisc=False)])
    assert not {"UP", "PROMISC"} & set(uplink.link("b0")["flags"])
    node.rtnl.batch([link.change(index=made.index, netns_fd=sandbox.fd, new_name="c0")])
    assert uplink.link("b0") is None
    assert pod.link("c0")["address"] == "02:00:00:00:00:99"


def test_a_change_that_the_kernel_refuses_names_the_link(node):
    index = link.index_of(node.rtnl, "eth0")
    with pytest.raises(KernelError, match="change link dev eth0: Invalid argument: mtu greater than device maximum"):
        node.rtnl.batch([link.change(index=index, mtu=100000)])
    with pytest.raises(KernelError, match="change link nope: No such device"):
        node.rtnl.batch([link.change(name="nope", up=True)])
    with pytest.raises(ValueError, match="renamed by its index"):
        link.change(name="eth0", new_name="eth1")


def test_a_link_is_deleted_by_index_or_name(uplink, node):
    made = link.make(node.rtnl, veth(), "a0")
    node.rtnl.batch([link.delete(index=made.index)])
    assert uplink.link("a1") is None
    node.rtnl.batch([veth(), link.delete(name="a1")])
    assert uplink.link("a0") is None
    with pytest.raises(KernelError, match="delete link a0: No such device"):
        node.rtnl.batch([link.delete(name="a0")])


def test_a_group_of_links_is_deleted_at_once_and_no_other(uplink, node):
    names = [f"a{number}" for number in range(8)]
    made = [link.make(node.rtnl, veth(name=name, peer_name=f"b{name}", mac="", peer_mac=""), name) for name in names]
    link.delete_group(node.rtnl, [each.index for each in made[:-1]])
    left = {each["ifname"] for each in uplink.ip("link", "show")}
    assert left == {"lo", "eth0", "a7", "ba7"}
    # gone, or half of them gone: no fault
    link.delete_group(node.rtnl, [each.index for each in made])
    link.delete_group(node.rtnl, [each.index for each in made])
    link.delete_group(node.rtnl, [])
    assert {each["ifname"] for each in uplink.ip("link", "show")} == {"lo", "eth0"}
    assert all(each["group"] == "default" for each in uplink.ip("link", "show"))


def test_both_ends_of_a_pair_may_be_in_a_group(uplink, node):
    made = link.make(node.rtnl, veth(), "a0")
    link.delete_group(node.rtnl, [made.index, made.parent])
    assert uplink.link("a0") is None


@pytest.mark.parametrize("cidr", ["10.1.2.3/16", "10.1.2.3/32", "10.1.2.2/31", "127.0.0.9/8", "fd00:9::1/64"])
def test_an_address_is_added_as_iproute2_does(uplink, node, cidr):
    node.rtnl.batch([veth()])
    ours, theirs = link.index_of(node.rtnl, "a0"), "a1"
    v6 = ":" in cidr
    node.rtnl.batch([addr.add(ours, cidr, nodad=v6)])
    shown = next(each for each in uplink.ip("addr", "show", "dev", "a0")[0]["addr_info"] if each["scope"] != "link")
    node.rtnl.batch([addr.delete(ours, cidr)])
    broadcast = ["brd", "+"] if cidr.endswith(("/16", "/8")) else []
    uplink.ip("addr", "add", cidr, "dev", theirs, *broadcast, *(["nodad"] if v6 else []))
    expected = next(
        each for each in uplink.ip("addr", "show", "dev", theirs)[0]["addr_info"] if each["scope"] != "link"
    )
    for each in (shown, expected):
        each.pop("label", None)
    assert shown == expected


def test_an_ipv6_address_without_dad_is_settled_at_once(uplink, node):
    index = link.index_of(node.rtnl, "eth0")
    node.rtnl.batch([addr.add(index, "fd00:9::1/64", nodad=True)])
    found = {each.address: each for each in addr.dump(node.rtnl, index=index, family=10)}
    assert found["fd00:9::1/64"].settled
    assert "fd00:9::/64" in {each["dst"] for each in uplink.ip("-6", "route", "show", "dev", "eth0")}


def test_addresses_are_read_as_iproute2_shows_them(uplink, node):
    uplink.batch("addr add 10.5.0.1 peer 10.5.0.2/32 dev eth0", "addr add 10.6.0.1/24 dev eth0 label eth0:6")
    found = {(each.index, each.address, each.scope, each.label) for each in addr.dump(node.rtnl)}
    scopes = {"global": 0, "link": 253, "host": 254}
    shown = {
        (each["ifindex"], f"{info['local']}/{info['prefixlen']}", scopes[info["scope"]], info.get("label", ""))
        for each in uplink.ip("addr", "show")
        for info in each["addr_info"]
    }
    assert found == shown
    lo = [each.address for each in addr.dump(node.rtnl, index=1)]
    assert sorted(lo) == ["127.0.0.1/8", "::1/128"]
    assert [each.address for each in addr.dump(node.rtnl, index=1, family=2)] == ["127.0.0.1/8"]
    assert {each.scope for each in addr.dump(node.rtnl, scope=addr.SCOPE_LINK)} <= {addr.SCOPE_LINK}


def test_an_address_on_a_link_without_ipv6_is_refused_in_the_kernels_words(uplink, node):
    uplink.run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6")
    index = link.index_of(node.rtnl, "eth0")
    with pytest.raises(KernelError, match=r"add address fd00::9/64 dev eth0: .*IPv6 is disabled on this device"):
        node.rtnl.batch([addr.add(index, "fd00::9/64")])


def test_reverse_path_filters_are_read_in_one_dump(uplink, node):
    uplink.run("sh", "-c", "cd /proc/sys/net/ipv4/conf && echo 2 > eth0/rp_filter && echo 1 > default/rp_filter")
    index = link.index_of(node.rtnl, "eth0")
    assert netconf.rp_filter_other_than(node.rtnl, 0) == {"default": 1, index: 2}
    assert netconf.rp_filter_other_than(node.rtnl, 2) == {"all": 0, "default": 1, 1: 0}
    found = {each.key: each for each in netconf.dump(node.rtnl)}
    assert not found["all"].forwarding
    uplink.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/eth0/proxy_arp")
    assert {each.key for each in netconf.dump(node.rtnl) if each.proxy_neigh} == {index}
