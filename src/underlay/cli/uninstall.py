"""``underlay uninstall``: takes from a node what was laid on it, and nothing else.

    the file that the daemon keeps for the runtime ─▶ the executables ─▶ with --purge, what the daemon knows

In this order, so that the runtime never finds a configuration whose plugin is gone. It refuses while that would leave
pods without the one who takes back what they have: their attachments are in the ledger, and only a daemon reads it.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from underlay.cli import install, runtime_files, shim_binary
from underlay.errors import InvalidConfig, IOFailure, UnderlayError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from underlay.delegate.ledger import Row

DEFAULT_STATE_DIR = "/var/lib/underlay"
_NAMED = 5  # pods in a message
_EPILOG = """\
With names, those executables alone are taken away. Without, all of the node: 00-multus.conf, if the daemon wrote it and
nobody has changed it since; then every executable that is the shim. What "install --force" had replaced is put back.

It refuses, unless --force, while pods have NICs or addresses that nobody else would take back, while the daemon of
these executables runs, and while a configuration of others calls what would be gone.

examples:
  underlay uninstall --dry-run                 what would go, and what stands against it
  underlay uninstall                           the node as it was; state and logs stay
  underlay uninstall --purge                   those of /var/lib/underlay and /run/underlay too
  underlay uninstall --bin-dir /run/lab/bin veth
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "uninstall",
        description="Take from this node what was laid on it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--bin-dir", type=Path, default=Path(install.DEFAULT_BIN_DIR), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "--conf-dir", default=runtime_files.DIRECTORY, metavar="DIR", help="the runtime's (%(default)s)"
    )
    parser.add_argument("--state-dir", default=DEFAULT_STATE_DIR, metavar="DIR", help="the daemon's (%(default)s)")
    parser.add_argument("--run-dir", default=install.DEFAULT_RUN_DIR, metavar="DIR", help="the daemon's (%(default)s)")
    parser.add_argument(
        "--dry-run", action="store_true", help="change nothing; 1 where more than a daemon that runs stands against it"
    )
    parser.add_argument("--force", action="store_true", help="whatever stands against it")
    parser.add_argument("--purge", action="store_true", help="remove state and run directory too")
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all that was laid")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Take away; 1 where a dry run says that it would refuse. Raises UnderlayError."""
    if args.names:
        _take_named(args.bin_dir, tuple(args.names))
        return 0
    against = list(_against(args))
    if against and not (args.force or args.dry_run):
        raise against[0]
    for each in against:
        print(f"underlay: {each.message}\n  {each.hint}", file=sys.stderr)
    if not (_shims(args.bin_dir) or _ours_in(args.conf_dir, args.state_dir)):
        print(f"nothing was laid in {args.bin_dir} or {args.conf_dir}")
    if args.dry_run:
        for path in (*_ours_in(args.conf_dir, args.state_dir), *_shims(args.bin_dir)):
            print(f"{'would go':15} {path}")
        return 1 if against else 0
    for path in _ours_in(args.conf_dir, args.state_dir):
        _remove(path)
    _take_executables(args.bin_dir, install.NAMES)
    if args.purge:
        _purge(args.state_dir, args.run_dir)
    return 0


def _take_executables(bin_dir: Path, names: Sequence[str]) -> set[str]:
    """Take away what is ours of these, and say so; returns their names."""
    done = install.uninstall(bin_dir, names)
    for name, outcome in done:
        print(f"{outcome:15} {bin_dir / name}")
    return {name for name, _ in done}


def _take_named(bin_dir: Path, names: Sequence[str]) -> None:
    """The same, and what becomes of the others: who names them expects an answer."""
    done = _take_executables(bin_dir, names)
    for name in dict.fromkeys(names):
        if name not in done:
            print(f"{'not ours' if os.path.lexists(bin_dir / name) else 'not there':15} {bin_dir / name}")


# -- what stands against it ------------------------------------------------------------------------------------------


def _against(args: argparse.Namespace) -> Iterator[UnderlayError]:
    """Why it should not be done yet, the first to be mended first."""
    if rows := list(_held(args.state_dir)):
        pods = sorted({f"{row.pod_namespace}/{row.pod_name}" if row.pod_name else row.container_id for row in rows})
        more = f" and {len(pods) - _NAMED} more" if len(pods) > _NAMED else ""
        yield InvalidConfig(
            f"pods have what only the daemon of {args.state_dir} takes back: {', '.join(pods[:_NAMED])}{more}",
            hint="Delete them while the daemon runs (start it again if need be: it takes back what was deleted "
            "meanwhile). --force leaves their addresses, routes and links as they are.",
        )
    for run_dir in sorted({shim_binary.run_dir_of(path) or "" for path in _shims(args.bin_dir)}):
        if not args.dry_run and (holder := _running(run_dir)):
            yield InvalidConfig(
                f"the daemon of {run_dir}, process {holder}, runs",
                hint="Stop it first (its DaemonSet, or its systemd unit): it would lay its files again.",
            )
    yield from _broken_by(args)


def _broken_by(args: argparse.Namespace) -> Iterator[UnderlayError]:
    """Configurations that are not ours and call an executable that would be gone."""
    gone = {path.name for path in _shims(args.bin_dir) if not os.path.lexists(install.kept_as(path))}
    ours = set(_ours_in(args.conf_dir, args.state_dir))
    for path in runtime_files.listed(args.conf_dir):
        said = runtime_files.calls(path)
        called = sorted(said.types & gone) if said else ()
        if called and path not in ours:
            yield InvalidConfig(
                f"{path} calls {', '.join(called)}, and nothing says that the daemon wrote it",
                hint="Move it away: the runtime would start no pod with it.",
            )


def _held(state_dir: str) -> Iterator[Row]:
    """The attachments that a DEL of the cluster network's own configuration would not take back. Raises IOFailure."""
    path = f"{state_dir}/ledger.db"
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as fault:  # not to be taken for a ledger that is not there
        words = f"cannot look at {path}: {fault.strerror}"
        raise IOFailure(words, hint="Run it as root: the ledger says which pods still need the daemon.") from fault
    from underlay.delegate import entries
    from underlay.delegate.ledger import Ledger

    for row in Ledger.look(path).rows():
        known, unknown = entries.decode(row.undo)
        executed = bool(known) and all(isinstance(each, entries.ExecDelete) for each in known)
        # The runtime's own NIC, made by others' executables alone: the runtime calls them, with or without us.
        if unknown or not executed or row.ifname != row.origin_ifname:
            yield row


def _running(run_dir: str) -> str:
    """The process id of the daemon that holds the directory, "" where none does (see underlay.daemon.lock)."""
    try:
        with open(f"{run_dir}/underlay.lock", "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read(20).decode(errors="replace") or "unknown"
    except OSError:
        return ""
    return ""


# -- what is ours ----------------------------------------------------------------------------------------------------


def _shims(bin_dir: Path) -> list[Path]:
    """The built-in plugins' names that hold the shim. Raises IOFailure."""
    paths = (bin_dir / name for name in install.NAMES)
    return [path for path in paths if shim_binary.run_dir_of(path) is not None]


def _ours_in(conf_dir: str, state_dir: str) -> list[str]:
    """The files for the runtime that the daemon wrote, as it wrote them. Raises IOFailure."""
    from underlay.multus.laid import Laid

    laid = Laid(state_dir)
    try:
        return [path for path in runtime_files.listed(conf_dir) if laid.holds(path)]
    except OSError as fault:
        raise IOFailure(f"cannot read {fault.filename}: {fault.strerror}") from fault


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError as fault:
        raise IOFailure(f"cannot remove {path}: {fault.strerror}", hint="Remove it by hand.") from fault
    print(f"{'removed':15} {path}")


def _purge(state_dir: str, run_dir: str) -> None:
    """Remove both directories' contents, or the directories; only of a daemon: its lock lies in them."""
    for directory in (state_dir, run_dir):
        if not os.path.exists(f"{directory}/underlay.lock"):
            continue
        for entry in list(os.scandir(directory)):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
        print(f"{'emptied':15} {directory}")
