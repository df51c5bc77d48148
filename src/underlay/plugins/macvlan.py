"""macvlan: a NIC of its own on a parent's wire (containernetworking/plugins, main/macvlan; the same keys)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from underlay.cni import config
from underlay.errors import CheckFailed, InvalidConfig, KernelError
from underlay.net import link, link_info
from underlay.plugins import own_nic, sub_interface

if TYPE_CHECKING:
    from underlay.plugins.context import Call, Context, Plugin


class _Keys(msgspec.Struct, frozen=True):
    master: str | None = None
    mode: str | None = None
    mtu: int | None = None
    mac: str | None = None
    link_in_container: bool | None = msgspec.field(name="linkInContainer", default=None)
    bcqueuelen: int | None = None
    accept_ra: bool | None = msgspec.field(name="acceptRA", default=None)


class Settings(sub_interface.Settings, frozen=True, kw_only=True):
    """``mac`` is "" for one of our choice, ``bcqueuelen`` None for the kernel's default."""

    mode: str
    mac: str
    bcqueuelen: int | None


class Macvlan(sub_interface.SubInterface[Settings]):
    """The plugin."""

    name = "macvlan"
    keys = _Keys

    def parse(self, call: Call) -> Settings:
        """Raises InvalidConfig or DecodeFailure naming the key."""
        keys = config.decode_again(call.conf.raw, _Keys)
        mode = keys.mode or "bridge"
        if mode not in link_info.MACVLAN_MODES:
            raise InvalidConfig(f'"mode" {mode[:60]!r} is none of {", ".join(link_info.MACVLAN_MODES)}')
        mtu = own_nic.requested_mtu(keys.mtu)
        if (keys.bcqueuelen or 0) < 0:
            raise InvalidConfig(f'"bcqueuelen" {keys.bcqueuelen} is negative')
        if (keys.bcqueuelen or 0) >= 1 << 32:
            raise InvalidConfig(f'"bcqueuelen" {keys.bcqueuelen} is larger than 4294967295')
        return Settings(
            master=keys.master or "",
            mode=mode,
            mtu=mtu,
            mac=own_nic.requested_mac(call, keys.mac),
            in_pod=bool(keys.link_in_container),
            bcqueuelen=keys.bcqueuelen or None,
            accept_ra=bool(keys.accept_ra),
        )

    def mac_of(self, settings: Settings) -> str:
        """None in mode passthru: it takes over its parent's, whatever the message says (macvlan_common_newlink)."""
        return "" if settings.mode == "passthru" else settings.mac or link.random_mac()

    def make(self, name: str, mac: str, settings: Settings, parent: link.Link, ctx: Context) -> link.Link:
        """In mode passthru an address that is asked for is set behind."""
        info = link_info.macvlan(settings.mode, settings.bcqueuelen)
        made = self.create(name, settings, parent, ctx, info=info, mac=mac)
        if mac or not settings.mac:
            return made
        # Changes the parent's as well; the kernel gives that back with the NIC's end.
        ctx.sandbox().rtnl.batch((link.change(index=made.index, mac=settings.mac),))
        ctx.made[name] = replace(made, mac=settings.mac)
        return ctx.made[name]

    def check_kind(self, nic: link.Link, settings: Settings) -> None:
        """The mode."""
        if nic.mode != settings.mode:
            raise CheckFailed(f"{nic.name} is in mode {nic.mode}, not {settings.mode}")

    def explained(self, error: KernelError, settings: Settings, parent: link.Link) -> KernelError:
        """Who else may use the parent."""
        if error.errno not in (errno.EBUSY, errno.EINVAL):
            return error
        hint = f"{parent.name} may be part of a bridge or bond, or carry an ipvlan or another macvlan in mode passthru"
        if settings.mode == "passthru":
            hint = f"Mode passthru needs {parent.name} for itself: no other macvlan, bridge or bond may use it"
        return KernelError(error.act, error.errno, error.extack, hint=hint)


PLUGIN: Plugin = Macvlan()
