"""macvlan: a NIC of its own on a parent's wire (containernetworking/plugins, main/macvlan; the same keys).

The link is made by one message, in the pod, under its final name and with an address that we chose, so that the undo
log can tell it from a link of that name that was there before.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING

import msgspec

from underlay.cni import config
from underlay.errors import CheckFailed, InvalidConfig, KernelError, NotAvailable, ParentMissing
from underlay.net import link, route
from underlay.net.undo import DropLink
from underlay.plugins import own_nic

if TYPE_CHECKING:
    from underlay.cni.result import Result
    from underlay.ipam.allocator import Keep
    from underlay.net.netns import Namespace
    from underlay.plugins.context import Call, Context, Plugin


class _Keys(msgspec.Struct, frozen=True):
    master: str | None = None
    mode: str | None = None
    mtu: int | None = None
    mac: str | None = None
    link_in_container: bool | None = msgspec.field(name="linkInContainer", default=None)
    bcqueuelen: int | None = None
    accept_ra: bool | None = msgspec.field(name="acceptRA", default=None)


@dataclass(frozen=True, slots=True)
class Settings:
    """The plugin's configuration, validated as far as it can be without the kernel.

    ``master`` is "" for the NIC of the default route, ``mtu`` 0 for the parent's, ``mac`` "" for one of our choice,
    ``bcqueuelen`` None for the kernel's default. ``accept_ra`` (our own key, "acceptRA") lets the NIC take addresses
    and routes from router advertisements.
    """

    master: str
    mode: str
    mtu: int
    mac: str
    in_pod: bool
    bcqueuelen: int | None
    accept_ra: bool


@dataclass(frozen=True, slots=True)
class Macvlan:
    """The plugin."""

    name: str = field(default="macvlan", init=False)
    keys: type[msgspec.Struct] = field(default=_Keys, init=False)
    chained: bool = field(default=False, init=False)

    def parse(self, call: Call) -> Settings:
        """The settings of a call; see :func:`parse`."""
        return parse(call)

    def add(self, call: Call, ctx: Context) -> Result:
        """Allocate, make the link, address it, announce it."""
        settings = parse(call)
        pod = ctx.sandbox()
        parent = _parent(settings, pod if settings.in_pod else ctx.host)
        _check_mtu(settings, parent)
        # passthru takes over its parent's address, whatever the message says (macvlan_common_newlink)
        mac = "" if settings.mode == "passthru" else settings.mac or link.random_mac()
        if mac:
            ctx.undo.ahead(DropLink("pod", call.ifname, mac=mac))
        addressed = own_nic.allocate_before(call, ctx)
        own_nic.check_mtu(addressed, settings.mtu, parent)
        made = _make(call.ifname, mac, settings, parent, ctx)
        addressed = own_nic.allocate_behind(call, ctx) or addressed
        own_nic.check_mtu(addressed, settings.mtu, parent)
        own_nic.configure(made, addressed, ctx, accept_ra=settings.accept_ra)
        return own_nic.result(call, made, addressed)

    def check(self, call: Call, ctx: Context) -> None:
        """Compare the link with the configuration and with prevResult; ask IPAM."""
        settings = parse(call)
        pod = ctx.sandbox()
        nic = own_nic.find(call, ctx)
        _check_link(nic, settings, _parent(settings, pod if settings.in_pod else ctx.host) if settings.master else None)
        own_nic.check(nic, settings.mtu, call, ctx)

    def delete(self, call: Call, ctx: Context) -> None:
        """Give the addresses back and delete the link."""
        if call.conf.ipam_type:
            ctx.ipam.delete(call)
        if ctx.pod is None:
            return
        nic = link.get(ctx.pod.rtnl, call.ifname)
        if nic is not None and nic.kind == "macvlan":
            link.delete_group(ctx.pod.rtnl, [nic.index])

    def status(self, call: Call, ctx: Context) -> None:
        """Raise NotAvailable where there is no parent, its MTU is too small, or IPAM says so."""
        settings = parse(call)
        if call.conf.ipam_type:
            ctx.ipam.status(call)
        if settings.in_pod:
            return
        try:
            _check_mtu(settings, _parent(settings, ctx.host))
        except (ParentMissing, InvalidConfig) as error:
            raise NotAvailable(error.message, hint=error.hint) from error

    def gc(self, call: Call, ctx: Context, keep: Keep) -> None:
        """Let IPAM give back what nobody holds."""
        if call.conf.ipam_type:
            ctx.ipam.gc(call, keep)


def parse(call: Call) -> Settings:
    """The configuration of a call; raises InvalidConfig or DecodeFailure naming the key."""
    keys = config.decode(call.conf.raw, _Keys)
    mode = keys.mode or "bridge"
    if mode not in link.MACVLAN_MODES:
        raise InvalidConfig(f'"mode" {mode[:60]!r} is none of {", ".join(link.MACVLAN_MODES)}')
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


def _parent(settings: Settings, where: Namespace) -> link.Link:
    """The NIC to build on; raises ParentMissing."""
    place = "in the pod" if settings.in_pod else "on this node"
    if settings.master:
        found = link.get(where.rtnl, settings.master)
        if found is None:
            raise ParentMissing(f'"master" {settings.master[:60]!r} does not exist {place}')
        return found
    for family in (AF_INET, AF_INET6):
        routes = route.dump(where.rtnl, family=family, table=route.MAIN)
        default = min((one for one in routes if one.is_default), key=lambda one: one.priority, default=None)
        found = link.get_index(where.rtnl, default.dev) if default else None
        if found is not None:
            return found
    raise ParentMissing(f'"master" is not given, and there is no default route {place} to take it from')


def _check_mtu(settings: Settings, parent: link.Link) -> None:
    if settings.mtu > parent.mtu:
        raise InvalidConfig(f'"mtu" {settings.mtu} is larger than the {parent.mtu} of {parent.name}')


def _make(name: str, mac: str, settings: Settings, parent: link.Link, ctx: Context) -> link.Link:
    """Make the link in the pod, down."""
    pod = ctx.sandbox()
    index = link.random_index()
    if mac:
        ctx.undo.record()
    else:
        own_nic.refuse_existing(name, pod)  # the undo log knows it by its kind alone
        ctx.undo.record(DropLink("pod", name, kind="macvlan"))
    try:
        _create(name, index, settings, parent, mac, ctx)
    except KernelError as error:
        if error.errno != errno.EEXIST:
            raise _explained(error, settings, parent) from error
        own_nic.refuse_existing(name, pod)
        index = _create_elsewhere(name, settings, parent, mac, ctx)
    if mac:
        ctx.made[name] = _as_made(name, index, mac, settings, parent)
        return ctx.made[name]
    if settings.mac:  # changes the parent's as well; the kernel gives that back with the NIC's end
        pod.rtnl.batch((link.change(name=name, mac=settings.mac),))
    made = link.get(pod.rtnl, name)
    if made is None:
        raise KernelError(f"find link {name}", errno.ENODEV)
    return made


def _as_made(name: str, index: int, mac: str, settings: Settings, parent: link.Link) -> link.Link:
    """The link as it must be now. Not asked for: see :func:`link.random_index`."""
    mtu = settings.mtu or parent.mtu
    return link.Link(
        index, name, "macvlan", mac, mtu, up=False, flags=0, parent=parent.index, macvlan_mode=settings.mode
    )


def _create(name: str, index: int, settings: Settings, parent: link.Link, mac: str, ctx: Context) -> None:
    pod = ctx.sandbox()
    where, netns_fd = (pod, None) if settings.in_pod else (ctx.host, pod.fd)
    create = link.create_macvlan(
        name=name,
        parent=parent.index,
        mode=settings.mode,
        mac=mac,
        mtu=settings.mtu,
        netns_fd=netns_fd,
        bcqueuelen=settings.bcqueuelen,
        index=index,
    )
    where.rtnl.batch((create,))


def _create_elsewhere(name: str, settings: Settings, parent: link.Link, mac: str, ctx: Context) -> int:
    """Make the link under a passing name and rename it in the pod; returns its index.

    Kernels before 6.14 look for the name where the message is sent, and a node has an eth0 too (rtnl_newlink).
    """
    passing = f"mac{link.random_mac().replace(':', '')}"
    pod = ctx.sandbox()
    ctx.undo.record(DropLink("pod", passing, mac=mac, kind="" if mac else "macvlan"))
    index = link.random_index()
    _create(passing, index, settings, parent, mac, ctx)
    pod.rtnl.batch((link.change(index=index, new_name=name),))
    return index


def _explained(error: KernelError, settings: Settings, parent: link.Link) -> KernelError:
    """The kernel's refusal with what it means here."""
    hint = None
    if error.errno in (errno.EBUSY, errno.EINVAL):
        hint = f"{parent.name} may be part of a bridge or bond, or carry another macvlan in mode passthru"
        if settings.mode == "passthru":
            hint = f"Mode passthru needs {parent.name} for itself: no other macvlan, bridge or bond may use it"
    return KernelError(error.act, error.errno, error.extack, hint=hint) if hint else error


def _check_link(nic: link.Link, settings: Settings, parent: link.Link | None) -> None:
    """``parent`` None: any, as the default route that told it at ADD may be another by now, the NIC's own for one."""
    if nic.kind != "macvlan":
        raise CheckFailed(f"{nic.name} is no macvlan but {nic.kind or 'hardware'}")
    if parent is not None and nic.parent != parent.index:
        raise CheckFailed(f"{nic.name} does not lie on {parent.name}")
    if nic.macvlan_mode != settings.mode:
        raise CheckFailed(f"{nic.name} is in mode {nic.macvlan_mode}, not {settings.mode}")


PLUGIN: Plugin = Macvlan()
