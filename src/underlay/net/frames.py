"""Ethernet frames of ARP and IPv6 neighbour discovery: built and taken apart. Pure.

Sources: RFC 826, RFC 5227 (ARP), RFC 4861 sections 4.3 and 4.4 (NDP), RFC 2464 section 7 (IPv6 multicast MACs).
"""

from __future__ import annotations

import struct

import msgspec

ETH_P_ARP = 0x0806
ETH_P_IPV6 = 0x86DD

_BROADCAST = b"\xff" * 6
_ALL_NODES = bytes.fromhex("ff020000000000000000000000000001")
ALL_NODES_MAC = bytes.fromhex("333300000001")
_SOLICITED = bytes.fromhex("ff0200000000000000000001ff")
_UNSPECIFIED = bytes(16)
_ICMPV6 = 58
_SOLICITATION = 135
_ADVERTISEMENT = 136
_OVERRIDE = 0x20000000

_ARP = struct.Struct("!6s6sHHHBBH6s4s6s4s")
_IPV6 = struct.Struct("!6s6sHIHBB16s16s")
_ICMP_AT = 14 + 40
_ARP_SIZE = 42
_SHORTEST_ND = _ICMP_AT + 24


class Claim(msgspec.Struct, frozen=True):
    """What a received frame says: the host of ``mac`` has ``address``, or is itself probing for it."""

    address: bytes
    mac: bytes


def arp(mac: bytes, *, sender: bytes, target: bytes) -> bytes:
    """A broadcast ARP request; with ``sender`` 0.0.0.0 a probe, with both equal an announcement (RFC 5227)."""
    return _ARP.pack(_BROADCAST, mac, ETH_P_ARP, 1, 0x0800, 6, 4, 1, mac, sender, bytes(6), target)


def solicitation(mac: bytes, target: bytes) -> bytes:
    """A neighbour solicitation from :: as duplicate address detection sends it (RFC 4862 section 5.4.2)."""
    group = solicited_node(target)
    return _icmpv6(mac, _UNSPECIFIED, group, struct.pack("!BxHI16s", _SOLICITATION, 0, 0, target))


def advertisement(mac: bytes, target: bytes) -> bytes:
    """An unsolicited neighbour advertisement to all nodes, with the override flag."""
    body = struct.pack("!BxHI16sBB6s", _ADVERTISEMENT, 0, _OVERRIDE, target, 2, 1, mac)
    return _icmpv6(mac, target, _ALL_NODES, body)


def solicited_node(target: bytes) -> bytes:
    """The solicited-node multicast address of an IPv6 address (RFC 4291 section 2.7.1)."""
    return _SOLICITED + target[13:]


def multicast_mac(group: bytes) -> bytes:
    """The MAC address that an IPv6 multicast address is sent to."""
    return b"\x33\x33" + group[12:]


def _icmpv6(mac: bytes, source: bytes, group: bytes, body: bytes) -> bytes:
    pseudo = source + group + struct.pack("!IxxxB", len(body), _ICMPV6)
    summed = struct.pack("!H", _checksum(pseudo + body))
    head = _IPV6.pack(multicast_mac(group), mac, ETH_P_IPV6, 0x60000000, len(body), _ICMPV6, 255, source, group)
    return head + body[:2] + summed + body[4:]


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def arp_claim(frame: bytes) -> Claim | None:
    """Who claims which IPv4 address by this frame: an ARP packet's sender, or a probe's target; None: no ARP."""
    if len(frame) < _ARP_SIZE:
        return None
    _, _, kind, hardware, protocol, hw_size, size, _, mac, sender, _, target = _ARP.unpack_from(frame)
    if kind != ETH_P_ARP or (hardware, protocol, hw_size, size) != (1, 0x0800, 6, 4):
        return None
    return Claim(sender if any(sender) else target, mac)


def nd_claim(frame: bytes) -> Claim | None:
    """Who claims which IPv6 address by this frame; None for frames that claim none.

    An advertisement claims its target; a solicitation from :: probes for its target; any other solicitation says
    nothing but that its source is in use.
    """
    if len(frame) < _SHORTEST_ND:
        return None
    _, mac, kind, _, length, following, hops, source, _ = _IPV6.unpack_from(frame)
    # 255 hops: it was not forwarded, so it comes from this wire (RFC 4861 section 7.1)
    if kind != ETH_P_IPV6 or following != _ICMPV6 or hops != 255 or len(frame) < _ICMP_AT + length:
        return None
    target = frame[_ICMP_AT + 8 : _ICMP_AT + 24]
    if frame[_ICMP_AT] == _ADVERTISEMENT:
        return Claim(target, mac)
    if frame[_ICMP_AT] == _SOLICITATION:
        return Claim(target if source == _UNSPECIFIED else source, mac)
    return None
