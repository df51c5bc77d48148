"""A node's root for a daemon in a container: a tree with a shell and nothing of this machine, made in a directory."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

APPLETS = ("sh", "cat", "printf", "ls", "pwd", "id", "readlink", "sleep", "env")


class NodeRoot:
    """``path`` is the tree. As on a real node /var/run and the plugin directory are absolute symbolic links."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for each in ("bin", "run", "var", "usr/libexec/cni", "opt/cni", "seen", "etc"):
            (path / each).mkdir(parents=True)
        shutil.copy("/bin/busybox", path / "bin/busybox")
        for name in APPLETS:
            (path / "bin" / name).symlink_to("/bin/busybox")
        (path / "var/run").symlink_to("/run")
        (path / "opt/cni/bin").symlink_to("/usr/libexec/cni")
        self._mounts: list[str] = []

    def bind(self, source: str, inside: str) -> None:
        """Mount a directory of the test's own mount namespace in the tree."""
        target = self.path / inside
        target.mkdir(parents=True)
        subprocess.run(["mount", "--rbind", source, str(target)], check=True)
        self._mounts.append(str(target))

    def plugin(self, name: str, script: str) -> None:
        """Lay an executable plugin, a script for the tree's shell that finds its standard input in $conf."""
        path = self.path / "usr/libexec/cni" / name
        path.write_text(f"#!/bin/sh\nconf=$(cat)\n{script}\n")
        path.chmod(0o755)

    def seen(self, name: str) -> list[str]:
        """The lines of a file that plugins write to /seen."""
        path = self.path / "seen" / name
        return path.read_text().splitlines() if path.exists() else []

    def close(self) -> None:
        """Unmount."""
        for each in reversed(self._mounts):
            subprocess.run(["umount", "--lazy", each], check=True)
