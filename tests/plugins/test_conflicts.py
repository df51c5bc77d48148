"""ip_conflict of veth and router: who is asked, in which order, and what a refusal leaves. A real host answers."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.plugins.conftest import Conf, Node, Tap, macvlan, meta

from underlay.errors import AddressInUse, DeadlineExceeded

if TYPE_CHECKING:
    from tests.conftest import Netns

V4, V6 = "172.18.7.5/16", "fd00:18::7:5/64"
UNKNOWN_V4 = bytes(4)
UNKNOWN_V6 = bytes(16)


def is_arp_probe(frame: bytes) -> bool:
    """For 172.18.7.5, from a host that has no address yet (RFC 5227)."""
    return frame[12:14] == b"\x08\x06" and frame[28:32] == UNKNOWN_V4 and frame[38:42] == socket.inet_aton("172.18.7.5")


def is_ndp_probe(frame: bytes) -> bool:
    """For fd00:18::7:5, from a host that has no address yet (RFC 4862)."""
    wanted = socket.inet_pton(socket.AF_INET6, "fd00:18::7:5")
    return frame[12:14] == b"\x86\xdd" and frame[54] == 135 and frame[22:38] == UNKNOWN_V6 and frame[62:78] == wanted


def asking(interval: str, retries: int | None = None, **more: Any) -> Conf:
    return {"ip_conflict": {"enabled": True, "interval": interval} | ({"retries": retries} if retries else {})} | more


@pytest.mark.parametrize("kind", ["veth", "router"])
@pytest.mark.parametrize("taken", [V4, V6])
def test_both_families_are_asked_at_once_and_the_first_answer_ends_it(
    node: Node, overlay: Netns, lan: Netns, kind: str, taken: str
) -> None:
    """One round is an hour: asked one after the other, the later family's answer would come after the deadline."""
    lan.batch(f"addr add {taken} dev br0" + (" nodad" if ":" in taken else ""))
    mac = lan.link("br0")["address"]
    error = node.refused(overlay, "net1", macvlan(V4, V6), meta(kind, **asking("1h", 1)))
    assert isinstance(error, AddressInUse)
    assert error.code == 104
    assert error.message == f"the address {taken.partition('/')[0]} of net1 is in use by {mac}"


@pytest.mark.parametrize("prefix", ["", "0a:1b"])
def test_a_refusal_puts_the_hardware_address_and_the_addresses_back(
    node: Node, pod: Netns, lan: Netns, prefix: str
) -> None:
    lan.batch(f"addr add {V4} dev br0")
    for _ in range(2):
        assert node.refused(pod, "eth0", macvlan(V4), meta("veth", mac_prefix=prefix, **asking("1h"))).code == 104
    lan.batch(f"addr del {V4} dev br0")
    node.add(pod, "eth0", macvlan(V4), meta("veth", mac_prefix=prefix, **asking("10ms", 1)))


def test_free_addresses_are_asked_for_as_often_as_told_in_both_families(node: Node, pod: Netns, wire: Tap) -> None:
    node.add(pod, "eth0", macvlan(V4, V6), meta("veth", **asking("20ms", 4)))
    # beacon: sent when all is over, so what came before it is all there is
    assert pod.pings("172.18.0.1")
    frames = wire.until_the(lambda frame: frame[12:14] == b"\x08\x00" and frame[23] == 1)
    assert (sum(map(is_arp_probe, frames)), sum(map(is_ndp_probe, frames))) == (4, 4)


def test_nobody_is_told_of_an_address_before_it_is_known_to_be_free(node: Node, pod: Netns, wire: Tap) -> None:
    """Of what veth announces: the hardware address that it has made."""
    node.add(pod, "eth0", macvlan(V4), meta("veth", mac_prefix="0a:1b", **asking("10ms", 1)))
    own = bytes.fromhex("0a1bac120705")
    frames = wire.until_the(lambda frame: frame[6:14] == own + b"\x08\x06" and frame[28:32] == frame[38:42])
    assert any(map(is_arp_probe, frames))


@pytest.mark.parametrize("conflict", [{}, {"enabled": False, "interval": "1h"}])
def test_without_enabled_nobody_is_asked(node: Node, pod: Netns, lan: Netns, conflict: Conf) -> None:
    lan.batch(f"addr add {V4} dev br0")
    node.add(pod, "eth0", macvlan(V4), meta("veth", ip_conflict=conflict))


def test_the_deadline_ends_the_asking_and_all_is_put_back(node: Node, pod: Netns) -> None:
    soon = time.monotonic() + 0.3
    error = node.refused(pod, "eth0", macvlan(V4), meta("veth", **asking("1h")), deadline=soon)
    assert isinstance(error, DeadlineExceeded)
    assert error.code == 11


def test_another_nic_of_the_same_pod_is_no_other_host(node: Node, pod: Netns) -> None:
    """Its own addresses are another matter than the NIC's; only what it has itself would be one."""
    node.add(pod, "eth0", macvlan(V4, V6), meta("veth"))
    node.add(pod, "net1", macvlan("172.18.7.6/16", "fd00:18::7:6/64"), meta("veth", **asking("30ms", 2)))


def test_an_address_of_the_node_itself_is_refused(node: Node, pod: Netns) -> None:
    for conf in (meta("veth"), meta("veth", **asking("10ms", 1))):
        error = node.refused(pod, "eth0", macvlan("172.18.0.11/16"), conf)
        assert isinstance(error, AddressInUse)
        assert "172.18.0.11" in error.message
