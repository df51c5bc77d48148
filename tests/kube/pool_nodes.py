"""Nodes of a cluster whose address pools are at an API server: each a daemon and the shims laid for it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from tests.kube.api_objects import BLOCKS, POOLS
from tests.kube.api_server import PODS, pod
from tests.kube.cluster_bench import until
from tests.multus.multus_node import ShimAndDaemon

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.kube.api_server import ApiServer

CONF = {"cniVersion": "1.1.0", "name": "lan", "type": "macvlan", "ipam": {"type": "spiderpool"}}
TRY_AGAIN = 11
WATCHED = 8  # pods, networks, pools, reservations, subnets, this node, namespaces, blocks


class PoolNode(ShimAndDaemon):
    """One node. ``flags`` are further ones of the daemon; containers are named as their pods."""

    def __init__(self, ns: Any, directory: Path, api: ApiServer, name: str, *flags: str) -> None:
        directory.mkdir(exist_ok=True)
        self.api = api
        self.name = name
        config = api.kubeconfig(directory / "kubeconfig")
        super().__init__(ns, directory, "--kubeconfig", config, "--node-name", name, *flags)

    def heard(self) -> bool:
        """Whether every cache has had its first list."""
        log = (self.directory / "daemon.log").read_text()
        listed = set(re.findall(r'"event": ?"listed","resource": ?"([a-z-]+)"', log))
        return len(listed) == WATCHED and self.starts() > 0

    def starts(self) -> int:
        """How often it was ready so far."""
        return (self.directory / "daemon.log").read_text().count('"event":"ready"')

    def make_pods(self, names: Iterable[str], **metadata: Any) -> list[str]:
        """Pods of this node at the API server."""
        made = list(names)
        for each in made:
            self.api.put(PODS, pod(each, node=self.name, uid=f"uid-{each}", **metadata))
        return made

    def ipam(self, verb: str, name: str, netns: str = "", **more: Any) -> tuple[bool, Any]:
        """Call the shim as a main plugin calls its IPAM plugin: whether it succeeded, and what it printed."""
        args = f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_UID=uid-{name}"
        env = {"CNI_COMMAND": verb, "CNI_CONTAINERID": f"c-{name}", "CNI_NETNS": netns or self.ns.path,
               "CNI_IFNAME": "eth0", "CNI_PATH": str(self.bin_dir), "CNI_ARGS": args}  # fmt: skip
        if verb in ("STATUS", "GC"):
            env = {"CNI_COMMAND": verb, "CNI_PATH": str(self.bin_dir)}
        conf = json.dumps({**CONF, **more}).encode()
        done = subprocess.run([self.bin_dir / "spiderpool"], env=env, input=conf, capture_output=True, check=False)
        return done.returncode == 0, json.loads(done.stdout) if done.stdout else None

    def address(self, name: str) -> str:
        """ADD that has to succeed: its one address."""
        ok, printed = self.ipam("ADD", name)
        assert ok, printed
        (ip,) = printed["ips"]
        return str(ip["address"]).partition("/")[0]

    def command(self, *args: str) -> Any:
        """``underlay ipam …`` with JSON output."""
        done = subprocess.run(
            [sys.executable, "-m", "underlay", "ipam", *args, "--json", "--run-dir", str(self.directory / "run"),
             "--state-dir", str(self.directory / "state")],
            capture_output=True, check=False, env={**os.environ}, text=True,
        )  # fmt: skip
        return json.loads(done.stdout) if done.stdout else done.stderr

    def close(self) -> None:
        """End it; it must have lived until now, and end well."""
        assert self.daemon.poll() is None, (self.daemon.returncode, (self.directory / "daemon.log").read_text())
        super().close()
        assert self.daemon.returncode == 0, (self.directory / "daemon.log").read_text()

    def leases(self) -> dict[str, str]:
        """What `underlay ipam list` shows: pod by address."""
        return {each["address"]: each["pod"] for each in self.command("list")["leases"]}


def at_once(calls: Iterable[tuple[PoolNode, str, str]], parallel: int = 20) -> list[tuple[bool, Any]]:
    """Calls of :meth:`PoolNode.ipam` (node, verb, pod), so many at a time; the results in their order. One that is to
    try again does, as a runtime has it: on a machine that does much else, other nodes may need seconds to answer.
    """

    def call(node: PoolNode, verb: str, name: str) -> tuple[bool, Any]:
        ends = time.monotonic() + 60
        while True:
            ok, printed = node.ipam(verb, name)
            if ok or printed["code"] != TRY_AGAIN or time.monotonic() > ends:
                return ok, printed

    with ThreadPoolExecutor(parallel) as threads:
        return list(threads.map(lambda each: call(*each), calls))


def put_pool(api: ApiServer, name: str, first: int, count: int, **spec: Any) -> None:
    """A default pool of ``count`` addresses of 172.18.0.0/16, from its ``first`` on."""
    low, high = ("172.18.{}.{}".format(*divmod(one, 256)) for one in (first, first + count - 1))
    wanted = {"subnet": "172.18.0.0/16", "ips": [f"{low}-{high}"], "gateway": "172.18.0.1", "default": True, **spec}
    api.put(POOLS, {"metadata": {"name": name}, "spec": wanted})


def owners(api: ApiServer) -> dict[str, str]:
    """Which node owns which address, by the blocks at the API server."""
    return {ip: node for block in api.objects.all(BLOCKS) for ip, node in block["spec"].get("owned", {}).items()}


def reported(api: ApiServer) -> dict[str, str]:
    """The pod of every lease that is reported as held."""
    return {
        ip: lease["pod"]
        for block in api.objects.all(BLOCKS)
        for ip, lease in block["spec"].get("leases", {}).items()
        if lease["state"] == "held"
    }


def settled(*nodes: PoolNode) -> None:
    """Wait until every node has heard of everything."""
    for node in nodes:
        assert until(node.heard, 20), (node.directory / "daemon.log").read_text()
