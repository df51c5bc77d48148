"""rtnetlink's wire format: messages, attributes, error answers. Pure: no sockets here.

    | length u32 | type u16 | flags u16 | sequence u32 | port u32 |  fixed part of the type  |  attributes ...
                                                                    length u16 | type u16 | payload, padded to 4

Sources: include/uapi/linux/netlink.h, Documentation/userspace-api/netlink/intro.rst. Integers are in host order.
"""

from __future__ import annotations

import errno
import struct
import sys
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import TYPE_CHECKING

import msgspec

from underlay.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_ECHO = 0x8
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NLM_F_CAPPED = 0x100  # in an error answer: the request is not repeated in it
NLM_F_ACK_TLVS = 0x200  # in an error answer or NLMSG_DONE: attributes follow

NLMSG_NOOP = 1
NLMSG_ERROR = 2
NLMSG_DONE = 3

NLMSGERR_ATTR_MSG = 1
NLMSGERR_ATTR_MISS_TYPE = 5

_NESTED = 0x8000
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_ORDER = sys.byteorder
_TEXTS = 512  # addresses kept packed: gateways and subnets come again with every pod
_PAD = (b"", b"\0\0\0", b"\0\0", b"\0")  # by length modulo 4

HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ATTRIBUTE_U8 = struct.Struct("=HHBxxx")
_ATTRIBUTE_U32 = struct.Struct("=HHI")
_INT = struct.Struct("=i")


class Malformed(KernelError):
    """Bytes that are no netlink message of the expected form."""

    hint = "The running kernel speaks a netlink dialect that underlay does not know; please report its version."

    def __init__(self, why: str) -> None:
        super().__init__("read a netlink message", errno.EBADMSG, why)


class Message(msgspec.Struct, frozen=True, gc=False):
    """One request, header and sequence number excluded.

    ``body`` is the fixed part and the attributes, padded to 4 bytes. ``what`` names the act for errors; when ``dev``
    (an interface index) is given, the error names that device too, looked up only then.
    """

    type: int
    flags: int
    body: bytes
    what: str | Callable[[], str] = ""
    dev: int = 0

    def act(self) -> str:
        """What the message does, for an error."""
        return self.what if isinstance(self.what, str) else self.what()


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded."""
    size = len(payload)
    return _ATTRIBUTE.pack(size + 4, kind) + payload + _PAD[size & 3]


def attribute_u8(kind: int, value: int) -> bytes:
    """One attribute of one byte (unsigned)."""
    return _ATTRIBUTE_U8.pack(5, kind, value)


def attribute_u32(kind: int, value: int) -> bytes:
    """One attribute of four bytes (unsigned, host order)."""
    return _ATTRIBUTE_U32.pack(8, kind, value)


def attribute_text(kind: int, value: str) -> bytes:
    """One attribute holding a NUL-terminated string."""
    return attribute(kind, value.encode() + b"\0")


def nest(kind: int, payload: bytes) -> bytes:
    """One attribute that holds attributes (NLA_F_NESTED set, as strict checking wants it)."""
    return _ATTRIBUTE.pack(len(payload) + 4, kind | _NESTED) + payload


def attribute_list(data: bytes, offset: int = 0) -> list[tuple[int, bytes]]:
    """All attributes from ``offset`` on, in order. Raises Malformed for a length that lies."""
    found: list[tuple[int, bytes]] = []
    end = len(data)
    while end - offset >= 4:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > end:
            raise Malformed(f"attribute {kind & _TYPE_MASK} claims {length} bytes of {end - offset}")
        found.append((kind & _TYPE_MASK, data[offset + 4 : offset + length]))
        offset += (length + 3) & ~3
    return found


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """The attributes from ``offset`` on by type; of a repeated one the last, as in the kernel. Raises Malformed."""
    found: dict[int, bytes] = {}
    end = len(data)
    header = _ATTRIBUTE.unpack_from
    while end - offset >= 4:  # a link has 40 of them: this loop is most of what reading one costs
        length, kind = header(data, offset)
        if length < 4 or offset + length > end:
            raise Malformed(f"attribute {kind & _TYPE_MASK} claims {length} bytes of {end - offset}")
        found[kind & _TYPE_MASK] = data[offset + 4 : offset + length]
        offset += length + 3 & -4
    return found


def messages(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """The messages of one datagram as (type, flags, sequence, body). Raises Malformed."""
    found: list[tuple[int, int, int, bytes]] = []
    offset, end = 0, len(data)
    while end - offset >= 16:
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
        if length < 16 or offset + length > end:
            raise Malformed(f"message of type {kind} claims {length} bytes of {end - offset}")
        found.append((kind, flags, sequence, data[offset + 16 : offset + length]))
        offset += (length + 3) & ~3
    return found


def error_answer(kind: int, flags: int, body: bytes) -> tuple[int, str]:
    """The (errno, extended ACK text) of an NLMSG_ERROR or NLMSG_DONE; errno 0 is success. Raises Malformed."""
    if len(body) < 4:
        if kind == NLMSG_DONE and not body:
            return 0, ""
        raise Malformed("error answer without an error number")
    number = -_INT.unpack_from(body)[0]
    if number <= 0 or not flags & NLM_F_ACK_TLVS:
        return max(number, 0), ""
    offset = 4
    if kind == NLMSG_ERROR:
        if len(body) < 20:
            raise Malformed("error answer without the request's header")
        offset = 20 if flags & NLM_F_CAPPED else 4 + ((HEADER.unpack_from(body, 4)[0] + 3) & ~3)
    told = attributes(body, offset)
    if NLMSGERR_ATTR_MSG in told:
        return number, text(told[NLMSGERR_ATTR_MSG])
    if NLMSGERR_ATTR_MISS_TYPE in told:
        return number, f"attribute {integer(told[NLMSGERR_ATTR_MISS_TYPE])} is missing"
    return number, ""


def integer(payload: bytes) -> int:
    """An attribute's payload as an unsigned integer of whatever width, host order."""
    return int.from_bytes(payload, _ORDER)


def text(payload: bytes) -> str:
    """An attribute's payload as a string, up to its first NUL."""
    return payload.partition(b"\0")[0].decode(errors="replace")


def fixed(layout: struct.Struct, body: bytes) -> tuple[int, ...]:
    """The fixed part of a message, or of a structure in an attribute. Raises Malformed when it is too short."""
    if len(body) < layout.size:
        raise Malformed(f"{len(body)} bytes where {layout.size} are needed")
    return layout.unpack_from(body)


@lru_cache(_TEXTS)
def pack_address(address: str) -> tuple[int, bytes]:
    """An address as (family, network-order bytes). Raises ValueError naming it."""
    family = AF_INET6 if ":" in address else AF_INET
    try:
        return int(family), inet_pton(family, address)
    except OSError as error:
        raise ValueError(f"{address!r} is no IP address") from error


@lru_cache(_TEXTS)
def pack_cidr(cidr: str) -> tuple[int, bytes, int]:
    """A CIDR as (family, address bytes, prefix length); without a length it is a host's. Raises ValueError."""
    address, slash, length = cidr.partition("/")
    family, packed = pack_address(address)
    widest = len(packed) * 8
    if not slash:
        return family, packed, widest
    if not length.isdecimal() or int(length) > widest:
        raise ValueError(f"{cidr!r} has no prefix length from 0 to {widest}")
    return family, packed, int(length)


def network(packed: bytes, length: int) -> bytes:
    """The address with the host's bits cleared, as the kernel wants a destination to be."""
    spare = len(packed) * 8 - length
    if not spare:
        return packed
    return (int.from_bytes(packed, "big") >> spare << spare).to_bytes(len(packed), "big")


def unpack_address(packed: bytes) -> str:
    """Network-order bytes of either family as text. Raises Malformed for any other length than 4 and 16."""
    if len(packed) == 4:
        return inet_ntop(AF_INET, packed)
    if len(packed) == 16:
        return inet_ntop(AF_INET6, packed)
    raise Malformed(f"an address of {len(packed)} bytes")


def pack_mac(mac: str) -> bytes:
    """A hardware address of 6 bytes, written with colons. Raises ValueError naming it."""
    try:
        packed = bytes.fromhex(mac.replace(":", ""))
    except ValueError as error:
        raise ValueError(f"{mac!r} is no MAC address") from error
    if len(packed) != 6:
        raise ValueError(f"{mac!r} is no MAC address")
    return packed
