"""Every object of a kind in memory, as the API server last told it, for whoever looks at all of them at once.

    Mirror ◀── Reflector: list, then watch          snapshot() ──▶ the same mapping until something changes

Documents are kept as they were sent, but for what nobody here reads: the controller is one process, and what is wrong
with an object must not keep it from being seen.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import datetime
from math import inf
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import msgspec

from underlay.kube import resources
from underlay.kube.resources import Entry, Key, Resource, Value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from underlay.kube.cache import State
    from underlay.kube.objects import Pod

SPIDERPOOL: Final = "/apis/spiderpool.spidernet.io/v2beta1"

Held = TypeVar("Held", "Document", "Node")


class Metadata(msgspec.Struct, frozen=True, rename="camel"):
    """An object's metadata, as far as it is read here."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    finalizers: tuple[str, ...] = ()
    deletion_timestamp: str = ""


class Document(msgspec.Struct, frozen=True):
    """An object as it was sent, without what the API server keeps for itself."""

    metadata: Metadata = Metadata()
    spec: Any = None
    status: Any = None

    @property
    def namespace(self) -> str:
        """Empty for what has none."""
        return self.metadata.namespace

    @property
    def name(self) -> str:
        """Its name."""
        return self.metadata.name


class Taint(msgspec.Struct, frozen=True):
    """A mark on a node that keeps pods away."""

    key: str = ""
    effect: str = ""


class _NodeSpec(msgspec.Struct, frozen=True):
    taints: tuple[Taint, ...] | None = None


class _Condition(msgspec.Struct, frozen=True, rename="camel"):
    type: str = ""
    status: str = ""
    last_transition_time: str | None = None


class _NodeStatus(msgspec.Struct, frozen=True):
    conditions: tuple[_Condition, ...] | None = None


class Node(msgspec.Struct, frozen=True):
    """A node, as far as it says whether it is there."""

    metadata: Metadata = Metadata()
    spec: _NodeSpec = _NodeSpec()
    status: _NodeStatus = _NodeStatus()

    @property
    def namespace(self) -> str:
        """Nodes have none."""
        return ""

    @property
    def name(self) -> str:
        """Its name."""
        return self.metadata.name

    @property
    def taints(self) -> tuple[Taint, ...]:
        """What is on it."""
        return self.spec.taints or ()

    @property
    def unready_since(self) -> float:
        """Since when it has not been ready, realtime seconds; infinity where it is, or where that is not said."""
        for one in self.status.conditions or ():
            if one.type == "Ready" and one.status != "True":
                return seconds(one.last_transition_time or "")
        return inf


def seconds(written: str) -> float:
    """An RFC 3339 time as realtime seconds; infinity for what is none."""
    try:
        found = datetime.fromisoformat(written)
    except ValueError:
        return inf
    return found.timestamp() if found.tzinfo else inf


def documents(kind: str, plural: str) -> Resource[Document]:
    """The objects of a kind of address pools."""
    return Resource(kind, plural, SPIDERPOOL, _itself, shape=Document)


def nodes() -> Resource[Node]:
    """The nodes."""
    return Resource("node", "nodes", "/api/v1", _itself, shape=Node)


def pods() -> Resource[Pod]:
    """The pods of all nodes, their metadata alone."""
    return replace(resources.pods(""), selector="")


class Mirror(Generic[Value]):
    """The objects of one kind. Thread-safe; written to by one reflector. ``changed`` is called after every change."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.cause = "the first list is not there yet"
        self._changed = changed
        self._state: State = "listing"
        self._lock = threading.Lock()
        self._entries: dict[Key, Value] = {}
        self._shown: Mapping[Key, Value] | None = None
        self._ever = False

    @property
    def state(self) -> State:
        """Whether it is being told of changes now."""
        return self._state

    @property
    def ready(self) -> bool:
        """Whether it was whole once."""
        return self._ever

    def snapshot(self) -> Mapping[Key, Value]:
        """Everything as it is now, by namespace and name; never changed afterwards."""
        with self._lock:
            if self._shown is None:
                self._shown = dict(self._entries)
            return self._shown

    def replace(self, entries: Sequence[Entry[Value]]) -> None:
        """Everything, as listed."""
        with self._lock:
            self._entries = {entry.key: entry.value for entry in entries}
            self._shown, self._ever = None, True
        self._changed()

    def put(self, entry: Entry[Value]) -> None:
        """An object that is new or has changed."""
        with self._lock:
            self._entries[entry.key] = entry.value
            self._shown = None
        self._changed()

    def remove(self, key: Key) -> None:
        """An object that exists no more."""
        with self._lock:
            self._entries.pop(key, None)
            self._shown = None
        self._changed()

    def becomes(self, state: State, cause: str = "") -> None:
        """Another state; ``cause`` says why it is away."""
        self._state, self.cause = state, cause


def _itself(found: Held) -> Held:
    return found
