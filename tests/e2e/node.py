"""A node as a kubelet has it: containerd, runc, the shim laid for a daemon of its own, and what they leave behind.

Everything lies below /run, which is a tmpfs of this process's mount namespace (tests/conftest.py); what containerd and
the plugins write to /var/lib and /var/log goes into a layer above them that ends with the test.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from tests import published
from tests.conftest import read_state
from tests.e2e import containerd, networks
from tests.e2e.cri import Sandbox
from tests.e2e.leftovers import Leftovers

from underlay.delegate.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Netns
    from tests.e2e.cri import Runtime
    from tests.e2e.networks import Setup

    from underlay.delegate.ledger import Row

GO_PLUGINS = Path("/usr/lib/cni")
UNDERLAY = (sys.executable, "-m", "underlay")
_PATIENCE = 10.0


@dataclass(frozen=True)
class Pod:
    """A sandbox that runs. ``addresses`` are PodSandboxStatus', ``lan`` those of its NIC in the LAN."""

    name: str
    id: str
    netns: str
    addresses: tuple[str, ...]
    lan: tuple[str, ...]


class Node:
    """Runs pods. ``ns`` is the node's namespace, ``root`` holds all its files."""

    def __init__(self, ns: Netns, root: Path, setup: Setup) -> None:
        self.ns = ns
        self.root = root
        self.setup = setup
        self.runtime: Runtime
        self.daemon: subprocess.Popen[bytes] | None = None
        self._cgroup = f"underlay-e2e-{uuid.uuid4().hex[:12]}"
        self.leftovers = Leftovers(self._cgroup)
        for name in ("bin", "net.d", "multus.d", "manifests", "pools"):
            (root / name).mkdir()
        for network in published.NAMES:
            self._write(f"manifests/{network}.json", networks.definition(network, published.network(network)))
        for pool, manifest in networks.pools().items():
            self._write(f"manifests/{pool}.json", manifest)
        self._write(f"multus.d/10-{networks.CLUSTER_NETWORK}.conflist", networks.cluster(root / "pools"))
        standalone = published.network("macvlan-standalone")
        conf = {"chain": standalone, "multus": networks.multus(root / "multus.d")}[setup.conf]
        self._write("net.d/00-pods.conflist", conf)
        install = [*UNDERLAY, "install", "--all", "--bin-dir", root / "bin", "--run-dir", root / "run"]
        subprocess.run(install, check=True, capture_output=True)
        for name in ("loopback", "ptp"):
            (root / "bin" / name).symlink_to(GO_PLUGINS / name)

    def _write(self, path: str, content: dict[str, Any]) -> None:
        """By rename: the daemon watches manifests."""
        target = self.root / path
        temporary = target.with_name(f".{target.name}.tmp")
        temporary.write_text(json.dumps(content))
        temporary.rename(target)

    def start_daemon(self) -> None:
        """Run the daemon in the node's namespace; returns when it is ready."""
        command = [*UNDERLAY, "daemon", "--conf-dir", self.root / "multus.d", "--manifest-dir", self.root / "manifests"]
        command += ["--run-dir", self.root / "run", "--state-dir", self.root / "state", "--bin-dir", self.root / "bin"]
        with (self.root / "daemon.log").open("ab") as log:
            self.daemon = self.ns.popen(*map(str, command), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        ask = [*UNDERLAY, "status", "--run-dir", self.root / "run", "--wait", str(_PATIENCE)]
        ready = subprocess.run(ask, check=False, capture_output=True, text=True)
        assert ready.returncode == 0, (ready.stderr, self.log())

    def end_daemon(self, number: int = signal.SIGTERM) -> int:
        """End it by a signal: its exit status as Popen has it."""
        assert self.daemon is not None
        self.daemon.send_signal(number)
        status = self.daemon.wait(30)
        self.daemon = None
        return status

    def log(self) -> str:
        """The daemon's."""
        return (self.root / "daemon.log").read_text()

    def run(self, name: str = "web") -> Pod:
        """Make the pod known, and run its sandbox."""
        uid = str(uuid.uuid4())
        self._write(f"manifests/pod-{name}.json", networks.pod(name, uid, self.setup.annotations))
        sandbox_id = self.runtime.run(Sandbox(name, uid, cgroup_parent=f"/{self._cgroup}/{uid}"))
        netns = self.runtime.netns(sandbox_id)
        return Pod(name, sandbox_id, netns, tuple(self.runtime.addresses(sandbox_id)), self._lan_addresses(netns))

    def _lan_addresses(self, netns: str) -> tuple[str, ...]:
        """The kernel's word, IPv4 first."""
        shown = subprocess.run(
            ["nsenter", f"--net={netns}", "ip", "-j", "addr", "show", "scope", "global"],
            check=True,
            capture_output=True,
        )
        entries = [info for each in json.loads(shown.stdout) for info in each.get("addr_info", ())]
        held = (info["local"] for info in entries if "local" in info)  # iproute2 leaves {} for what a filter hides
        return tuple(sorted((each for each in held if each.startswith(self.setup.lan)), key=lambda each: ":" in each))

    def remove(self, pod: Pod) -> None:
        """Stop the sandbox and remove it, as the kubelet does with a deleted pod."""
        self.runtime.stop(pod.id)
        self.runtime.remove(pod.id)
        (self.root / f"manifests/pod-{pod.name}.json").unlink()

    def holdings(self) -> dict[str, Any]:
        """All that a sandbox may leave; two readings are equal where nothing came or went.

        Settings apart: rp_filter of the node is not the pod's to take back.
        """
        held = {path.name for path in (self.root / "pools").glob("*/*")}
        manifests = {path.name for path in (self.root / "manifests").rglob("*") if not path.name.startswith(".")}
        return {
            "node": replace(read_state(self.ns), sysctls=()),
            "ledger": [(row.container_id, row.ifname, row.network, row.state) for row in self._attachments()],
            "host-local": sorted(
                each for each in held if each != "lock" and not each.startswith(("last_reserved", ".spare-"))
            ),
            "pools": self._rows("pools.db", "SELECT address, pod FROM lease WHERE state = 'held'"),
            "manifests": sorted(manifests),
            "spool": sorted(path.name for path in (self.root / "run/spool").glob("*")),
            "netns": sorted(os.listdir("/run/netns")),
            "mounts": sorted(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()),
            "processes": sorted(self.processes().values()),
            "cgroups": [str(path) for path in self.cgroups() if len(path.name) == 64],  # the pod's own is the kubelet's
        }

    def comes_to(self, expected: dict[str, Any]) -> None:
        """Assert that the holdings are as expected, within a second or so: a shim ends after it has answered."""
        deadline = time.monotonic() + _PATIENCE
        while (seen := self.holdings()) != expected and time.monotonic() < deadline:
            time.sleep(0.02)
        assert seen == expected, self.log()

    def _attachments(self) -> list[Row]:
        """Sorted by their ids; SQLite alone would not tell of those that are written ahead."""
        return Ledger.look(f"{self.root}/state/ledger.db").rows()

    def _rows(self, file: str, query: str) -> list[tuple[str, ...]]:
        with contextlib.closing(sqlite3.connect(f"file:{self.root}/state/{file}?mode=ro", uri=True)) as database:
            return sorted(database.execute(query).fetchall())

    def processes(self) -> dict[int, str]:
        """See :class:`Leftovers`."""
        return self.leftovers.processes()

    def cgroups(self) -> list[Path]:
        """See :class:`Leftovers`."""
        return self.leftovers.cgroups()


@contextlib.contextmanager
def running(ns: Netns, root: Path, setup: Setup) -> Iterator[Node]:
    """A node with its daemon and containerd; whatever the test did, nothing of it runs or stays afterwards."""
    root.mkdir()
    with contextlib.ExitStack() as undo:
        undo.callback(subprocess.run, ["rm", "-rf", root], check=True)
        for place in ("/var/lib", "/var/log"):
            undo.enter_context(_layer_above(place, root))
        node = Node(ns, root, setup)
        undo.callback(lambda: node.daemon and node.end_daemon(signal.SIGKILL))
        node.start_daemon()
        undo.callback(node.leftovers.force_away)
        places = {"bin_dir": root / "bin", "conf_dir": root / "net.d"}
        node.runtime = undo.enter_context(containerd.running(root / "containerd", Path(ns.path), **places))
        undo.callback(_remove_sandboxes, node)
        yield node


def _remove_sandboxes(node: Node) -> None:
    """Best effort: force_away has the last word."""
    with contextlib.suppress(grpc.RpcError):
        for sandbox_id in node.runtime.sandboxes():
            node.runtime.stop(sandbox_id, seconds=10)
            node.runtime.remove(sandbox_id)


@contextlib.contextmanager
def _layer_above(place: str, root: Path) -> Iterator[None]:
    """Writes below ``place`` go to a directory of ``root`` meanwhile, in this mount namespace."""
    upper, work = (root / f"{kind}{place.replace('/', '-')}" for kind in ("upper", "work"))
    upper.mkdir()
    work.mkdir()
    options = f"lowerdir={place},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)
