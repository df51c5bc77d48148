"""Hand the pod's default route to one NIC, as `default-route` of the networks annotation asks.

    before    default via 10.244.7.1 dev eth0        after    default via 172.18.0.1 dev net1

Of each family that a gateway is given for: every default route of table main goes, whoever made it, and one by way of
the given gateways comes, several sharing the traffic. Other tables stay as they are: veth and router keep each NIC's
own default route there.
"""

from __future__ import annotations

from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING

import msgspec

from underlay.net import link, route, route_copy
from underlay.net.undo import DropRoute, PutRoute

if TYPE_CHECKING:
    from collections.abc import Sequence

    from underlay.cni.result import Result
    from underlay.net.netlink import Message
    from underlay.net.netns import Namespace
    from underlay.net.rtnl import Rtnl
    from underlay.net.undo import UndoLog

_DEFAULT = {AF_INET: "0.0.0.0/0", AF_INET6: "::/0"}


def move(pod: Namespace, undo: UndoLog, *, ifname: str, gateways: Sequence[str]) -> None:
    """Make ``gateways`` (IP addresses of either family), through the NIC ``ifname``, the pod's default routes.

    How to put the old ones back is recorded before any is touched. Raises KernelError: the NIC is not there or down, a
    gateway is in none of its subnets.
    """
    dev = link.index_of(pod.rtnl, ifname)
    removals: list[Message] = []
    additions: list[Message] = []
    for family, dst in _DEFAULT.items():
        own = [gateway for gateway in gateways if (":" in gateway) == (family == AF_INET6)]
        if not own:
            continue
        old = _defaults(pod.rtnl, family)
        names = {each.dev: link.name_of(pod.rtnl, each.dev) for each in old}
        undo.record(
            *(PutRoute(where="pod", message=each.raw.hex(), dev=names[each.dev]) for each in old),
            DropRoute(where="pod", dst=dst, table=route.MAIN, dev=ifname),
        )
        removals += [route_copy.remove(each) for each in old]
        additions.append(_shared(dst, dev, own))
    pod.rtnl.batch(removals + additions)


def without_default_routes(result: Result, gateways: Sequence[str]) -> Result:
    """The result of an attachment less the default routes of the families that ``gateways`` are of: they were moved.

    A result that went on naming them would make CHECK look for routes that are meant to be gone.
    """
    moved = {_DEFAULT[AF_INET6 if ":" in gateway else AF_INET] for gateway in gateways}
    routes = tuple(each for each in result.routes if each.dst not in moved)
    return result if len(routes) == len(result.routes) else msgspec.structs.replace(result, routes=routes)


def _defaults(rtnl: Rtnl, family: int) -> list[route.Route]:
    routes = route.dump(rtnl, family=family, table=route.MAIN)
    return [each for each in routes if each.is_default and each.type == route.TYPE_UNICAST]


def _shared(dst: str, dev: int, gateways: Sequence[str]) -> Message:
    if len(gateways) == 1:
        return route.add(dst, dev=dev, via=gateways[0])
    return route.add_multipath(dst, [route.NextHop(dev, gateway) for gateway in gateways])
