"""What an object says that address pools ask for: the pools themselves, namespaces, nodes, and who is meant to run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

from underlay.errors import PodMismatch
from underlay.ipam.pools.objects import GROUP, KINDS, Pool, Reserved, Subnet, overlaps, parse_object
from underlay.ipam.pools.surroundings import Subject

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from underlay.kube.objects import Pod
    from underlay.kube.source import Log

_CORE: Final = {"Namespace": "v1", "Node": "v1", "StatefulSet": "apps/v1"}
_MACHINES: Final = frozenset({"VirtualMachine", "VirtualMachineInstance"})
_MACHINE_GROUP: Final = "kubevirt.io/"


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace's metadata."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Node:
    """A node's metadata."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Set:
    """A StatefulSet: its pods are NAME-first … NAME-(first + replicas - 1)."""

    namespace: str
    name: str
    replicas: int = 1
    first: int = 0

    def counts(self, ordinal: int) -> bool:
        """Whether the pod of that number is one of them."""
        return self.first <= ordinal < self.first + self.replicas


@dataclass(frozen=True, slots=True)
class Machine:
    """A KubeVirt virtual machine, or an instance of one."""

    namespace: str
    name: str


Surrounding = Pool | Reserved | Subnet | Namespace | Node | Set | Machine


def subject(pod: Pod | None, namespace: Namespace, name: str, uid: str) -> Subject:
    """What pools ask of the pod that the runtime names so; ``pod`` None where there is no object of it. Raises
    PodMismatch.
    """
    if pod is None:
        return Subject(
            namespace.name,
            name,
            uid,
            namespace_labels=namespace.labels,
            namespace_annotations=namespace.annotations,
            known=False,
        )
    if uid and pod.uid and uid != pod.uid and not pod.static:
        words = f"pod {namespace.name}/{name} has UID {pod.uid}, the sandbox was made for UID {uid}"
        raise PodMismatch(words)
    return Subject(
        namespace.name,
        name,
        uid or pod.uid,
        labels=pod.labels,
        annotations=pod.annotations,
        namespace_labels=namespace.labels,
        namespace_annotations=namespace.annotations,
        owner=pod.owner,
    )


class Clashes:
    """Tells the log of pools that list the same addresses, of each pair once."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._told: set[tuple[str, str, int, int]] = set()

    def look(self, pools: Sequence[Pool]) -> None:
        """Look at the pools that there are now."""
        for clash in overlaps(pools):
            if clash not in self._told:
                self._told.add(clash)
                self._log("warn", "two pools list the same addresses; each is handed out once", pools=clash[:2])


class _Metadata(msgspec.Struct):
    name: str
    namespace: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class _Ordinals(msgspec.Struct):
    start: int = 0


class _Spec(msgspec.Struct):
    replicas: int | None = None
    ordinals: _Ordinals | None = None


class _Object(msgspec.Struct):
    metadata: _Metadata
    spec: _Spec | None = None


class _Bare(msgspec.Struct):
    metadata: _Metadata


def reads(kind: str, version: object, implied: str) -> bool:
    """Whether objects of this kind and group count here. Items of a typed list may leave their own version out."""
    if version is None:
        return bool(implied) and (kind in KINDS or kind in _CORE)
    if kind in KINDS:
        return isinstance(version, str) and version.startswith(GROUP)
    if kind in _MACHINES:
        return isinstance(version, str) and version.startswith(_MACHINE_GROUP)
    return _CORE.get(kind) == version


def parse(kind: str, document: Mapping[str, Any]) -> Surrounding:
    """One object of a kind that :func:`reads` takes. Raises msgspec.ValidationError, InvalidConfig."""
    if kind in KINDS:
        return parse_object({**document, "kind": kind})
    if kind == "StatefulSet":
        found = msgspec.convert(document, _Object)
        spec = found.spec or _Spec()
        replicas = 1 if spec.replicas is None else spec.replicas
        first = spec.ordinals.start if spec.ordinals else 0
        return Set(found.metadata.namespace or "default", found.metadata.name, replicas, first)
    metadata = msgspec.convert(document, _Bare).metadata
    if kind == "Namespace":
        return Namespace(metadata.name, metadata.labels or {}, metadata.annotations or {})
    if kind == "Node":
        return Node(metadata.name, metadata.labels or {})
    return Machine(metadata.namespace or "default", metadata.name)
