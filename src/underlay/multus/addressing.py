"""What networks give out: addresses that cannot work, and the same address given out twice. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from underlay.cni import address
from underlay.cni.address import Prefix
from underlay.cni.result import Result
from underlay.multus.findings import Finding, Severity, Subject, joined

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from underlay.cni.config import PluginConfig
    from underlay.cni.result import Route
    from underlay.ipam.host_local import Pool
    from underlay.ipam.ranges import Range


@dataclass(frozen=True, slots=True)
class Claim:
    """The addresses that a network gives out: its object, the path to its section, the parent NIC, the ranges.

    ``master`` is "" for the NIC of the default route, None where the plugin's parent is not known.
    """

    subject: Subject
    field: str
    master: str | None
    pool: Pool


def look_at_pool(subject: Subject, pool: Pool, at: str) -> Iterator[Finding]:
    """Ranges that ADD takes and that do not work."""
    ranges = [one for ranges in pool.sets for one in ranges]
    for one in ranges:
        gateway = address.Address(one.family, one.gateway)
        if not _subnet(one).holds(gateway):
            words = f"the gateway {gateway} lies outside of the subnet {_subnet(one)} of the range {one}"
            yield _warn(subject, at, "ipam", words, "Pods reach a gateway in their own subnet only.")
    for each in pool.sets:
        if all(one.start == one.end == one.gateway for one in each):
            words = f"the range {each[0]} holds nothing but the gateway, which is never given out"
            yield _warn(subject, at, "ipam", words, "Enlarge the range, or name the right gateway.")
    yield from _routes(subject, pool.routes, [_subnet(one) for one in ranges], at)


def look_at_static(subject: Subject, section: object, conf: PluginConfig, at: str) -> Iterator[Finding]:
    """Addresses that ADD takes and that do not work."""
    if not isinstance(section, Result):
        return
    if not section.ips and not conf.capabilities.get("ips"):
        words = '"ipam" names no address, and the capability "ips" is not declared: the NIC gets none'
        yield _warn(subject, at, "ipam.addresses", words, 'Give "ipam.addresses", or "capabilities": {"ips": true}.')
    subnets = []
    for n, ip in enumerate(section.ips):
        subnet, gateway = address.parse_prefix(ip.address), address.parse(ip.gateway)
        if subnet is not None:
            subnets.append(subnet)
        if subnet is not None and gateway is not None and not subnet.holds(gateway):
            words = f"the gateway {gateway} lies outside of the subnet of the address {ip.address}"
            yield _warn(
                subject, at, f"ipam.addresses[{n}].gateway", words, "Pods reach a gateway in their own subnet only."
            )
    if section.ips:
        yield from _routes(subject, section.routes, subnets, at)


def overlaps(claims: Sequence[Claim]) -> Iterator[Finding]:
    """Ranges of different networks on one wire that share addresses, each told of the later one.

    Networks that keep their reservations in one directory share them, so what they give out never meets.
    """
    for earlier, later in combinations(claims, 2):
        if earlier.master is None or earlier.master != later.master or earlier.pool.directory == later.pool.directory:
            continue
        met = next(_meeting(_ranges(earlier), _ranges(later)), None)
        if met is not None:
            wire = f"NIC {later.master}" if later.master else "the NIC of the default route"
            words = (
                f"the range {met[1]} overlaps {met[0]} of {earlier.subject} ({earlier.subject.file}) on {wire}: "
                "the same address may be given to two pods"
            )
            hint = 'Part the ranges, or give both networks the same "name" so that they share their reservations.'
            yield Finding(later.subject, Severity.WARNING, later.field, words, hint)


def _meeting(some: Iterable[Range], others: Sequence[Range]) -> Iterator[tuple[Range, Range]]:
    return ((one, other) for one in some for other in others if one.overlaps(other))


def _ranges(claim: Claim) -> list[Range]:
    return [one for ranges in claim.pool.sets for one in ranges]


def _subnet(one: Range) -> Prefix:
    start = Prefix(one.family, one.start, one.length)
    return start._replace(value=start.network)


def _routes(subject: Subject, routes: Iterable[Route], subnets: Sequence[Prefix], at: str) -> Iterator[Finding]:
    for n, route in enumerate(routes):
        gateway = address.parse(route.gw) if route.gw else None
        link_local = gateway is not None and gateway.family == 6 and gateway.value >> 118 == 0xFE80 >> 6
        if gateway is not None and not link_local and not any(one.holds(gateway) for one in subnets):
            words = f"the gateway {gateway} of the route to {route.dst} lies in no subnet of the network"
            yield _warn(subject, at, f"ipam.routes[{n}].gw", words, "Name a gateway that the NIC's subnet holds.")


def _warn(subject: Subject, at: str, field: str, message: str, hint: str) -> Finding:
    return Finding(subject, Severity.WARNING, joined(at, field), message, hint)
