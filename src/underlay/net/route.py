"""Routes of both families (linux/rtnetlink.h, ip-route(8)).

Ours carry rtm_protocol PROTOCOL, so that undoing never takes away somebody else's.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING

import msgspec

from underlay.errors import KernelError
from underlay.net.netlink import (
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Malformed,
    Message,
    attribute,
    attribute_u32,
    attributes,
    fixed,
    integer,
    nest,
    network,
    pack_address,
    pack_cidr,
    unpack_address,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from underlay.net.rtnl import Rtnl

RTM_NEWROUTE = 24
RTM_DELROUTE = 25
RTM_GETROUTE = 26

PROTOCOL = 117
MAIN = 254
LOCAL = 255

RTA_DST = 1
RTA_OIF = 4
RTA_GATEWAY = 5
RTA_PRIORITY = 6
RTA_PREFSRC = 7
RTA_METRICS = 8
RTA_MULTIPATH = 9
RTA_CACHEINFO = 12
RTA_TABLE = 15
RTA_VIA = 18
RTA_ENCAP = 22
RTA_EXPIRES = 23
RTA_NH_ID = 30
RTAX_MTU = 2
RTAX_ADVMSS = 8

SCOPE_GLOBAL = 0
SCOPE_LINK = 253
SCOPE_NOWHERE = 255  # in a deletion: of whatever scope
TYPE_UNICAST = 1

RTNH_F_PERVASIVE = 2
RTNH_F_ONLINK = 4
_RTM_F_LOOKUP_TABLE = 0x1000

# family, dst_len, src_len, tos, table, protocol, scope, type: u8 each; flags u32
RTMSG = struct.Struct("=BBBBBBBBI")
# length u16, flags u8, hops u8, interface index s32
RTNEXTHOP = struct.Struct("=HBBi")
_ENOENT = 2
_KEPT = 512  # kept built: the routes of a network come again with every pod
_ZERO = ("0.0.0.0", "::")  # noqa: S104 - the default route's destination


class NextHop(msgspec.Struct, frozen=True):
    """One way of a multipath route; ``weight`` counts from 1."""

    dev: int
    gateway: str = ""
    weight: int = 1


class Route(msgspec.Struct, frozen=True):
    """One route.

    ``dst`` is a CIDR, "0.0.0.0/0" or "::/0" for the default route; ``dev`` an interface index, of a multipath route
    its first next hop's; ``gateway`` and ``src`` (preferred source) may be ""; ``metrics`` are RTAX_* attributes and
    ``raw`` the whole message body, as dumped, for :func:`put`.
    """

    family: int
    dst: str
    table: int
    gateway: str
    dev: int
    src: str
    scope: int
    type: int
    protocol: int
    priority: int
    metrics: bytes
    nexthops: tuple[NextHop, ...]
    raw: bytes

    @property
    def is_default(self) -> bool:
        """Whether it is a default route."""
        return self.dst.endswith("/0")

    @property
    def mtu(self) -> int:
        """The route's own MTU in bytes, 0 for the device's."""
        return integer(attributes(self.metrics).get(RTAX_MTU, b""))

    @property
    def advmss(self) -> int:
        """The advertised maximum segment size in bytes, 0 for the kernel's choice."""
        return integer(attributes(self.metrics).get(RTAX_ADVMSS, b""))


def parse(body: bytes) -> Route:
    """The route in the body of an RTM_NEWROUTE. Raises Malformed."""
    family, dst_len, _, _, table, protocol, scope, kind, _ = fixed(RTMSG, body)
    told = attributes(body, 12)
    nexthops = _parse_nexthops(told[RTA_MULTIPATH]) if RTA_MULTIPATH in told else ()
    dev = integer(told[RTA_OIF]) if RTA_OIF in told else nexthops[0].dev if nexthops else 0
    return Route(
        family=family,
        dst=f"{_address(told, RTA_DST) or _ZERO[family == AF_INET6]}/{dst_len}",
        table=integer(told[RTA_TABLE]) if RTA_TABLE in told else table,
        gateway=_gateway(told),
        dev=dev,
        src=_address(told, RTA_PREFSRC),
        scope=scope,
        type=kind,
        protocol=protocol,
        priority=integer(told.get(RTA_PRIORITY, b"")),
        metrics=told.get(RTA_METRICS, b""),
        nexthops=nexthops,
        raw=body,
    )


def _address(told: dict[int, bytes], kind: int) -> str:
    packed = told.get(kind)
    return unpack_address(packed) if packed else ""


def _gateway(told: dict[int, bytes]) -> str:
    if RTA_VIA in told:  # an IPv4 route by way of an IPv6 neighbour: family u16, address
        return unpack_address(told[RTA_VIA][2:])
    return _address(told, RTA_GATEWAY)


def _parse_nexthops(payload: bytes) -> tuple[NextHop, ...]:
    return tuple(
        NextHop(dev=dev, gateway=_gateway(attributes(parts)), weight=hops + 1)
        for _, hops, dev, parts in split_nexthops(payload)
    )


def split_nexthops(payload: bytes) -> list[tuple[int, int, int, bytes]]:
    """Each next hop as (flags, hops, device, attributes)."""
    found: list[tuple[int, int, int, bytes]] = []
    offset = 0
    while len(payload) - offset >= RTNEXTHOP.size:
        length, flags, hops, dev = RTNEXTHOP.unpack_from(payload, offset)
        if length < RTNEXTHOP.size or offset + length > len(payload):
            raise Malformed(f"next hop claims {length} bytes of {len(payload) - offset}")
        found.append((flags, hops, dev, payload[offset + RTNEXTHOP.size : offset + length]))
        offset += (length + 3) & ~3
    return found


def add(  # noqa: PLR0913 - the parts of a route, all by keyword
    dst: str,
    *,
    dev: int,
    via: str = "",
    table: int = MAIN,
    scope: int | None = None,
    src: str = "",
    onlink: bool = False,
    mtu: int = 0,
    advmss: int = 0,
    priority: int = 0,
    replace: bool = False,
    append: bool = False,
    protocol: int = PROTOCOL,
) -> Message:
    """Add a unicast route; EEXIST when there is one of that destination, table and priority.

    ``scope`` None: link without a gateway, global with one (IPv6 knows no scope). ``onlink``: the gateway is a
    neighbour although no route says so. ``replace`` puts it in place of an existing one, ``append`` beside it.
    ``priority`` 0 is the kernel's choice (0, IPv6: 1024). Raises ValueError for a bad address.
    """
    body, what = _built(dst, via, table, scope, src, onlink, mtu, advmss, priority, protocol)
    flags = NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_APPEND if append else NLM_F_EXCL)
    return Message(RTM_NEWROUTE, flags, body + attribute_u32(RTA_OIF, dev), what, dev)


@lru_cache(_KEPT)
def _built(  # noqa: PLR0913 - what :func:`add` is told, but for the device: the same for every pod
    dst: str, via: str, table: int, scope: int | None, src: str, onlink: bool, mtu: int, advmss: int, priority: int,
    protocol: int,
) -> tuple[bytes, str]:  # fmt: skip
    family, packed, length = pack_cidr(dst)
    if scope is None:
        scope = SCOPE_LINK if family == AF_INET and not via else SCOPE_GLOBAL
    body = _destination(
        family, network(packed, length), length, table, (protocol, scope, TYPE_UNICAST, RTNH_F_ONLINK if onlink else 0)
    )
    if via:
        body += _via(family, via)
    if src:
        body += attribute(RTA_PREFSRC, pack_address(src)[1])
    if priority:
        body += attribute_u32(RTA_PRIORITY, priority)
    metrics = attribute_u32(RTAX_MTU, mtu) if mtu else b""
    if advmss:
        metrics += attribute_u32(RTAX_ADVMSS, advmss)
    if metrics:
        body += nest(RTA_METRICS, metrics)
    return body, describe("add", dst, via, table)


def add_multipath(dst: str, nexthops: Sequence[NextHop], *, table: int = MAIN, protocol: int = PROTOCOL) -> Message:
    """Add a route that shares its traffic between next hops; EEXIST and ValueError as :func:`add`."""
    family, packed, length = pack_cidr(dst)
    ways = [(nexthop, _via(family, nexthop.gateway) if nexthop.gateway else b"") for nexthop in nexthops]
    hops = b"".join(
        RTNEXTHOP.pack(RTNEXTHOP.size + len(via), 0, nexthop.weight - 1, nexthop.dev) + via for nexthop, via in ways
    )
    rest = (protocol, SCOPE_GLOBAL, TYPE_UNICAST, 0)
    body = _destination(family, network(packed, length), length, table, rest) + attribute(RTA_MULTIPATH, hops)
    what = describe("add", dst, " and ".join(nexthop.gateway for nexthop in nexthops), table)
    return Message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, body, what, nexthops[0].dev)


def delete(dst: str, *, dev: int = 0, via: str = "", table: int = MAIN, protocol: int = PROTOCOL) -> Message:
    """Delete the first matching route; ESRCH when there is none.

    ``dev`` 0 and ``via`` "" match any; ``protocol`` 0 matches anybody's. Raises ValueError for a bad address.
    """
    family, packed, length = pack_cidr(dst)
    body = _destination(family, network(packed, length), length, table, (protocol, SCOPE_NOWHERE, 0, 0))
    if dev:
        body += attribute_u32(RTA_OIF, dev)
    if via:
        body += _via(family, via)
    return Message(RTM_DELROUTE, 0, body, describe("delete", dst, via, table), dev)


def _destination(family: int, packed: bytes, length: int, table: int, rest: tuple[int, int, int, int]) -> bytes:
    """The fixed part, table and destination; ``rest`` is protocol, scope, type, flags."""
    head = RTMSG.pack(family, length, 0, 0, table if table < 256 else 0, *rest)
    head += attribute_u32(RTA_TABLE, table)
    return head + attribute(RTA_DST, packed) if length else head


def _via(family: int, gateway: str) -> bytes:
    own, packed = pack_address(gateway)
    if own == family:
        return attribute(RTA_GATEWAY, packed)
    return attribute(RTA_VIA, struct.pack("=H", own) + packed)


def describe(verb: str, dst: str, via: str, table: int) -> str:
    """A change of a route in words, for a message's ``what``."""
    text = f"{verb} route {dst} via {via}" if via else f"{verb} route {dst}"
    return text if table == MAIN else f"{text} table {table}"


def dump(rtnl: Rtnl, *, family: int, table: int | None = None, dev: int = 0) -> list[Route]:
    """The routes of AF_INET or AF_INET6 (0: both), of one table and device when given; else of all, local included.

    The kernel filters; a table that does not exist is empty. A multipath route is found by its first device alone.
    Raises KernelError.
    """
    if not family:
        return dump(rtnl, family=AF_INET, table=table, dev=dev) + dump(rtnl, family=AF_INET6, table=table, dev=dev)
    wanted = table or 0
    body = RTMSG.pack(family, 0, 0, 0, wanted if wanted < 256 else 0, 0, 0, 0, 0)
    if wanted:
        body += attribute_u32(RTA_TABLE, wanted)
    try:
        found = rtnl.dump(Message(RTM_GETROUTE, 0, body, "list routes"))
    except KernelError as error:
        if error.errno == _ENOENT:
            return []
        raise
    routes = [parse(each) for _, each in found]
    return [route for route in routes if route.dev == dev] if dev else routes


def default_routes(rtnl: Rtnl, family: int) -> list[Route]:
    """The default routes of table main, best first; on a node with hundreds of routes only they are parsed.

    ``family`` is AF_INET or AF_INET6. Raises KernelError.
    """
    body = RTMSG.pack(family, 0, 0, 0, MAIN, 0, 0, 0, 0) + attribute_u32(RTA_TABLE, MAIN)
    found = rtnl.dump(Message(RTM_GETROUTE, 0, body, "list routes"))
    routes = [parse(each) for _, each in found if not each[1]]
    return sorted((one for one in routes if one.type == TYPE_UNICAST), key=lambda one: one.priority)


def lookup(rtnl: Rtnl, address: str) -> Route:
    """Which way a packet to ``address`` takes (`ip route get`): ``src`` is its source.

    Raises KernelError when it is unreachable.
    """
    return parse(rtnl.request(lookup_message(address)))


def lookups(rtnl: Rtnl, addresses: Sequence[str]) -> list[Route | None]:
    """:func:`lookup` of several in one send; None for what is unreachable."""
    answers = rtnl.requests([lookup_message(address) for address in addresses])
    return [looked_up(answer) for answer in answers]


def looked_up(answer: bytes | KernelError) -> Route | None:
    """The answer to a :func:`lookup_message`: the route, None for what is unreachable."""
    return parse(answer) if isinstance(answer, bytes) else None


def lookup_message(address: str) -> Message:
    """The get of the route that the kernel would take to an address; for :meth:`Rtnl.requests`."""
    family, packed = pack_address(address)
    flags = _RTM_F_LOOKUP_TABLE if family == AF_INET else 0  # IPv6 refuses the flag, and tells the table without it
    body = RTMSG.pack(family, len(packed) * 8, 0, 0, 0, 0, 0, 0, flags) + attribute(RTA_DST, packed)
    return Message(RTM_GETROUTE, 0, body, f"find the route to {address}")
