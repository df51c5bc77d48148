"""The plugins that run in process, and the IPAM plugins among them. Everything else is executed."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from underlay.ipam.allocator import as_written
from underlay.ipam.host_local import HOST_LOCAL, HostLocal
from underlay.ipam.pools.section import Parsing
from underlay.ipam.static import STATIC
from underlay.plugins import host_local, ipvlan, macvlan, router, sriov, static, veth, vlan
from underlay.plugins.ipam import IpamPlugin

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from underlay.ipam.allocator import Allocator
    from underlay.plugins.context import Plugin

PLUGINS: Final[Mapping[str, Plugin]] = MappingProxyType(
    {each.PLUGIN.name: each.PLUGIN for each in (macvlan, ipvlan, vlan, sriov, veth, router, host_local, static)}
)
ALLOCATORS: Final[Mapping[str, Allocator]] = MappingProxyType({each.name: each for each in (HOST_LOCAL, STATIC)})


JUDGES: Final[tuple[Mapping[str, object], Mapping[str, object]]] = (
    MappingProxyType({**PLUGINS, Parsing.name: Parsing()}),
    MappingProxyType({**ALLOCATORS, Parsing.name: Parsing()}),
)
"""Plugins and IPAM plugins for lint, which looks at configurations alone: spiderpool without its state."""


def plugins(pools: Allocator) -> Mapping[str, Plugin]:
    """All of them; ``pools`` (spiderpool) keeps state, so it is made where that is known."""
    return MappingProxyType({**PLUGINS, pools.name: IpamPlugin(pools)})


def allocators(pools: Allocator, locate: Callable[[str], str] = as_written) -> Mapping[str, Allocator]:
    """The IPAM plugins among them, of a daemon that finds the node's paths by ``locate``."""
    return MappingProxyType({**ALLOCATORS, HOST_LOCAL.name: HostLocal(locate), pools.name: pools})
