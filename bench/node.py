"""The node that the benchmark runs on: namespaces of its own, a LAN, pods, and a daemon behind the shim."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

CLONE_NEWNS, CLONE_NEWNET = 0x20000, 0x40000000
MS_REC, MS_PRIVATE = 0x4000, 1 << 18
NODE, LAN = "benchnode", "benchlan"
MASTER = "eth0"
GO_PLUGINS = Path("/usr/lib/cni")

HIJACK = {
    "service_hijack_subnet": ["172.96.0.0/18", "2001:4860:fd00::/108"],
    "overlay_hijack_subnet": ["10.240.0.0/12", "fd00:10:244::/96"],
    "rp_filter": {"set_host": True, "value": 0},
}
V4 = [{"subnet": "172.18.0.0/16", "rangeStart": "172.18.8.1", "rangeEnd": "172.18.250.254", "gateway": "172.18.0.1"}]
V6 = [{"subnet": "fd00:18::/64", "rangeStart": "fd00:18::8:1", "rangeEnd": "fd00:18::8:ffff", "gateway": "fd00:18::1"}]


def isolate() -> None:
    """Leave the machine's own network and mounts: everything that follows dies with this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS | CLONE_NEWNET):
        sys.exit(f"bench: unshare: {os.strerror(ctypes.get_errno())}; run it as root")
    if libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) or libc.mount(b"bench", b"/run", b"tmpfs", 0, None):
        sys.exit(f"bench: mount: {os.strerror(ctypes.get_errno())}; run it as root")


def alone(prog: str, description: str | None, report: Callable[[int], str]) -> None:
    """Some of the figures by themselves, in a node of their own; ``report`` is given the rounds."""
    parser = argparse.ArgumentParser(prog=f"python -m {prog}", description=description)
    parser.add_argument("--rounds", type=int, default=60, help="pods per figure (default 60)")
    rounds = parser.parse_args().rounds
    isolate()
    build_node()
    print(report(rounds))


def ip(*args: str) -> str:
    """Run iproute2."""
    return subprocess.run(["ip", *args], check=True, capture_output=True, text=True).stdout


def enter(name: str) -> None:
    """Move this process, and so every child, into a named namespace."""
    fd = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
    if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
    os.close(fd)


def build_node() -> None:
    """A node whose eth0 (172.18.0.11/16, fd00:18::11/64) is a veth end; the LAN's host holds the other end."""
    for name in (NODE, LAN):
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")
    ip("-n", NODE, "link", "add", MASTER, "type", "veth", "peer", "name", "lan0", "netns", LAN)
    for name, nic, host in ((NODE, MASTER, 11), (LAN, "lan0", 1)):
        ip("-n", name, "link", "set", nic, "up")
        ip("-n", name, "addr", "add", f"172.18.0.{host}/16", "dev", nic)
        ip("-n", name, "addr", "add", f"fd00:18::{host}/64", "dev", nic, "nodad")
    ip("-n", NODE, "route", "add", "default", "via", "172.18.0.1")
    enter(NODE)


def make_pods(prefix: str, count: int) -> list[str]:
    """Fresh namespaces, loopback up, as a runtime hands them over."""
    names = [f"{prefix}{i}" for i in range(count)]
    for name in names:
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")
    return names


def drop_pods(names: list[str]) -> None:
    """Delete the namespaces."""
    for name in names:
        ip("netns", "del", name)


class Daemon:
    """A daemon with its own directories, and the shims laid for it; ``flags`` are further ones of the daemon."""

    def __init__(self, *flags: str) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="underlay-bench-"))
        self.bin = self.root / "bin"
        self.run = self.root / "run"
        self.bin.mkdir()
        underlay = [sys.executable, "-m", "underlay"]
        subprocess.run(
            [*underlay, "install", "--all", "--bin-dir", self.bin, "--run-dir", self.run],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        self.command = [
            *underlay,
            "daemon",
            "--run-dir",
            str(self.run),
            "--state-dir",
            str(self.root / "state"),
            "--bin-dir",
            str(self.bin),
            "--conf-dir",
            str(self.root / "conf"),
            "--manifest-dir",
            str(self.root / "manifests"),
            *flags,
        ]
        (self.root / "manifests").mkdir()
        self.log = (self.root / "log").open("w")
        self.process, self.start_seconds = self._start()

    def _start(self) -> tuple[subprocess.Popen[bytes], float]:
        began = time.perf_counter()
        process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log)
        while not (self.run / "underlay.sock").exists():
            if process.poll() is not None or time.perf_counter() - began > 20:
                sys.exit(f"bench: the daemon did not start:\n{(self.root / 'log').read_text()}")
            time.sleep(0.002)
        return process, time.perf_counter() - began

    def memory(self, field: str = "VmRSS") -> float:
        """MiB of VmRSS, or of its peak VmHWM."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) / 1024
        raise ValueError(field)

    def stop(self) -> None:
        """End it and remove its directories."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)
        self.log.close()
        shutil.rmtree(self.root)


class Caller:
    """Execs one plugin with one configuration, as a runtime does, and keeps nothing but the time.

    ``args`` is CNI_ARGS, "{pod}" in it the pod's name.
    """

    def __init__(self, bin_dir: Path, plugin: str, conf: dict[str, object], scratch: Path, args: str = "") -> None:
        self.program = str(bin_dir / plugin)
        self.path = str(bin_dir)
        self.conf = scratch / f"{plugin}-{conf['name']}.json"
        self.conf.write_text(json.dumps(conf))
        self.args = args
        self.answer = str(scratch / f"{plugin}-{conf['name']}.out")

    def spawn(self, verb: str, pod: str) -> int:
        """Start one call; the child's process id."""
        env = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": f"bench-{pod}",
            "CNI_NETNS": f"/run/netns/{pod}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": self.path,
            "PATH": os.environ["PATH"],
            "CNI_ARGS": self.args.format(pod=pod),
        }
        files = [
            (os.POSIX_SPAWN_OPEN, 0, str(self.conf), os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, f"{self.answer}-{pod}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
        ]
        return os.posix_spawn(self.program, [self.program], env, file_actions=files)

    def reap(self, child: int, verb: str, pod: str) -> None:
        """Wait for a call; a failed one ends the benchmark with its words."""
        if os.waitpid(child, 0)[1]:
            sys.exit(f"bench: {self.program} {verb} {pod}: {Path(f'{self.answer}-{pod}').read_text()}")

    def timed(self, verb: str, pod: str) -> float:
        """Milliseconds of one call, process start and end included."""
        began = time.perf_counter()
        self.reap(self.spawn(verb, pod), verb, pod)
        return (time.perf_counter() - began) * 1000


def macvlan_conf(name: str, *, data_dir: Path, ranges: list[object], version: str = "1.0.0") -> dict[str, object]:
    """One macvlan plugin with host-local."""
    routes = [{"dst": "0.0.0.0/0"}] + ([{"dst": "::/0"}] if len(ranges) > 1 else [])
    return {
        "cniVersion": version,
        "name": name,
        "type": "macvlan",
        "master": MASTER,
        "mode": "bridge",
        "ipam": {"type": "host-local", "ranges": ranges, "dataDir": str(data_dir), "routes": routes},
    }


def chain_conf(name: str, *, data_dir: Path, ranges: list[object]) -> dict[str, object]:
    """multus -> macvlan + host-local -> veth."""
    macvlan = macvlan_conf(name, data_dir=data_dir, ranges=ranges)
    plugins = [{k: v for k, v in macvlan.items() if k not in ("cniVersion", "name")}, {"type": "veth", **HIJACK}]
    return {
        "cniVersion": "1.0.0",
        "name": f"multus-{name}",
        "type": "multus",
        "delegates": [{"cniVersion": "1.0.0", "name": name, "plugins": plugins}],
    }
