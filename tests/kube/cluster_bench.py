"""A cluster source that listens to the tests' API server, and what its tests wait with."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from underlay.kube.cluster import Cluster
from underlay.kube.kubeconfig import Kubeconfig
from underlay.kube.reflector import Timing

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kube.api_server import ApiServer

NODE = "n1"
QUICK = Timing(patience=0.3, ask=3.0, page=100, silence=2.0, first=0.02, most=0.1)


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
