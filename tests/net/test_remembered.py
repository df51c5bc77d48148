"""What is remembered of the node is what a fresh read would say, whoever changed it; nothing is read for nothing."""

from __future__ import annotations

import errno
import os
import socket
import time
from typing import TYPE_CHECKING

import pytest

from underlay.errors import KernelError
from underlay.net import remembered
from underlay.net.netns import Namespace
from underlay.net.remembered import Memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Netns


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


def test_a_kernel_that_could_not_be_listened_to_is_listened_to_the_next_time(
    host: Netns, node: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deaf(socket.socket):
        def bind(self, _address: object) -> None:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with monkeypatch.context() as once:
        once.setattr(remembered, "connect", lambda: Deaf(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE))
        with pytest.raises(KernelError):
            addresses(node)
    assert addresses(node) == {"172.18.0.11/16": "eth0"}
    host.batch("addr del 172.18.0.11/16 dev eth0")
    assert addresses(node) == {}


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
