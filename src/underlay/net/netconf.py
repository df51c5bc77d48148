"""Per-interface settings of the IP stacks, read by one netlink dump instead of a file for each (linux/netconf.h)."""

from __future__ import annotations

import struct
from socket import AF_INET
from typing import TYPE_CHECKING, Literal

import msgspec

from underlay.net.netlink import Malformed, Message

if TYPE_CHECKING:
    from underlay.net.rtnl import Rtnl

RTM_NEWNETCONF = 80
RTM_GETNETCONF = 82

NETCONFA_IFINDEX = 1
NETCONFA_FORWARDING = 2
NETCONFA_RP_FILTER = 3
NETCONFA_PROXY_NEIGH = 5
_ALL = 0xFFFFFFFF  # NETCONFA_IFINDEX_ALL, -1
_DEFAULT = 0xFFFFFFFE  # NETCONFA_IFINDEX_DEFAULT, -2

_NETCONFMSG = struct.Struct("=Bxxx")
_SETTING = struct.Struct("=HHI")

Key = int | Literal["all", "default"]


class NetConf(msgspec.Struct, frozen=True):
    """The settings of one interface: ``key`` is its index, "all" or "default"; ``rp_filter`` (0-2) is of IPv4 only."""

    key: Key
    forwarding: bool
    rp_filter: int
    proxy_neigh: bool


def told(body: bytes) -> dict[int, int]:
    """The body of an RTM_NEWNETCONF, a NETCONFA_ number for each key. Raises Malformed."""
    if len(body) % 8 != 4:
        raise Malformed(f"interface settings of {len(body)} bytes")
    # After the header of 4 bytes all attributes are integers of 4: nodes have hundreds of interfaces, so no slicing.
    return {kind: value for _, kind, value in _SETTING.iter_unpack(body[4:])}


def parse(body: bytes) -> NetConf:
    """The settings in the body of an RTM_NEWNETCONF. Raises Malformed."""
    settings = told(body)
    index = settings.get(NETCONFA_IFINDEX, 0)
    return NetConf(
        key="all" if index == _ALL else "default" if index == _DEFAULT else index,
        forwarding=bool(settings.get(NETCONFA_FORWARDING)),
        rp_filter=settings.get(NETCONFA_RP_FILTER, 0),
        proxy_neigh=bool(settings.get(NETCONFA_PROXY_NEIGH)),
    )


def dump(rtnl: Rtnl, family: int = AF_INET) -> list[NetConf]:
    """The settings of all interfaces, ``all`` and ``default`` included. Raises KernelError."""
    return [parse(body) for body in _bodies(rtnl, family)]


def _bodies(rtnl: Rtnl, family: int) -> list[bytes]:
    message = Message(RTM_GETNETCONF, 0, _NETCONFMSG.pack(family), "list interface settings")
    return [body for _, body in rtnl.dump(message)]


def rp_filter_other_than(rtnl: Rtnl, value: int) -> dict[Key, int]:
    """net.ipv4.conf.*.rp_filter (0 off, 1 strict, 2 loose) by interface index, "all", "default", where it is not
    ``value``. Raises KernelError.

    A node has an interface for each pod, and nearly all have the value: they are passed over by one search in bytes.
    Nothing else in such a message can look like the attribute: lengths are 8, types below 16, flags 0 or 1.
    """
    has_it = _SETTING.pack(_SETTING.size, NETCONFA_RP_FILTER, value)
    others = (parse(body) for body in _bodies(rtnl, AF_INET) if has_it not in body)
    return {conf.key: conf.rp_filter for conf in others}
