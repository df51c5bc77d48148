"""Requests made of a route as the kernel dumped it: the same one in another table, no longer, or again.

What only tells a state is left out of them, and whatever else the route has goes along, known to us or not.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from underlay.net import route
from underlay.net.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
    attribute,
    attribute_list,
    attribute_u32,
    fixed,
    integer,
    nest,
)

if TYPE_CHECKING:
    from underlay.net.route import Route

# The other flags of a dump tell a state (dead, linkdown, offloaded) and are refused or meaningless in a request.
_LASTING_FLAGS = route.RTNH_F_PERVASIVE | route.RTNH_F_ONLINK
_OF_NEXT_HOPS = {route.RTA_OIF, route.RTA_GATEWAY, route.RTA_VIA, route.RTA_MULTIPATH, route.RTA_ENCAP}
_USER_HZ = 100
_CACHEINFO = struct.Struct("=IIi")  # clntref, lastuse, expires (in USER_HZ; IPv6 routes from router advertisements)


def copy(found: Route, *, table: int, protocol: int | None = None) -> Message:
    """The same route in another table, as ours (or of ``protocol``); EEXIST when it is there."""
    body = _rebuild(found.raw, table=table, protocol=route.PROTOCOL if protocol is None else protocol)
    what = route.describe("copy", found.dst, found.gateway, table)
    return Message(route.RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, body, what, found.dev)


def remove(found: Route) -> Message:
    """Delete exactly that route, whosever it is; ESRCH when it is gone."""
    what = route.describe("remove", found.dst, found.gateway, found.table)
    return Message(route.RTM_DELROUTE, 0, _rebuild(found.raw), what, found.dev)


def put(raw: bytes, dev: int) -> Message:
    """Add a route again from ``Route.raw``, on the device of index ``dev``; EEXIST when that very route is there.

    Another route of the same destination and priority does not hinder it, as it may be about to go with its link.
    Next hops of a multipath route on other devices than the first one's stay there. Raises Malformed.
    """
    found = route.parse(raw)
    body = _rebuild(raw, dev=dev)
    what = route.describe("put back", found.dst, found.gateway, found.table)
    return Message(route.RTM_NEWROUTE, NLM_F_CREATE, body, what, dev)


def _rebuild(raw: bytes, *, table: int | None = None, protocol: int | None = None, dev: int = 0) -> bytes:
    """A request's body out of a dumped one: what only tells a state is left out, the given parts are put in."""
    family, dst_len, src_len, tos, old_table, old_protocol, scope, kind, flags = fixed(route.RTMSG, raw)
    told = attribute_list(raw, route.RTMSG.size)
    kinds = {number for number, _ in told}
    if route.RTA_NH_ID in kinds:  # the dump spells a next hop object out, a request may only name it
        told = [part for part in told if part[0] not in _OF_NEXT_HOPS]
    if table is None:
        table = next((integer(payload) for number, payload in told if number == route.RTA_TABLE), old_table)
    if protocol is None:
        protocol = old_protocol
    head = route.RTMSG.pack(
        family, dst_len, src_len, tos, table if table < 256 else 0, protocol, scope, kind, flags & _LASTING_FLAGS
    )
    body = head + attribute_u32(route.RTA_TABLE, table)
    return body + b"".join(_rebuild_part(number, payload, dev) for number, payload in told)


def _rebuild_part(kind: int, payload: bytes, dev: int) -> bytes:
    if kind == route.RTA_TABLE:
        return b""
    if kind == route.RTA_OIF and dev:
        return attribute_u32(route.RTA_OIF, dev)
    if kind == route.RTA_CACHEINFO:
        expires = fixed(_CACHEINFO, payload)[2]
        return attribute_u32(route.RTA_EXPIRES, max(1, expires // _USER_HZ)) if expires > 0 else b""
    if kind == route.RTA_MULTIPATH:
        return attribute(route.RTA_MULTIPATH, _rebuild_nexthops(payload, dev))
    if kind in (route.RTA_METRICS, route.RTA_ENCAP):
        return nest(kind, payload + bytes(-len(payload) % 4))
    return attribute(kind, payload)


def _rebuild_nexthops(payload: bytes, dev: int) -> bytes:
    nexthops = route.split_nexthops(payload)
    first = nexthops[0][2] if nexthops else 0
    return b"".join(
        route.RTNEXTHOP.pack(
            route.RTNEXTHOP.size + len(parts), flags & _LASTING_FLAGS, hops, dev if dev and old == first else old
        )
        + parts
        for flags, hops, old, parts in nexthops
    )
