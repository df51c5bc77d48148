"""What kind of link, and its kind's own settings: IFLA_LINKINFO of those that lie on another (linux/if_link.h).

link.create_upper(link_info.ipvlan("l3"), name="net1", parent=parent.index, netns_fd=pod.fd)
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from underlay.net.netlink import attribute, attribute_text, attribute_u32, attributes, integer, nest, text

IFLA_LINKINFO: Final = 18
IFLA_INFO_KIND: Final = 1
IFLA_INFO_DATA: Final = 2
_IFLA_MACVLAN_MODE: Final = 1
_IFLA_MACVLAN_BC_QUEUE_LEN: Final = 7
_IFLA_IPVLAN_MODE: Final = 1
_IFLA_VLAN_ID: Final = 1

MACVLAN_MODES: Final = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
IPVLAN_MODES: Final = {"l2": 0, "l3": 1, "l3s": 2}
LARGEST_VLAN: Final = 4094  # IEEE 802.1Q: 4095 is reserved

_MACVLAN_NAMES: Final = {value: name for name, value in MACVLAN_MODES.items()} | {16: "source"}
_NAMES: Final = {
    "macvlan": _MACVLAN_NAMES,
    "macvtap": _MACVLAN_NAMES,
    "ipvlan": {value: name for name, value in IPVLAN_MODES.items()},
}
_U16: Final = struct.Struct("=H")


class Data(NamedTuple):
    """A kind and its settings, as a creation holds them."""

    kind: str
    settings: bytes


class Info(NamedTuple):
    """What is read of a link: its kind, the mode of a macvlan or ipvlan, the number of a VLAN."""

    kind: str
    mode: str = ""
    vlan: int | None = None


NONE: Final = Info("")


def macvlan(mode: str, bcqueuelen: int | None = None) -> Data:
    """A macvlan; ``bcqueuelen`` None for the kernel's default. Raises ValueError for an unknown mode."""
    settings = attribute_u32(_IFLA_MACVLAN_MODE, _number("macvlan", MACVLAN_MODES, mode))
    if bcqueuelen is not None:
        settings += attribute_u32(_IFLA_MACVLAN_BC_QUEUE_LEN, bcqueuelen)
    return Data("macvlan", settings)


def ipvlan(mode: str) -> Data:
    """An ipvlan. All on one parent have the mode of the last that was made. Raises ValueError for an unknown mode."""
    return Data("ipvlan", attribute(_IFLA_IPVLAN_MODE, _U16.pack(_number("ipvlan", IPVLAN_MODES, mode))))


def vlan(number: int) -> Data:
    """An 802.1Q VLAN. Raises ValueError for a number that is none."""
    if not 0 <= number <= LARGEST_VLAN:
        raise ValueError(f"{number} is no VLAN: 0 to {LARGEST_VLAN}")
    return Data("vlan", attribute(_IFLA_VLAN_ID, _U16.pack(number)))


def _number(kind: str, modes: dict[str, int], mode: str) -> int:
    if mode not in modes:
        raise ValueError(f"{mode!r} is no {kind} mode: {', '.join(modes)}")
    return modes[mode]


def nested(data: Data) -> bytes:
    """The attribute IFLA_LINKINFO of a creation."""
    kind = attribute_text(IFLA_INFO_KIND, data.kind)
    return nest(IFLA_LINKINFO, kind + nest(IFLA_INFO_DATA, data.settings))


def parse(payload: bytes) -> Info:
    """The payload of IFLA_LINKINFO. Raises Malformed."""
    told = attributes(payload)
    kind = text(told.get(IFLA_INFO_KIND, b""))
    if IFLA_INFO_DATA not in told or (kind not in _NAMES and kind != "vlan"):
        return Info(kind)
    settings = attributes(told[IFLA_INFO_DATA])
    if kind == "vlan":
        return Info(kind, vlan=integer(settings.get(_IFLA_VLAN_ID, b"")))
    number = integer(settings.get(_IFLA_MACVLAN_MODE if kind != "ipvlan" else _IFLA_IPVLAN_MODE, b""))
    return Info(kind, _NAMES[kind].get(number, str(number)))
