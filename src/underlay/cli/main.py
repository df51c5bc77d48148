"""The command ``underlay``: finds the subcommand, and turns its errors into words and an exit status."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import TYPE_CHECKING, Final

from underlay.errors import UnderlayError

if TYPE_CHECKING:
    from collections.abc import Sequence

# Only the module of the subcommand that is called is imported: the daemon is to be ready in half a second.
# Each has register(subparsers), which adds its parsers and their default "run": Namespace -> exit status.
_SUBCOMMANDS: Final = {
    "daemon": ("underlay.cli.daemon", "run the node's daemon"),
    "install": ("underlay.cli.install", "lay the CNI executables into a directory"),
    "uninstall": ("underlay.cli.uninstall", "take from the node what was laid on it"),
    "plugin": ("underlay.cli.plugin", "run one plugin as a plain CNI process, without the daemon"),
    "lab": ("underlay.cli.lab.command", "a node, a LAN and pods in namespaces, to see it work"),
    "networks": ("underlay.cli.networks", "look networks and pod manifests through before they are in force"),
    "webhook": ("underlay.cli.webhook", "the same as an admission webhook"),
    "controller": ("underlay.cli.controller", "do for address pools what no node can do for itself"),
    "ipam": ("underlay.cli.ipam", "see and reserve addresses of the pools"),
    "devices": ("underlay.cli.devices", "list SR-IOV NICs, their virtual functions, and the pods that have them"),
    "device-plugin": ("underlay.cli.device_plugin", "hand virtual functions to the kubelet, as resources"),
    "status": ("underlay.cli.status", "ask the daemon how it is"),
    "doctor": ("underlay.cli.doctor", "look whether this node can attach pods"),
    "version": ("underlay.cli.version", "print the version"),
}
_EPILOG: Final = """\
examples:
  underlay install --bin-dir /opt/cni/bin      lay multus, veth and router for the container runtime
  underlay daemon                              serve them
  underlay status --wait 10                    wait until the daemon is ready
  underlay doctor                              see what is missing on this node
  underlay networks lint deploy/               find what pods would fail on
  underlay lab                                 see pods on underlay networks, in namespaces only
  underlay COMMAND --help                      more on each
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit status: 0, 1 for an error, 2 for wrong usage, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if sys.stdout is None:  # closed by whoever called: nobody reads
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    try:
        options = _parser(arguments).parse_args(arguments)
        status = options.run(options)
        sys.stdout.flush()
    except UnderlayError as error:
        print(f"underlay: {error.message}\n  {error.hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has enough of it; nor is there anybody to tell when Python flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    return int(status)


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="underlay",
        description="Underlay networking for Kubernetes: Multus, veth, router, macvlan in one resident process.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    called = next((word for word in arguments if not word.startswith("-")), "")
    if called in _SUBCOMMANDS:
        importlib.import_module(_SUBCOMMANDS[called][0]).register(subparsers)
    else:
        for name, (_, summary) in _SUBCOMMANDS.items():
            subparsers.add_parser(name, help=summary)
    return parser


if __name__ == "__main__":
    sys.exit(main())
