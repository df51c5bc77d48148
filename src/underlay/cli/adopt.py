"""``underlay ipam adopt``: addresses that pods have from another IPAM are set aside, before nodes hand any out."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from underlay.cli.columns import table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from underlay.controller.adopt import Verdict

_DESCRIPTION = """\
Read what SpiderIPPools (status.allocatedIPs) and SpiderEndpoints say that pods hold, and set it aside: no node hands
it out until its pod is gone. The same pod in a new sandbox gets it again, and so does the next one of a StatefulSet.
Nothing is written without --apply. It asks the API server alone, and may be run anywhere and as often as one likes.
"""
_EPILOG = """\
Stop the other IPAM first, as what it hands out afterwards is not seen; and start no daemon with address pools before.

examples:
  underlay ipam adopt --kubeconfig admin.kubeconfig
  underlay ipam adopt --kubeconfig admin.kubeconfig --apply
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add it to the commands of ``underlay ipam``."""
    parser = commands.add_parser(
        "adopt", help="set aside what pods have from Spiderpool itself", description=_DESCRIPTION, epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    access = parser.add_mutually_exclusive_group(required=True)
    access.add_argument("--kubeconfig", metavar="FILE", default="", help="the way to the API server")
    access.add_argument("--in-cluster", action="store_true", help="the same with the pod's service account")
    parser.add_argument("--context", metavar="NAME", default="", help="of the kubeconfig; default its current one")
    parser.add_argument("--apply", action="store_true", help="write it; default: tell what would be written")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print what becomes of each address; 1 where one ought to be set aside and cannot be. Raises UnderlayError."""
    from underlay import __version__
    from underlay.cni import shapes
    from underlay.controller import adopt
    from underlay.daemon.config import LogSettings
    from underlay.daemon.log import Logs
    from underlay.kube.access import InCluster
    from underlay.kube.block_store import ApiBlocks
    from underlay.kube.client import Client
    from underlay.kube.kubeconfig import Kubeconfig

    shapes.make_ready()
    log = Logs(LogSettings(level="error", plugin_dir=""))
    access = InCluster(os.environ, log) if options.in_cluster else Kubeconfig(options.kubeconfig, log, options.context)
    client = Client(access, f"underlay-adopt/{__version__}")
    try:
        found = adopt.judged(adopt.look(client))
        if options.apply:
            found = adopt.apply(ApiBlocks(client, log), found)
    finally:
        client.close()
    _print(found, options)
    return 1 if any(one.lost for one in found) else 0


def _print(found: Sequence[Verdict], options: argparse.Namespace) -> None:
    import msgspec

    done = "set aside" if options.apply else "to be set aside"
    if options.json:
        told: list[dict[str, Any]] = [
            {"address": one.lease.shown, "pool": one.lease.pool, "pod": one.lease.pod, "uid": one.lease.uid,
             "ifname": one.lease.ifname, "keeper": one.lease.keeper, "adopted": not one.why, "why": one.why}
            for one in found
        ]  # fmt: skip
        sys.stdout.write(msgspec.json.encode({"applied": options.apply, "addresses": told}).decode() + "\n")
        return
    if not found:
        sys.stdout.write("no pod holds an address that nodes do not know of\n")
        return
    rows = [("ADDRESS", "POOL", "POD", "NIC", "VERDICT")]
    rows += [(one.lease.shown, one.lease.pool, one.lease.pod, one.lease.ifname, one.why or done) for one in found]
    sys.stdout.write(table(rows))
    count = sum(not one.why for one in found)
    if not options.apply and count:
        sys.stdout.write(f"{count} {done}; nothing was written: --apply writes it\n")
    if any(one.lost for one in found):
        sys.stdout.write("What a node may hand out: delete those pods, or reserve the addresses on that node.\n")
