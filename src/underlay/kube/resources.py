"""The resources that are watched: how they are asked for, and from the API's JSON straight to the trimmed values.

msgspec decodes only the fields named here, so that a page of pods of 10 kB each never becomes a tree of dicts. Of pods
the metadata alone is asked for (PartialObjectMetadata; Kubernetes API concepts, "Retrieving partial metadata"). What
other modules watch has a shape of their own: a Struct whose ``metadata`` is a :class:`Metadata`, or has its fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from underlay.ipam.pools.surroundings import Owner
from underlay.kube import objects
from underlay.kube.faults import Refused, Unreachable
from underlay.kube.objects import NetworkAttachmentDefinition, Pod

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping


class Named(Protocol):
    """What can be watched: a value with the names that it is found by, ``namespace`` "" for one that has none."""

    @property
    def namespace(self) -> str:
        """Its namespace."""

    @property
    def name(self) -> str:
        """Its name."""


Value = TypeVar("Value", bound=Named)
Key = tuple[str, str]

_READ: Final = ("k8s.v1.cni.cncf.io/", "v1.multus-cni.io/", "kubernetes.io/config.", "ipam.spidernet.io/")
_WRITTEN: Final = "k8s.v1.cni.cncf.io/network-status"  # by ourselves, and as long as everything else together
_PARTIAL: Final = "application/json;as={};g=meta.k8s.io;v=v1,application/json"
JSON: Final = "application/json"
PARTIAL_OBJECT: Final = _PARTIAL.format("PartialObjectMetadata")
PARTIAL_LIST: Final = _PARTIAL.format("PartialObjectMetadataList")


@dataclass(frozen=True, slots=True)
class Entry(Generic[Value]):
    """An object in a cache: the value, and what tells its states apart."""

    uid: str
    version: str
    value: Value

    @property
    def key(self) -> Key:
        """Namespace and name."""
        return self.value.namespace, self.value.name


class _Owner(msgspec.Struct):
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool | None = None


class Metadata(msgspec.Struct, rename="camel"):
    """What is read of an object's metadata."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    annotations: dict[str, str] | None = None
    labels: dict[str, str] | None = None
    owner_references: list[_Owner] | None = None


class _Spec(msgspec.Struct):
    config: Any = None


class _Item(msgspec.Struct):
    metadata: Metadata
    spec: _Spec | None = None


class Bare(msgspec.Struct):
    """An object of which the metadata alone is read."""

    metadata: Metadata


Shape = TypeVar("Shape")


class _ListMetadata(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    more: str = msgspec.field(default="", name="continue")


class _Page(msgspec.Struct, Generic[Shape]):
    metadata: _ListMetadata
    items: list[Shape] | None = None


class _Happening(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Status(msgspec.Struct):
    code: int = 500
    reason: str = ""
    message: str = ""


_HAPPENING: Final = msgspec.json.Decoder(_Happening)
_STATUS: Final = msgspec.json.Decoder(_Status)


@dataclass(frozen=True, slots=True)
class Resource(Generic[Value]):
    """A resource of the API. ``kind`` is what messages call an object of it; ``shape`` is what its objects are decoded
    as, and ``make`` makes the value of that.
    """

    kind: str
    plural: str
    path: str
    make: Callable[[Any], Value]
    accept_list: str = JSON
    accept: str = JSON
    selector: str = ""
    shape: Any = _Item

    def __post_init__(self) -> None:
        # Not at the first object: msgspec is not to look at a Struct from two threads at once (see cni.shapes).
        _pages(self.shape)
        _items(self.shape)

    def list_target(self, *, limit: int, version: str | None, more: str) -> str:
        """Path and query of a page; ``version`` "0": whatever the server has at hand, None: the newest."""
        query = {"limit": str(limit), **self._selected()}
        if more:
            query["continue"] = more
        elif version is not None:
            query["resourceVersion"] = version
        return f"{self.path}/{self.plural}?{urlencode(query)}"

    def watch_target(self, *, version: str, seconds: int) -> str:
        """Path and query of a watch from ``version`` on, that the server ends after ``seconds``."""
        query = {
            "watch": "1", "allowWatchBookmarks": "true", "resourceVersion": version, "timeoutSeconds": str(seconds),
            **self._selected(),
        }  # fmt: skip
        return f"{self.path}/{self.plural}?{urlencode(query)}"

    def target(self, namespace: str, name: str) -> str:
        """Path of one object; ``namespace`` is "" for what has none."""
        within = f"namespaces/{quote(namespace, safe='')}/" if namespace else ""
        return f"{self.path}/{within}{self.plural}/{quote(name, safe='')}"

    def page(self, raw: bytes) -> tuple[list[Entry[Value]], str, str]:
        """The objects of a page, its resourceVersion, and the token of the next page, "" at the last."""
        page = _decoded(_pages(self.shape), raw)
        entries = [self._entry(item) for item in page.items or ()]
        return entries, page.metadata.resource_version, page.metadata.more

    def entry(self, raw: bytes) -> Entry[Value]:
        """One object."""
        return self._entry(_decoded(_items(self.shape), raw))

    def happening(self, line: bytes) -> tuple[str, Entry[Value]]:
        """One line of a watch: ADDED, MODIFIED, DELETED or BOOKMARK, and its object. Raises Refused for ERROR."""
        found = _decoded(_HAPPENING, line)
        if found.type == "ERROR":
            status = _decoded(_STATUS, found.object)
            raise Refused(status.code, status.reason, status.message)
        return found.type, self._entry(_decoded(_items(self.shape), found.object))

    def _entry(self, item: Any) -> Entry[Value]:
        return Entry(item.metadata.uid, item.metadata.resource_version, self.make(item))

    def _selected(self) -> dict[str, str]:
        return {"fieldSelector": self.selector} if self.selector else {}


def pods(node: str) -> Resource[Pod]:
    """The pods of one node."""
    return Resource("pod", "pods", "/api/v1", _pod, PARTIAL_LIST, PARTIAL_OBJECT, f"spec.nodeName={node}")


def networks() -> Resource[NetworkAttachmentDefinition]:
    """The NetworkAttachmentDefinitions of all namespaces."""
    return Resource("network", "network-attachment-definitions", "/apis/k8s.cni.cncf.io/v1", _network)


def stored(entry: Entry[Any]) -> bytes:
    """What a value needs besides its key and UID, for a disk; of values that know it themselves, their ``body``."""
    value = entry.value
    if isinstance(value, Pod):
        return msgspec.json.encode([value.annotations, value.labels, value.owner])
    if isinstance(value, NetworkAttachmentDefinition):
        return msgspec.json.encode([value.annotations, value.config])
    body: bytes = value.body
    return body


def restored(kind: str, namespace: str, name: str, uid: str, body: bytes) -> Pod | NetworkAttachmentDefinition:
    """The inverse of :func:`stored`. Raises msgspec.DecodeError."""
    if kind == "pod":
        told, labels, owner = msgspec.json.decode(body, type=tuple[dict[str, str], dict[str, str], Owner | None])
        return objects.pod(namespace=namespace, name=name, uid=uid, annotations=told, labels=labels, owner=owner)
    annotations, config = msgspec.json.decode(body, type=tuple[dict[str, str], str | None])
    return objects.network(namespace=namespace, name=name, config=config, annotations=annotations)


def _pod(item: _Item) -> Pod:
    meta = item.metadata
    owners = (Owner(each.kind, each.name, each.uid) for each in meta.owner_references or () if each.controller)
    return objects.pod(
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
        annotations=_trimmed(meta.annotations),
        labels=meta.labels or {},
        owner=next(owners, None),
    )


def _network(item: _Item) -> NetworkAttachmentDefinition:
    meta, config = item.metadata, item.spec.config if item.spec else None
    if config is not None and not isinstance(config, str):  # a definition whose CRD has no schema: its JSON is meant
        config = msgspec.json.encode(config).decode()
    annotations = _trimmed(meta.annotations)
    return objects.network(namespace=meta.namespace, name=meta.name, config=config, annotations=annotations)


def _trimmed(annotations: Mapping[str, str] | None) -> dict[str, str]:
    if not annotations:
        return {}
    return {key: value for key, value in annotations.items() if key.startswith(_READ) and key != _WRITTEN}


@cache
def _pages(shape: Hashable) -> msgspec.json.Decoder[_Page[Any]]:
    return msgspec.json.Decoder(_Page[shape])  # type: ignore[valid-type]


@cache
def _items(shape: Hashable) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(shape)


def _decoded(decoder: msgspec.json.Decoder[Shape], raw: bytes | msgspec.Raw) -> Shape:
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise Unreachable(f"the API server sent what it should not: {fault}") from fault
