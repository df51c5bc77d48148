"""The wire that a pod's NIC is going to be on, asked from its parent on the node before there is such a NIC."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

import msgspec

from underlay.cni.decoding import decode
from underlay.errors import UnderlayError
from underlay.net import conflict, link
from underlay.net.netns import Namespace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from underlay.cni.config import PluginConfig

_INTERVAL: Final = 0.04
_TRIES: Final = 3


class _Keys(msgspec.Struct, frozen=True):
    master: str | None = None


class HostWire:
    """A :class:`~underlay.ipam.pools.plugin.Wire` through "master". A configuration without one is not asked for:
    nobody knows its wire then.
    """

    def conflicts(self, conf: PluginConfig, addresses: Sequence[str], deadline: float) -> Mapping[str, str]:
        """Three ARP probes and solicitations, 40 ms apart, for all addresses at once. Raises KernelError."""
        found: dict[str, str] = {}
        with Namespace.current() as host:
            parent = _parent(conf, host)
            left = list(addresses)
            while parent is not None and left:
                one = conflict.probe(
                    host, parent.index, parent.mac, left, interval=_INTERVAL, retries=_TRIES, deadline=deadline
                )
                if one is None or one.address not in left:
                    break
                found[one.address] = one.mac
                left.remove(one.address)
        return found

    def silent(self, conf: PluginConfig, gateways: Sequence[str], deadline: float) -> Sequence[str]:
        """The same questions; here an answer is what is hoped for. One thread a gateway, so that all wait at once."""
        answered: set[str] = set()
        faults: list[UnderlayError] = []

        def ask(gateway: str) -> None:
            try:
                with Namespace.current() as host:
                    parent = _parent(conf, host)
                    if parent is None or conflict.probe(
                        host, parent.index, parent.mac, [gateway], interval=_INTERVAL, retries=_TRIES, deadline=deadline
                    ):
                        answered.add(gateway)
            except UnderlayError as error:
                faults.append(error)

        threads = [threading.Thread(target=ask, args=(gateway,)) for gateway in gateways[1:]]
        for thread in threads:
            thread.start()
        for gateway in gateways[:1]:
            ask(gateway)
        for thread in threads:
            thread.join()
        if faults:
            raise faults[0]
        return [gateway for gateway in gateways if gateway not in answered]


def _parent(conf: PluginConfig, host: Namespace) -> link.Link | None:
    master = decode(conf.raw, _Keys).master
    return link.get(host.rtnl, master) if master else None
