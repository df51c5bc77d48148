"""A containerd of its own, in a node's network namespace, whose CNI directories are the test's."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e import pause_image
from tests.e2e.cri import Runtime

if TYPE_CHECKING:
    from collections.abc import Iterator

_START_PATIENCE = 30.0
_ENDS_WITH_US = ("setpriv", "--pdeathsig", "TERM")
# A mount namespace of its own whose root is $1: what is mounted below a shared mount still arrives on both sides. Not
# chroot, whose containers could not be entered again (setns(2) leads to the root of the namespace).
_AT_ANOTHER_ROOT = """
mount --make-private "$1"
cd "$1"
pivot_root . mnt
mount --make-rprivate /mnt
umount --lazy /mnt
mount --make-shared /
shift
exec "$@"
"""
# The node's namespace is entered by nsenter: `ip netns exec` would mount a new /sys, without the cgroups.
_CONFIG = """\
version = 2
root = "{root}/root"
state = "{root}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[grpc]
address = "{root}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "{root}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image}"
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{snapshotter}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{bin_dir}"
conf_dir = "{conf_dir}"
max_conf_num = 1
"""


@contextlib.contextmanager
def running(
    root: Path, netns: Path, *, bin_dir: Path, conf_dir: Path, node_root: Path | None = None
) -> Iterator[Runtime]:
    """containerd below ``root`` in the network namespace ``netns``, with the pause image in place; ended afterwards.

    Its root directory is ``node_root``, a mount, in which ``root`` has to be found under the same path.
    """
    root.mkdir(parents=True)
    config = root / "config.toml"
    places = {"root": root, "bin_dir": bin_dir, "conf_dir": conf_dir, "image": pause_image.NAME}
    config.write_text(_CONFIG.format(snapshotter=_snapshotter(root), **places))
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(
            [*_ENDS_WITH_US, "nsenter", f"--net={netns}", *_rooted(node_root), "containerd", "--config", config],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _await_socket(root, process)
        pause_image.write(root / "pause.tar")
        import_image(root, root / "pause.tar")
        mounts = os.stat(f"/proc/{process.pid}/ns/mnt").st_ino
        with contextlib.closing(Runtime(root / "containerd.sock", mounts)) as runtime:
            _wait_for_network(runtime, root)
            yield runtime
    finally:
        _end(process)
        for mounted in _mounts_below(root):
            subprocess.run(["umount", "--lazy", mounted], check=True)


def _rooted(node_root: Path | None) -> list[str]:
    if node_root is None:
        return []
    return ["unshare", "--mount", "--propagation", "unchanged", "sh", "-ec", _AT_ANOTHER_ROOT, "sh", str(node_root)]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _snapshotter(root: Path) -> str:
    """overlayfs, unless the file system below cannot carry it (it is an overlay itself)."""
    kind = subprocess.run(["stat", "--file-system", "--format=%T", root], check=True, capture_output=True, text=True)
    return "native" if kind.stdout.strip() == "overlayfs" else "overlayfs"


def _await_socket(root: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_PATIENCE
    while not (root / "containerd.sock").exists():
        assert process.poll() is None, (root / "log").read_text()
        assert time.monotonic() < deadline, (root / "log").read_text()
        time.sleep(0.02)


def import_image(root: Path, archive: Path) -> None:
    """Have the containerd below ``root`` know the image of a tar."""
    ctr = [shutil.which("ctr") or "ctr", "--address", root / "containerd.sock", "--namespace", "k8s.io"]
    subprocess.run([*ctr, "images", "import", archive], check=True, capture_output=True)


def _wait_for_network(runtime: Runtime, root: Path) -> None:
    deadline = time.monotonic() + _START_PATIENCE
    while not runtime.network_ready():
        assert time.monotonic() < deadline, (root / "log").read_text()
        time.sleep(0.02)


def _mounts_below(root: Path) -> list[str]:
    """Innermost first."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted((point for point in points if point.startswith(f"{root}/")), key=len, reverse=True)
