"""A node's root directory, whole and throw-away: this machine's files with a layer above them that takes every change.

Its /run, /proc, /sys and /dev are those of the tests. As on a node all mounts are shared, so that what is mounted below
/run later arrives in containers that want it so.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# What this machine may have of its own there; it is hidden.
_EMPTY = ("etc/cni", "opt/cni", "var/lib/cni", "var/lib/kubelet", "var/lib/underlay", "var/log/meta-plugins",
          "var/log/spidernet")  # fmt: skip


@contextlib.contextmanager
def laid(tree: Path, layers: Path) -> Iterator[Path]:
    """Mounted at ``tree``, which is not below /run; ``layers`` takes the changes, on another file system than "/"."""
    for each in (tree, upper := layers / "upper", work := layers / "work"):
        each.mkdir(parents=True)
    options = f"lowerdir=/,upperdir={upper},workdir={work}"
    _run("mount", "-t", "overlay", "-o", options, "overlay", tree)
    try:
        for name in _EMPTY:
            if (tree / name).exists():
                shutil.rmtree(tree / name)
        for name in ("proc", "sys", "dev"):
            _run("mount", "--rbind", f"/{name}", tree / name)
        _run("mount", "--make-shared", "/run")
        _run("mount", "--rbind", "/run", tree / "run")
        _run("mount", "--make-rshared", tree)
        yield tree
    finally:
        _run("mount", "--make-rprivate", tree)  # else what is unmounted below it would be unmounted in /run as well
        _run("umount", "--recursive", "--lazy", tree)
        _run("mount", "--make-private", "/run")


def _run(*argv: str | Path) -> None:
    subprocess.run(argv, check=True)
