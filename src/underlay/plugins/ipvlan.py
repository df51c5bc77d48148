"""ipvlan: addresses of its own behind a parent's hardware address (containernetworking/plugins, main/ipvlan).

For wires that let one hardware address through a port. The keys are the same, and so is what a plugin before it in the
chain is taken for: its one interface is the parent, its addresses are the NIC's.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import msgspec

from underlay.cni import config
from underlay.cni.result import Result
from underlay.errors import AddressInUse, CheckFailed, InvalidConfig, KernelError
from underlay.net import link_info
from underlay.plugins import own_nic, sub_interface

if TYPE_CHECKING:
    from underlay.net.link import Link
    from underlay.plugins.context import Call, Context, Plugin


class _Keys(msgspec.Struct, frozen=True):
    master: str | None = None
    mode: str | None = None
    mtu: int | None = None
    link_in_container: bool | None = msgspec.field(name="linkInContainer", default=None)
    accept_ra: bool | None = msgspec.field(name="acceptRA", default=None)


class Settings(sub_interface.Settings, frozen=True, kw_only=True):
    """``mode`` is l2, l3 or l3s."""

    mode: str


class Ipvlan(sub_interface.SubInterface[Settings]):
    """The plugin."""

    name = "ipvlan"
    keys = _Keys

    def parse(self, call: Call) -> Settings:
        """Raises InvalidConfig or DecodeFailure naming the key."""
        keys = config.decode_again(call.conf.raw, _Keys)
        mode = keys.mode or "l2"
        if mode not in link_info.IPVLAN_MODES:
            raise InvalidConfig(f'"mode" {mode[:60]!r} is none of {", ".join(link_info.IPVLAN_MODES)}')
        return Settings(
            master=keys.master or "",
            mode=mode,
            mtu=own_nic.requested_mtu(keys.mtu),
            in_pod=bool(keys.link_in_container),
            accept_ra=bool(keys.accept_ra),
        )

    def master_of(self, settings: Settings, call: Call) -> str:
        """As configured, else the one interface of the plugin before it."""
        if settings.master or call.conf.prev is None:
            return settings.master
        interfaces = call.conf.prev.interfaces
        if len(interfaces) != 1 or not interfaces[0].name:
            raise InvalidConfig(
                f'"master" is not given, and "prevResult.interfaces" lists {len(interfaces)}: one is needed to take its'
                " place",
                hint='Set "master", or put ipvlan behind a plugin that makes one interface.',
            )
        return interfaces[0].name

    def inherited(self, call: Call) -> Result | None:
        """Those of the plugin before it."""
        prev = call.conf.prev
        return Result(ips=prev.ips, routes=prev.routes) if prev is not None and prev.ips else None

    def speaks_arp(self, settings: Settings) -> bool:
        """In modes l3 and l3s the parent's namespace routes, and the wire is asked for nothing."""
        return settings.mode == "l2"

    def make(self, name: str, mac: str, settings: Settings, parent: Link, ctx: Context) -> Link:
        """With its parent's hardware address."""
        return self.create(name, settings, parent, ctx, info=link_info.ipvlan(settings.mode))

    def add(self, call: Call, ctx: Context) -> Result:
        """As every sub-interface; the kernel lets only one ipvlan on a parent have an address."""
        try:
            return super().add(call, ctx)
        except KernelError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise AddressInUse(
                f"another pod on the same parent has an address of {call.ifname}: {error.message}",
                hint="Two networks on one parent need ranges of addresses that do not overlap.",
            ) from error

    def check_kind(self, nic: Link, settings: Settings) -> None:
        """The mode."""
        if nic.mode != settings.mode:
            raise CheckFailed(
                f"{nic.name} is in mode {nic.mode}, not {settings.mode}",
                hint="All ipvlan NICs on one parent have the mode of the last that was made: "
                "give all networks on it the same.",
            )

    def explained(self, error: KernelError, settings: Settings, parent: Link) -> KernelError:
        """Who else may use the parent."""
        if error.errno not in (errno.EBUSY, errno.EINVAL):
            return error
        hint = (
            f"{parent.name} may be part of a bridge or bond, or carry a macvlan: ipvlan needs an Ethernet NIC to itself"
        )
        return KernelError(error.act, error.errno, error.extack, hint=hint)


PLUGIN: Plugin = Ipvlan()
