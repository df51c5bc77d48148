"""Neighbour (ARP and NDP) entries (linux/neighbour.h)."""

from __future__ import annotations

import struct
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING

import msgspec

from underlay.net.netlink import (
    NLM_F_CREATE,
    NLM_F_REPLACE,
    Message,
    attribute,
    attribute_u8,
    attribute_u32,
    attributes,
    fixed,
    integer,
    pack_address,
    pack_mac,
    unpack_address,
)
from underlay.net.route import PROTOCOL

if TYPE_CHECKING:
    from underlay.net.rtnl import Rtnl

RTM_NEWNEIGH = 28
RTM_DELNEIGH = 29
RTM_GETNEIGH = 30

NDA_DST = 1
NDA_LLADDR = 2
NDA_IFINDEX = 8
NDA_PROTOCOL = 12

NUD_PERMANENT = 0x80

# family u8, pad, index s32, state u16, flags u8, type u8
_NDMSG = struct.Struct("=BxxxiHBB")
_IP = (bytes((AF_INET,)), bytes((AF_INET6,)))  # an unspecific dump also lists other protocols' tables
_OURS = attribute_u8(NDA_PROTOCOL, PROTOCOL)


class Neighbour(msgspec.Struct, frozen=True):
    """One entry: ``mac`` is "" while unknown, ``state`` the NUD_* bits."""

    index: int
    family: int
    address: str
    mac: str
    state: int
    protocol: int = 0

    @property
    def permanent(self) -> bool:
        """Whether it was set by hand and never expires."""
        return bool(self.state & NUD_PERMANENT)


def parse(body: bytes) -> Neighbour:
    """The entry in the body of an RTM_NEWNEIGH. Raises Malformed."""
    family, index, state, _, _ = fixed(_NDMSG, body)
    told = attributes(body, 12)
    return Neighbour(
        index=index,
        family=family,
        address=unpack_address(told.get(NDA_DST, b"")),
        mac=told.get(NDA_LLADDR, b"").hex(":"),
        state=state,
        protocol=integer(told.get(NDA_PROTOCOL, b"")),
    )


def replace(*, index: int, address: str, mac: str) -> Message:
    """Set a permanent entry, in place of any other for that address. Raises ValueError for a bad address or MAC."""
    family, packed = pack_address(address)
    body = _NDMSG.pack(family, index, NUD_PERMANENT, 0, 0) + attribute(NDA_DST, packed)
    body += attribute(NDA_LLADDR, pack_mac(mac)) + _OURS
    return Message(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body, f"set neighbour {address} lladdr {mac}", index)


def delete(index: int, address: str) -> Message:
    """Delete an entry; ENOENT when there is none. Raises ValueError for a bad address."""
    family, packed = pack_address(address)
    body = _NDMSG.pack(family, index, 0, 0, 0) + attribute(NDA_DST, packed)
    return Message(RTM_DELNEIGH, 0, body, f"delete neighbour {address}", index)


def get_message(index: int, address: str) -> Message:
    """The get of one entry, for :meth:`Rtnl.requests`; ENOENT when there is none."""
    family, packed = pack_address(address)
    body = _NDMSG.pack(family, index, 0, 0, 0) + attribute(NDA_DST, packed)
    return Message(RTM_GETNEIGH, 0, body, f"find neighbour {address}", index)


def dump(rtnl: Rtnl, *, index: int = 0, family: int = 0) -> list[Neighbour]:
    """All IP entries, of both families when ``family`` is 0, of one device when ``index`` is given.

    Raises KernelError.
    """
    wanted = attribute_u32(NDA_IFINDEX, index) if index else b""
    head = _NDMSG.pack(family, 0, 0, 0, 0)
    found = rtnl.dump(Message(RTM_GETNEIGH, 0, head + wanted, "list neighbours", index))
    return [parse(body) for _, body in found if body[:1] in _IP]
