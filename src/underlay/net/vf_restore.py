"""Gives a virtual function back: its NIC to the node under the old name, its settings as they were.

                 pod                          node
    eth0, marked "underlay:0000:3b:02.1:…" ──▶ vf00003b021 ──▶ enp59s2v1      first a name that is free there
    (the namespace is gone: the kernel has moved it already, as eth0 or dev7)

The mark is the link's alias: it goes with the device through namespaces and names.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from underlay.errors import KernelError
from underlay.net import link, pci, vf
from underlay.net.vf import Vf, VfSettings

if TYPE_CHECKING:
    from underlay.net.link import Link
    from underlay.net.netns import Namespace
    from underlay.net.undo import RestoreVf, VfNic

_GONE = frozenset((errno.ENODEV,))
NO_MAC = "00:00:00:00:00:00"


def mark(device: str, name: str) -> str:
    """The alias of a virtual function's NIC while a pod has it: its PCI address, its name on the node."""
    return f"underlay:{device}:{name}"


def name_before(alias: str, device: str) -> str:
    """The name on the node that a mark tells, "" for what is no mark of that device."""
    start = mark(device, "")
    return alias[len(start) :] if alias.startswith(start) else ""


def marked_device(alias: str) -> str:
    """The PCI address that a mark tells, "" for what is no mark."""
    nothing, found, rest = alias.rpartition(":")[0].partition("underlay:")
    return rest if found and not nothing and pci.is_address(rest) else ""


def passing_name(device: str) -> str:
    """A name that no other NIC has: the PCI address's digits."""
    return f"vf{device.replace(':', '').replace('.', '')}"[:15]


def find(ns: Namespace, device: str) -> Link | None:
    """The NIC of a virtual function in a namespace, by its mark, or by what the kernel says it belongs to.

    Raises KernelError.
    """
    links = link.dump(ns.rtnl)
    marked = (one for one in links if name_before(one.alias, device))
    return next(marked, None) or next((one for one in links if one.device == device and not one.kind), None)


def restore(entry: RestoreVf, *, host: Namespace, pod: Namespace | None) -> list[KernelError]:
    """Carry the entry out; returns what the kernel refused. What is as it was is not touched."""
    failed: list[KernelError] = []
    try:
        if entry.nic is not None and pod is not None:
            bring_home(host, pod, entry.device)
        nic = find(host, entry.device) if entry.nic is not None else None
        pf, now = _pf(host, entry)
        if nic is not None and entry.nic is not None:
            failed += _give_mac(host, nic, entry.nic.mac, pf, now)
            failed += _as_it_was(host, nic, entry.nic)
            pf, now = _pf(host, entry)
        if pf is not None and now is not None:
            messages = [
                vf.change(pf=pf.index, number=now.number, settings=settings)
                for _, settings in vf.steps(now, vf.as_settings(entry.old))
            ]
            failed += host.rtnl.failures(messages).values()
    except KernelError as error:
        failed.append(error)
    return [error for error in failed if error.errno not in _GONE]


def bring_home(host: Namespace, pod: Namespace, device: str) -> None:
    """Move a virtual function's NIC out of the pod, down, under a passing name; none there: nothing.

    Raises KernelError.
    """
    nic = find(pod, device)
    if nic is not None:
        pod.rtnl.batch((link.change(index=nic.index, netns_fd=host.fd, new_name=passing_name(device)),), tolerate=_GONE)


def _pf(host: Namespace, entry: RestoreVf) -> tuple[Link | None, Vf | None]:
    """The physical function's NIC and what it says of the virtual one; None for what is not there any more."""
    found = link.get(host.rtnl, entry.pf, vfs=True)
    if found is None or found.device not in ("", entry.pf_device):  # it may have been renamed
        renamed = [one for one in link.dump(host.rtnl) if one.device == entry.pf_device and not one.kind]
        found = link.get_index(host.rtnl, renamed[0].index, vfs=True) if renamed else None
    if found is None:
        return None, None
    return found, next((one for one in found.vfs if one.number == entry.number), None)


def _give_mac(host: Namespace, nic: Link, mac: str, pf: Link | None, now: Vf | None) -> list[KernelError]:
    """Give the NIC its address. A physical function that has set one must take that away first: a driver may refuse
    any other (igb, ixgbe, i40e); the address that it had set itself is put back afterwards, with its other settings.
    """
    if nic.mac == mac:
        return []
    if pf is not None and now is not None:
        host.rtnl.failures([vf.change(pf=pf.index, number=now.number, settings=VfSettings(mac=NO_MAC))])
    return list(host.rtnl.failures([link.change(index=nic.index, mac=mac)]).values())


def _as_it_was(host: Namespace, nic: Link, was: VfNic) -> list[KernelError]:
    """Name and size, then the alias, which is the mark: it stays for the next attempt where the name was refused."""
    if nic.name != was.name:
        renaming = [link.change(index=nic.index, up=False), link.change(index=nic.index, new_name=was.name)]
        refused = host.rtnl.failures(renaming)
        if refused:
            return list(refused.values())
        nic = link.get_index(host.rtnl, nic.index) or nic
    changes = []
    if nic.mtu != was.mtu:
        changes.append(link.change(index=nic.index, mtu=was.mtu))
    if nic.up != was.up:
        changes.append(link.change(index=nic.index, up=was.up))
    if nic.alias != was.alias:
        changes.append(link.change(index=nic.index, alias=was.alias))
    return list(host.rtnl.failures(changes).values())
