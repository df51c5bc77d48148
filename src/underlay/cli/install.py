"""``underlay install``: the shim under the names of plugins in a CNI bin directory, and how it is taken away again.

One copy, hard-linked under every name. New files are first laid beside the old under hidden names, then renamed over
them, so that a runtime finds a whole plugin at any time; a fault on the way puts every old file back.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING

from underlay.cli import shim_binary
from underlay.errors import InvalidConfig, IOFailure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BUILT_IN = ("multus", "veth", "router", "macvlan", "ipvlan", "vlan", "sriov", "host-local", "static", "spiderpool")
NAMES = (*BUILT_IN, "multus-shim")  # the last is multus, in files that Multus' own daemon has written
DEFAULT_NAMES = ("multus", "veth", "router")
DEFAULT_BIN_DIR = "/opt/cni/bin"
DEFAULT_RUN_DIR = "/run/underlay"
KEPT = ".before-underlay"
_EPILOG = """\
All names are one file, the shim, which finds the daemon by the run directory that is written into it.

examples:
  underlay install                             multus, veth and router
  underlay install --all                       macvlan, IPAM and the rest too
  underlay install --force multus multus-shim  in the place of Multus' own
  underlay install --bin-dir /run/lab/bin --run-dir /run/lab
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand; it sets ``run``, which takes the parsed arguments and returns the exit status."""
    lay = subparsers.add_parser(
        "install",
        description="Lay the executables that the container runtime calls; what is as it should be stays untouched.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    lay.add_argument("--bin-dir", type=Path, default=Path(DEFAULT_BIN_DIR), metavar="DIR", help="default: %(default)s")
    lay.add_argument("--run-dir", default=DEFAULT_RUN_DIR, metavar="DIR", help="the daemon's (default: %(default)s)")
    lay.add_argument("--all", action="store_true", help=f"every built-in plugin: {' '.join(BUILT_IN)}")
    lay.add_argument("--force", action="store_true", help=f"replace others' plugins, kept as .NAME{KEPT}")
    lay.add_argument("names", nargs="*", metavar="NAME", help=f"default: {' '.join(DEFAULT_NAMES)}")
    lay.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """``underlay install``; raises UnderlayError."""
    names = BUILT_IN if args.all else tuple(args.names) or DEFAULT_NAMES
    for name, outcome in install(args.bin_dir, args.run_dir, names, force=args.force):
        print(f"{outcome:15} {args.bin_dir / name}")
    return 0


def install(bin_dir: Path, run_dir: str, names: Sequence[str], *, force: bool = False) -> list[tuple[str, str]]:
    """Lay the shim under ``names``; returns what became of each: laid, replaced or already current.

    Raises InvalidConfig for a name or run directory that cannot be, and for another's plugin unless ``force``;
    IOFailure, after putting everything back, when the file system refuses.
    """
    names = _checked(names)
    image = shim_binary.with_run_dir(shim_binary.load(), run_dir)
    with contextlib.ExitStack() as scope, _faults_named(f"cannot lay the shim into {bin_dir}"):
        bin_dir.mkdir(parents=True, exist_ok=True)
        scope.enter_context(_alone(bin_dir))
        before = {name: _holder(bin_dir / name) for name in names}
        foreign = [name for name in names if before[name] == "foreign"]
        if foreign and not force:
            raise InvalidConfig(
                f"{bin_dir} holds another's plugin under: {' '.join(foreign)}",
                hint=f"With --force the shim takes its place, and the file is kept as .NAME{KEPT} for `uninstall`.",
            )
        stale = _lay(bin_dir, names, image, kept=frozenset(foreign))
    return [(name, _outcome(before[name], stale=name in stale)) for name in names]


def uninstall(bin_dir: Path, names: Sequence[str]) -> list[tuple[str, str]]:
    """Remove the shim from under ``names`` and put kept files back; returns what became of each that was ours."""
    done: list[tuple[str, str]] = []
    names = _checked(names)
    if not bin_dir.is_dir():
        return done
    with _faults_named(f"cannot remove the shim from {bin_dir}"), _alone(bin_dir):
        for name in names:
            target = bin_dir / name
            holder, former = _holder(target), kept_as(target)
            if holder == "foreign":
                continue
            if os.path.lexists(former):
                former.replace(target)
                done.append((name, "put back"))
            elif holder == "ours":
                target.unlink()
                done.append((name, "removed"))
        if done:
            _sync(bin_dir)
    return done


def kept_as(path: Path) -> Path:
    """Where another's plugin lies meanwhile that the shim has taken the place of."""
    return path.with_name(f".{path.name}{KEPT}")


def _checked(names: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if name not in NAMES:
            raise InvalidConfig(f'"{name}" is no built-in plugin', hint=f"Built in are: {' '.join(NAMES)}.")
    return tuple(dict.fromkeys(names))


def _holder(path: Path) -> str:
    if not os.path.lexists(path):
        return "nobody"
    if path.is_dir() and not path.is_symlink():
        raise InvalidConfig(f"{path} is a directory", hint="Remove it, or choose another --bin-dir.")
    return "ours" if shim_binary.run_dir_of(path) is not None else "foreign"


def _outcome(holder: str, *, stale: bool) -> str:
    if not stale:
        return "already current"
    return "laid" if holder == "nobody" else "replaced"


def _lay(bin_dir: Path, names: Sequence[str], image: bytes, *, kept: frozenset[str]) -> frozenset[str]:
    """Put ``image`` under every name that does not have it yet; returns those names."""
    current = [name for name in names if _is_current(bin_dir / name, image)]
    source = bin_dir / current[0] if current else bin_dir / f".underlay-shim.{os.getpid()}"
    stale = [name for name in names if name not in current or not os.path.samefile(bin_dir / name, source)]
    try:
        if not current:
            _write(source, image)
        _link_over(bin_dir, stale, source, kept=kept)
    finally:
        if not current:
            source.unlink(missing_ok=True)
    _sync(bin_dir)
    return frozenset(stale)


def _is_current(path: Path, image: bytes) -> bool:
    if shim_binary.run_dir_of(path) is None:
        return False
    return path.read_bytes() == image and os.access(path, os.X_OK)


def _link_over(bin_dir: Path, names: Sequence[str], source: Path, *, kept: frozenset[str]) -> None:
    """Hard-link ``source`` under every name, or under none."""
    with contextlib.ExitStack() as scratch, contextlib.ExitStack() as undo:
        for name in names:
            if name in kept:
                _take(kept_as(bin_dir / name), bin_dir / name, scratch, undo)
            _take(bin_dir / name, source, scratch, undo)
        undo.pop_all()


def _take(target: Path, source: Path, scratch: contextlib.ExitStack, undo: contextlib.ExitStack) -> None:
    """Let ``target`` name the file that ``source`` names, in one step; ``scratch`` are the links to take away."""
    fresh, old = (target.with_name(f".{target.name}.underlay-{which}") for which in ("new", "old"))
    scratch.callback(fresh.unlink, missing_ok=True)  # rename(2) leaves it where both are one file already
    _hard_link(source, fresh)
    if os.path.lexists(target):
        scratch.callback(old.unlink, missing_ok=True)
        _hard_link(target, old)
        undo.callback(old.replace, target)
    else:
        undo.callback(target.unlink, missing_ok=True)
    fresh.replace(target)


def _hard_link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)  # left by a call that was killed
    os.link(source, target, follow_symlinks=False)


def _write(path: Path, image: bytes) -> None:
    path.unlink(missing_ok=True)  # left by a call that was killed, it may be a link to what runtimes execute
    with open(path, "xb") as file:
        os.fchmod(file.fileno(), 0o755)
        file.write(image)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """No other install or uninstall works on the directory meanwhile; a killed one's lock goes with it (flock(2))."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def _faults_named(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        raise IOFailure(f"{what}: {fault.strerror}", hint="Use a directory that can be written, as root.") from fault
