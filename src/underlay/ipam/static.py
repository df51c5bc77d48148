"""The static IPAM plugin: the addresses, routes and resolver that the configuration says. It keeps nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from underlay.cni.address import Address, parse
from underlay.cni.config import decode
from underlay.cni.result import DNS, NO_DNS, IPConfig, Result, Route
from underlay.errors import CheckFailed, InvalidConfig
from underlay.ipam import requested
from underlay.ipam.requested import Wish
from underlay.ipam.section import check_count, check_routes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from underlay.cni.config import PluginConfig
    from underlay.ipam.allocator import Holder, Keep
    from underlay.ipam.undo import Release


class _Address(msgspec.Struct, frozen=True):
    address: str
    gateway: str | None = None


class _Section(msgspec.Struct, frozen=True):
    addresses: list[_Address] | None = None
    routes: tuple[Route, ...] | None = None
    dns: DNS | None = None


class _Keys(msgspec.Struct, frozen=True):
    ipam: _Section


class _Source(msgspec.Struct, frozen=True):
    wish: Wish
    gateway: str = ""


def resolve(conf: PluginConfig, args: Mapping[str, str]) -> Result:
    """The result that a configuration and CNI_ARGS say.

    The ``ips`` capability counts before ``args.cni.ips``, and that before the section's own list, which CNI_ARGS "IP"
    adds to. CNI_ARGS "GATEWAY" sets the gateway of every address whose subnet holds it. Raises InvalidConfig or
    InvalidEnvironment naming the field.
    """
    section = decode(conf.raw, _Keys).ipam
    replacing = requested.from_runtime(conf) or requested.from_cni_args(conf)
    sources = [_Source(wish) for wish in replacing] or _own(section, args)
    gateways = [(wish, _plain_address(wish)) for wish in requested.from_args(args, "GATEWAY")]
    routes = section.routes or ()
    check_routes(routes)
    ips, families = [], []
    for source in sources:
        prefix = source.wish.prefix()
        families.append(prefix.family)
        gateway = next((str(address) for _, address in reversed(gateways) if prefix.holds(address)), source.gateway)
        ips.append(IPConfig(str(prefix), gateway))
    check_count(conf.version, families)
    return Result(ips=tuple(ips), routes=routes, dns=section.dns or NO_DNS)


def _own(section: _Section, args: Mapping[str, str]) -> list[_Source]:
    sources = []
    for n, one in enumerate(section.addresses or ()):
        gateway = one.gateway or ""
        found = parse(gateway) if gateway else None
        if gateway and found is None:
            raise InvalidConfig(f'"ipam.addresses[{n}].gateway" {gateway[:60]!r} is not an IP address')
        sources.append(_Source(Wish(f"ipam.addresses[{n}].address", one.address), str(found) if found else ""))
    return sources + [_Source(wish) for wish in requested.from_args(args, "IP")]


def _plain_address(wish: Wish) -> Address:
    found = parse(wish.written)
    if found is None:
        raise wish.fault("is not an IP address")
    return found


class Static:
    """The plugin; holds no state."""

    name: Final = "static"
    keys: Final = _Keys

    def parse(self, conf: PluginConfig, args: Mapping[str, str]) -> Result:
        """What ADD answers; see :func:`resolve`."""
        return resolve(conf, args)

    def add(
        self,
        conf: PluginConfig,
        holder: Holder,
        args: Mapping[str, str],
        *,
        record: Callable[[Release], None],
        deadline: float,
        network: str = "",
    ) -> Result:
        """What the configuration says; nothing is reserved, so nothing is recorded."""
        return resolve(conf, args)

    def check(self, conf: PluginConfig, holder: Holder, args: Mapping[str, str]) -> None:
        """Raise CheckFailed where prevResult lacks an address of the configuration."""
        present = {ip.address for ip in conf.prev.ips} if conf.prev else set()
        for ip in resolve(conf, args).ips:
            if ip.address not in present:
                raise CheckFailed(f"address {ip.address} of the configuration is not in prevResult")

    def delete(self, conf: PluginConfig, holder: Holder, *, deadline: float) -> None:
        """Nothing was held."""

    def release(self, entry: Release, *, deadline: float) -> None:
        """Nothing was held."""

    def status(self, conf: PluginConfig) -> None:
        """Raise InvalidConfig for a wrong section."""
        resolve(conf, {})

    def gc(self, conf: PluginConfig, keep: Keep, *, deadline: float) -> None:
        """Nothing is held."""


STATIC: Final = Static()
