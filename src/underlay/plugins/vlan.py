"""vlan: a VLAN of a parent's wire as the pod's NIC (containernetworking/plugins, main/vlan; the same keys).

The kernel has one NIC for each VLAN of a parent, whatever namespace it is in: so one pod of a node has it at a time.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import msgspec

from underlay.cni import config
from underlay.errors import CheckFailed, DeviceInUse, InvalidConfig, KernelError
from underlay.net import link_info
from underlay.plugins import own_nic, sub_interface

if TYPE_CHECKING:
    from underlay.errors import UnderlayError
    from underlay.net.link import Link
    from underlay.plugins.context import Call, Context, Plugin


class _Keys(msgspec.Struct, frozen=True):
    master: str | None = None
    vlan: int | None = msgspec.field(name="vlanId", default=None)
    mtu: int | None = None
    link_in_container: bool | None = msgspec.field(name="linkInContainer", default=None)
    accept_ra: bool | None = msgspec.field(name="acceptRA", default=None)


class Settings(sub_interface.Settings, frozen=True, kw_only=True):
    """``vlan`` is 0 to 4094; 0 marks frames by their priority alone."""

    vlan: int


class Vlan(sub_interface.SubInterface[Settings]):
    """The plugin."""

    name = "vlan"
    keys = _Keys

    def parse(self, call: Call) -> Settings:
        """Raises InvalidConfig or DecodeFailure naming the key."""
        keys = config.decode_again(call.conf.raw, _Keys)
        if not keys.master:
            raise InvalidConfig('"master" is missing', hint='Set "master" to the NIC whose VLAN it is to be.')
        if keys.vlan is None:
            raise InvalidConfig('"vlanId" is missing', hint=f'Set "vlanId", 1 to {link_info.LARGEST_VLAN}.')
        if not 0 <= keys.vlan <= link_info.LARGEST_VLAN:
            raise InvalidConfig(f'"vlanId" {keys.vlan} is not in the range 0 to {link_info.LARGEST_VLAN}')
        return Settings(
            master=keys.master,
            vlan=keys.vlan,
            mtu=own_nic.requested_mtu(keys.mtu),
            in_pod=bool(keys.link_in_container),
            accept_ra=bool(keys.accept_ra),
        )

    def require_fit(self, parent: Link) -> None:
        """It can be up only while its parent is (vlan_dev_open)."""
        if not parent.up:
            raise KernelError(
                f"use {parent.name} as the parent of a VLAN", errno.ENETDOWN,
                hint=f"Bring it up: ip link set {parent.name} up.",
            )  # fmt: skip

    def make(self, name: str, mac: str, settings: Settings, parent: Link, ctx: Context) -> Link:
        """With its parent's hardware address: a wire may let no other through."""
        return self.create(name, settings, parent, ctx, info=link_info.vlan(settings.vlan))

    def check_kind(self, nic: Link, settings: Settings) -> None:
        """The VLAN's number."""
        if nic.vlan != settings.vlan:
            raise CheckFailed(f"{nic.name} is VLAN {nic.vlan}, not {settings.vlan}")

    def explained(self, error: KernelError, settings: Settings, parent: Link) -> UnderlayError:
        """Whose the VLAN is already."""
        if error.errno != errno.EEXIST:
            return error
        return DeviceInUse(
            f"VLAN {settings.vlan} of {parent.name} is taken already, on the node or by another pod",
            hint="One NIC can have it at a time. For several pods make its NIC on the node, and use macvlan on that.",
        )


PLUGIN: Plugin = Vlan()
