"""``underlay doctor``: whether this node can attach pods, and what to do where it cannot."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from underlay.cli.node_checks import Node
    from underlay.daemon.config import Settings

_EPILOG = """\
Looked at are the kernel's kinds of links, the clock, the disk, the executables, the daemon, the files that the
container runtime reads, the API server, and what others have left. The daemon's configuration file says where they are.

exit status: 0 all well, or warnings alone; 1 pods would fail

examples:
  underlay doctor
  underlay doctor --json
  kubectl -n kube-system exec daemonset/underlay -c daemon -- underlay doctor
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "doctor",
        description="Look whether this node can attach pods.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="the daemon's, default /etc/underlay/underlay.yaml")
    parser.add_argument("--conf-dir", metavar="DIR", help="where the container runtime reads, default /etc/cni/net.d")
    for flag in ("--run-dir", "--state-dir", "--bin-dir"):
        parser.add_argument(flag, metavar="DIR", help="the daemon's")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Look, print a line each; 1 where something fails. Raises InvalidConfig or IOFailure for the daemon's own file."""
    import msgspec

    from underlay.cli.findings import printable
    from underlay.cli.node_checks import every

    found = list(every(_node(options)))
    if options.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(found)).decode() + "\n")
    else:
        for each in found:
            hint = f"\n      {each.hint}" if each.hint else ""
            sys.stdout.write(f"{each.state:5} {each.what}: {printable(each.message)}{hint}\n")
    return 1 if any(each.state == "fail" for each in found) else 0


def _node(options: argparse.Namespace) -> Node:
    from underlay.cli import runtime_files
    from underlay.cli.node_checks import Node
    from underlay.daemon import config
    from underlay.net.host_root import HostRoot

    keys = ("run_dir", "state_dir", "bin_dir")
    settings = config.load(options.config, {key: value for key in keys if (value := getattr(options, key))})
    root = HostRoot(settings.chroot_dir)
    conf_dir = options.conf_dir or _kept_in(settings) or root.locate(runtime_files.DIRECTORY)
    return Node(settings, os.path.realpath(conf_dir), root.locate)


def _kept_in(settings: Settings) -> str:
    """The directory in which the daemon keeps the runtime's file, "" where it keeps none."""
    if not settings.multus_daemon_config:
        return ""
    from underlay.multus import daemon_file

    return daemon_file.load(settings.multus_daemon_config).generation.directory
