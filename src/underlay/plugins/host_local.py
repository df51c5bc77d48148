"""host-local as a CNI plugin of its own, for a runtime or another plugin that calls it directly.

The plugins of this program reach the same :data:`underlay.ipam.host_local.HOST_LOCAL` through ``Context.ipam``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from underlay.ipam.host_local import HOST_LOCAL
from underlay.plugins.ipam import IpamPlugin

if TYPE_CHECKING:
    from underlay.plugins.context import Plugin

PLUGIN: Plugin = IpamPlugin(HOST_LOCAL)
