"""``underlay version``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from underlay import __version__
from underlay.cni.versions import SUPPORTED

if TYPE_CHECKING:
    import argparse


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser("version", description="Print the versions of underlay and of CNI that it speaks.")
    parser.set_defaults(run=run)


def run(_: argparse.Namespace) -> int:
    """Print both."""
    print(f"underlay {__version__}\nCNI {' '.join(SUPPORTED)}")
    return 0
