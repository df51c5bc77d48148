"""The result of an attachment, in the shape of CNI 1.1.0 (specification, section 5 "Result Types").

The whole program works on this one shape; :mod:`underlay.cni.versions` converts at the border.
"""

from __future__ import annotations

import msgspec

_NAMES_1_1 = {"socket_path": "socketPath", "pci_id": "pciID"}


class Interface(msgspec.Struct, frozen=True, omit_defaults=True, rename=_NAMES_1_1):
    """One interface that was made: ``sandbox`` is the CNI_NETNS path, or empty for one on the node."""

    name: str
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""
    socket_path: str = ""
    pci_id: str = ""


class IPConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """One address in CIDR form; ``interface`` is an index into the result's interfaces."""

    address: str
    gateway: str = ""
    interface: int | None = None


class Route(msgspec.Struct, frozen=True, omit_defaults=True):
    """One route; ``gw`` empty means the gateway of the address of that family, as in the specification."""

    dst: str
    gw: str = ""
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int | None = None
    scope: int | None = None


class DNS(msgspec.Struct, frozen=True, omit_defaults=True):
    """Resolver settings that the runtime may hand to the container."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


NO_DNS = DNS()


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """What ADD made: interfaces, addresses, routes, resolver."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IPConfig, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: DNS = NO_DNS
