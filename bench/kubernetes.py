"""The figures beside an API server: the tests' own, real HTTP on loopback, in this process.

python -m bench.kubernetes [--rounds N]      these alone
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.kube.api_server import EVENTS, NETWORKS, PODS, ApiServer, network, pod

from bench import node
from bench.figures import Figure, burst, report, say, spread

if TYPE_CHECKING:
    from collections.abc import Callable

NODE_NAME = "bench-node"
CONF = {"cniVersion": "1.0.0", "name": "multus-kube", "type": "multus", "clusterNetwork": "cluster-net"}
ARGS = "K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod};K8S_POD_UID=uid-{pod}"
PER_POD = ("get", "create", "patch", "update")  # of a watch and a list there is one, however many pods there are
PEER = "Go, on another machine, with a real one: 45-60 ms"
WARM = 5
TURNS = 5
CROWD = 100


class Cluster:
    """An API server with two networks, a daemon that listens to it, and pods that ask for both."""

    def __init__(self, server: ApiServer, scratch: Path) -> None:
        self.server = server
        data = scratch / "host-local"
        for name, namespace in (("cluster-net", "kube-system"), ("further", "default")):
            conf = node.macvlan_conf(name, data_dir=data, ranges=[node.V4])
            server.put(NETWORKS, network(name, conf, namespace=namespace))
        config = server.kubeconfig(scratch / "kubeconfig")
        self.daemon = node.Daemon("--kubeconfig", config, "--node-name", NODE_NAME, "--pools", "manifests")
        self.caller = node.Caller(self.daemon.bin, "multus", CONF, self.daemon.root, ARGS)
        until(lambda: (self.daemon.root / "log").read_text().count('"listed"') == 2, "the daemon hears of no pods")

    def make_pods(self, prefix: str, count: int) -> list[str]:
        """Namespaces, and the pods at the API server; the watch tells the daemon of them while we wait."""
        names = node.make_pods(prefix, count)
        for name in names:
            self.server.put(PODS, pod(name, node=NODE_NAME, uid=f"uid-{name}", networks="further"))
        time.sleep(0.5)
        return names

    def drop_pods(self, names: list[str]) -> None:
        """Both again."""
        for name in names:
            self.server.delete(PODS, "default", name)
        node.drop_pods(names)

    def await_told(self, names: list[str]) -> None:
        """Every one of the pods has its status and its Event."""

        def told() -> bool:
            heard = {each["involvedObject"]["name"] for each in self.server.objects.all(EVENTS)}
            found = (self.server.get(PODS, "default", name) for name in names)
            return heard.issuperset(names) and all(
                each and "k8s.v1.cni.cncf.io/network-status" in each["metadata"]["annotations"] for each in found
            )

        until(told, "a pod's status or Event does not arrive")

    def asked(self) -> int:
        """The requests so far that are about one pod or network."""
        return sum(each.verb in PER_POD for each in self.server.asked())


def until(true: Callable[[], bool], otherwise: str) -> None:
    """Wait; what does not come ends the benchmark."""
    ends = time.monotonic() + 30
    while not true():
        if time.monotonic() > ends:
            sys.exit(f"bench: {otherwise}")
        time.sleep(0.01)


def one_by_one(cluster: Cluster, rounds: int) -> list[Figure]:
    """ADD of pods with one further NIC, each when the one before it is told: the writing has its own figure."""
    names = cluster.make_pods("k", rounds)
    adds = []
    for name in names:
        adds.append(cluster.caller.timed("ADD", name))
        cluster.await_told([name])
    requests = cluster.asked() / rounds
    dels = [cluster.caller.timed("DEL", name) for name in names]
    cluster.drop_pods(names)
    adds = adds[WARM:]
    return [
        Figure(f"ADD, one further macvlan NIC ({PEER})", "<= 4 ms", spread(adds), statistics.median(adds) <= 4),
        Figure("the same: DEL", "", spread(dels[WARM:]), None),
        Figure("API requests per pod, one after another", "<= 2", f"{requests:.2f}", requests <= 2),
    ]


def crowds(cluster: Cluster) -> list[Figure]:
    """Pods with two NICs, all at once, again and again."""
    walls, tells, before = [], [], cluster.asked()
    for turn in range(TURNS):
        names = cluster.make_pods(f"c{turn}x", CROWD)
        walls.append(burst(cluster.caller, "ADD", names))
        began = time.perf_counter()
        cluster.await_told(names)
        tells.append(time.perf_counter() - began)
        burst(cluster.caller, "DEL", names)
        cluster.drop_pods(names)
    requests = (cluster.asked() - before) / (TURNS * CROWD)
    return [
        Figure(f"{CROWD} pods with two NICs at {CROWD} parallel: wall", "", spread(walls, "s"), None),
        Figure("- until status and Event of the last are there", "", spread(tells, "s"), None),
        Figure("API requests per pod, at once", "<= 2", f"{requests:.2f}", requests <= 2),
    ]


def measure(rounds: int) -> list[Figure]:
    """All of them; the caller is in the bench's node already."""
    say(f"Kubernetes: {rounds} pods, then {CROWD} at {CROWD} parallel")
    with tempfile.TemporaryDirectory() as scratch, ApiServer() as server:
        cluster = Cluster(server, Path(scratch))
        figures = one_by_one(cluster, rounds) + crowds(cluster)
        peak = cluster.daemon.memory("VmHWM")
        cluster.daemon.stop()
    return [*figures, Figure("daemon with an API server: RSS, peak", "<= 90 MiB", f"{peak:.1f} MiB", peak <= 90)]


def main() -> None:
    """These figures alone."""
    node.alone("bench.kubernetes", __doc__, lambda rounds: report(measure(rounds)))


if __name__ == "__main__":
    main()
