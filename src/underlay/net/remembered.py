"""What was read of the node's namespace, for as long as the kernel tells of no change (rtnetlink(7), multicast groups).

    ADD ─▶ addresses(host, …) ─▶ what has the kernel told since? ─▶ nothing: as read before
                                                                └▶ an address, a renamed device: read anew

The kernel puts its news into a socket's queue while it makes the change, so whoever looks into the queue first knows as
much as by reading (but for an IPv6 address, of which it tells a moment later, from a work queue: addrconf_dad_work). A
pod's own veth end tells of itself too: what does not touch what was read is passed over.
Budget: 3 µs where nothing was told, where a read costs 100 µs and more with every interface of the node.
"""

from __future__ import annotations

import errno
import socket
import threading
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Final

from underlay.errors import KernelError
from underlay.net import addr, link, netconf
from underlay.net.netlink import HEADER
from underlay.net.rtnl import connect

if TYPE_CHECKING:
    from collections.abc import Collection

    from underlay.net.addr import Addr
    from underlay.net.netns import Namespace

_GROUPS: Final = (5, 9, 24)  # RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV4_NETCONF
_EVENT_SPACE: Final = 8 << 10
_SCOPE: Final = HEADER.size + 3  # struct ifaddrmsg: family, prefix length, flags, scope
_FAMILIES: Final = {4: AF_INET, 6: AF_INET6}

Owners = tuple[tuple["Addr", ...], dict[int, str]]


class Memory:
    """Of one namespace, which all who ask have open. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._addresses: dict[tuple[int, ...], Owners] = {}
        self._rp_filter: dict[int, dict[netconf.Key, int]] = {}

    def close(self) -> None:
        """Close the socket."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def addresses(self, ns: Namespace, families: Collection[int]) -> Owners:
        """See :func:`addresses`."""
        key = tuple(families)
        with self._lock:
            self._hear(ns)
            known = self._addresses.get(key)
            if known is None:
                known = self._addresses[key] = _read_addresses(ns, key)
            return known

    def rp_filter_other_than(self, ns: Namespace, value: int) -> dict[netconf.Key, int]:
        """See :func:`rp_filter_other_than`."""
        with self._lock:
            self._hear(ns)
            known = self._rp_filter.get(value)
            if known is None:
                known = self._rp_filter[value] = netconf.rp_filter_other_than(ns.rtnl, value)
            return known

    def _hear(self, ns: Namespace) -> None:
        """Forget what the news are about. They come before a read, so what changes after that will be heard."""
        while True:
            if self._socket is None:
                self._listen(ns)
            assert self._socket is not None, "it was opened just now"
            try:
                news = self._socket.recv(_EVENT_SPACE, socket.MSG_DONTWAIT)
            except OSError as error:
                if error.errno == errno.EAGAIN:
                    return
                self._socket.close()  # ENOBUFS: there was more than the queue holds
                self._socket = None
                continue
            kind = HEADER.unpack_from(news)[1]
            if kind in (addr.RTM_NEWADDR, addr.RTM_DELADDR):
                if news[_SCOPE] == addr.SCOPE_GLOBAL:
                    self._addresses.clear()
            elif kind == netconf.RTM_NEWNETCONF:
                self._hear_setting(netconf.told(news[HEADER.size :]))

    def _hear_setting(self, told: dict[int, int]) -> None:
        """A device that was made or renamed, or one setting of it."""
        value = told.get(netconf.NETCONFA_RP_FILTER)
        if value is None:
            return
        for wanted in [wanted for wanted, other in self._rp_filter.items() if other or wanted != value]:
            del self._rp_filter[wanted]
        device = told.get(netconf.NETCONFA_IFINDEX, 0)
        for families in [families for families, (_, names) in self._addresses.items() if device in names]:
            del self._addresses[families]

    def _listen(self, ns: Namespace) -> None:
        """From now on; what was known before is as good as nothing."""
        self._addresses.clear()
        self._rp_filter.clear()
        try:
            with ns.entered():
                made = connect()
            try:
                made.bind((0, sum(1 << group - 1 for group in _GROUPS)))
            except OSError:
                made.close()  # it would never hear anything
                raise
        except OSError as error:
            raise KernelError("listen to what the kernel tells of its interfaces", error.errno or errno.EIO) from error
        self._socket = made


def addresses(ns: Namespace, families: Collection[int]) -> Owners:
    """Every global address of the families (4, 6), in the order of the devices, and the names of those by index.

    Addresses that another host was found to have (dadfailed) are left out. Raises KernelError.
    """
    return ns.memory.addresses(ns, families) if ns.memory is not None else _read_addresses(ns, families)


def rp_filter_other_than(ns: Namespace, value: int) -> dict[netconf.Key, int]:
    """:func:`netconf.rp_filter_other_than`. Raises KernelError."""
    if ns.memory is not None:
        return ns.memory.rp_filter_other_than(ns, value)
    return netconf.rp_filter_other_than(ns.rtnl, value)


def _read_addresses(ns: Namespace, families: Collection[int]) -> Owners:
    listed = tuple(
        one
        for family in families
        for one in addr.dump(ns.rtnl, family=_FAMILIES[family], scope=addr.SCOPE_GLOBAL)
        if not one.flags & addr.IFA_F_DADFAILED
    )
    owners = link.get_indexes(ns.rtnl, list(dict.fromkeys(one.index for one in listed)))
    return listed, {one.index: one.name for one in owners}
