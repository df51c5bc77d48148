"""The figures of address pools at an API server: the tests' own, real HTTP on loopback, in this process.

python -m bench.pool_cluster [--rounds N]      these alone; N counts for nothing here
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from tests.kube.api_objects import BLOCKS, POOLS
from tests.kube.api_server import PODS, ApiServer, pod

from bench import node
from bench.figures import Figure, report, say, spread
from bench.kubernetes import ARGS, until

if TYPE_CHECKING:
    from collections.abc import Sequence

ADDRESSES = 200
PARALLEL = 20
TURNS = 5
CONF: dict[str, object] = {"cniVersion": "1.0.0", "name": "pools", "type": "macvlan", "ipam": {"type": "spiderpool"}}
THEIRS = "Spiderpool: 3.1-4.1 s; whereabouts: 13-15 s"


class Nodes:
    """An API server and daemons that share its pools; every container has the node's own namespace for a sandbox, since
    the IPAM plugin alone is called.
    """

    def __init__(self, server: ApiServer, scratch: Path, count: int) -> None:
        self.server = server
        server.put("namespaces", {"metadata": {"name": "default"}})
        config = server.kubeconfig(scratch / "kubeconfig")
        names = [f"node-{number}" for number in range(count)]
        for name in names:
            server.put("nodes", {"metadata": {"name": name}})
        flags = ("--kubeconfig", config, "--pools", "cluster", "--node-name")
        self.daemons = {name: node.Daemon(*flags, name) for name in names}
        self.callers = {
            name: node.Caller(each.bin, "spiderpool", CONF, each.root, ARGS) for name, each in self.daemons.items()
        }

    def new_pool(self, turn: int) -> None:
        """A default pool of exactly ADDRESSES in the place of the one before; nobody owns any of it."""
        if turn:
            self.server.delete(POOLS, "", f"pool-{turn - 1}")
        spec = {"subnet": "172.16.0.0/12", "ips": [f"172.20.{turn}.1-172.20.{turn}.{ADDRESSES}"], "default": True}
        self.server.put(POOLS, {"metadata": {"name": f"pool-{turn}"}, "spec": spec})

    def new_pods(self, turn: int) -> list[tuple[str, str]]:
        """Pods evenly on the nodes, at the API server; the watches tell of them while we wait."""
        names = list(self.daemons)
        made = [(names[n % len(names)], f"pod-{turn}-{n}") for n in range(ADDRESSES)]
        for on, name in made:
            self.server.put(PODS, pod(name, node=on, uid=f"uid-{name}"))
        time.sleep(1.0)
        return made

    def all_at_once(self, verb: str, pods: Sequence[tuple[str, str]], parallel: int) -> tuple[float, int]:
        """Seconds, and how many calls failed."""

        def call(one: tuple[str, str]) -> bool:
            caller = self.callers[one[0]]
            return os.waitpid(caller.spawn(verb, one[1]), 0)[1] != 0

        with ThreadPoolExecutor(parallel) as threads:
            began = time.perf_counter()
            failed = sum(threads.map(call, pods))
            return time.perf_counter() - began, failed

    def writes(self) -> int:
        """The requests so far that wrote a block."""
        return sum(each.resource == BLOCKS and each.verb in ("create", "patch") for each in self.server.asked())

    def reported(self) -> int:
        """The leases that the blocks report."""
        return sum(len(block["spec"].get("leases", ())) for block in self.server.objects.all(BLOCKS))

    def stop(self) -> None:
        """End the daemons."""
        for each in self.daemons.values():
            each.stop()


def turns(nodes: Nodes, parallel: int) -> tuple[list[float], list[float], int, int]:
    """Seconds of the first ADDs and of those after a DEL of all, calls that failed, and writes of blocks."""
    cold: list[float] = []
    again: list[float] = []
    failures = 0
    before = nodes.writes()
    for turn in range(TURNS):
        nodes.new_pool(turn)
        pods = nodes.new_pods(turn)
        for walls in (cold, again):
            wall, failed = nodes.all_at_once("ADD", pods, parallel)
            walls.append(wall)
            until(lambda: nodes.reported() == ADDRESSES, "not every lease is reported")
            failures += failed + nodes.all_at_once("DEL", pods, parallel)[1]
            until(lambda: nodes.reported() == 0, "a lease is left after its DEL")
        for _, name in pods:
            nodes.server.delete(PODS, "default", name)
    return cold, again, failures, nodes.writes() - before


def figures(count: int, parallel: int, what: str, must: float | None) -> list[Figure]:
    """Those of so many nodes."""
    with tempfile.TemporaryDirectory() as scratch, ApiServer() as server:
        nodes = Nodes(server, Path(scratch), count)
        try:
            cold, again, failures, writes = turns(nodes, parallel)
            peak = max(each.memory("VmHWM") for each in nodes.daemons.values())
        finally:
            nodes.stop()
    met = None if must is None else statistics.median(cold) <= must
    each = writes / (2 * 2 * TURNS * ADDRESSES)
    return [
        Figure(what, f"<= {must} s" if must else "", spread(cold, "s"), met),
        Figure("- the same pods again", "", spread(again, "s"), None),
        Figure("- calls that failed, addresses that leaked", "0", str(failures), failures == 0),
        Figure("- API writes an ADD or DEL", "", f"{each:.2f}", None),
        Figure("- daemon: RSS, peak", "<= 90 MiB", f"{peak:.1f} MiB", peak <= 90),
    ]


def measure() -> list[Figure]:
    """All of them; the caller is in the bench's node already."""
    say(f"address pools at an API server: {ADDRESSES} pods")
    one = f"{ADDRESSES} ADDs at {PARALLEL} parallel, exactly {ADDRESSES} addresses, API over HTTP ({THEIRS})"
    four = f"four nodes, {PARALLEL} parallel each, on one pool of exactly {ADDRESSES}"
    return figures(1, PARALLEL, one, 0.4) + figures(4, 4 * PARALLEL, four, None)


def main() -> None:
    """These figures alone."""
    node.alone("bench.pool_cluster", __doc__, lambda _: report(measure()))


if __name__ == "__main__":
    main()
