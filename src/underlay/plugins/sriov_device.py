"""Which virtual function a configuration means, and whether it can be had: everything that is looked at before ADD."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from underlay.errors import DeviceInUse, DeviceUnfit
from underlay.net import addr, link, pci, vf_restore
from underlay.net.undo import RestoreVf, VfNic

if TYPE_CHECKING:
    from underlay.net.link import Link
    from underlay.net.netns import Namespace
    from underlay.net.pci import Function, Pci
    from underlay.net.vf import Vf


class Device(msgspec.Struct, frozen=True):
    """A virtual function: what sysfs says of it, the physical one's NIC, its settings now, its own NIC or None."""

    function: Function
    pf: Link
    vf: Vf
    nic: Link | None

    def undo(self) -> RestoreVf:
        """What gives it back as it is now."""
        function = self.function
        nic = None if self.nic is None else _as_it_was(self.nic, function.address)
        return RestoreVf("host", function.address, self.pf.name, function.pf, function.number, self.vf, nic)


def _as_it_was(nic: Link, device: str) -> VfNic:
    """A mark was left by an attachment that no ledger knows any more: what it tells was the name."""
    before = vf_restore.name_before(nic.alias, device)
    return VfNic(before or nic.name, nic.mac, nic.mtu, nic.up, "" if before else nic.alias)


def find(where: Pci, address: str, host: Namespace) -> Device:
    """The virtual function at ``address`` ("deviceID"). Raises DeviceUnfit, DeviceInUse, KernelError."""
    function = function_at(where, address)
    pf, settings = physical(where, function, host)
    return Device(function, pf, settings, None if function.for_programs else _nic(function, host))


def function_at(where: Pci, address: str) -> Function:
    """The virtual function at an address, by sysfs alone. Raises DeviceUnfit."""
    if not address:
        raise DeviceUnfit(
            '"deviceID" is missing: sriov does not choose a virtual function by itself',
            hint="Tie the network to a device plugin's resource by the annotation k8s.v1.cni.cncf.io/resourceName, "
            'or set "deviceID" to the PCI address of a virtual function.',
        )
    wanted = address.lower()
    if not pci.is_address(wanted):
        raise DeviceUnfit(f'"deviceID" {address[:60]!r} is no PCI address such as 0000:3b:02.1')
    function = where.function(wanted)
    if function is None:
        raise DeviceUnfit(f'"deviceID" {wanted} is no PCI device of this node')
    if not function.pf:
        if function.most_vfs:
            raise DeviceUnfit(
                f'"deviceID" {wanted} is a physical function: a pod gets one of its virtual functions',
                hint=f"Make some by sriov_numvfs (at most {function.most_vfs}); "
                f'"underlay devices" lists them. For the whole NIC use the plugin host-device.',
            )
        raise DeviceUnfit(f'"deviceID" {wanted} is no virtual function')
    if not function.driver:
        raise DeviceUnfit(
            f"no driver is bound to virtual function {wanted}",
            hint="Bind its network driver (iavf, mlx5_core, igbvf, …), or vfio-pci for a program in the pod.",
        )
    if where.is_infiniband(function):
        raise DeviceUnfit(f"virtual function {wanted} is InfiniBand", hint="Use the plugin ib-sriov for it.")
    return function


def physical(where: Pci, function: Function, host: Namespace) -> tuple[Link, Vf]:
    """The physical function's NIC, and what it says of the virtual one. Raises DeviceUnfit, KernelError."""
    pf = where.function(function.pf)
    for name in pf.nics if pf else ():  # a switch's ports are there too; only the uplink knows of VFs
        found = link.get(host.rtnl, name, vfs=True)
        settings = next((one for one in found.vfs if one.number == function.number), None) if found else None
        if found is not None and settings is not None:
            return found, settings
    driver = pf.driver if pf else ""
    raise DeviceUnfit(
        f"the physical function {function.pf} of {function.address} has no NIC in the node's namespace that knows it"
        f" (driver {driver or 'none'})",
        hint="Virtual functions are set through their physical function: it needs its network driver, on the node.",
    )


def _nic(function: Function, host: Namespace) -> Link:
    """The virtual function's NIC, as long as nobody uses it. Raises DeviceInUse, DeviceUnfit, KernelError."""
    found = next(filter(None, (link.get(host.rtnl, name) for name in function.nics)), None)
    if found is None:
        raise DeviceInUse(
            f"virtual function {function.address} has no NIC in the node's namespace: another pod has it",
            hint="If no pod does, load its driver again: echo ADDRESS to …/drivers/NAME/unbind and to bind.",
        )
    if found.master is not None:
        raise DeviceUnfit(
            f"virtual function {function.address} is in use by the node: {found.name} is part of a bond or bridge",
            hint=f"Take it out (ip link set {found.name} nomaster), or let the device plugin leave it out.",
        )
    used = [one.address for one in addr.dump(host.rtnl, index=found.index) if not one.address.startswith("fe80:")]
    if used:
        raise DeviceUnfit(
            f"virtual function {function.address} is in use by the node: {found.name} has the address {used[0]}",
            hint=f"Take it off (ip addr flush dev {found.name}), or let the device plugin leave the device out.",
        )
    return found
