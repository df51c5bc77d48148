"""Virtual functions of an SR-IOV NIC, as its physical function shows and sets them (linux/if_link.h, IFLA_VF_*)."""

from __future__ import annotations

import struct

import msgspec

from underlay.net.netlink import (
    Message,
    attribute,
    attribute_list,
    attributes,
    fixed,
    nest,
    pack_mac,
)

_RTM_SETLINK = 19
_IFLA_VFINFO_LIST = 22
_IFLA_VF_INFO = 1
_IFLA_VF_MAC = 1
_IFLA_VF_VLAN = 2
_IFLA_VF_SPOOFCHK = 4
_IFLA_VF_LINK_STATE = 5
_IFLA_VF_RATE = 6
_IFLA_VF_TRUST = 9
_IFLA_VF_VLAN_LIST = 12
_IFLA_VF_VLAN_INFO = 1

_HEAD = struct.Struct("=BxHiII")
_PAIR = struct.Struct("=II")
_TRIPLE = struct.Struct("=III")
_MAC = struct.Struct("=I32s")
_VLAN = struct.Struct("=IIIHxx")

LINK_STATES = ("auto", "enable", "disable")
VLAN_PROTOCOLS = {"802.1q": 0x8100, "802.1ad": 0x88A8}


class Vf(msgspec.Struct, frozen=True):
    """One virtual function as its physical function reports it.

    ``vlan`` 0 is none, ``vlan_proto`` "802.1q" or "802.1ad", rates are Mbit/s (0: unlimited), ``link_state`` one of
    LINK_STATES; None where the driver does not tell.
    """

    number: int
    mac: str = ""
    vlan: int = 0
    qos: int = 0
    vlan_proto: str = "802.1q"
    spoofchk: bool | None = None
    trust: bool | None = None
    link_state: str | None = None
    min_tx_rate: int = 0
    max_tx_rate: int = 0


class VfSettings(msgspec.Struct, frozen=True):
    """What to change of a virtual function; None leaves it alone. Units as in :class:`Vf`; both rates go together."""

    mac: str | None = None
    vlan: int | None = None
    qos: int = 0
    vlan_proto: str = "802.1q"
    spoofchk: bool | None = None
    trust: bool | None = None
    link_state: str | None = None
    min_tx_rate: int | None = None
    max_tx_rate: int | None = None


def parse_vfs(payload: bytes) -> tuple[Vf, ...]:
    """The virtual functions in an IFLA_VFINFO_LIST. Raises Malformed."""
    return tuple(_parse(attributes(info)) for kind, info in attribute_list(payload) if kind == _IFLA_VF_INFO)


def _parse(told: dict[int, bytes]) -> Vf:
    number, mac = 0, b""
    if _IFLA_VF_MAC in told:
        # the field is 32 bytes wide, the driver fills as many as its addresses have: 6 for Ethernet
        number, mac = fixed(_MAC, told[_IFLA_VF_MAC])[0], told[_IFLA_VF_MAC][4:10]
    vlan, qos, proto = _parse_vlan(told)
    state = _setting(told, _IFLA_VF_LINK_STATE)
    spoofchk, trust = _setting(told, _IFLA_VF_SPOOFCHK), _setting(told, _IFLA_VF_TRUST)
    low, high = fixed(_TRIPLE, told[_IFLA_VF_RATE])[1:] if _IFLA_VF_RATE in told else (0, 0)
    return Vf(
        number=number,
        mac=mac.hex(":"),
        vlan=vlan,
        qos=qos,
        vlan_proto=proto,
        spoofchk=None if spoofchk is None else bool(spoofchk),
        trust=None if trust is None else bool(trust),
        link_state=LINK_STATES[state] if state is not None and state < len(LINK_STATES) else None,
        min_tx_rate=low,
        max_tx_rate=high,
    )


def _parse_vlan(told: dict[int, bytes]) -> tuple[int, int, str]:
    listed = attributes(told.get(_IFLA_VF_VLAN_LIST, b"")).get(_IFLA_VF_VLAN_INFO)
    if listed is not None:
        _, vlan, qos, proto = fixed(_VLAN, listed)
        # the protocol alone is in network order
        return vlan, qos, "802.1ad" if proto == _network_order(0x88A8) else "802.1q"
    if _IFLA_VF_VLAN in told:
        _, vlan, qos = fixed(_TRIPLE, told[_IFLA_VF_VLAN])
        return vlan, qos, "802.1q"
    return 0, 0, "802.1q"


def _network_order(value: int) -> int:
    return int(struct.unpack("=H", struct.pack("!H", value))[0])


def _setting(told: dict[int, bytes], kind: int) -> int | None:
    """The value of a (VF, value) pair; drivers report "unknown" as all ones."""
    if kind not in told:
        return None
    value = fixed(_PAIR, told[kind])[1]
    return None if value == 0xFFFFFFFF else value


def change(*, pf: int, number: int, settings: VfSettings) -> Message:
    """Set a virtual function of the physical function ``pf`` (its index). Raises ValueError for a bad setting."""
    parts: list[bytes] = []
    if settings.mac is not None:
        parts.append(attribute(_IFLA_VF_MAC, _MAC.pack(number, pack_mac(settings.mac))))
    if settings.vlan is not None:
        parts.append(_vlan(number, settings.vlan, settings.qos, settings.vlan_proto))
    for kind, switch in ((_IFLA_VF_SPOOFCHK, settings.spoofchk), (_IFLA_VF_TRUST, settings.trust)):
        if switch is not None:
            parts.append(attribute(kind, _PAIR.pack(number, switch)))
    if settings.link_state is not None:
        if settings.link_state not in LINK_STATES:
            raise ValueError(f"{settings.link_state!r} is no link state: {', '.join(LINK_STATES)}")
        parts.append(attribute(_IFLA_VF_LINK_STATE, _PAIR.pack(number, LINK_STATES.index(settings.link_state))))
    if settings.min_tx_rate is not None or settings.max_tx_rate is not None:
        rates = _TRIPLE.pack(number, settings.min_tx_rate or 0, settings.max_tx_rate or 0)
        parts.append(attribute(_IFLA_VF_RATE, rates))
    body = _HEAD.pack(0, 0, pf, 0, 0) + nest(_IFLA_VFINFO_LIST, nest(_IFLA_VF_INFO, b"".join(parts)))
    return Message(_RTM_SETLINK, 0, body, f"set VF {number} of", pf)


def steps(now: Vf, wanted: VfSettings) -> list[tuple[str, VfSettings]]:
    """What is different, one setting at a time under its name, so that a refusal can be laid to one of them.

    A rate that is left out stays as it is.
    """
    found: list[tuple[str, VfSettings]] = []
    if wanted.mac is not None and wanted.mac != now.mac:
        found.append(("mac", VfSettings(mac=wanted.mac)))
    if wanted.vlan is not None and (wanted.vlan, wanted.qos, wanted.vlan_proto) != (now.vlan, now.qos, now.vlan_proto):
        found.append(("vlan", VfSettings(vlan=wanted.vlan, qos=wanted.qos, vlan_proto=wanted.vlan_proto)))
    if wanted.spoofchk not in (None, now.spoofchk):
        found.append(("spoofchk", VfSettings(spoofchk=wanted.spoofchk)))
    if wanted.trust not in (None, now.trust):
        found.append(("trust", VfSettings(trust=wanted.trust)))
    if wanted.link_state not in (None, now.link_state):
        found.append(("link_state", VfSettings(link_state=wanted.link_state)))
    low = now.min_tx_rate if wanted.min_tx_rate is None else wanted.min_tx_rate
    high = now.max_tx_rate if wanted.max_tx_rate is None else wanted.max_tx_rate
    if (low, high) != (now.min_tx_rate, now.max_tx_rate):
        found.append(("rate", VfSettings(min_tx_rate=low, max_tx_rate=high)))
    return found


def as_settings(vf: Vf) -> VfSettings:
    """What makes a virtual function what ``vf`` is; what the driver did not tell is left alone."""
    return VfSettings(
        vf.mac or None, vf.vlan, vf.qos, vf.vlan_proto, vf.spoofchk, vf.trust, vf.link_state,
        vf.min_tx_rate, vf.max_tx_rate,
    )  # fmt: skip


def _vlan(number: int, vlan: int, qos: int, proto: str) -> bytes:
    if proto not in VLAN_PROTOCOLS:
        raise ValueError(f"{proto!r} is no VLAN protocol: {', '.join(VLAN_PROTOCOLS)}")
    if proto == "802.1q":  # every kernel and driver knows this form
        return attribute(_IFLA_VF_VLAN, _TRIPLE.pack(number, vlan, qos))
    info = _VLAN.pack(number, vlan, qos, _network_order(VLAN_PROTOCOLS[proto]))
    return nest(_IFLA_VF_VLAN_LIST, attribute(_IFLA_VF_VLAN_INFO, info))
