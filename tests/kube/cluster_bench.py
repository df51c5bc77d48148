"""A cluster source that listens to the tests' API server, and what its tests wait with."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from tests.kube.api_server import NETWORKS, PODS, network, pod

from underlay.kube.cluster import Cluster
from underlay.kube.kubeconfig import Kubeconfig
from underlay.kube.reflector import Timing

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kube.api_server import ApiServer

NODE = "n1"
OWN_PODS = 110
QUICK = Timing(patience=0.3, ask=3.0, page=100, silence=2.0, first=0.02, most=0.1, unserved=0.1)


class Lines(list[tuple[str, str, dict[str, Any]]]):
    """A log that keeps its lines."""

    def __call__(self, level: str, event: str, /, **fields: Any) -> None:
        self.append((level, event, fields))

    def events(self) -> list[str]:
        return [event for _, event, _ in self]


def soon(seconds: float = 10.0) -> float:
    """A deadline."""
    return time.monotonic() + seconds


def until(true: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Wait for something that another thread brings about; what it was in the end."""
    ends = time.monotonic() + seconds
    while not (now := true()) and time.monotonic() < ends:
        time.sleep(0.005)
    return now


def fill(server: ApiServer, ipam: Callable[[int], object] | None = None) -> None:
    """About what a cluster of 5,000 pods and 500 networks holds: objects of kilobytes, managedFields and a last-applied
    copy too. ``ipam`` makes that section of a network by its number. Pod web-N asks for network net-(N modulo 500).
    """
    for number in range(5000):
        node = NODE if number < OWN_PODS else f"other-{number % 50}"
        named = f"web-{number}"
        server.put(PODS, pod(named, node=node, uid=f"uid-{named}", networks=f"net-{number % 500}"))
    for number in range(500):
        ranges = [[{"subnet": f"10.{number % 256}.{line}.0/24"}] for line in range(10)]
        section = ipam(number) if ipam else {"type": "host-local", "ranges": ranges}
        config = {"cniVersion": "1.0.0", "type": "macvlan", "master": "eth0", "ipam": section}
        applied = {"kubectl.kubernetes.io/last-applied-configuration": json.dumps(config) * 2}
        server.put(NETWORKS, network(f"net-{number}", config, annotations=applied))


class Benches:
    """Makes cluster sources on one state directory and ends them."""

    def __init__(self, directory: Any) -> None:
        self.directory = directory
        self.log = Lines()
        self._made: list[Cluster] = []

    def make(self, server: ApiServer, *, timing: Timing = QUICK, start: bool = True, **user: Any) -> Cluster:
        config = server.kubeconfig(self.directory / "kubeconfig", **user)
        made = Cluster(Kubeconfig(config, self.log), NODE, f"{self.directory}/state/kube.db", self.log, timing=timing)
        self._made.append(made)
        if start:
            made.start()
        return made

    def close(self) -> None:
        for made in self._made:
            made.close()
        self._made.clear()
