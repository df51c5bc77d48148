"""What veth and router do alike to the NIC that they are chained to: its hardware address, and who else has its IP."""

from __future__ import annotations

import errno
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from underlay.cni.result import Result
from underlay.errors import AddressInUse, InvalidConfig, KernelError, UnderlayError
from underlay.net import addr, carrier, conflict, link
from underlay.net.undo import RestoreMac
from underlay.plugins import chained, hwaddr, ip_stack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from underlay.net.link import Link
    from underlay.plugins.chained import Chained
    from underlay.plugins.context import Call, Context
    from underlay.plugins.hijack import Hijack


_MAC_LENGTH: Final = len("02:00:00:00:00:00")  # a tunnel's link-layer address is of another


@contextmanager
def faults_told(settings: Hijack, plugin: str, call: Call, ctx: Context) -> Iterator[None]:
    """Faults inside go into the plugin's own log file too, where its configuration names one."""
    try:
        yield
    except UnderlayError as error:
        if settings.log is not None:
            ctx.log(
                "error", f"{plugin} failed", to=settings.log, container=call.container_id, nic=call.ifname,
                error=error.message,
            )  # fmt: skip
        raise


def find(nic: Chained, ctx: Context) -> Link:
    """The link in the pod; raises InvalidConfig where prevResult names one that is not there.

    One that the plugin before made is not asked for: the kernel still works on it, and would let us wait for that.
    """
    found = ctx.made.get(nic.name) or link.get(ctx.sandbox().rtnl, nic.name)
    if found is None:
        raise InvalidConfig(f'"prevResult.interfaces[{nic.position}]" {nic.name} is not in the pod')
    return found


def present_addresses(call: Call, ctx: Context) -> list[str]:
    """The global addresses that the NIC of the call has in the pod, without their lengths; none where it is gone."""
    nic = link.get(ctx.pod.rtnl, call.ifname) if ctx.pod is not None else None
    if ctx.pod is None or nic is None:
        return []
    listed = addr.dump(ctx.pod.rtnl, index=nic.index, scope=addr.SCOPE_GLOBAL)
    return [one.address.partition("/")[0] for one in listed]


def set_mac(hijack: Hijack, nic: Chained, found: Link, ctx: Context) -> str:
    """Give the NIC the address that ``mac_prefix`` and its first IP address make; returns its hardware address."""
    if not hijack.mac_prefix or not nic.addresses:
        return found.mac
    wanted = hwaddr.from_number(hijack.mac_prefix, nic.addresses[0].value)
    if wanted == found.mac:
        return wanted
    ctx.undo.record(RestoreMac("pod", nic.name, found.mac, wanted))
    ctx.made.pop(nic.name, None)
    try:
        ctx.sandbox().rtnl.batch((link.change(index=found.index, mac=wanted),))
    except KernelError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        raise InvalidConfig(
            f'"mac_prefix" is given, but the hardware address of {nic.name} ({found.kind or "hardware"}) is fixed',
            hint='Leave "mac_prefix" out; an ipvlan has the hardware address of its parent.',
        ) from error
    return wanted


def tell_mac(nic: Chained, found: Link, mac: str, ctx: Context) -> None:
    """Tell the wire of a new hardware address, once the addresses are known to be free: it may have learnt the old."""
    if mac != found.mac:
        ctx.announce(found.index, mac, [chained.host_text(one) for one in nic.addresses])


def refuse_conflicts(hijack: Hijack, nic: Chained, index: int, mac: str, ctx: Context) -> None:
    """Raise AddressInUse where another host on the wire answers for one of the NIC's addresses."""
    if hijack.probing is None:
        return
    pod = ctx.sandbox()
    carrier.wait(pod, index, until=min(time.monotonic() + carrier.SECONDS, ctx.deadline))
    found = conflict.probe(
        pod,
        index,
        mac,
        [chained.host_text(one) for one in nic.addresses],
        interval=hijack.probing.interval,
        retries=hijack.probing.retries,
        deadline=ctx.deadline,
        others=[one.mac for one in link.dump(pod.rtnl) if len(one.mac) == _MAC_LENGTH],
    )
    if found is not None:
        raise AddressInUse(f"the address {found.address} of {nic.name} is in use by {found.mac}")


def set_sysctls(hijack: Hijack, nic: Chained, ctx: Context) -> None:
    """rp_filter in the pod and, where asked for, on the node; IPv6 on in the pod where the NIC uses it."""
    pod = ctx.sandbox()
    ip_stack.set_rp_filter(pod, hijack.rp_filter.value, ctx.undo)
    if hijack.rp_filter.set_host:
        ip_stack.set_rp_filter(ctx.host, hijack.rp_filter.value, ctx.undo)
    if 6 in nic.families:
        ip_stack.enable_ipv6(pod, ("all", "default"), ctx.undo)


def result(prev: Result | None, nic: Chained, found: Link, mac: str) -> Result:
    """The prevResult as it is now: with the NIC's new hardware address where it got one."""
    prev = prev or Result()
    return prev if mac == found.mac else chained.with_mac(prev, nic.position, mac)
