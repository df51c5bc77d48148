"""The configuration of the meta-plugins veth and router, which send the cluster's traffic through the node.

Keys and defaults are those of spidernet's plugins of the same names, so that their networks work unchanged.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

import msgspec

from underlay.cni import address, config
from underlay.errors import InvalidConfig
from underlay.plugins import duration, hwaddr, log_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from underlay.cni.address import Prefix
    from underlay.cni.config import PluginConfig
    from underlay.plugins.log_options import LogOptions

MIGRATE_BY_NAME: Final = -1
MIGRATE_NEVER: Final = 0
MIGRATE_ALWAYS: Final = 1

_LOOSE: Final = 2  # rp_filter, RFC 3704: a source is good when it is reachable by any interface
_RESERVED_TABLES: Final = (253, 254, 255)  # default, main, local
_SUBNETS: Final = ("overlay_hijack_subnet", "service_hijack_subnet", "additional_hijack_subnet")


class _RpFilterKeys(msgspec.Struct, frozen=True):
    set_host: bool | None = None
    value: int | None = None


class _ConflictKeys(msgspec.Struct, frozen=True):
    enabled: bool | None = None
    interval: str | None = None
    retries: int | None = None


class Keys(msgspec.Struct, frozen=True):
    """The JSON keys of both plugins."""

    overlay_hijack_subnet: list[str] | None = None
    service_hijack_subnet: list[str] | None = None
    additional_hijack_subnet: list[str] | None = None
    migrate_route: int | None = None
    rp_filter: _RpFilterKeys | None = None
    skip_call: bool | None = None
    mac_prefix: str | None = None
    only_op_mac: bool | None = None
    ip_conflict: _ConflictKeys | None = None
    log_options: log_options.Keys | None = None
    overlay_interface: str | None = None
    host_rule_table: int | None = None
    sriov: bool | None = None


class RpFilter(msgspec.Struct, frozen=True):
    """The reverse path filter (sysctl net.ipv4.conf.*.rp_filter): 0, 1 or 2, and whether the node gets it too."""

    set_host: bool = True
    value: int = _LOOSE


class Probing(msgspec.Struct, frozen=True):
    """How to ask the wire whether an address is in use: seconds between probes, and how many."""

    interval: float = 1.0
    retries: int = 3


class Hijack(msgspec.Struct, frozen=True):
    """A meta-plugin's configuration, validated.

    ``cluster`` holds the overlay's and the services' subnets, ``additional`` the further ones, host bits cleared, each
    once. ``mac_prefix`` is "" or "0a:1b"; ``probing`` is None where addresses are not probed, ``log`` where no
    ``log_options`` are given: no file is made unasked.
    """

    cluster: tuple[Prefix, ...]
    additional: tuple[Prefix, ...]
    migrate: int
    rp_filter: RpFilter
    skip: bool
    mac_prefix: str
    only_mac: bool
    probing: Probing | None
    log: LogOptions | None
    overlay: str
    host_table: int
    sriov: bool


def parse(conf: PluginConfig, plugin: str) -> Hijack:
    """The configuration of ``plugin``; raises InvalidConfig or DecodeFailure naming the key."""
    return _parse(conf.raw, plugin)


@lru_cache(maxsize=64)
def _parse(raw: bytes, plugin: str) -> Hijack:
    """Pods come with the same configuration again and again; checking it takes 50 us."""
    keys = config.decode(raw, Keys)
    overlay, service, additional = (_subnets(name, getattr(keys, name) or ()) for name in _SUBNETS)
    hijack = Hijack(
        cluster=tuple(dict.fromkeys(overlay + service)),
        additional=tuple(one for one in dict.fromkeys(additional) if one not in overlay and one not in service),
        migrate=keys.migrate_route if keys.migrate_route in (MIGRATE_NEVER, MIGRATE_ALWAYS) else MIGRATE_BY_NAME,
        rp_filter=_rp_filter(keys.rp_filter),
        skip=bool(keys.skip_call),
        mac_prefix=_mac_prefix(keys.mac_prefix or ""),
        only_mac=bool(keys.only_op_mac),
        probing=_probing(keys.ip_conflict),
        log=log_options.parse(keys.log_options, plugin) if keys.log_options else None,
        overlay=keys.overlay_interface or "eth0",
        host_table=_host_table(keys.host_rule_table),
        sriov=bool(keys.sriov),
    )
    if hijack.only_mac and not hijack.mac_prefix and not hijack.skip:
        raise InvalidConfig('"mac_prefix" must be given where "only_op_mac" is true')
    if not (hijack.only_mac or hijack.skip):
        _require("overlay_hijack_subnet", overlay, "the pod subnets of the cluster")
        _require("service_hijack_subnet", service, "the ClusterIP subnets of the cluster")
    return hijack


def _require(key: str, subnets: Sequence[Prefix], what: str) -> None:
    if not subnets:
        raise InvalidConfig(f'"{key}" must name {what}', hint=f'Set "{key}" to a list of CIDRs.')


def _subnets(key: str, texts: Sequence[str]) -> list[Prefix]:
    found = []
    for number, text in enumerate(texts):
        prefix = address.parse_prefix(text.strip())
        if prefix is None:
            raise InvalidConfig(f'"{key}[{number}]" {text[:60]!r} is no CIDR such as 10.240.0.0/12 or fd00::/48')
        found.append(prefix._replace(value=prefix.network))
    return found


def _rp_filter(keys: _RpFilterKeys | None) -> RpFilter:
    if keys is None:
        return RpFilter()
    if keys.value is None and not keys.set_host:
        return RpFilter(set_host=False, value=0)
    return RpFilter(set_host=bool(keys.set_host), value=keys.value if keys.value in (0, 1, 2) else _LOOSE)


def _mac_prefix(text: str) -> str:
    try:
        return hwaddr.parse_prefix(text) if text else ""
    except ValueError as error:
        raise InvalidConfig(f'"mac_prefix" {error}') from error


def _probing(keys: _ConflictKeys | None) -> Probing | None:
    if keys is None or not keys.enabled:
        return None
    default = Probing()
    try:
        interval = duration.seconds(keys.interval) if keys.interval else default.interval
    except ValueError as error:
        raise InvalidConfig(f'"ip_conflict.interval" {error}') from error
    if interval <= 0:
        raise InvalidConfig(f'"ip_conflict.interval" {keys.interval!r} is not longer than nothing')
    retries = keys.retries or default.retries
    if retries < 0:
        raise InvalidConfig(f'"ip_conflict.retries" {retries} is negative')
    return Probing(interval, retries)


def _host_table(number: int | None) -> int:
    if number is None:
        return 500
    if not 0 < number < 1 << 32 or number in _RESERVED_TABLES:
        raise InvalidConfig(
            f'"host_rule_table" {number} is no routing table of its own: 1 to 4294967295, not 253 to 255'
        )
    return number
