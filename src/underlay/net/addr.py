"""IP addresses of devices (linux/if_addr.h)."""

from __future__ import annotations

import struct
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING

import msgspec

from underlay.net.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
    attribute,
    attribute_u32,
    attributes,
    fixed,
    integer,
    pack_cidr,
    text,
    unpack_address,
)

if TYPE_CHECKING:
    from underlay.net.rtnl import Rtnl

RTM_NEWADDR = 20
RTM_DELADDR = 21
RTM_GETADDR = 22

IFA_ADDRESS = 1
IFA_LOCAL = 2
IFA_LABEL = 3
IFA_BROADCAST = 4
IFA_FLAGS = 8

IFA_F_SECONDARY = 0x01
IFA_F_NODAD = 0x02
IFA_F_DADFAILED = 0x08
IFA_F_DEPRECATED = 0x20
IFA_F_TENTATIVE = 0x40
IFA_F_PERMANENT = 0x80

SCOPE_GLOBAL = 0
SCOPE_LINK = 253
SCOPE_HOST = 254

# family u8, prefix length u8, flags u8, scope u8, index u32
_IFADDRMSG = struct.Struct("=BBBBI")


class Addr(msgspec.Struct, frozen=True):
    """One address: ``address`` is the CIDR of the device's own end, ``scope`` 0 global, 253 link, 254 host."""

    index: int
    family: int
    address: str
    scope: int
    flags: int
    label: str = ""

    @property
    def settled(self) -> bool:
        """Whether it can be used: duplicate address detection is neither under way nor failed."""
        return not self.flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED)


def parse(body: bytes) -> Addr:
    """The address in the body of an RTM_NEWADDR. Raises Malformed."""
    family, length, flags, scope, index = fixed(_IFADDRMSG, body)
    told = attributes(body, 8)
    # IFA_ADDRESS is the other end of a point-to-point device; IFA_LOCAL, where there is one, always this end
    own = unpack_address(told.get(IFA_LOCAL) or told.get(IFA_ADDRESS, b""))
    if IFA_FLAGS in told:
        flags = integer(told[IFA_FLAGS])
    return Addr(index, family, f"{own}/{length}", scope, flags, text(told.get(IFA_LABEL, b"")))


def add(index: int, cidr: str, *, nodad: bool = False, broadcast: bool = True) -> Message:
    """Give the device ``index`` an address; EEXIST when it has it already. Raises ValueError for no CIDR.

    ``nodad`` (IPv6): usable at once, for addresses whose uniqueness is known. ``broadcast`` (IPv4): the subnet's last
    address, where the subnet has one. The kernel makes the subnet's route itself, as for `ip addr add`.
    """
    family, packed, length = pack_cidr(cidr)
    v4 = family == AF_INET
    body = _IFADDRMSG.pack(family, length, 0, SCOPE_HOST if v4 and packed[0] == 127 else SCOPE_GLOBAL, index)
    body += attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed)
    if v4 and broadcast and length < 31:
        last = int.from_bytes(packed, "big") | (0xFFFFFFFF >> length)
        body += attribute(IFA_BROADCAST, last.to_bytes(4, "big"))
    if nodad and not v4:
        body += attribute_u32(IFA_FLAGS, IFA_F_NODAD)
    return Message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, body, f"add address {cidr}", index)


def delete(index: int, cidr: str) -> Message:
    """Take an address away; EADDRNOTAVAIL when the device has it not. Raises ValueError for no CIDR."""
    family, packed, length = pack_cidr(cidr)
    body = _IFADDRMSG.pack(family, length, 0, 0, index) + attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed)
    return Message(RTM_DELADDR, 0, body, f"delete address {cidr}", index)


def dump(rtnl: Rtnl, *, family: int = 0, index: int = 0, scope: int | None = None) -> list[Addr]:
    """All addresses, of both families when ``family`` is 0, of one device when ``index`` is given, of one scope when
    ``scope`` is given: a node has hundreds of link-local ones, and looking at a byte is cheaper than parsing them.
    Raises KernelError.
    """
    what = "list addresses"
    families = (family,) if family or not index else (AF_INET, AF_INET6)  # AF_UNSPEC takes no filter by device
    return [
        parse(body)
        for each in families
        for _, body in rtnl.dump(Message(RTM_GETADDR, 0, _IFADDRMSG.pack(each, 0, 0, 0, index), what, index))
        if scope is None or body[3] == scope
    ]
