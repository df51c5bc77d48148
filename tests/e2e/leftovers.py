"""What pods of one cgroup may leave on the machine, processes and cgroups, and how it is taken away after a failure."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import time
from pathlib import Path

_PATIENCE = 10.0


class Leftovers:
    """Of the pods whose cgroups lie below the one of that name, in every hierarchy (cgroup v1) or the one (v2).

    ``mounts`` are the inodes of the mount namespaces whose processes are ours.
    """

    def __init__(self, cgroup: str) -> None:
        self._cgroup = cgroup
        self.mounts = {os.stat("/proc/self/ns/mnt").st_ino}

    def processes(self) -> dict[int, str]:
        """Names of the sandboxes' processes, and of all others in our mount namespaces: containerd, its shims, we."""
        found = {}
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
            with contextlib.suppress(OSError):  # ended, or none of our business
                if os.stat(f"/proc/{pid}/ns/mnt").st_ino in self.mounts or self._is_inside(pid):
                    found[pid] = Path(f"/proc/{pid}/comm").read_text().strip()
        return found

    def _is_inside(self, pid: int) -> bool:
        with contextlib.suppress(OSError):
            return self._cgroup in Path(f"/proc/{pid}/cgroup").read_text()
        return False

    def cgroups(self) -> list[Path]:
        """Innermost first."""
        tops = [Path("/sys/fs/cgroup", self._cgroup), *Path("/sys/fs/cgroup").glob(f"*/{self._cgroup}")]
        inside = [path for top in tops for path in (top, *top.rglob("*")) if path.is_dir()]
        return sorted(inside, reverse=True)

    def force_away(self) -> None:
        """End what a failed test has left running, and remove the namespaces and cgroups of its sandboxes."""
        for pid, name in self.processes().items():
            if name == "containerd-shim" or self._is_inside(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + _PATIENCE
        while any(self._is_inside(pid) for pid in self.processes()) and time.monotonic() < deadline:
            time.sleep(0.02)
        for path in self.cgroups():
            _remove_cgroup(path, deadline)
        for name in os.listdir("/run/netns"):
            if name.startswith("cni-"):
                subprocess.run(["ip", "netns", "del", name], check=True)


def _remove_cgroup(path: Path, deadline: float) -> None:
    """Its last process is gone from /proc a moment before the kernel lets the directory go."""
    while True:
        try:
            path.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return
