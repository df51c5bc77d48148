"""What the pools must know of the cluster, and who tells them. Implemented outside: manifests, API caches.

Surroundings.catalogue() ──▶ Catalogue   pools, reserved addresses, subnets, this node
Surroundings.subject()   ──▶ Subject     a pod with its namespace: labels, annotations, controller
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from underlay.ipam.pools.objects import Pool, Reserved, Subnet


STATEFUL: Final = frozenset({"StatefulSet"})
VIRTUAL: Final = frozenset({"VirtualMachineInstance", "VirtualMachine"})


@dataclass(frozen=True, slots=True)
class Owner:
    """A pod's controller (metadata.ownerReferences, the one with ``controller: true``)."""

    kind: str
    name: str
    uid: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """A pod, as far as pools ask. ``known`` False: no object of it was found, only what the runtime says is here."""

    namespace: str
    name: str
    uid: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    namespace_annotations: Mapping[str, str] = field(default_factory=dict)
    owner: Owner | None = None
    known: bool = True

    @property
    def shown(self) -> str:
        """For people, as "namespace/name"; "" for a container that belongs to no pod."""
        return f"{self.namespace}/{self.name}" if self.name else ""

    @property
    def keeper(self) -> str:
        """What keeps this pod's addresses over its restarts: "Kind/namespace/name"; "" for a pod that has no identity.

        A StatefulSet's pod is known by its own name, a virtual machine by the machine's: its pods have random names.
        """
        if self.owner is None:
            return ""
        if self.owner.kind in STATEFUL:
            return f"StatefulSet/{self.namespace}/{self.name}"
        if self.owner.kind in VIRTUAL:
            return f"VirtualMachine/{self.namespace}/{self.owner.name}"
        return ""

    @property
    def application(self) -> tuple[str, str]:
        """Kind and name of what the pod is a replica of: its Deployment rather than its ReplicaSet."""
        if self.owner is None:
            return "Pod", self.name
        suffix = f"-{self.labels.get('pod-template-hash', '')}"
        if self.owner.kind == "ReplicaSet" and len(suffix) > 1 and self.owner.name.endswith(suffix):
            return "Deployment", self.owner.name.removesuffix(suffix)
        return self.owner.kind, self.owner.name


@dataclass(frozen=True, slots=True)
class Node:
    """The node that allocates."""

    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Every pool object as it is now. While nothing changes, the same object is handed out.

    ``faults`` name what could not be read, so that a pool that is missing may merely be unknown.
    """

    pools: Mapping[str, Pool] = field(default_factory=dict)
    reserved: tuple[Reserved, ...] = ()
    subnets: Mapping[str, Subnet] = field(default_factory=dict)
    node: Node = Node()
    faults: tuple[str, ...] = ()


class Surroundings(Protocol):
    """Thread-safe. Deadlines are seconds on the ``time.monotonic`` clock."""

    def catalogue(self) -> Catalogue:
        """The pool objects."""

    def subject(self, namespace: str, name: str, uid: str, deadline: float) -> Subject:
        """The pod that the runtime named; ``known`` False where there is none. Raises TryAgain where that cannot be
        known yet.
        """

    def wanted(self, keeper: str) -> bool | None:
        """Whether what ``Subject.keeper`` names is still meant to exist; None where that cannot be known now.

        A StatefulSet's pod is not once the set has been scaled down below it.
        """
