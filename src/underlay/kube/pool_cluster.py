"""The surroundings of address pools out of an API server.

pools, reserved addresses, subnets, this node, namespaces ──list + watch, a thread each──▶ caches, kept on disk
StatefulSets, virtual machines, claims                     ──the same, once a keeper of that kind is asked about

With warm caches nothing here asks the API server. A namespace that is new is waited for, and then asked for once.
"""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final

from underlay.errors import TryAgain
from underlay.ipam.pools import surroundings
from underlay.ipam.pools.lease import CLAIM, POD, keeper_parts
from underlay.ipam.pools.objects import Pool, Reserved, Subnet
from underlay.ipam.pools.surroundings import Catalogue
from underlay.kube import pool_resources, surrounding
from underlay.kube.cache import Cache
from underlay.kube.kept import Kept, Nowhere
from underlay.kube.questions import Questions
from underlay.kube.reflector import Reflector, Timing
from underlay.kube.surrounding import Namespace, Node, Set

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from underlay.ipam.pools.surroundings import Subject
    from underlay.kube.client import Client
    from underlay.kube.pool_resources import Document
    from underlay.kube.resources import Resource
    from underlay.kube.source import Log, Source

_KEEPERS: Final = {
    "StatefulSet": (pool_resources.SETS,),
    "VirtualMachine": (pool_resources.MACHINES, pool_resources.INSTANCES),
    CLAIM: (pool_resources.CLAIMS,),
}
_NAME_HINT: Final = "Set kube.node_name, or NODE_NAME, to the name that the Node object of this node has."
_UNKNOWN_HINT: Final = "The runtime retries by itself; where it lasts, apply deploy/crds and deploy/rbac.yaml."


class PoolCluster:
    """A :class:`~underlay.ipam.pools.surroundings.Surroundings`. ``node`` is this node's name, ``path`` the file that
    the caches are kept in, ``pods`` where pods are known; ``client`` is the caller's to close, after :meth:`stop`.
    ``blocking`` lends the caller's place in its thread pool while the API server is waited for.
    """

    def __init__(
        self,
        client: Client,
        node: str,
        path: str,
        log: Log,
        pods: Source,
        *,
        blocking: Callable[[], AbstractContextManager[None]] = nullcontext,
        timing: Timing | None = None,
    ) -> None:
        self._client = client
        self._node = node
        self._log = log
        self._pods = pods
        self._blocking = blocking
        self._timing = timing = timing or Timing()
        self._kept = Kept(path, log, node)
        self._questions = Questions(client, timing.ask)
        self._threads: list[Reflector[Document]] = []
        self._pools = self._watched(pool_resources.POOLS, self._kept)
        self._reserved = self._watched(pool_resources.RESERVATIONS, self._kept)
        self._subnets = self._watched(pool_resources.SUBNETS, self._kept)
        self._nodes = self._watched(pool_resources.node(node), self._kept)
        self._namespaces = self._watched(pool_resources.NAMESPACES, self._kept)
        self._objects = (self._pools, self._reserved, self._subnets, self._nodes)
        self._keepers: dict[str, tuple[Cache[Document], ...]] = {}
        self._lock = threading.Lock()
        self._stopping = False
        self._seen: object = None
        self._catalogue = Catalogue()
        self._clashes = surrounding.Clashes(log)
        self._told: set[str] = set()

    def start(self) -> None:
        """Begin to listen to the API server; returns at once, whether or not it is there."""
        for thread in self._threads:
            thread.start()

    def wait_listed(self, deadline: float) -> None:
        """Return when every first list has come or failed, or at the deadline."""
        for cache in (*self._objects, self._namespaces):
            cache.wait_listed(deadline)

    def stop(self) -> None:
        """Begin nothing new."""
        with self._lock:
            self._stopping = True
            threads = list(self._threads)
        for thread in threads:
            thread.stop()

    def close(self) -> None:
        """Wait for the threads' end; after :meth:`stop`, and after the client is closed."""
        for thread in self._threads:
            thread.join()
        self._kept.close()

    def fault(self) -> str:
        """Why the pools have never been known as a whole; "" where they have."""
        unheard = (cache for cache in (*self._objects, self._namespaces) if not cache.ever)
        return next((f"{cache.kind}s: {cache.cause}" for cache in unheard), "")

    def nameless(self) -> bool:
        """Whether there is no Node of this node's name: the controller would take its addresses while pods use them."""
        return self._nodes.state == "watching" and not len(self._nodes)

    # -- Surroundings --------------------------------------------------------------------------------------------------

    def catalogue(self) -> Catalogue:
        """The pools as last told."""
        seen = self._state()
        if seen != self._seen:
            with self._lock:
                seen = self._state()
                if seen != self._seen:
                    self._build()
                    self._seen = seen
        return self._catalogue

    def subject(self, namespace: str, name: str, uid: str, deadline: float) -> Subject:
        """The pod. Raises PodMismatch, and TryAgain where pod, namespace or pools cannot be known yet."""
        pod = self._pods.pod(namespace, name, deadline, uid)
        around = self._namespace(namespace, deadline)
        if fault := self.fault():
            raise TryAgain(f"the address pools are not known yet: {fault}", hint=_UNKNOWN_HINT)
        if self.nameless():
            raise TryAgain(f"no address is handed out: there is no Node {self._node!r}", hint=_NAME_HINT)
        return surrounding.subject(pod, around, name, uid)

    def wanted(self, keeper: str) -> bool | None:
        """Whether a keeper is still meant to exist; None until its kind has been listed, and where what is known is old
        and does not name it.
        """
        kind, namespace, name = keeper_parts(keeper)
        if kind == POD:
            return False  # it came from another IPAM with its address, and has given it up
        caches = self._caches_of(kind)
        if kind == "StatefulSet":
            base, _, ordinal = name.rpartition("-")
            found = caches[0].find((namespace, base))
            counted = found.value.object if found else None
            if isinstance(counted, Set) and ordinal.isdigit():
                there = counted.counts(int(ordinal))
            else:
                there = found is not None
        else:
            there = any(cache.find((namespace, name)) is not None for cache in caches)
        if there:
            return True
        return False if caches and all(cache.ever and cache.state == "watching" for cache in caches) else None

    # -- inside --------------------------------------------------------------------------------------------------------

    def _watched(self, resource: Resource[Document], kept: Kept | Nowhere) -> Cache[Document]:
        cache: Cache[Document] = Cache(resource.kind, kept, _restored)
        self._threads.append(Reflector(self._client, resource, cache, self._log, self._timing))
        return cache

    def _caches_of(self, kind: str) -> tuple[Cache[Document], ...]:
        """What keepers of a kind are looked for in, which is watched from the first question on."""
        with self._lock:
            if kind not in self._keepers:
                before = len(self._threads)
                self._keepers[kind] = tuple(self._watched(each, Nowhere()) for each in _KEEPERS.get(kind, ()))
                for thread in () if self._stopping else self._threads[before:]:
                    thread.start()
            return self._keepers[kind]

    def _namespace(self, name: str, deadline: float) -> Namespace:
        entry = self._namespaces.find(("", name))
        if entry is None:
            with self._blocking():
                patience = min(deadline, time.monotonic() + self._timing.patience)
                entry = self._namespaces.wait(("", name), lambda _: True, patience)
                entry = entry or self._questions.ask(pool_resources.NAMESPACES, ("", name), deadline)
        found = entry.value.object if entry else None
        return found if isinstance(found, Namespace) else Namespace(name)

    def _state(self) -> tuple[object, ...]:
        """Another one whenever the catalogue would be."""
        return (*(cache.changes for cache in self._objects), *self._unheard())

    def _unheard(self) -> list[str]:
        return [f"{cache.kind}s: {cache.cause}" for cache in self._objects if not cache.ever]

    def _build(self) -> None:
        documents = [document for cache in self._objects for document in cache.values()]
        said = [document.object for document in documents]
        wrong = [document.fault for document in documents if document.fault]
        for fault in wrong:
            if fault not in self._told:
                self._log("warn", "object cannot be read", fault=fault)
        self._told = set(wrong)
        pools = {one.name: one for one in said if isinstance(one, Pool)}
        here = next((one for one in said if isinstance(one, Node)), Node(self._node))
        self._catalogue = Catalogue(
            pools=pools,
            reserved=tuple(one for one in said if isinstance(one, Reserved)),
            subnets={one.name: one for one in said if isinstance(one, Subnet)},
            node=surroundings.Node(here.name, here.labels),
            faults=(*self._unheard(), *wrong),
        )
        self._clashes.look(list(pools.values()))


def _restored(kind: str, namespace: str, name: str, _uid: str, body: bytes) -> Any:
    return pool_resources.read(pool_resources.MANIFEST_KIND.get(kind, kind), namespace, name, body)
