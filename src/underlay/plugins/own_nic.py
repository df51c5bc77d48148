"""What the main plugins do alike with the NIC that they put into the pod: addresses, announcement, result, CHECK."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from underlay.cni.result import Interface, Result
from underlay.errors import CheckFailed, InterfaceExists, InvalidConfig
from underlay.net import link
from underlay.plugins import hwaddr, ip_stack, layer3
from underlay.plugins.chained import host_addresses

if TYPE_CHECKING:
    from underlay.net.netns import Namespace
    from underlay.plugins.context import Call, Context

_LEAST_MTU: Final = 68  # RFC 791; the kernel takes IPv4 off a NIC below it
_LEAST_MTU_IPV6: Final = 1280  # RFC 8200 section 5
# IPAM plugins that speak on the NIC itself, so that it must be there before them.
_IPAM_ON_THE_WIRE: Final = frozenset({"dhcp"})


def requested_mac(call: Call, own: str | None) -> str:
    """The hardware address asked for: the runtime's before ``args``, CNI_ARGS and the configuration's own; "" for none.

    Raises InvalidConfig naming the place.
    """
    sources = (
        ("runtimeConfig.mac", call.conf.runtime.get("mac")),
        ("args.cni.mac", call.conf.cni_args.get("mac")),
        ("CNI_ARGS MAC", call.args.get("MAC")),
        ("mac", own),
    )
    for place, value in sources:
        if not value:
            continue
        if not isinstance(value, str):
            raise InvalidConfig(f'"{place}" is no string')
        try:
            return hwaddr.parse(value)
        except ValueError as error:
            raise InvalidConfig(f'"{place}" {error}') from error
    return ""


def requested_mtu(value: int | None) -> int:
    """The key "mtu", 0 where it is not given. Raises InvalidConfig."""
    if (value or 0) < 0:
        raise InvalidConfig(f'"mtu" {value} is negative')
    if 0 < (value or 0) < _LEAST_MTU:
        raise InvalidConfig(f'"mtu" {value} is less than {_LEAST_MTU}, the least that IPv4 works with')
    return value or 0


def refuse_existing(name: str, pod: Namespace) -> None:
    """Raise InterfaceExists where the pod has a NIC of that name."""
    if link.get(pod.rtnl, name) is not None:
        raise InterfaceExists(f"the pod already has a NIC {name}")


def allocate_before(call: Call, ctx: Context) -> Result | None:
    """The addresses, where IPAM needs no NIC for them: before the kernel is touched. Raises what IPAM raises."""
    return _allocate(call, ctx) if call.conf.ipam_type and call.conf.ipam_type not in _IPAM_ON_THE_WIRE else None


def allocate_behind(call: Call, ctx: Context) -> Result | None:
    """The addresses of an IPAM plugin that speaks on the NIC, which is there now."""
    return _allocate(call, ctx) if call.conf.ipam_type in _IPAM_ON_THE_WIRE else None


def _allocate(call: Call, ctx: Context) -> Result:
    addressed = ctx.ipam.add(call)
    if not addressed.ips:
        raise InvalidConfig(
            f'"ipam" ({call.conf.ipam_type}) gave no address', hint='Leave "ipam" out for a NIC without addresses.'
        )
    return addressed


def check_mtu(addressed: Result | None, wanted: int, parent: link.Link) -> None:
    """Raise InvalidConfig where IPv6 would not work; ``wanted`` 0: the MTU is that of ``parent``."""
    mtu = wanted or parent.mtu
    if addressed is not None and mtu < _LEAST_MTU_IPV6 and any(":" in one.address for one in addressed.ips):
        whose = "" if wanted else f" of {parent.name}"
        raise InvalidConfig(f'"mtu" {mtu}{whose} is less than {_LEAST_MTU_IPV6}, the least that IPv6 works with')


def configure(
    made: link.Link, addressed: Result | None, ctx: Context, *, accept_ra: bool, announced: bool = True
) -> None:
    """Bring the NIC up with its addresses and routes, and tell its MTU to whoever asks, and unless it is not to be
    ``announced`` its addresses to the wire.
    """
    pod = ctx.sandbox()
    ctx.mtus[made.name] = made.mtu
    if not accept_ra:
        ip_stack.refuse_advertisements(pod, made.name)
    if addressed is None:
        pod.rtnl.batch((link.change(index=made.index, up=True),))
        return
    if any(":" in one.address for one in addressed.ips):
        ip_stack.enable_ipv6(pod, ("lo", made.name), ctx.undo)
    pod.rtnl.batch(layer3.bring_up(made.index, addressed))
    if announced:
        ctx.announce(made.index, made.mac, host_addresses(addressed))


def result(call: Call, made: link.Link, addressed: Result | None, device: str = "") -> Result:
    """The plugin's result; ``device`` is the NIC's PCI address."""
    interfaces = (Interface(name=made.name, mac=made.mac, sandbox=call.netns, pci_id=device),)
    if addressed is None:
        return Result(interfaces=interfaces, dns=call.conf.dns)
    ips = tuple(msgspec.structs.replace(one, interface=0) for one in addressed.ips)
    return Result(interfaces=interfaces, ips=ips, routes=addressed.routes, dns=call.conf.dns)


def prev_result(call: Call) -> Result:
    """What ADD returned, as CHECK is told it. Raises InvalidConfig."""
    if call.conf.prev is None:
        raise InvalidConfig('"prevResult" is missing: CHECK compares with it')
    return call.conf.prev


def find(call: Call, ctx: Context) -> link.Link:
    """The NIC as CHECK finds it; IPAM is asked first. Raises InvalidConfig, CheckFailed."""
    prev = prev_result(call)
    if call.conf.ipam_type:
        ctx.ipam.check(call)
    _position(prev, call)
    nic = link.get(ctx.sandbox().rtnl, call.ifname)
    if nic is None:
        raise CheckFailed(f"the pod has no NIC {call.ifname} any more")
    return nic


def check(nic: link.Link, mtu: int, call: Call, ctx: Context) -> None:
    """Raise CheckFailed where the NIC is not what ADD left; ``mtu`` 0: any."""
    prev = prev_result(call)
    position = _position(prev, call)
    if mtu and nic.mtu != mtu:
        raise CheckFailed(f"{nic.name} has MTU {nic.mtu}, not {mtu}")
    if not nic.up:
        raise CheckFailed(f"{nic.name} is down")
    wanted = prev.interfaces[position].mac.lower()
    if wanted and nic.mac != wanted:
        raise CheckFailed(f"{nic.name} has hardware address {nic.mac}, not {wanted}")
    layer3.check_addresses(ctx.sandbox(), nic, prev, position)
    layer3.check_routes(ctx.sandbox(), nic, prev)


def _position(prev: Result, call: Call) -> int:
    """Where prevResult lists the NIC; raises CheckFailed."""
    for position, one in enumerate(prev.interfaces):
        if one.name == call.ifname and one.sandbox:
            if one.sandbox != call.netns:
                raise CheckFailed(f"{call.ifname} was made in {one.sandbox}, not in {call.netns}")
            return position
    raise CheckFailed(f'"prevResult.interfaces" does not list {call.ifname}')
