"""SpiderIPPool, SpiderReservedIP and SpiderSubnet as frozen values, checked when they are made.

    document of a manifest or of the API ──parse──▶ Pool │ Reserved │ Subnet       InvalidConfig: object, field, fix

Numbers and truth values may be written as strings, as the field's manifests do. Of a pool's addresses never handed out
are: the excluded ones, its gateway, and what the subnet itself needs: network and broadcast address of an IPv4 prefix
up to /30 (RFC 922; a /31 and a /32 need none, RFC 3021), the first address of an IPv6 prefix up to /126, which is the
routers' anycast address (RFC 4291 section 2.6.1; a /127 and a /128 have none, RFC 6164).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from underlay.cni.address import BITS, Prefix, parse, parse_prefix, text
from underlay.cni.decoding import FAULTS, fault, strangers_in
from underlay.cni.result import Route
from underlay.errors import InvalidConfig
from underlay.ipam.pools import intervals, selector

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from underlay.cni.decoding import Stranger
    from underlay.ipam.pools.intervals import Interval, Intervals

T = TypeVar("T")

GROUP: Final = "spiderpool.spidernet.io/"
POOL, RESERVED, SUBNET, ENDPOINT = "SpiderIPPool", "SpiderReservedIP", "SpiderSubnet", "SpiderEndpoint"
KINDS: Final = frozenset({POOL, RESERVED, SUBNET})
_HOST_BITS_OF_A_LINK: Final = 1  # /31, /32, /127, /128: every address is a host's


@dataclass(frozen=True, slots=True)
class Pool:
    """One SpiderIPPool. ``ranges`` is what may be handed out, ``listed`` how many addresses spec.ips less
    spec.excludeIPs name (status.totalIPCount). ``gateway`` "" for none. A selector None demands nothing.
    """

    name: str
    subnet: Prefix
    ranges: Intervals
    listed: int
    gateway: str = ""
    routes: tuple[Route, ...] = ()
    vlan: int = 0
    default: bool = False
    disabled: bool = False
    terminating: bool = False
    pod_affinity: selector.Selector | None = None
    namespace_affinity: selector.Selector | None = None
    namespace_names: tuple[str, ...] = ()
    node_affinity: selector.Selector | None = None
    node_names: tuple[str, ...] = ()
    multus_names: tuple[str, ...] = ()

    @property
    def family(self) -> int:
        """4 or 6."""
        return self.subnet.family


@dataclass(frozen=True, slots=True)
class Reserved:
    """One SpiderReservedIP: addresses that no pool hands out."""

    name: str
    v4: Intervals
    v6: Intervals


@dataclass(frozen=True, slots=True)
class Subnet:
    """One SpiderSubnet: what pools of applications are cut from. Fields as in :class:`Pool`."""

    name: str
    subnet: Prefix
    ranges: Intervals
    listed: int
    gateway: str = ""
    routes: tuple[Route, ...] = ()
    vlan: int = 0

    @property
    def family(self) -> int:
        """4 or 6."""
        return self.subnet.family


class _Metadata(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    deletion_timestamp: str | None = None


class _Route(msgspec.Struct, frozen=True):
    dst: str
    gw: str


class _Range(msgspec.Struct, frozen=True, rename="camel"):
    """What SpiderIPPool and SpiderSubnet have in common."""

    subnet: str
    ip_version: int | None = None
    ips: tuple[str, ...] | None = None
    exclude_ips: tuple[str, ...] | None = msgspec.field(name="excludeIPs", default=None)
    gateway: str | None = None
    routes: tuple[_Route, ...] | None = None
    vlan: int | None = None


class _PoolSpec(_Range, frozen=True, rename="camel"):
    pod_affinity: selector.SelectorSection | None = None
    namespace_affinity: selector.SelectorSection | None = None
    namespace_name: tuple[str, ...] | None = None
    node_affinity: selector.SelectorSection | None = None
    node_name: tuple[str, ...] | None = None
    multus_name: tuple[str, ...] | None = None
    default: bool | None = None
    disable: bool | None = None


class _ReservedSpec(msgspec.Struct, frozen=True, rename="camel"):
    ips: tuple[str, ...] | None = None
    ip_version: int | None = None


class _PoolObject(msgspec.Struct, frozen=True):
    metadata: _Metadata
    spec: _PoolSpec


class _SubnetObject(msgspec.Struct, frozen=True):
    metadata: _Metadata
    spec: _Range


class _ReservedObject(msgspec.Struct, frozen=True):
    metadata: _Metadata
    spec: _ReservedSpec


def parse_object(document: Mapping[str, Any]) -> Pool | Reserved | Subnet:
    """One object of KINDS, decoded from YAML or JSON. Raises InvalidConfig naming the object, the field and the fix."""
    kind = document.get("kind")
    if kind == POOL:
        pool = _convert(document, _PoolObject, POOL)
        return _named(POOL, pool.metadata.name, lambda: _pool(pool.metadata, pool.spec))
    if kind == SUBNET:
        subnet = _convert(document, _SubnetObject, SUBNET)
        return _named(SUBNET, subnet.metadata.name, lambda: _subnet(subnet.metadata, subnet.spec))
    reserved = _convert(document, _ReservedObject, RESERVED)
    return _named(RESERVED, reserved.metadata.name, lambda: _reserved(reserved.metadata, reserved.spec))


def unknown_keys(document: Mapping[str, Any]) -> list[Stranger]:
    """The keys below "spec" of an object of KINDS that :func:`parse_object` passes over, mostly misspelt ones."""
    kind = {POOL: _PoolObject, SUBNET: _SubnetObject}.get(document.get("kind", ""), _ReservedObject)
    return [each for each in strangers_in(document, kind) if each.path.startswith("spec.")]


def _convert(document: Mapping[str, Any], kind: type[T], shown: str) -> T:
    try:
        return msgspec.convert(document, kind, strict=False)
    except FAULTS as error:
        metadata = document.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        wrong = fault(error, what="the object")
        raise InvalidConfig(f"{shown} {str(name)[:253]!r}: {wrong.message}", hint="Correct the field.") from error


def _named(kind: str, name: str, make: Callable[[], T]) -> T:
    try:
        return make()
    except InvalidConfig as error:
        raise InvalidConfig(f"{kind} {name[:253]!r}: {error.message}", hint=error.hint) from error


def _pool(metadata: _Metadata, spec: _PoolSpec) -> Pool:
    subnet, ranges, listed = _ranges(spec)
    return Pool(
        name=metadata.name,
        subnet=subnet,
        ranges=ranges,
        listed=listed,
        gateway=spec.gateway or "",
        routes=_routes(spec.routes or (), subnet),
        vlan=spec.vlan or 0,
        default=bool(spec.default),
        disabled=bool(spec.disable),
        terminating=metadata.deletion_timestamp is not None,
        pod_affinity=selector.parse(spec.pod_affinity, "spec.podAffinity"),
        namespace_affinity=selector.parse(spec.namespace_affinity, "spec.namespaceAffinity"),
        namespace_names=spec.namespace_name or (),
        node_affinity=selector.parse(spec.node_affinity, "spec.nodeAffinity"),
        node_names=spec.node_name or (),
        multus_names=spec.multus_name or (),
    )


def _subnet(metadata: _Metadata, spec: _Range) -> Subnet:
    subnet, ranges, listed = _ranges(spec)
    routes = _routes(spec.routes or (), subnet)
    return Subnet(metadata.name, subnet, ranges, listed, spec.gateway or "", routes, spec.vlan or 0)


def _reserved(metadata: _Metadata, spec: _ReservedSpec) -> Reserved:
    found: dict[int, list[Interval]] = {4: [], 6: []}
    for n, written in enumerate(spec.ips or ()):
        family, interval = parse_range(written, f"spec.ips[{n}]")
        _check_family(spec.ip_version, family, f"spec.ips[{n}]", written)
        found[family].append(interval)
    return Reserved(metadata.name, intervals.union(found[4]), intervals.union(found[6]))


def _ranges(spec: _Range) -> tuple[Prefix, Intervals, int]:
    """The subnet, what may be handed out of it, and how many addresses are listed."""
    subnet = _parse_subnet(spec.subnet)
    _check_family(spec.ip_version, subnet.family, "spec.subnet", spec.subnet)
    if not 0 <= (spec.vlan or 0) <= 4094:
        raise InvalidConfig(f'"spec.vlan" {spec.vlan} is no VLAN id', hint="Write 0 (none) to 4094.")
    listed = intervals.without(
        _inside(spec.ips, "spec.ips", subnet), _inside(spec.exclude_ips, "spec.excludeIPs", subnet)
    )
    never = _needed_by_the_subnet(subnet)
    if spec.gateway:
        gateway = parse(spec.gateway)
        if gateway is None or not subnet.holds(gateway):
            raise InvalidConfig(
                f'"spec.gateway" {spec.gateway[:60]!r} is no address of the subnet {subnet}',
                hint="Write an address inside the subnet, without a prefix length, or leave it out.",
            )
        never.append((gateway.value, gateway.value))
    return subnet, intervals.without(listed, intervals.union(never)), intervals.size(listed)


def _needed_by_the_subnet(subnet: Prefix) -> list[Interval]:
    if BITS[subnet.family] - subnet.length <= _HOST_BITS_OF_A_LINK:
        return []
    own = [(subnet.network, subnet.network)]
    return [*own, (subnet.last, subnet.last)] if subnet.family == 4 else own


def _parse_subnet(written: str) -> Prefix:
    subnet = parse_prefix(written)
    if subnet is None:
        raise InvalidConfig(
            f'"spec.subnet" {written[:60]!r} is no subnet in CIDR form',
            hint='Write it as "172.18.0.0/16" or "fd00:18::/64".',
        )
    return Prefix(subnet.family, subnet.network, subnet.length)


def _check_family(written: int | None, family: int, field: str, value: str) -> None:
    if written not in (None, 0, family):
        raise InvalidConfig(
            f'"spec.ipVersion" {written} does not fit "{field}" {value!r}, which is IPv{family}',
            hint=f"Write {family}, or leave ipVersion out: it is derived.",
        )


def _inside(written: Sequence[str] | None, field: str, subnet: Prefix) -> Intervals:
    found: list[Interval] = []
    for n, one in enumerate(written or ()):
        family, (start, end) = parse_range(one, f"{field}[{n}]")
        if family != subnet.family or start < subnet.network or end > subnet.last:
            raise InvalidConfig(
                f'"{field}[{n}]" {one[:100]!r} does not lie in the subnet {subnet}',
                hint=f"Keep to {text(subnet.family, subnet.network)} to {text(subnet.family, subnet.last)}.",
            )
        found.append((start, end))
    return intervals.union(found)


def parse_range(written: str, field: str) -> tuple[int, Interval]:
    """Family and interval of "a" or "a-b". Raises InvalidConfig naming ``field``."""
    low, dash, high = (part.strip() for part in written.partition("-"))
    start, end = parse(low), parse(high) if dash else parse(low)
    if start is None or end is None or start.family != end.family:
        raise InvalidConfig(
            f'"{field}" {written[:100]!r} is neither an address nor a range of addresses',
            hint='Write "172.18.40.10" or "172.18.40.10-172.18.40.60".',
        )
    if start.value > end.value:
        raise InvalidConfig(f'"{field}" {written[:100]!r} ends before it begins', hint=f'Write "{high}-{low}".')
    return start.family, (start.value, end.value)


def _routes(written: Sequence[_Route], subnet: Prefix) -> tuple[Route, ...]:
    return tuple(parse_route(one.dst, one.gw, f"spec.routes[{n}]", subnet.family) for n, one in enumerate(written))


def parse_route(dst: str, gw: str, field: str, family: int = 0) -> Route:
    """A checked route of ``family`` (0: either). Raises InvalidConfig naming the field below ``field``."""
    prefix, gateway = parse_prefix(dst), parse(gw)
    if prefix is None or family not in (0, prefix.family):
        raise InvalidConfig(
            f'"{field}.dst" {dst[:60]!r} is no {f"IPv{family} " if family else ""}prefix in CIDR form',
            hint='Write it as "10.2.0.0/16".',
        )
    if gateway is None or gateway.family != prefix.family:
        raise InvalidConfig(
            f'"{field}.gw" {gw[:60]!r} is no IPv{prefix.family} address',
            hint="Name the next hop, of the family of dst.",
        )
    return Route(f"{text(prefix.family, prefix.network)}/{prefix.length}", str(gateway))


def overlaps(pools: Sequence[Pool]) -> list[tuple[str, str, int, int]]:
    """(pool, other pool, family, first common address) of pools that list the same addresses, lowest first."""
    found: list[tuple[str, str, int, int]] = []
    for family in (4, 6):
        flat = sorted((start, end, pool.name) for pool in pools if pool.family == family for start, end in pool.ranges)
        reach, owner = -1, ""
        for start, end, name in flat:
            if start <= reach and name != owner:
                found.append((owner, name, family, start))
            if end > reach:
                reach, owner = end, name
    return found
