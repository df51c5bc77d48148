"""What is remembered of the node is what a fresh read would say, whoever changed it; nothing is read for nothing."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

import pytest

from underlay.net import link, remembered
from underlay.net.netns import Namespace
from underlay.net.remembered import Memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Netns

    from underlay.net.rtnl import Rtnl


@pytest.fixture
def node(host: Netns) -> Iterator[Namespace]:
    host.batch("link add eth0 type bridge", "link set eth0 up", "addr add 172.18.0.11/16 dev eth0")
    with Namespace.open(host.path) as ns:
        ns.memory = Memory()
        yield ns
        ns.memory.close()


@pytest.fixture
def reads(node: Namespace, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every dump that the namespace was asked for."""
    seen: list[str] = []
    dump = type(node.rtnl).dump

    def counting(rtnl: object, message: object) -> object:
        seen.append(message.act())  # type: ignore[attr-defined]
        return dump(rtnl, message)  # type: ignore[arg-type]

    monkeypatch.setattr(type(node.rtnl), "dump", counting)
    return seen


def addresses(ns: Namespace) -> dict[str, str]:
    listed, names = remembered.addresses(ns, (4, 6))
    return {one.address: names[one.index] for one in listed}


def test_what_has_not_changed_is_read_once(node: Namespace, reads: list[str]) -> None:
    assert addresses(node) == addresses(node) == {"172.18.0.11/16": "eth0"}
    assert remembered.rp_filter_other_than(node, 0) == remembered.rp_filter_other_than(node, 0)
    assert reads == ["list addresses", "list addresses", "list interface settings"]  # both families, once


@pytest.mark.parametrize(
    ("change", "after"),
    [
        ("addr add 172.18.0.12/16 dev eth0", {"172.18.0.11/16": "eth0", "172.18.0.12/16": "eth0"}),
        ("addr del 172.18.0.11/16 dev eth0", {}),
        ("link set eth0 name uplink", {"172.18.0.11/16": "uplink"}),
        ("link del eth0", {}),
    ],
)
def test_a_changed_address_or_name_is_seen(host: Netns, node: Namespace, change: str, after: dict[str, str]) -> None:
    assert addresses(node) == {"172.18.0.11/16": "eth0"}
    if " name " in change:
        host.batch("link set eth0 down")
    host.batch(change)
    assert addresses(node) == after


def test_an_ipv6_address_is_seen_in_a_moment(host: Netns, node: Namespace) -> None:
    addresses(node)
    host.batch("addr add fd00:18::11/64 dev eth0 nodad")
    until = time.monotonic() + 10
    while addresses(node) != {"172.18.0.11/16": "eth0", "fd00:18::11/64": "eth0"}:
        assert time.monotonic() < until


def test_a_pods_own_interfaces_are_passed_over(host: Netns, node: Namespace, reads: list[str]) -> None:
    addresses(node)
    remembered.rp_filter_other_than(node, 0)
    del reads[:]
    host.batch("link add veth1 type veth peer name veth2", "link set veth1 up", "link set veth2 up")
    host.batch("addr add 169.254.1.1/32 dev veth1 scope link", "link del veth1")
    assert addresses(node) == {"172.18.0.11/16": "eth0"}
    assert remembered.rp_filter_other_than(node, 0) == {}
    assert reads == []


def test_an_rp_filter_set_by_anybody_is_seen(host: Netns, node: Namespace) -> None:
    host.batch("link add veth1 type veth peer name veth2")
    index = host.link("veth1")["ifindex"]
    assert remembered.rp_filter_other_than(node, 0) == {}
    host.run("sysctl", "-qw", "net.ipv4.conf.veth1.rp_filter=1")
    assert remembered.rp_filter_other_than(node, 0) == {index: 1}
    host.run("sysctl", "-qw", "net.ipv4.conf.veth1.rp_filter=0")
    assert remembered.rp_filter_other_than(node, 0) == {}


def test_an_interface_with_another_rp_filter_is_seen_when_it_comes(host: Netns, node: Namespace) -> None:
    host.run("sysctl", "-qw", "net.ipv4.conf.default.rp_filter=2")
    before = remembered.rp_filter_other_than(node, 0)
    assert before == {"default": 2}
    host.batch("link add veth1 type veth peer name veth2")
    ends = {host.link(name)["ifindex"]: 2 for name in ("veth1", "veth2")}
    assert remembered.rp_filter_other_than(node, 0) == before | ends


def test_settings_of_other_kinds_cost_no_read(host: Netns, node: Namespace, reads: list[str]) -> None:
    remembered.rp_filter_other_than(node, 0)
    del reads[:]
    host.run("sysctl", "-qw", "net.ipv4.conf.eth0.forwarding=1")
    assert remembered.rp_filter_other_than(node, 0) == {}
    assert reads == []


def test_more_news_than_the_queue_holds_are_as_good_as_a_change(host: Netns, node: Namespace) -> None:
    addresses(node)
    assert node.memory is not None
    assert node.memory._socket is not None
    node.memory._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    assert addresses(node) == {"172.18.0.11/16": "eth0"}
    host.batch(*(f"addr add 10.{n}.0.1/32 dev eth0 scope link" for n in range(40)), "addr add 10.99.0.1/32 dev eth0")
    assert addresses(node) == {"172.18.0.11/16": "eth0", "10.99.0.1/32": "eth0"}
    host.batch("addr del 10.99.0.1/32 dev eth0")
    assert addresses(node) == {"172.18.0.11/16": "eth0"}


def link_told(host: Netns) -> tuple[object, ...]:
    """What ip says of eth0."""
    told = host.link("eth0") or {}
    return tuple(told.get(key) for key in ("ifindex", "ifname", "mtu", "address"))


def link_known(ns: Namespace, name: str = "eth0") -> tuple[object, ...]:
    known = remembered.link_named(ns, name)
    return (None,) * 4 if known is None else (known.index, known.name, known.mtu, known.mac)


@pytest.fixture
def link_reads(node: Namespace, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every single link that was asked for."""
    seen: list[str] = []
    get = link.get

    def counting(rtnl: Rtnl, name: str) -> link.Link | None:
        seen.append(name)
        return get(rtnl, name)

    monkeypatch.setattr(link, "get", counting)
    return seen


def test_a_link_is_read_once(host: Netns, node: Namespace, link_reads: list[str]) -> None:
    assert link_known(node) == link_known(node) == link_told(host)
    assert link_reads == ["eth0"]


@pytest.mark.parametrize(
    "change",
    [
        ["link set eth0 mtu 1400"],
        ["link set eth0 address 02:00:00:00:00:07"],
        ["link set eth0 down", "link set eth0 name uplink"],
        ["link del eth0"],
        ["link del eth0", "link add eth0 type bridge"],
        ["link set eth0 down", "link set eth0 name uplink", "link add eth0 type bridge"],
    ],
)
def test_a_changed_link_is_read_anew(host: Netns, node: Namespace, change: list[str]) -> None:
    before = link_known(node)
    host.batch(*change)
    assert link_known(node) == link_told(host) != before


@pytest.mark.parametrize("mtus", [(1400, 1500), (1400, 1400, 1300)])
def test_a_link_that_changes_time_and_again_is_never_taken_for_what_it_was(
    host: Netns, node: Namespace, mtus: tuple[int, ...]
) -> None:
    for mtu in mtus * 2:
        host.batch(f"link set eth0 mtu {mtu}")
        assert link_known(node) == link_told(host)
        assert link_known(node)[2] == mtu


def test_macvlans_that_come_and_go_on_a_link_cost_no_read(
    host: Netns, node: Namespace, pod: Netns, link_reads: list[str]
) -> None:
    host.batch("link add port type veth peer name other", "link set port up", "link set other up")
    for n in range(10):
        assert link_known(node, "port")[1] == "port"
        host.batch(f"link add link port name net{n} netns {pod.name} type macvlan mode bridge")
        if n % 2:
            pod.batch(f"link del net{n}")
    assert len(link_reads) <= 3  # the first news are compared with nothing, and the carrier comes a moment later
    host.batch("link set port mtu 1400")
    assert link_known(node, "port")[2] == 1400


def test_a_link_that_left_for_another_namespace_is_gone(host: Netns, node: Namespace, pod: Netns) -> None:
    host.batch("link add net1 type veth peer name net1-end")
    assert link_known(node, "net1") != (None,) * 4
    host.batch(f"link set net1 netns {pod.name}")
    assert link_known(node, "net1") == (None,) * 4


def test_an_alternative_name_is_known_as_long_as_it_is_there(host: Netns, node: Namespace) -> None:
    host.batch("link property add dev eth0 altname wire")
    assert link_known(node, "wire") == link_told(host)
    host.batch("link property del dev eth0 altname wire")
    assert link_known(node, "wire") == (None,) * 4


def test_a_link_that_is_missing_is_looked_for_every_time(host: Netns, node: Namespace) -> None:
    assert link_known(node, "late") == (None,) * 4
    host.batch("link add late type bridge")
    assert link_known(node, "late") != (None,) * 4


def test_other_links_are_passed_over(host: Netns, node: Namespace, link_reads: list[str]) -> None:
    link_known(node)
    host.batch("link add other type bridge", "link set other up mtu 1400", "link del other")
    assert link_known(node) == link_told(host)
    assert link_reads == ["eth0"]
