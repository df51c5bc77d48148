"""Results and errors as each version of the specification prints them.

    0.1.0 0.2.0   ip4/ip6 with one address and its routes each, "dns" always
    0.3.x 0.4.0   interfaces, ips with "version", routes, "dns" always
    1.0.0         no "version", empty members left out
    1.1.0         and mtu, socketPath, pciID of interfaces; mtu, advmss, priority, table, scope of routes

Conversion down leaves out what the older version cannot say; conversion up invents nothing.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec

from underlay.cni.address import parse, parse_prefix
from underlay.cni.decoding import FAULTS, fault
from underlay.cni.request import Verb
from underlay.cni.result import DNS, NO_DNS, Interface, IPConfig, Result, Route
from underlay.errors import IncompatibleVersion, InvalidConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from underlay.errors import UnderlayError

SUPPORTED: Final = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
LATEST: Final = SUPPORTED[-1]
_ONE_ADDRESS: Final = frozenset(SUPPORTED[:2])
_WITH_IP_VERSION: Final = frozenset(SUPPORTED[2:5])
_FIRST_WITH: Final = {Verb.CHECK: "0.4.0", Verb.GC: "1.1.0", Verb.STATUS: "1.1.0"}


class _Route(msgspec.Struct, frozen=True, omit_defaults=True):
    dst: str
    gw: str = ""


class _FamilyIP(msgspec.Struct, frozen=True, omit_defaults=True):
    ip: str
    gateway: str = ""
    routes: tuple[_Route, ...] = ()


class _Printed02(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    cni_version: str
    dns: DNS
    ip4: _FamilyIP | None = None
    ip6: _FamilyIP | None = None


class _VersionedIP(msgspec.Struct, frozen=True, omit_defaults=True):
    version: str
    address: str
    gateway: str = ""
    interface: int | None = None


class _Printed04(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    cni_version: str
    dns: DNS
    interfaces: Sequence[Interface] = ()
    ips: Sequence[_VersionedIP] = ()
    routes: Sequence[Route] = ()


class _Printed11(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    cni_version: str
    interfaces: Sequence[Interface] = ()
    ips: Sequence[IPConfig] = ()
    routes: Sequence[Route] = ()
    dns: DNS = NO_DNS


class _PrintedError(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    cni_version: str
    code: int
    msg: str
    details: str = ""


class AnyResult(msgspec.Struct, frozen=True, rename="camel"):
    """A result of whichever version, as decoded: the members of all of them. :func:`lift` makes a Result of it."""

    cni_version: str | None = None
    ip4: _FamilyIP | None = None
    ip6: _FamilyIP | None = None
    interfaces: tuple[Interface, ...] | None = None
    ips: tuple[IPConfig, ...] | None = None
    routes: tuple[Route, ...] | None = None
    dns: DNS | None = None


class _Announced(msgspec.Struct, rename="camel"):
    cni_version: str = ""


_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(AnyResult)


def require(version: str) -> str:
    """The version itself, or "0.1.0" for none (as libcni does); IncompatibleVersion for one we do not speak."""
    if not version:
        return SUPPORTED[0]
    if version not in SUPPORTED:
        raise IncompatibleVersion(f'"cniVersion" {version[:40]!r} is not supported')
    return version


@lru_cache(maxsize=64)
def announced(stdin: bytes) -> str:
    """``cniVersion`` of a configuration's bytes, "" where it cannot be found: for answers to what may be broken."""
    try:
        return msgspec.json.decode(stdin, type=_Announced).cni_version
    except FAULTS:
        return ""


def highest(versions: Sequence[str]) -> str:
    """The highest of the versions that we speak (specification 1.1.0, "Version considerations")."""
    ours = [version for version in SUPPORTED if version in versions]
    if not ours:
        raise IncompatibleVersion(f'none of "cniVersions" {", ".join(versions)[:80]} is supported')
    return ours[-1]


def check_verb(version: str, verb: Verb) -> None:
    """Raise IncompatibleVersion where a configuration's version does not have the verb."""
    first = _FIRST_WITH.get(verb)
    if first and SUPPORTED.index(version) < SUPPORTED.index(first):
        raise IncompatibleVersion(
            f"a configuration of version {version} does not allow {verb}",
            hint=f'{verb} needs "cniVersion" {first} or later.',
        )


def encode(result: Result, version: str) -> bytes:
    """The JSON of a result in a supported version."""
    dns = NO_DNS if result.dns == NO_DNS else result.dns
    if version == LATEST:
        return _ENCODER.encode(_Printed11(version, result.interfaces, result.ips, result.routes, dns))
    if version in _ONE_ADDRESS:
        return _ENCODER.encode(_Printed02(version, dns, _family(result, 4), _family(result, 6)))
    interfaces, routes = _without_1_1(result)
    if version in _WITH_IP_VERSION:
        ips = [_versioned(ip) for ip in result.ips]
        return _ENCODER.encode(_Printed04(version, dns, interfaces, ips or (), routes))
    return _ENCODER.encode(_Printed11(version, interfaces, result.ips, routes, dns))


def _family(result: Result, family: int) -> _FamilyIP | None:
    six = family == 6
    for ip in result.ips:
        if (":" in ip.address) == six:
            routes = tuple(_Route(route.dst, route.gw) for route in result.routes if (":" in route.dst) == six)
            return _FamilyIP(ip.address, ip.gateway, routes)
    return None


def _versioned(ip: IPConfig) -> _VersionedIP:
    return _VersionedIP("6" if ":" in ip.address else "4", ip.address, ip.gateway, ip.interface)


def _without_1_1(result: Result) -> tuple[Sequence[Interface], Sequence[Route]]:
    """Interfaces and routes less what version 1.1.0 brought; the very same ones where they use nothing of it."""
    interfaces: Sequence[Interface] = result.interfaces
    if any(link.mtu or link.socket_path or link.pci_id for link in interfaces):
        interfaces = [Interface(link.name, link.mac, 0, link.sandbox) for link in interfaces]
    routes: Sequence[Route] = result.routes
    if any(r.mtu or r.advmss or r.priority or r.table is not None or r.scope is not None for r in routes):
        routes = [Route(route.dst, route.gw) for route in routes]
    return interfaces, routes


def decode(raw: bytes | dict[str, Any], version: str | None = None) -> Result:
    """A result that a plugin printed, in its own "cniVersion", or in ``version`` where it names none.

    Raises DecodeFailure, InvalidConfig naming the member, IncompatibleVersion.
    """
    try:
        printed = _DECODER.decode(raw) if isinstance(raw, bytes) else msgspec.convert(raw, AnyResult)
    except FAULTS as error:
        raise fault(error, what="the result") from error
    require(printed.cni_version or version or "")
    return lift(printed)


def lift(printed: AnyResult, at: str = "") -> Result:
    """A decoded result in the one shape of :class:`Result`; ``at`` ("prevResult.") goes before the names in errors."""
    ips, routes = printed.ips or (), printed.routes or ()
    for family in (printed.ip4, printed.ip6):
        if family is not None and not printed.ips:
            ips += (IPConfig(family.ip, family.gateway),)
            routes += tuple(Route(route.dst, route.gw) for route in family.routes)
    interfaces = printed.interfaces or ()
    for n, ip in enumerate(ips):
        if parse_prefix(ip.address) is None:
            raise InvalidConfig(f'"{at}ips[{n}].address" {ip.address[:60]!r} is not an address in CIDR form')
        if ip.gateway and parse(ip.gateway) is None:
            raise InvalidConfig(f'"{at}ips[{n}].gateway" {ip.gateway[:60]!r} is not an address')
    for n, route in enumerate(routes):
        if parse_prefix(route.dst) is None:
            raise InvalidConfig(f'"{at}routes[{n}].dst" {route.dst[:60]!r} is not a prefix in CIDR form')
        if route.gw and parse(route.gw) is None:
            raise InvalidConfig(f'"{at}routes[{n}].gw" {route.gw[:60]!r} is not an address')
    if any(ip.interface is not None and not 0 <= ip.interface < len(interfaces) for ip in ips):
        # IPAM plugins exist that say "interface": 0 and name no interface; the index means nothing then.
        ips = tuple(_with_known_interface(ip, len(interfaces)) for ip in ips)
    return Result(interfaces, ips, routes, printed.dns or NO_DNS)


def _with_known_interface(ip: IPConfig, count: int) -> IPConfig:
    known = ip.interface is not None and 0 <= ip.interface < count
    return ip if known else IPConfig(ip.address, ip.gateway)


def encode_version() -> bytes:
    """The answer to VERSION."""
    return _ENCODER.encode({"cniVersion": LATEST, "supportedVersions": SUPPORTED})


def encode_error(error: UnderlayError, version: str = "1.0.0") -> bytes:
    """The JSON of an error; a version that we do not speak is printed as 1.0.0."""
    shown = version if version in SUPPORTED else "1.0.0"
    return _ENCODER.encode(_PrintedError(shown, error.code, _printable(error.message), _printable(error.hint)))


def _printable(words: str) -> str:
    """Without lone surrogates, which an environment of another encoding brings and JSON cannot hold."""
    return words.encode("utf-8", "backslashreplace").decode()
