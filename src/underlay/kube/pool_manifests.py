"""The surroundings of address pools out of a directory of manifests, where there is no cluster."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from underlay.ipam.pools import surroundings
from underlay.ipam.pools.lease import CLAIM, POD, keeper_parts
from underlay.ipam.pools.objects import Pool, Reserved, Subnet
from underlay.ipam.pools.surroundings import Catalogue
from underlay.kube import surrounding
from underlay.kube.surrounding import Machine, Namespace, Node, Set

if TYPE_CHECKING:
    from underlay.ipam.pools.surroundings import Subject
    from underlay.kube.manifests import Manifests
    from underlay.kube.objects import Pod
    from underlay.kube.source import Log, Source
    from underlay.kube.surrounding import Surrounding


def here() -> str:
    """The name of this node: what NODE_NAME in the environment says, as a pod's downward API sets it, or the host's."""
    return os.environ.get("NODE_NAME") or os.uname().nodename


class PoolManifests:
    """A :class:`~underlay.ipam.pools.surroundings.Surroundings`. ``node`` is this node's name; ``pods`` is where pods
    are known, which may be an API server that nothing else is read from.

    A pod of a StatefulSet is wanted as long as the set's manifest counts it; where the directory has no manifest of the
    set, as long as it has one of the pod. The same holds for virtual machines; claims are wanted until they are
    released by hand. With ``pods`` elsewhere only a set's manifest says that one is not wanted: who knows this node's
    pods does not know whether one that is not here has moved.
    """

    def __init__(self, manifests: Manifests, node: str, log: Log, pods: Source | None = None) -> None:
        self._manifests = manifests
        self._pods = pods or manifests
        self._node = node
        self._lock = threading.Lock()
        self._seen: object = None
        self._catalogue = Catalogue()
        self._namespaces: dict[str, Namespace] = {}
        self._sets: dict[tuple[str, str], Set] = {}
        self._machines: set[tuple[str, str]] = set()
        self._clashes = surrounding.Clashes(log)

    def catalogue(self) -> Catalogue:
        """The pools as the files have them."""
        around = self._manifests.surrounding()
        if around is not self._seen:
            with self._lock:
                around = self._manifests.surrounding()  # another thread may have seen news since
                if around is not self._seen:
                    self._build(*around)
                    self._seen = around
        return self._catalogue

    def subject(self, namespace: str, name: str, uid: str, deadline: float) -> Subject:
        """The pod, by its manifest where there is one. Raises PodMismatch, TryAgain."""
        pod = self._pods.pod(namespace, name, deadline, uid)
        self.catalogue()
        around = self._namespaces.get(namespace, Namespace(namespace))
        return surrounding.subject(pod, around, name, uid)

    def wanted(self, keeper: str) -> bool | None:
        """Whether a keeper is still meant to exist; None while a file cannot be read."""
        kind, namespace, name = keeper_parts(keeper)
        if kind == POD:
            return False  # it came from another IPAM, by way of a cluster, and has given it up
        if self.catalogue().faults:
            return None
        if kind == CLAIM:
            return True
        elsewhere = self._pods is not self._manifests
        if kind == "VirtualMachine":
            if (namespace, name) in self._machines:
                return True
            return None if elsewhere else self._has_pod_of(namespace, name)
        base, _, ordinal = name.rpartition("-")
        found = self._sets.get((namespace, base))
        if found is not None and ordinal.isdigit():
            return found.counts(int(ordinal))
        return None if elsewhere else self._manifests.pod(namespace, name, 0.0) is not None

    def _has_pod_of(self, namespace: str, machine: str) -> bool:
        def of_it(pod: Pod) -> bool:
            owner = pod.owner
            return owner is not None and owner.kind in surroundings.VIRTUAL and owner.name == machine

        return any(pod.namespace == namespace and of_it(pod) for pod in self._manifests.pods())

    def _build(self, objects: tuple[Surrounding, ...], faults: tuple[str, ...]) -> None:
        pools = {one.name: one for one in objects if isinstance(one, Pool)}
        nodes = {one.name: one for one in objects if isinstance(one, Node)}
        self._namespaces = {one.name: one for one in objects if isinstance(one, Namespace)}
        self._sets = {(one.namespace, one.name): one for one in objects if isinstance(one, Set)}
        self._machines = {(one.namespace, one.name) for one in objects if isinstance(one, Machine)}
        here = nodes.get(self._node, Node(self._node))
        self._catalogue = Catalogue(
            pools=pools,
            reserved=tuple(one for one in objects if isinstance(one, Reserved)),
            subnets={one.name: one for one in objects if isinstance(one, Subnet)},
            node=surroundings.Node(here.name, here.labels),
            faults=faults,
        )
        self._clashes.look(list(pools.values()))
