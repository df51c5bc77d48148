"""The cluster as the controller knows it: one frozen picture, which everything it decides is a function of.

pools, subnets, reservations, endpoints, pods' metadata, nodes ──a mirror each──┐
blocks ────────────────────────────────────────────────────────BlockStore──────┴──▶ Known
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from underlay.controller import foreign, watched
from underlay.controller.watched import Document, Mirror, Node
from underlay.errors import UnderlayError
from underlay.ipam.pools.objects import POOL, RESERVED, SUBNET, Pool, Reserved, Subnet, parse_object
from underlay.ipam.pools.surroundings import Subject
from underlay.kube.reflector import Reflector, Timing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from underlay.ipam.pools.block import Block, BlockStore
    from underlay.ipam.pools.lease import Lease
    from underlay.kube.client import Client
    from underlay.kube.objects import Pod
    from underlay.kube.resources import Key, Value
    from underlay.kube.source import Log

Spec = Pool | Reserved | Subnet
_READ: Final = ("spiderippools", "spidersubnets", "spiderreservedips")


@dataclass(frozen=True, slots=True)
class Known:
    """One picture. Pools, subnets and reservations are by name; endpoints and pods by (namespace, name).

    ``read`` holds, by (kind, name), what of the documents could be read, ``wrong`` why others could not; ``foreign``
    what other IPAMs have given to pods.
    """

    pools: Mapping[str, Document] = field(default_factory=dict)
    subnets: Mapping[str, Document] = field(default_factory=dict)
    reserved: Mapping[str, Document] = field(default_factory=dict)
    endpoints: Mapping[Key, Document] = field(default_factory=dict)
    pods: Mapping[Key, Pod] = field(default_factory=dict)
    nodes: Mapping[str, Node] = field(default_factory=dict)
    blocks: tuple[Block, ...] = ()
    read: Mapping[tuple[str, str], Spec] = field(default_factory=dict)
    wrong: Mapping[tuple[str, str], UnderlayError] = field(default_factory=dict)
    foreign: frozenset[Lease] = frozenset()

    def leases(self) -> Iterable[tuple[Lease, str]]:
        """Every lease that nodes have reported, and the node that owns its address ("" where none does by now); and
        those of another IPAM's (:mod:`underlay.controller.foreign`).
        """
        for block in self.blocks:
            for value, lease in block.leases.items():
                yield lease, block.owned.get(value, "")
        for lease in self.foreign:
            yield lease, ""

    def has_pod(self, lease: Lease) -> bool:
        """Whether the lease's pod exists; a static one by its name: nodes know it by another UID than its mirror's."""
        namespace, _, name = lease.pod.partition("/")
        pod = self.pods.get((namespace, name))
        return pod is not None and (pod.static or pod.uid == lease.uid)

    def pool(self, name: str) -> Pool | None:
        """A pool that can be read."""
        found = self.read.get((POOL, name))
        return found if isinstance(found, Pool) else None

    def subnet(self, name: str) -> Subnet | None:
        """A subnet that can be read."""
        found = self.read.get((SUBNET, name))
        return found if isinstance(found, Subnet) else None


def picture(known: Known) -> Known:
    """The same with its documents read."""
    read: dict[tuple[str, str], Spec] = {}
    wrong: dict[tuple[str, str], UnderlayError] = {}
    for kind, documents in ((POOL, known.pools), (SUBNET, known.subnets), (RESERVED, known.reserved)):
        for name, document in documents.items():
            try:
                read[kind, name] = parse_object(as_manifest(kind, document))
            except UnderlayError as error:
                wrong[kind, name] = error
    return replace(known, read=read, wrong=wrong, foreign=foreign.leases(known))


def as_manifest(kind: str, document: Document) -> dict[str, Any]:
    """A document in the form of a manifest."""
    metadata = {"name": document.name}
    if document.metadata.deletion_timestamp:
        metadata["deletionTimestamp"] = document.metadata.deletion_timestamp
    return {"kind": kind, "metadata": metadata, "spec": document.spec}


def subject_of(pod: Pod) -> Subject:
    """The pod as address pools see it, but for its namespace's labels and annotations."""
    return Subject(pod.namespace, pod.name, pod.uid, labels=pod.labels, annotations=pod.annotations, owner=pod.owner)


class Watching:
    """The mirrors and their threads. ``changed`` is called, from any of them, after each change."""

    def __init__(
        self, client: Client, store: BlockStore, log: Log, changed: Callable[[], None], timing: Timing | None = None
    ) -> None:
        timing = timing or Timing()
        self._store = store
        self._documents = {plural: Mirror[Document](changed) for plural in (*_READ, "spiderendpoints")}
        self._nodes: Mirror[Node] = Mirror(changed)
        self._pods: Mirror[Pod] = Mirror(changed)
        self._threads: list[Reflector[Any]] = [
            Reflector(client, watched.documents(plural.removesuffix("s"), plural), mirror, log, timing)
            for plural, mirror in self._documents.items()
        ]
        self._threads.append(Reflector(client, watched.nodes(), self._nodes, log, timing))
        self._threads.append(Reflector(client, watched.pods(), self._pods, log, timing))
        self._lock = threading.Lock()
        self._seen: tuple[object, ...] = ()
        self._known = Known()
        store.follow(lambda _block: changed())

    def start(self) -> None:
        """Begin to listen."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Begin nothing new."""
        for thread in self._threads:
            thread.stop()

    def join(self) -> None:
        """Wait for the threads' end; after :meth:`stop`, and after the client is closed."""
        for thread in self._threads:
            thread.join()

    def fault(self) -> str:
        """Why something but the blocks has never been whole; "" where everything has."""
        named: list[tuple[str, Mirror[Any]]] = [*self._documents.items(), ("nodes", self._nodes), ("pods", self._pods)]
        return next((f"{plural}: {mirror.cause}" for plural, mirror in named if not mirror.ready), "")

    def known(self) -> Known:
        """The picture of this moment; after :meth:`fault` has been "" once."""
        documents = {plural: mirror.snapshot() for plural, mirror in self._documents.items()}
        now = Known(
            pools=_by_name(documents["spiderippools"]),
            subnets=_by_name(documents["spidersubnets"]),
            reserved=_by_name(documents["spiderreservedips"]),
            endpoints=documents["spiderendpoints"],
            pods=self._pods.snapshot(),
            nodes=_by_name(self._nodes.snapshot()),
            blocks=tuple(self._store.known()),
        )
        seen = tuple(documents[plural] for plural in _READ)
        with self._lock:
            if len(self._seen) == len(seen) and all(one is other for one, other in zip(seen, self._seen, strict=True)):
                return replace(now, read=self._known.read, wrong=self._known.wrong, foreign=foreign.leases(now))
            self._seen, self._known = seen, picture(now)
            return self._known


def _by_name(objects: Mapping[Key, Value]) -> dict[str, Value]:
    return {name: each for (_, name), each in objects.items()}
