"""The undo log, replayed: exact, idempotent, and tolerant of whatever is missing."""

import errno
import itertools

import msgspec
import pytest

from underlay.errors import KernelError, StateUnwritable
from underlay.net import addr, link, link_info, neigh, route, route_copy, rule, veth
from underlay.net.netns import Namespace
from underlay.net.replay import replay
from underlay.net.rtnl import Rtnl
from underlay.net.undo import (
    DropAddress,
    DropIdleRule,
    DropLink,
    DropNeighbour,
    DropRoute,
    DropRule,
    Entry,
    PutRoute,
    RestoreMac,
    UndoLog,
)

HOST_MAC, POD_MAC, NIC_MAC = "02:00:00:00:00:0a", "02:00:00:00:00:0b", "02:00:00:00:00:0c"


@pytest.fixture
def node(uplink):
    with Namespace.open(uplink.path) as ns:
        yield ns


@pytest.fixture
def sandbox(pod):
    with Namespace.open(pod.path) as ns:
        yield ns


def attach(node, sandbox):
    """What an ADD of macvlan and veth does, act by act: (undo entries, do) of each, to be carried out in this order."""
    parent = link.index_of(node.rtnl, "eth0")
    pair = veth.create(
        name="vethpod", mac=HOST_MAC, peer_name="veth0", peer_mac=POD_MAC, mtu=1500, peer_netns_fd=sandbox.fd
    )
    macvlan = link.create_upper(
        link_info.macvlan("bridge"), name="net1", parent=parent, mac=NIC_MAC, netns_fd=sandbox.fd
    )
    yield [DropLink("pod", "net1", mac=NIC_MAC)], lambda: node.rtnl.batch([macvlan])
    nic = link.index_of(sandbox.rtnl, "net1")
    up = [link.change(index=nic, up=True), addr.add(nic, "172.18.7.5/16"), addr.add(nic, "fd00:18::7/64", nodad=True)]
    up.append(route.add("0.0.0.0/0", dev=nic, via="172.18.0.1"))
    yield [], lambda: sandbox.rtnl.batch(up)
    yield (
        [DropLink("host", "vethpod", mac=HOST_MAC), DropLink("pod", "veth0", mac=POD_MAC)],
        lambda: node.rtnl.batch([pair]),
    )
    here, there = link.index_of(node.rtnl, "vethpod"), link.index_of(sandbox.rtnl, "veth0")
    yield [], lambda: sandbox.rtnl.batch([link.change(index=there, up=True)])
    for family, own, other in ((4, "172.18.7.5", "172.18.0.11"), (6, "fd00:18::7", "fd00:18::11")):
        host = f"/{32 if family == 4 else 128}"
        yield (
            [
                DropNeighbour("host", own, "vethpod", POD_MAC),
                DropRoute("host", own + host, 254, dev="vethpod"),
                DropRoute("host", own + host, 500, dev="vethpod"),
                DropRule("host", family, 500, priority=1000),
                DropNeighbour("host", own, "eth0", NIC_MAC),
            ],
            lambda own=own, host=host, family=family: node.rtnl.batch(
                [
                    neigh.replace(index=here, address=own, mac=POD_MAC),
                    route.add(own + host, dev=here),
                    route.add(own + host, dev=here, table=500),
                    rule.add(family=family, table=500, priority=1000),
                    neigh.replace(index=parent, address=own, mac=NIC_MAC),
                ]
            ),
        )
        yield (
            [
                DropNeighbour("pod", other, "veth0", HOST_MAC),
                DropRoute("pod", other + host, 254, dev="veth0"),
                DropRule("pod", family, 101, src=own + host),
                DropAddress("host", "eth0", f"10.{family}.0.1/24"),
            ],
            lambda own=own, other=other, host=host, family=family: (
                sandbox.rtnl.batch(
                    [
                        neigh.replace(index=there, address=other, mac=HOST_MAC),
                        route.add(other + host, dev=there),
                        rule.add(family=family, table=101, src=own + host),
                    ]
                ),
                node.rtnl.batch([addr.add(parent, f"10.{family}.0.1/24")]),
            ),
        )
    default = next(each for each in route.dump(node.rtnl, family=2, table=254) if each.is_default)
    yield [PutRoute("host", default.raw.hex(), "eth0")], lambda: node.rtnl.batch([route_copy.remove(default)])
    yield (
        [DropRoute("host", "0.0.0.0/0", 254, dev="eth0", gw="172.18.0.99")],
        lambda: node.rtnl.batch([route.add("0.0.0.0/0", dev=parent, via="172.18.0.99")]),
    )


ACTS = 10


def carry_out(node, sandbox, count, last_act=True):
    """The first ``count`` acts, the last one's entries written down but the act itself left out on demand."""
    entries = []
    for number, (undo, act) in zip(range(count), attach(node, sandbox), strict=False):
        entries += undo
        if last_act or number < count - 1:
            act()
    # as the ledger keeps them
    return msgspec.json.decode(msgspec.json.encode(entries), type=list[Entry])


def test_there_are_as_many_acts_as_are_tried(node, sandbox, snapshot, uplink, pod):
    before = snapshot(uplink), snapshot(pod)
    states = [before]
    for _, act in attach(node, sandbox):
        act()
        states.append((snapshot(uplink), snapshot(pod)))
    assert len(states) == ACTS + 1
    assert all(one != other for one, other in itertools.pairwise(states))


@pytest.mark.parametrize("last_act", [True, False], ids=["done", "only written down"])
@pytest.mark.parametrize("count", range(1, ACTS + 1))
def test_undoing_leads_back_wherever_adding_stopped(uplink, pod, node, sandbox, snapshot, count, last_act):
    before = snapshot(uplink), snapshot(pod)
    entries = carry_out(node, sandbox, count, last_act)
    assert replay(entries, host=node, pod=sandbox) == []
    assert (snapshot(uplink), snapshot(pod)) == before
    assert replay(entries, host=node, pod=sandbox) == []
    assert (snapshot(uplink), snapshot(pod)) == before


def test_the_host_is_cleaned_when_the_pod_is_gone(uplink, node, sandbox, snapshot):
    before = snapshot(uplink)
    entries = carry_out(node, sandbox, ACTS)
    assert replay(entries, host=node, pod=None) == []
    assert snapshot(uplink) == before
    assert replay(entries, host=node, pod=None) == []


def test_what_is_not_ours_stays(uplink, pod, node, sandbox, snapshot):
    """Everything has the same names and destinations as ours, but another MAC, kind or protocol."""
    uplink.batch(
        f"link add vethpod address 02:00:00:00:00:99 type veth peer name veth0 netns {pod.name}",
        "link set vethpod up",
        "route add 172.18.7.5 dev vethpod",
        "route add 172.18.7.5 dev vethpod table 500",
        "rule add lookup 500 priority 1000",
        "neigh add 172.18.7.5 dev vethpod lladdr 02:00:00:00:00:77 nud permanent",
        "neigh add 172.18.7.5 dev eth0 lladdr 02:00:00:00:00:77 nud permanent",
        f"link add link eth0 name net1 netns {pod.name} type macvlan mode bridge",
    )
    pod.batch("link set veth0 up", "route add 172.18.0.11 dev veth0", "rule add from 172.18.7.5 lookup 101")
    before = snapshot(uplink), snapshot(pod)
    entries = [
        DropLink("pod", "net1", mac=NIC_MAC),
        DropLink("pod", "net1", kind="ipvlan"),
        DropLink("pod", "net1"),
        DropLink("host", "vethpod", mac=HOST_MAC),
        DropLink("pod", "veth0", mac=POD_MAC),
        DropRoute("host", "172.18.7.5/32", 254, dev="vethpod"),
        DropRoute("host", "172.18.7.5/32", 500),
        DropRule("host", 4, 500, priority=1000),
        DropRule("host", 4, 254),
        DropIdleRule("host", 4, 777, 1000),
        DropNeighbour("host", "172.18.7.5", "vethpod", POD_MAC),
        DropNeighbour("host", "172.18.7.5", "eth0", NIC_MAC),
        DropRoute("pod", "172.18.0.11/32", 254, dev="veth0"),
        DropRule("pod", 4, 101, src="172.18.7.5/32"),
        DropAddress("host", "eth0", "172.18.0.12/16"),
        RestoreMac("pod", "net1", old=POD_MAC, new=NIC_MAC),
    ]
    assert replay(entries, host=node, pod=sandbox) == []
    assert (snapshot(uplink), snapshot(pod)) == before


def test_a_link_without_a_mac_of_ours_is_known_by_its_kind(pod, node, sandbox):
    parent = link.index_of(node.rtnl, "eth0")
    node.rtnl.batch([link.create_upper(link_info.macvlan("passthru"), name="net1", parent=parent, netns_fd=sandbox.fd)])
    assert replay([DropLink("pod", "net1", kind="macvlan")], host=node, pod=sandbox) == []
    assert pod.link("net1") is None


def test_a_rule_is_not_mistaken_for_one_with_more_selectors(uplink, node):
    node.rtnl.batch(
        [
            rule.add(family=4, table=500, src="10.0.0.5/32", priority=1000),
            rule.add(family=4, table=500, src="10.0.0.5/32", dst="10.1.0.0/16"),
        ]
    )
    entries = [
        DropRule("host", 4, 500, priority=1000),
        DropRule("host", 4, 500),
        DropRule("host", 4, 500, dst="10.1.0.0/16"),
    ]
    assert replay(entries, host=node, pod=None) == []
    assert len(uplink.ip("rule", "show", "table", "500")) == 2
    assert replay([DropRule("host", 4, 500, src="10.0.0.5/32")], host=node, pod=None) == []
    assert [each["dst"] for each in uplink.ip("rule", "show", "table", "500")] == ["10.1.0.0"]


def test_links_of_both_namespaces_go_whatever_else_fails(uplink, pod, node, sandbox):
    carry_out(node, sandbox, 4)
    broken = [DropRoute("pod", "no address", 254), PutRoute("host", "zz", "eth0"), PutRoute("host", "00", "eth0")]
    entries = [DropLink("host", "vethpod", mac=HOST_MAC), DropLink("pod", "net1", mac=NIC_MAC), *broken]
    failed = replay(entries, host=node, pod=sandbox)
    assert [each.error.errno for each in failed] == [errno.EINVAL] * 3
    assert "no address" in failed[0].error.message
    assert [each.entries for each in failed] == [(entry,) for entry in (broken[0], broken[2], broken[1])]
    assert {each["ifname"] for each in pod.ip("link", "show")} == {"lo"}
    assert {each["ifname"] for each in uplink.ip("link", "show")} == {"lo", "eth0"}


def test_what_the_kernel_refuses_is_told_apart_from_what_it_did(uplink, node, monkeypatch):
    for name in ("v0", "v1"):
        creation = veth.create(name=name, mac="", peer_name=f"p{name}", peer_mac="", mtu=1500, peer_netns_fd=None)
        node.rtnl.batch([creation])
    uplink.batch(f"route add 10.9.0.0/16 via 172.18.0.1 proto {route.PROTOCOL}")
    pair = [DropLink("host", "v0", kind="veth"), DropLink("host", "v1", kind="veth")]
    entries = [*pair, DropRoute("host", "10.9.0.0/16", 254, "eth0", "172.18.0.1")]
    carry_out = Rtnl.failures

    def all_but_the_last(rtnl, batch):
        refusal = KernelError(batch[-1].act, errno.EPERM)
        return {**carry_out(rtnl, batch[:-1]), len(batch) - 1: refusal}

    with monkeypatch.context() as patched:
        patched.setattr(Rtnl, "failures", all_but_the_last)
        ((error, stuck),) = replay(entries, host=node, pod=None)
    assert (error.errno, set(stuck)) == (errno.EPERM, set(pair))
    assert uplink.ip("route", "show", "10.9.0.0/16") == []
    assert replay(stuck, host=node, pod=None) == []
    assert {each["ifname"] for each in uplink.ip("link", "show")} == {"lo", "eth0"}


def test_several_host_links_go_together(uplink, node):
    names = [f"v{number}" for number in range(4)]
    for name in names:
        creation = veth.create(name=name, mac="", peer_name=f"p{name}", peer_mac="", mtu=1500, peer_netns_fd=None)
        node.rtnl.batch([creation])
    entries = [DropLink("host", name, kind="veth") for name in names]
    assert replay(entries, host=node, pod=None) == []
    assert {each["ifname"] for each in uplink.ip("link", "show")} == {"lo", "eth0"}


def test_a_route_whose_gateway_is_gone_is_not_missed(uplink, node):
    default = next(each for each in route.dump(node.rtnl, family=2, table=254) if each.is_default)
    uplink.batch("addr flush dev eth0")
    assert replay([PutRoute("host", default.raw.hex(), "eth0")], host=node, pod=None) == []
    uplink.batch("link del eth0")
    assert replay([PutRoute("host", default.raw.hex(), "eth0")], host=node, pod=None) == []


def test_a_changed_mac_is_given_back_before_the_link_is_judged_by_it(pod, node, sandbox):
    parent = link.index_of(node.rtnl, "eth0")
    node.rtnl.batch(
        [link.create_upper(link_info.macvlan("bridge"), name="net1", parent=parent, mac=NIC_MAC, netns_fd=sandbox.fd)]
    )
    sandbox.rtnl.batch([link.change(index=link.index_of(sandbox.rtnl, "net1"), mac=POD_MAC)])
    restore = RestoreMac("pod", "net1", old=NIC_MAC, new=POD_MAC)
    assert replay([restore], host=node, pod=sandbox) == []
    assert pod.link("net1")["address"] == NIC_MAC
    sandbox.rtnl.batch([link.change(index=link.index_of(sandbox.rtnl, "net1"), mac=POD_MAC)])
    assert replay([DropLink("pod", "net1", mac=NIC_MAC), restore], host=node, pod=sandbox) == []
    assert pod.link("net1") is None


def test_a_shared_rule_goes_with_the_last_route_of_its_table(uplink, node):
    index = link.index_of(node.rtnl, "eth0")
    node.rtnl.batch(
        [
            route.add("172.18.7.5/32", dev=index, table=500),
            route.add("172.18.7.6/32", dev=index, table=500),
            rule.add(family=4, table=500, priority=1000),
        ]
    )
    first = [DropIdleRule("host", 4, 500, 1000), DropRoute("host", "172.18.7.5/32", 500, dev="eth0")]
    second = [DropIdleRule("host", 4, 500, 1000), DropRoute("host", "172.18.7.6/32", 500, dev="eth0")]
    assert replay(first, host=node, pod=None) == []
    assert len(uplink.ip("rule", "show", "table", "500")) == 1
    assert replay(second, host=node, pod=None) == []
    assert uplink.ip("rule", "show", "table", "500") == []


def test_entries_of_other_layers_are_passed_over(node):
    class Other(msgspec.Struct, frozen=True, tag="other"):
        address: str

    assert replay([Other("172.18.7.5")], host=node, pod=None) == []


def test_an_entry_is_journalled_before_record_returns():
    journal = []
    log = UndoLog(lambda entries: journal.extend(entries))
    log.record(DropLink("host", "a", kind="veth"), DropLink("pod", "b", kind="veth"))
    assert journal == log.entries
    log.on_rollback(lambda: journal.append("first"))
    log.on_rollback(lambda: journal.append("second"))
    for undo in log.rollback_hooks():
        undo()
    assert journal[2:] == ["second", "first"]


def test_an_entry_that_cannot_be_journalled_is_not_kept():
    def full(entries):
        raise OSError(errno.ENOSPC, "No space left on device")

    log = UndoLog(full)
    with pytest.raises(OSError, match="No space"):
        log.record(DropLink("host", "a", kind="veth"))
    assert log.entries == []


def test_entries_for_a_later_act_go_with_the_next_record():
    writes: list[list[Entry]] = []
    log = UndoLog(lambda entries: writes.append(list(entries)))
    nic, way = DropLink("pod", "net1", mac=NIC_MAC), DropRoute("pod", "10.0.0.0/8", 254)
    log.ahead(nic)
    assert writes == []
    log.record(way)
    log.record()
    assert writes == [[way, nic]]
    assert log.entries == [way, nic]
    log.ahead(nic)
    log.record()
    assert writes == [[way, nic], [nic]]


def test_entries_that_could_not_be_written_are_not_taken_for_written():
    writes: list[list[Entry]] = []

    def once_full(entries):
        if not writes:
            writes.append([])
            raise StateUnwritable("full")
        writes.append(list(entries))

    log = UndoLog(once_full)
    nic = DropLink("pod", "net1", mac=NIC_MAC)
    log.ahead(nic)
    with pytest.raises(StateUnwritable):
        log.record()
    assert log.entries == []
    log.record()
    assert writes[1:] == [[nic]] == [log.entries]
