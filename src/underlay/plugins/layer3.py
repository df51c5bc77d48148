"""An IPAM plugin's result on a NIC: its addresses and routes as messages to the kernel, and as CHECK looks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from underlay.cni import address
from underlay.errors import CheckFailed, InvalidConfig
from underlay.net import addr, link, route
from underlay.net.netlink import NLM_F_CREATE

if TYPE_CHECKING:
    from underlay.cni.result import Result, Route
    from underlay.net.netlink import Message
    from underlay.net.netns import Namespace


def bring_up(index: int, result: Result) -> list[Message]:
    """The messages, in order: addresses, the NIC up, routes.

    IPv6 addresses are usable at once (nodad): IPAM has made sure of them, and a second's wait per pod is no price
    anybody wants to pay twice. A new route goes before an older one to the same destination.
    """
    messages = [addr.add(index, one.address, nodad=True) for one in result.ips]
    messages.append(link.change(index=index, up=True))
    messages += [_route(index, one, result) for one in result.routes]
    return messages


def _route(index: int, wanted: Route, result: Result) -> Message:
    gateway = gateway_of(wanted, result)
    message = route.add(
        wanted.dst,
        dev=index,
        via=gateway,
        onlink=bool(gateway) and not _reachable(gateway, result),
        table=route.MAIN if wanted.table is None else wanted.table,
        scope=wanted.scope,
        mtu=wanted.mtu,
        advmss=wanted.advmss,
        priority=wanted.priority,
    )
    return msgspec.structs.replace(message, flags=NLM_F_CREATE)  # beside, and before, one of another NIC


def gateway_of(wanted: Route, result: Result) -> str:
    """The route's own gateway, or that of the first address of its family which has one, or ""."""
    if wanted.gw:
        return wanted.gw
    v6 = ":" in wanted.dst
    return next((one.gateway for one in result.ips if one.gateway and (":" in one.gateway) == v6), "")


def _reachable(gateway: str, result: Result) -> bool:
    """Whether the gateway lies in a subnet of the NIC, or is link-local, so that the kernel finds it by itself."""
    wanted = address.parse(gateway)
    if wanted is None:
        raise InvalidConfig(f"the IPAM plugin's gateway {gateway[:60]!r} is no address")
    if wanted.family == 6 and wanted.value >> 118 == 0xFE80 >> 6:
        return True
    subnets = (address.parse_prefix(one.address) for one in result.ips)
    return any(subnet is not None and subnet.holds(wanted) for subnet in subnets)


def check_addresses(pod: Namespace, nic: link.Link, result: Result, position: int) -> None:
    """Raise CheckFailed unless the NIC has every address that the result gives it."""
    present = {one.address for one in addr.dump(pod.rtnl, index=nic.index)}
    for one in result.ips:
        if one.interface not in (None, position):
            continue
        prefix = address.parse_prefix(one.address)
        if str(prefix) not in present:
            raise CheckFailed(f"{nic.name} has lost its address {one.address}")


def check_routes(pod: Namespace, nic: link.Link, result: Result) -> None:
    """Raise CheckFailed unless each route of the result leaves by the NIC, in whatever table a later plugin put it."""
    if not result.routes:
        return
    present = {
        (one.dst, hop.gateway)
        for one in route.dump(pod.rtnl, family=0)
        for hop in one.nexthops or (one,)
        if hop.dev == nic.index
    }
    for wanted in result.routes:
        prefix = address.parse_prefix(wanted.dst)
        dst = wanted.dst if prefix is None else str(prefix._replace(value=prefix.network))
        gateway = gateway_of(wanted, result)
        if (dst, gateway) not in present:
            raise CheckFailed(f"{nic.name} has lost its route to {wanted.dst}{' via ' + gateway if gateway else ''}")
