"""kill -9 of the daemon after every single act of ADD and DEL of the two networks that the project is about."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest

from underlay.daemon import frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Netns, State

ROOT = Path(__file__).resolve().parents[2]
SHARE = 4
NEVER = 1 << 30
HIJACK = {
    "service_hijack_subnet": ["10.96.0.0/16", "fd00:96::/108"],
    "overlay_hijack_subnet": ["10.244.0.0/16", "fd00:244::/48"],
}


def macvlan(data_dir: Path) -> dict[str, Any]:
    v4 = {"subnet": "172.18.0.0/16", "rangeStart": "172.18.9.1", "rangeEnd": "172.18.9.250", "gateway": "172.18.0.1"}
    v6 = {"subnet": "fd00:18::/64", "rangeStart": "fd00:18::9:1", "rangeEnd": "fd00:18::9:ff", "gateway": "fd00:18::1"}
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    ipam = {"type": "host-local", "ranges": [[v4], [v6]], "routes": routes, "dataDir": str(data_dir)}
    return {"type": "macvlan", "master": "eth0", "mode": "bridge", "ipam": ipam}


def with_veth(data_dir: Path) -> dict[str, Any]:
    """macvlan + veth as the pod's first and second network."""
    chain = [macvlan(data_dir), {"type": "veth", **HIJACK}]
    networks = [{"cniVersion": "1.0.0", "name": name, "plugins": chain} for name in ("underlay-a", "underlay-b")]
    return {"cniVersion": "1.0.0", "name": "multus-net", "type": "multus", "delegates": networks}


def with_pools(data_dir: Path) -> dict[str, Any]:
    """macvlan + veth with addresses of pools, one of each family."""
    kind = {"apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderIPPool"}
    for name, subnet, ips, gateway in (
        ("v4", "172.18.0.0/16", "172.18.9.1-172.18.9.250", "172.18.0.1"),
        ("v6", "fd00:18::/64", "fd00:18::9:1-fd00:18::9:ff", "fd00:18::1"),
    ):
        spec = {"subnet": subnet, "ips": [ips], "gateway": gateway, "default": True}
        manifest = {**kind, "metadata": {"name": name}, "spec": spec}
        (data_dir.parent / "manifest" / f"{name}.json").write_text(json.dumps(manifest))
    nic = {"type": "macvlan", "master": "eth0", "mode": "bridge", "ipam": {"type": "spiderpool"}}
    network = {"cniVersion": "1.0.0", "name": "underlay-a", "plugins": [nic, {"type": "veth", **HIJACK}]}
    return {"cniVersion": "1.0.0", "name": "multus-net", "type": "multus", "delegates": [network]}


def with_router(data_dir: Path) -> dict[str, Any]:
    """An overlay network by another project's executable, and macvlan + router on top."""
    ipam = {"type": "host-local", "subnet": "10.244.7.0/24", "routes": [{"dst": "0.0.0.0/0"}], "dataDir": str(data_dir)}
    overlay = {"cniVersion": "0.4.0", "name": "overlay", "type": "ptp", "ipam": ipam}
    chain = [macvlan(data_dir), {"type": "router", "mac_prefix": "0a:1b", **HIJACK}]
    underlay = {"cniVersion": "0.4.0", "name": "underlay-a", "plugins": chain}
    return {"cniVersion": "0.4.0", "name": "multus-net", "type": "multus", "delegates": [overlay, underlay]}


@dataclass
class Daemon:
    """A daemon that may die, on one state directory."""

    launcher: subprocess.Popen[str]
    directory: Path
    pid: int = 0

    def start(self, limit: int) -> None:
        """Returns when it serves."""
        argv = ["daemon", "--reclaim-interval", "3600", "--log-file", str(self.directory / "log")]
        for name in ("run", "state", "conf", "manifest", "bin"):
            argv += [f"--{name}-dir", str(self.directory / name) if name != "bin" else "/usr/lib/cni"]
        order = {"limit": limit, "armed": str(self.directory / "armed"), "argv": argv}
        self._pipe(self.launcher.stdin).write(json.dumps(order) + "\n")
        self._pipe(self.launcher.stdin).flush()
        told = self._pipe(self.launcher.stdout).readline()
        assert told, "the launcher has ended"
        self.pid = int(told)
        until = time.monotonic() + 30
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                frame.ask(self.socket, frame.request("multus", {"CNI_COMMAND": "VERSION"}, b"{}"), until)
                return
            time.sleep(0.005)
        pytest.fail(f"no daemon: {(self.directory / 'log').read_text()}")

    @property
    def socket(self) -> str:
        return str(self.directory / "run" / "underlay.sock")

    def end(self) -> None:
        """kill -9, unless it is dead already."""
        if not self.pid:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.pid = 0
        self._pipe(self.launcher.stdout).readline()

    def call(self, verb: str, pod: Netns, conf: dict[str, Any]) -> bool:
        """One CNI call; False when the daemon died of it."""
        env = {
            "CNI_COMMAND": verb, "CNI_CONTAINERID": "c0ffee01", "CNI_NETNS": pod.path, "CNI_IFNAME": "eth0",
            "CNI_PATH": "/usr/lib/cni", "CNI_ARGS": "",
        }  # fmt: skip
        try:
            status, printed = frame.ask(
                self.socket, frame.request("multus", env, json.dumps(conf).encode()), time.monotonic() + 30
            )
        except Exception:
            return False
        assert status == 0, printed
        return True

    def armed_call(self, verb: str, pod: Netns, conf: dict[str, Any]) -> bool:
        """The same, with the acts counted."""
        armed = self.directory / "armed"
        armed.touch()
        try:
            return self.call(verb, pod, conf)
        finally:
            armed.unlink()

    def _pipe(self, pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


@pytest.fixture
def daemon(uplink: Netns, tmp_path: Path) -> Iterator[Daemon]:
    for name in ("conf", "manifest"):
        (tmp_path / name).mkdir()
    env = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    launcher = uplink.popen(
        sys.executable, str(ROOT / "tests/crash/launcher.py"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=env, cwd=ROOT,
    )  # fmt: skip
    made = Daemon(launcher, tmp_path)
    yield made
    made.end()
    with launcher:
        pass


@pytest.mark.parametrize("share", range(SHARE))
@pytest.mark.parametrize("verb", ["ADD", "DEL"])
@pytest.mark.parametrize("network", [with_veth, with_router, with_pools])
def test_nothing_is_left_whenever_the_daemon_is_killed(
    daemon: Daemon, uplink: Netns, pod: Netns, snapshot: Callable[[Netns], State], tmp_path: Path,
    network: Callable[[Path], dict[str, Any]], verb: str, share: int,
) -> None:  # fmt: skip
    conf = network(tmp_path / "data")

    def state() -> tuple[State, State, list[str]]:
        """Settings apart: rp_filter of the node is not the pod's to take back."""
        held = sorted(each.name for each in (tmp_path / "data").glob("*/*[0-9a-f]") if each.name[0] in "1f")
        if (tmp_path / "state" / "pools.db").exists():
            with contextlib.closing(sqlite3.connect(tmp_path / "state" / "pools.db")) as db:
                held += (address for (address,) in db.execute("SELECT address FROM lease WHERE state = 'held'"))
        return replace(snapshot(uplink), sysctls=()), replace(snapshot(pod), sysctls=()), held

    before = state()
    for limit in itertools.count(share + 1, SHARE):
        daemon.start(limit)
        if verb == "DEL":
            assert daemon.call("ADD", pod, conf)
        survived = daemon.armed_call(verb, pod, conf)
        daemon.end()
        daemon.start(NEVER)
        if state() != before:  # killed before the first act of DEL, or after the last of ADD: whole, until DEL comes
            assert len(pod.ip("link", "show")) > 2, limit
            assert daemon.call("CHECK", pod, conf), limit
        assert daemon.call("DEL", pod, conf), limit
        assert state() == before, limit
        assert daemon.call("ADD", pod, conf), limit
        assert daemon.call("DEL", pod, conf), limit
        assert state() == before, limit
        daemon.end()
        if survived:
            assert limit > 8
            return
