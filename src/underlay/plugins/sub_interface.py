"""What macvlan, ipvlan and vlan are alike: a NIC for the pod on one of the node's, or on one that the pod has.

    parse ─▶ parent ─▶ addresses ─▶ make ─▶ up, addressed, announced

The link is made by one message, in the pod, under its final name, and where its kind lets us with an address that we
chose, so that the undo log can tell it from a link of that name that was there before.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from underlay.errors import CheckFailed, InvalidConfig, KernelError, NotAvailable, ParentMissing
from underlay.net import link, route
from underlay.net.undo import DropLink
from underlay.plugins import own_nic

if TYPE_CHECKING:
    from underlay.cni.result import Result
    from underlay.errors import UnderlayError
    from underlay.ipam.allocator import Keep
    from underlay.net.link_info import Data
    from underlay.net.netns import Namespace
    from underlay.plugins.context import Call, Context


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What every kind is told, validated as far as it can be without the kernel.

    ``master`` is "" where it is not given, ``mtu`` 0 for the parent's; ``in_pod``: the parent is one of the pod's.
    ``accept_ra`` (our own key, "acceptRA") lets the NIC take addresses and routes from router advertisements.
    """

    master: str
    mtu: int
    in_pod: bool
    accept_ra: bool


S = TypeVar("S", bound=Settings)


class SubInterface(ABC, Generic[S]):
    """The plugin of one kind, whose name in the kernel is that of the plugin."""

    name: str
    keys: type[msgspec.Struct]
    chained = False

    @abstractmethod
    def parse(self, call: Call) -> S:
        """The configuration of a call; raises InvalidConfig or DecodeFailure naming the key."""

    @abstractmethod
    def make(self, name: str, mac: str, settings: S, parent: link.Link, ctx: Context) -> link.Link:
        """Make the link in the pod, down; ``mac`` is what :meth:`mac_of` said."""

    @abstractmethod
    def check_kind(self, nic: link.Link, settings: S) -> None:
        """Raise CheckFailed where the link's own settings are others; it is of this kind."""

    @abstractmethod
    def explained(self, error: KernelError, settings: S, parent: link.Link) -> UnderlayError:
        """The kernel's refusal to make it with what it means here."""

    def master_of(self, settings: S, call: Call) -> str:
        """The parent's name, "" for the NIC of the default route. Raises InvalidConfig."""
        return settings.master

    def mac_of(self, settings: S) -> str:
        """The hardware address that we choose, "" where the kernel does."""
        return ""

    def inherited(self, call: Call) -> Result | None:
        """The addresses for a NIC whose configuration names no IPAM plugin."""
        return None

    def speaks_arp(self, settings: S) -> bool:
        """Whether the wire can be told of the NIC's addresses."""
        return True

    def require_fit(self, parent: link.Link) -> None:
        """Raise KernelError where the kind needs more of its parent than that it exists."""

    def add(self, call: Call, ctx: Context) -> Result:
        """Allocate, make the link, address it, announce it."""
        settings = self.parse(call)
        parent = find_parent(self.master_of(settings, call), _place(settings, ctx), in_pod=settings.in_pod)
        self.require_fit(parent)
        _check_mtu(settings, parent)
        mac = self.mac_of(settings)
        if mac:
            ctx.undo.ahead(DropLink("pod", call.ifname, mac=mac))
        addressed = own_nic.allocate_before(call, ctx) or self.inherited(call)
        own_nic.check_mtu(addressed, settings.mtu, parent)
        made = self.make(call.ifname, mac, settings, parent, ctx)
        behind = own_nic.allocate_behind(call, ctx)
        if behind is not None:
            own_nic.check_mtu(behind, settings.mtu, parent)
            addressed = behind
        own_nic.configure(made, addressed, ctx, accept_ra=settings.accept_ra, announced=self.speaks_arp(settings))
        return own_nic.result(call, made, addressed)

    def check(self, call: Call, ctx: Context) -> None:
        """Compare the link with the configuration and with prevResult; ask IPAM."""
        settings = self.parse(call)
        nic = own_nic.find(call, ctx)
        if nic.kind != self.name:
            raise CheckFailed(f"{nic.name} is no {self.name} but {nic.kind or 'hardware'}")
        if settings.master:  # else: what told the parent at ADD may tell another by now, the NIC itself for one
            _check_parent(nic, find_parent(settings.master, _place(settings, ctx), in_pod=settings.in_pod))
        self.check_kind(nic, settings)
        own_nic.check(nic, settings.mtu, call, ctx)

    def delete(self, call: Call, ctx: Context) -> None:
        """Give the addresses back and delete the link."""
        if call.conf.ipam_type:
            ctx.ipam.delete(call)
        if ctx.pod is None:
            return
        nic = link.get(ctx.pod.rtnl, call.ifname)
        if nic is not None and nic.kind == self.name:
            link.delete_group(ctx.pod.rtnl, [nic.index])

    def status(self, call: Call, ctx: Context) -> None:
        """Raise NotAvailable where there is no parent that ADD could use, or IPAM says so."""
        settings = self.parse(call)
        if call.conf.ipam_type:
            ctx.ipam.status(call)
        if settings.in_pod:
            return
        try:
            parent = find_parent(settings.master, ctx.host, in_pod=False)
            self.require_fit(parent)
            _check_mtu(settings, parent)
        except (ParentMissing, InvalidConfig, KernelError) as error:
            raise NotAvailable(error.message, hint=error.hint) from error

    def gc(self, call: Call, ctx: Context, keep: Keep) -> None:
        """Let IPAM give back what nobody holds."""
        if call.conf.ipam_type:
            ctx.ipam.gc(call, keep)

    def create(
        self, name: str, settings: S, parent: link.Link, ctx: Context, *, info: Data, mac: str = ""
    ) -> link.Link:
        """Make the link, with ``mac`` (its undoing goes ahead) or with what the kernel gives it, which is asked for.

        Without a hardware address of our choice the undo log knows the link by its kind alone, so none of that name may
        be there before. Raises InterfaceExists, and what :meth:`explained` returns.
        """
        pod = ctx.sandbox()
        making = _Making(settings, parent, ctx, info, mac)
        if mac:
            ctx.undo.record()
        else:
            own_nic.refuse_existing(name, pod)
            ctx.undo.record(making.undo(name))
        index = link.random_index()
        try:
            making.send(name, index)
        except KernelError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise _unknown(error, self.name) from error
            if error.errno != errno.EEXIST:
                raise self.explained(error, settings, parent) from error
            own_nic.refuse_existing(name, pod)
            try:
                index = making.send_elsewhere(name)
            except KernelError as again:
                raise self.explained(again, settings, parent) from again
        if mac:  # not asked for: see :func:`link.random_index`
            mtu = settings.mtu or parent.mtu
            ctx.made[name] = link.Link(index, name, self.name, mac, mtu, up=False, flags=0, parent=parent.index)
        else:
            ctx.made[name] = _read(name, pod)
        return ctx.made[name]


class _Making(msgspec.Struct, frozen=True):
    """What is to be made, under whatever name and index."""

    settings: Settings
    parent: link.Link
    ctx: Context
    info: Data
    mac: str

    def undo(self, name: str) -> DropLink:
        return DropLink("pod", name, mac=self.mac, kind="" if self.mac else self.info.kind)

    def send(self, name: str, index: int) -> None:
        pod = self.ctx.sandbox()
        where, netns_fd = (pod, None) if self.settings.in_pod else (self.ctx.host, pod.fd)
        create = link.create_upper(
            self.info,
            name=name,
            parent=self.parent.index,
            mac=self.mac,
            mtu=self.settings.mtu,
            netns_fd=netns_fd,
            index=index,
        )
        where.rtnl.batch((create,))

    def send_elsewhere(self, name: str) -> int:
        """Make the link under a passing name and rename it in the pod; returns its index.

        Kernels before 6.14 look for the name where the message is sent, and a node has an eth0 too (rtnl_newlink).
        """
        passing = f"mac{link.random_mac().replace(':', '')}"
        self.ctx.undo.record(self.undo(passing))
        index = link.random_index()
        self.send(passing, index)
        self.ctx.sandbox().rtnl.batch((link.change(index=index, new_name=name),))
        return index


def _read(name: str, pod: Namespace) -> link.Link:
    """The link that was just made. Raises KernelError."""
    made = link.get(pod.rtnl, name)
    if made is None:
        raise KernelError(f"find link {name}", errno.ENODEV)
    return made


def _unknown(error: KernelError, kind: str) -> KernelError:
    module = "8021q" if kind == "vlan" else kind
    hint = f"The node's kernel does not know this kind of link: its module is {module} (modprobe {module})."
    return KernelError(error.act, error.errno, error.extack, hint=hint)


def find_parent(master: str, where: Namespace, *, in_pod: bool) -> link.Link:
    """The NIC to build on, that of the default route for ""; raises ParentMissing."""
    place = "in the pod" if in_pod else "on this node"
    if master:
        found = link.get(where.rtnl, master)
        if found is None:
            raise ParentMissing(f'"master" {master[:60]!r} does not exist {place}')
        return found
    for family in (AF_INET, AF_INET6):
        routes = route.dump(where.rtnl, family=family, table=route.MAIN)
        default = min((one for one in routes if one.is_default), key=lambda one: one.priority, default=None)
        found = link.get_index(where.rtnl, default.dev) if default else None
        if found is not None:
            return found
    raise ParentMissing(f'"master" is not given, and there is no default route {place} to take it from')


def _place(settings: Settings, ctx: Context) -> Namespace:
    pod = ctx.sandbox()
    return pod if settings.in_pod else ctx.host


def _check_mtu(settings: Settings, parent: link.Link) -> None:
    if settings.mtu > parent.mtu:
        raise InvalidConfig(f'"mtu" {settings.mtu} is larger than the {parent.mtu} of {parent.name}')


def _check_parent(nic: link.Link, parent: link.Link) -> None:
    """On one of its own kind a macvlan or ipvlan lies beside it, on the same parent (macvlan_common_newlink)."""
    below = {parent.index, parent.parent} if parent.kind == nic.kind else {parent.index}
    if nic.parent not in below:
        raise CheckFailed(f"{nic.name} does not lie on {parent.name}")
