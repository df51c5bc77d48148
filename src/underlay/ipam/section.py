"""What the "ipam" sections of host-local and static have in common: routes, and the limits of old versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from underlay.cni.address import parse, parse_prefix
from underlay.errors import InvalidConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from underlay.cni.result import Route


def check_routes(routes: Sequence[Route]) -> None:
    """Raise InvalidConfig naming the first wrong route of the section."""
    for n, route in enumerate(routes):
        dst = parse_prefix(route.dst)
        if dst is None:
            raise InvalidConfig(
                f'"ipam.routes[{n}].dst" {route.dst[:60]!r} is no prefix in CIDR form',
                hint='Write it as "10.2.0.0/16"; "0.0.0.0/0" is the default route.',
            )
        if route.gw:
            gateway = parse(route.gw)
            if gateway is None or gateway.family != dst.family:
                raise InvalidConfig(f'"ipam.routes[{n}].gw" {route.gw[:60]!r} is no IPv{dst.family} address')


def check_count(version: str, families: Sequence[int]) -> None:
    """Raise InvalidConfig where a version that knows one address a family only (0.1.0, 0.2.0) would get more."""
    if version in ("0.1.0", "0.2.0") and len(set(families)) != len(families):
        raise InvalidConfig(
            f'"cniVersion" {version} has room for one address of each family only',
            hint='Set "cniVersion" to 0.3.1 or later.',
        )
