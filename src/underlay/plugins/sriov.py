"""sriov: a virtual function of the node's NIC for the pod (k8snetworkplumbingwg/sriov-cni; the same keys).

    node                                        pod
    eth0 (PF) ── vf 3: vlan 100 qos 5 mac … ┐
                                            │  the VF's NIC is marked, moved and renamed by one message,
    ens1f0v3 ───────────────────────────────┼─▶ eth0
                                            │  so no name is taken on the node for it, not even for a moment
    (a VF bound to vfio-pci has no NIC: settings through the PF, addresses from IPAM, nothing in the pod)

What the VF was before the first change is in the ledger: DEL, a crash, a namespace that is gone all lead back there.
"""

from __future__ import annotations

import contextlib
import errno
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from underlay.errors import (
    CheckFailed,
    DeviceUnfit,
    InvalidConfig,
    KernelError,
    LimitedConnectivity,
    NotAvailable,
    TryAgain,
)
from underlay.net import link, vf, vf_restore
from underlay.net.pci import Pci
from underlay.net.vf import VfSettings
from underlay.plugins import info_file, own_nic, sriov_config, sriov_device

if TYPE_CHECKING:
    import msgspec

    from underlay.cni.result import Result
    from underlay.ipam.allocator import Keep
    from underlay.net.link import Link
    from underlay.net.netlink import Message
    from underlay.plugins.context import Call, Context, Plugin
    from underlay.plugins.sriov_config import Settings
    from underlay.plugins.sriov_device import Device

_UNSUPPORTED: Final = frozenset((errno.EOPNOTSUPP, errno.EPROTONOSUPPORT))
_DEFAULTS: Final = VfSettings(
    vlan=0, spoofchk=True, trust=False, link_state="auto", min_tx_rate=0, max_tx_rate=0
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sriov:
    """The plugin; ``pci`` is where it looks for devices."""

    pci: Pci = field(default_factory=Pci)
    name: str = field(default="sriov", init=False)
    keys: type[msgspec.Struct] = field(default=sriov_config.Keys, init=False)
    chained: bool = field(default=False, init=False)

    def parse(self, call: Call) -> Settings:
        """The settings of a call; see :func:`sriov_config.parse`."""
        return sriov_config.parse(call)

    def add(self, call: Call, ctx: Context) -> Result:
        """Claim the device, allocate, set it through the physical function, hand its NIC over, announce."""
        settings = sriov_config.parse(call)
        own_nic.refuse_existing(call.ifname, ctx.sandbox())
        device = self._claim(settings, ctx)
        addressed = own_nic.allocate_before(call, ctx)
        if device.nic is not None:
            own_nic.check_mtu(addressed, settings.mtu, device.nic)
            _mark(device, device.nic, settings, ctx)
        _set(device, settings.vf, ctx)
        if not device.pf.up:
            ctx.log("warn", "physical function is down", to=settings.log, nic=device.pf.name, device=settings.device)
        made = _stand_in(call, device, settings)
        if device.nic is not None:
            made = _move(call.ifname, device.nic, settings, ctx)
            addressed = own_nic.allocate_behind(call, ctx) or addressed
            own_nic.configure(made, addressed, ctx, accept_ra=settings.accept_ra)
        if settings.info_file:
            function = device.function
            info_file.describe(settings.info_file, pci_address=function.address, pf_pci_address=function.pf)
        ctx.log("debug", "sriov added", to=settings.log, container=call.container_id, nic=call.ifname,
                device=device.function.address)  # fmt: skip
        return own_nic.result(call, made, addressed, device.function.address)

    def check(self, call: Call, ctx: Context) -> None:
        """Compare settings and NIC with the configuration and prevResult; ask IPAM."""
        settings = sriov_config.parse(call)
        function = sriov_device.function_at(self.pci, settings.device)
        pf, now = sriov_device.physical(self.pci, function, ctx.host)
        wanted = settings.vf if function.for_programs else replace(settings.vf, mac=None)  # the NIC's is looked at
        for key, step in vf.steps(now, wanted):
            raise CheckFailed(f'"{key}" of virtual function {function.address} is not {_words(key, step)} on {pf.name}')
        if function.for_programs:
            own_nic.prev_result(call)
            if call.conf.ipam_type:
                ctx.ipam.check(call)
            return
        nic = own_nic.find(call, ctx)
        if nic.device not in ("", function.address):
            raise CheckFailed(f"{nic.name} is not the NIC of virtual function {function.address} but of {nic.device}")
        own_nic.check(nic, settings.mtu, call, ctx)

    def delete(self, call: Call, ctx: Context) -> None:
        """Without a ledger: the addresses back; and of a NIC that is in this pod, the name that its mark tells, and
        whatever the configuration had set to a new VF's values, as nobody knows those before. A device that is not seen
        to be this pod's is left alone: another may have it by now.
        """
        if call.conf.ipam_type:
            ctx.ipam.delete(call)
        settings = sriov_config.parse(call)
        device = settings.device.lower()
        nic = vf_restore.find(ctx.pod, device) if ctx.pod is not None and device else None
        if ctx.pod is None or nic is None:
            return
        vf_restore.bring_home(ctx.host, ctx.pod, device)
        _unmark(device, ctx)
        pf, now = sriov_device.physical(self.pci, sriov_device.function_at(self.pci, device), ctx.host)
        steps = vf.steps(now, _defaults(settings.vf))
        ctx.host.rtnl.batch([_message(pf, now.number, step) for _, step in steps])

    def status(self, call: Call, ctx: Context) -> None:
        """Raise NotAvailable where there is no virtual function, LimitedConnectivity where no PF with VFs is up."""
        settings = sriov_config.parse(call)
        if call.conf.ipam_type:
            ctx.ipam.status(call)
        if settings.device:
            try:
                function = sriov_device.function_at(self.pci, settings.device)
                pfs = [sriov_device.physical(self.pci, function, ctx.host)[0]]
            except DeviceUnfit as error:
                raise NotAvailable(error.message, hint=error.hint) from error
        else:
            pfs = self._pfs_with_vfs(ctx)
        if not any(pf.up for pf in pfs):
            names = ", ".join(pf.name for pf in pfs)
            raise LimitedConnectivity(f"physical function {names} is down: some virtual functions have no link then",
                                      hint="Bring it up: ip link set NAME up.")  # fmt: skip

    def gc(self, call: Call, ctx: Context, keep: Keep) -> None:
        """Let IPAM give back what nobody holds, and give NICs on the node that still have our mark, but that no ledger
        knows of, their names. All others are given back by the ledger.
        """
        if call.conf.ipam_type:
            ctx.ipam.gc(call, keep)
        for nic in link.dump(ctx.host.rtnl):
            device = vf_restore.marked_device(nic.alias)
            if device:
                with contextlib.suppress(TryAgain), ctx.devices.claiming(device):
                    _unmark(device, ctx)

    def _claim(self, settings: Settings, ctx: Context) -> Device:
        """The device as it is, written down; from here on it is this attachment's."""
        function = sriov_device.function_at(self.pci, settings.device)
        with ctx.devices.claiming(function.address):
            device = sriov_device.find(self.pci, function.address, ctx.host)
            if settings.mtu and device.nic is None:
                raise InvalidConfig(
                    f'"mtu" is given, but virtual function {function.address} (driver {function.driver}) has no NIC',
                    hint='Leave "mtu" out: the program in the pod sets it.',
                )
            ctx.undo.record(device.undo())
        return device

    def _pfs_with_vfs(self, ctx: Context) -> list[Link]:
        """Raises NotAvailable where there is none."""
        pfs = self.pci.pfs()
        if not pfs:
            raise NotAvailable("this node has no NIC that can have virtual functions (SR-IOV)")
        made = [pf for pf in pfs if self.pci.vfs(pf.address)]
        if not made:
            raise NotAvailable(
                f"none of the physical functions {', '.join(pf.address for pf in pfs)} has virtual functions",
                hint="Make some: echo NUMBER > /sys/bus/pci/devices/ADDRESS/sriov_numvfs.",
            )
        found = [link.get(ctx.host.rtnl, nic) for pf in made for nic in pf.nics]
        return [one for one in found if one is not None]


def _stand_in(call: Call, device: Device, settings: Settings) -> Link:
    """What the result says of a device without a NIC."""
    return link.Link(0, call.ifname, "", settings.vf.mac or device.vf.mac, 0, up=False, flags=0)


def _mark(device: Device, nic: Link, settings: Settings, ctx: Context) -> None:
    """Mark the NIC, and give it its address while it may still choose one: before the physical function sets it."""
    alias = vf_restore.mark(device.function.address, nic.name)
    ctx.host.rtnl.batch((link.change(index=nic.index, up=False), link.change(index=nic.index, alias=alias)))
    mac = settings.vf.mac
    if mac is None or nic.mac == mac:
        return
    change = link.change(index=nic.index, mac=mac)
    if ctx.host.rtnl.failures((change,)):  # the physical function had set another (igb, ixgbe, i40e)
        _set(device, VfSettings(mac=vf_restore.NO_MAC), ctx)
        ctx.host.rtnl.failures((change,))


def _set(device: Device, wanted: VfSettings, ctx: Context) -> None:
    """Set the virtual function through the physical one; raises the first refusal, with what it means."""
    steps = vf.steps(device.vf, wanted)
    refused = ctx.host.rtnl.failures([_message(device.pf, device.vf.number, step) for _, step in steps])
    for position, error in refused.items():
        raise _explained(error, *steps[position], device) from error


def _message(pf: Link, number: int, step: VfSettings) -> Message:
    return vf.change(pf=pf.index, number=number, settings=step)


def _explained(error: KernelError, key: str, step: VfSettings, device: Device) -> KernelError | InvalidConfig:
    pf, named, words = device.pf, "max_tx_rate" if key == "rate" else key, _words(key, step)
    if error.errno == errno.EPROTONOSUPPORT:
        named, words = "vlanProto", step.vlan_proto
    if error.errno in _UNSUPPORTED:
        return InvalidConfig(
            f'"{named}" {words} is not supported by the NIC {pf.name} of virtual function {device.function.address}',
            hint=f'Leave "{named}" out for networks on this NIC, or use another one.',
        )
    hint = f"{pf.name} may be busy resetting; its driver's own words are in the kernel's log (dmesg)."
    if key == "rate":
        hint = (
            f"The rate must not be higher than the speed of {pf.name}, which must be up and have a link; not every"
            ' driver knows "min_tx_rate".'
        )
    return KernelError(f'set "{named}" {words} of VF {device.vf.number} of {pf.name}', error.errno, error.extack,
                       hint=hint)  # fmt: skip


def _words(key: str, step: VfSettings) -> str:
    """The value as the configuration has it."""
    if key == "vlan":
        return f"{step.vlan} (qos {step.qos}, {step.vlan_proto})"
    if key == "rate":
        return f"{step.max_tx_rate} (min_tx_rate {step.min_tx_rate})"
    value = getattr(step, key)
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def _move(name: str, nic: Link, settings: Settings, ctx: Context) -> Link:
    """Hand the NIC over; returns it as it is in the pod, down."""
    pod = ctx.sandbox()
    ctx.host.rtnl.batch((link.change(index=nic.index, netns_fd=pod.fd, new_name=name),))
    made = link.get(pod.rtnl, name)
    if made is None:
        raise KernelError(f"find link {name}", errno.ENODEV)
    if settings.mtu and made.mtu != settings.mtu:
        try:
            pod.rtnl.batch((link.change(index=made.index, mtu=settings.mtu),))
        except KernelError as error:
            raise InvalidConfig(
                f'"mtu" {settings.mtu} is refused by virtual function {settings.device}: {error.message}',
                hint="It can be no larger than the physical function allows; raise that one's MTU first.",
            ) from error
    if settings.vf.mac and made.mac != settings.vf.mac:
        pod.rtnl.batch((link.change(index=made.index, mac=settings.vf.mac),))
    made = link.get(pod.rtnl, name) or made
    ctx.made[name] = made
    return made


def _unmark(device: str, ctx: Context) -> None:
    """Give a NIC on the node the name that its mark tells, and take the mark off."""
    nic = vf_restore.find(ctx.host, device)
    name = vf_restore.name_before(nic.alias, device) if nic is not None else ""
    if nic is not None and name:
        down, rename = link.change(index=nic.index, up=False), link.change(index=nic.index, new_name=name)
        ctx.host.rtnl.batch((down, rename) if nic.name != name else ())
        ctx.host.rtnl.batch((link.change(index=nic.index, alias=""),))


def _defaults(wanted: VfSettings) -> VfSettings:
    """A new VF's values of whatever the configuration sets."""
    keys = [key for key in ("vlan", "spoofchk", "trust", "link_state", "min_tx_rate", "max_tx_rate")
            if getattr(wanted, key) is not None]  # fmt: skip
    return VfSettings(**{key: getattr(_DEFAULTS, key) for key in keys})


PLUGIN: Plugin = Sriov()
