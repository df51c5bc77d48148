"""The NIC that the plugin before made, as a meta-plugin finds it in prevResult."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from underlay.cni import address
from underlay.errors import InvalidConfig

if TYPE_CHECKING:
    from underlay.cni.address import Prefix
    from underlay.cni.result import Result


class Chained(msgspec.Struct, frozen=True):
    """The chained NIC: its place in prevResult's interfaces, its name, its addresses with their subnets' lengths."""

    position: int
    name: str
    addresses: tuple[Prefix, ...]

    @property
    def families(self) -> tuple[int, ...]:
        """The families of its addresses, of (4, 6) in that order."""
        return tuple(family for family in (4, 6) if any(one.family == family for one in self.addresses))


def host_text(prefix: Prefix) -> str:
    """The address alone: "172.18.7.5"."""
    return address.text(prefix.family, prefix.value)


def as_destination(text: str) -> str:
    """An address as a destination of its own: "172.18.7.5/32", "fd00::5/128"."""
    return f"{text}/128" if ":" in text else f"{text}/32"


def find(prev: Result | None, plugin: str) -> Chained:
    """The first interface of prevResult that lies in the pod; raises InvalidConfig where there is none."""
    if prev is None:
        raise InvalidConfig(
            f'"prevResult" is missing: {plugin} works on the NIC of the plugin before it',
            hint=f'Put {plugin} behind macvlan or another main plugin in "plugins".',
        )
    if not prev.interfaces:
        raise InvalidConfig(
            f'"prevResult.interfaces" is empty: {plugin} works on the NIC of the plugin before it',
            hint='Use a "cniVersion" of 0.3.0 or later; results before it name no interfaces.',
        )
    # bridge and ptp list their ends on the node first
    position = next((at for at, one in enumerate(prev.interfaces) if one.sandbox), 0)
    return Chained(position, prev.interfaces[position].name, _addresses(prev, position))


def require_addresses(nic: Chained, plugin: str) -> None:
    """Raise InvalidConfig where the NIC has no address to make paths for."""
    if not nic.addresses:
        raise InvalidConfig(
            f'"prevResult.ips" holds no address of {nic.name}: {plugin} has nothing to make reachable',
            hint='Give the plugin before it an "ipam" section.',
        )


def _addresses(prev: Result, position: int) -> tuple[Prefix, ...]:
    found = []
    for number, one in enumerate(prev.ips):
        if one.interface not in (None, position):
            continue
        prefix = address.parse_prefix(one.address)
        if prefix is None:
            raise InvalidConfig(f'"prevResult.ips[{number}].address" {one.address[:60]!r} is no CIDR')
        found.append(prefix)
    return tuple(dict.fromkeys(found))


def with_mac(prev: Result, position: int, mac: str) -> Result:
    """The prevResult with another hardware address for the interface at ``position``."""
    interfaces = list(prev.interfaces)
    interfaces[position] = replace(interfaces[position], mac=mac)
    return replace(prev, interfaces=tuple(interfaces))


def host_addresses(result: Result) -> list[str]:
    """The addresses of a result without their lengths."""
    return [one.address.partition("/")[0] for one in result.ips]
