"""``underlay devices``: the node's SR-IOV NICs, their virtual functions, and which pod has them."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from underlay.cli.columns import table
from underlay.errors import IOFailure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from underlay.delegate.ledger import Ledger
    from underlay.net.link import Link
    from underlay.net.netns import Namespace
    from underlay.net.pci import Function, Pci
    from underlay.net.vf import Vf

_EPILOG = """\
examples:
  underlay devices                             a table
  underlay devices --json                      everything, for programs
"""
_COLUMNS = ("ADDRESS", "KIND", "DRIVER", "NIC", "STATE", "NUMA", "SETTINGS", "POD")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "devices",
        description="List physical functions, their virtual functions, drivers, settings and the pods that have them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--state-dir", default="/var/lib/underlay", metavar="DIR", help="the daemon's (%(default)s)")
    parser.add_argument("--sysfs", default="/sys", metavar="DIR", help="where sysfs is mounted (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print what there is; returns 0. Raises KernelError, IOFailure for a sysfs or ledger that cannot be read."""
    import msgspec

    from underlay.net.netns import Namespace

    pci = sysfs(options.sysfs)
    with Namespace.current() as host:
        listed = list(devices(pci, host, _owners(os.path.join(options.state_dir, "ledger.db"))))
    if options.json:
        sys.stdout.write(msgspec.json.encode(listed).decode() + "\n")
    elif listed:
        sys.stdout.write(table([_COLUMNS, *map(_row, listed)]))
    else:
        print("no NIC of this node can have virtual functions (SR-IOV)")
    return 0


def sysfs(root: str) -> Pci:
    """What lies below there. Raises IOFailure where nothing can: a node without SR-IOV looks just the same."""
    from underlay.net.pci import Pci

    if not os.path.isdir(root):
        raise IOFailure(f"{root} is no directory", hint="Correct --sysfs: it names where sysfs is mounted.")
    return Pci(root)


def devices(pci: Pci, host: Namespace, ledger: Ledger | None) -> Iterator[dict[str, Any]]:
    """Each physical function, and behind it its virtual ones, as the JSON prints them. Raises KernelError."""
    from underlay.net import link

    for pf in pci.pfs():
        nics = [found for nic in pf.nics if (found := link.get(host.rtnl, nic, vfs=True)) is not None]
        uplink = next((one for one in nics if one.vfs), nics[0] if nics else None)
        numbered = pci.vfs(pf.address)
        yield _described(pf, uplink) | {"kind": "pf", "vfs": len(numbered), "most_vfs": pf.most_vfs}
        told = {one.number: one for one in (uplink.vfs if uplink else ())}
        for number, address in numbered:
            function = pci.function(address)
            if function is None:  # it has just gone
                continue
            nic = link.get(host.rtnl, function.nics[0]) if function.nics else None
            yield _described(function, nic) | {
                "kind": "vf", "pf": pf.address, "number": number, "settings": _settings(told.get(number)),
                "pod": _owner(ledger, address),
            }  # fmt: skip


def _owners(path: str) -> Ledger | None:
    """The daemon's ledger, None where it never ran: reading makes none."""
    from underlay.delegate.ledger import Ledger

    return Ledger.look(path) if os.path.exists(path) else None


def _owner(ledger: Ledger | None, address: str) -> str:
    """Who has the device: NAMESPACE/NAME, or the container's id, with the NIC's name in the pod; "" for nobody."""
    row = next(iter(ledger.mentioning(address)), None) if ledger is not None else None
    if row is None:
        return ""
    pod = f"{row.pod_namespace}/{row.pod_name}" if row.pod_name else row.container_id
    return f"{pod}:{row.ifname}"


def _described(function: Function, nic: Link | None) -> dict[str, Any]:
    state = "" if nic is None else "up" if nic.carrier else "no link" if nic.up else "down"
    return {
        "address": function.address,
        "vendor": function.vendor,
        "device": function.model,
        "driver": function.driver,
        "nic": nic.name if nic else "",
        "state": state,
        "numa": function.numa,
    }


def _settings(vf: Vf | None) -> dict[str, Any]:
    """By the configuration's keys; what the driver does not tell is left out."""
    if vf is None:
        return {}
    told = {
        "mac": vf.mac, "vlan": vf.vlan, "vlanQoS": vf.qos, "vlanProto": vf.vlan_proto if vf.vlan else None,
        "spoofchk": vf.spoofchk, "trust": vf.trust, "link_state": vf.link_state,
        "min_tx_rate": vf.min_tx_rate, "max_tx_rate": vf.max_tx_rate,
    }  # fmt: skip
    return {key: value for key, value in told.items() if value is not None}


def _row(each: dict[str, Any]) -> tuple[str, ...]:
    if each["kind"] == "pf":
        kind, settings = "PF", f"{each['vfs']} of {each['most_vfs']} VFs"
    else:
        kind = f"  VF {each['number']}"
        settings = " ".join(
            f"{key}={'on' if value is True else value}"
            for key, value in each["settings"].items()
            if value and (key, value) not in (("link_state", "auto"), ("mac", "00:00:00:00:00:00"))
        )
    numa = "" if each["numa"] is None else str(each["numa"])
    cells = (each["driver"], each["nic"], each["state"], numa, settings, each.get("pod", ""))
    return (each["address"], kind, *(cell or "-" for cell in cells))
