"""The configuration of the plugin sriov (k8snetworkplumbingwg/sriov-cni; the same keys)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from underlay.cni import config
from underlay.errors import InvalidConfig
from underlay.net.vf import LINK_STATES, VLAN_PROTOCOLS, VfSettings
from underlay.plugins import log_options, own_nic

if TYPE_CHECKING:
    from underlay.plugins.context import Call
    from underlay.plugins.log_options import LogOptions

_LARGEST_VLAN: Final = 4094
_LARGEST_QOS: Final = 7
_SWITCH: Final = {"on": True, "off": False}


class Keys(msgspec.Struct, frozen=True):
    """The JSON object."""

    device: str | None = msgspec.field(name="deviceID", default=None)
    vlan: int | None = None
    qos: int | None = msgspec.field(name="vlanQoS", default=None)
    proto: str | None = msgspec.field(name="vlanProto", default=None)
    mac: str | None = None
    spoofchk: str | None = None
    trust: str | None = None
    link_state: str | None = None
    min_tx_rate: int | None = None
    max_tx_rate: int | None = None
    mtu: int | None = None
    accept_ra: bool | None = msgspec.field(name="acceptRA", default=None)
    log_level: str | None = msgspec.field(name="logLevel", default=None)
    log_file: str | None = msgspec.field(name="logFile", default=None)


class Settings(msgspec.Struct, frozen=True):
    """The configuration, validated as far as it can be without the kernel.

    ``device`` is a PCI address as it was written, "" where none is given, ``vf`` what to set by the physical function
    (None: leave it alone), ``mtu`` 0 for the NIC's own, ``info_file`` "" or where to write device information.
    ``accept_ra`` (our own key, "acceptRA") lets the NIC take addresses and routes from router advertisements.
    """

    device: str
    vf: VfSettings
    mtu: int
    accept_ra: bool
    info_file: str
    log: LogOptions | None


def parse(call: Call) -> Settings:
    """The configuration of a call; raises InvalidConfig or DecodeFailure naming the key."""
    keys = config.decode_again(call.conf.raw, Keys)
    vlan, qos, proto = _vlan(keys)
    _check_rates(keys)
    if keys.link_state and keys.link_state not in LINK_STATES:
        raise InvalidConfig(f'"link_state" {keys.link_state[:60]!r} is none of {", ".join(LINK_STATES)}')
    info_file = call.conf.runtime.get("CNIDeviceInfoFile") or ""
    if not isinstance(info_file, str) or (info_file and not info_file.startswith("/")) or "\0" in info_file:
        raise InvalidConfig('"runtimeConfig.CNIDeviceInfoFile" is no absolute path')
    settings = VfSettings(
        mac=own_nic.requested_mac(call, keys.mac) or None,
        vlan=vlan,
        qos=qos,
        vlan_proto=proto,
        spoofchk=_switch("spoofchk", keys.spoofchk),
        trust=_switch("trust", keys.trust),
        link_state=keys.link_state or None,
        min_tx_rate=keys.min_tx_rate,
        max_tx_rate=keys.max_tx_rate,
    )
    return Settings(
        device=keys.device or "",
        vf=settings,
        mtu=own_nic.requested_mtu(keys.mtu),
        accept_ra=bool(keys.accept_ra),
        info_file=info_file,
        log=log_options.parse_flat(keys.log_level, keys.log_file),
    )


def _vlan(keys: Keys) -> tuple[int | None, int, str]:
    if keys.vlan is not None and not 0 <= keys.vlan <= _LARGEST_VLAN:
        raise InvalidConfig(f'"vlan" {keys.vlan} is not in the range 0 to {_LARGEST_VLAN}')
    if keys.qos is not None and not 0 <= keys.qos <= _LARGEST_QOS:
        raise InvalidConfig(f'"vlanQoS" {keys.qos} is not in the range 0 to {_LARGEST_QOS}')
    proto = (keys.proto or "802.1q").lower()
    if proto not in VLAN_PROTOCOLS:
        raise InvalidConfig(f'"vlanProto" {proto[:60]!r} is none of {", ".join(VLAN_PROTOCOLS)}')
    for key, given in (("vlanQoS", keys.qos), ("vlanProto", proto != "802.1q")):
        if given and not keys.vlan:
            raise InvalidConfig(
                f'"{key}" is given without a "vlan"', hint=f'Set "vlan" (1 to 4094), or leave "{key}" out.'
            )
    return keys.vlan, keys.qos or 0, proto


def _check_rates(keys: Keys) -> None:
    for key, rate in (("min_tx_rate", keys.min_tx_rate), ("max_tx_rate", keys.max_tx_rate)):
        if rate is not None and not 0 <= rate < 1 << 31:
            raise InvalidConfig(f'"{key}" {rate} is not in the range 0 (none) to 2147483647 Mbit/s')
    low, high = keys.min_tx_rate or 0, keys.max_tx_rate or 0
    if high and low > high:
        raise InvalidConfig(f'"min_tx_rate" {low} is larger than "max_tx_rate" {high}')


def _switch(key: str, value: str | None) -> bool | None:
    if not value:
        return None
    if value.lower() not in _SWITCH:
        raise InvalidConfig(f'"{key}" {value[:60]!r} is neither "on" nor "off"')
    return _SWITCH[value.lower()]
