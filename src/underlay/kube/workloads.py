"""What a manifest says of networks and address pools, object by object, for those who check it before it is in force.

Beside pods and NetworkAttachmentDefinitions there are the objects that pods are made from: their templates' annotations
become the pods'. Unlike :mod:`manifest`, a wrong object is told with its fault, and the others are read all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from underlay.ipam.pools.objects import GROUP, KINDS
from underlay.kube import manifest, objects

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from underlay.kube.objects import NetworkAttachmentDefinition, Pod

T = TypeVar("T")

NETWORK: Final = "NetworkAttachmentDefinition"

_NETWORKS_GROUP: Final = "k8s.cni.cncf.io"
# what there is in the groups of networks and pools, that which others read too: to tell a slip from a kind of theirs
_OF_GROUP: Final[Mapping[str, tuple[str, ...]]] = {
    _NETWORKS_GROUP: (NETWORK, "MultiNetworkPolicy"),
    GROUP.rstrip("/"): (*sorted(KINDS), "SpiderEndpoint", "SpiderMultusConfig", "SpiderCoordinator",
                        "SpiderClaimParameter"),
}  # fmt: skip
# kind to its API group and the way to the template; "" is the core group
_TEMPLATE: Final = ("spec", "template")
_SOURCES: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "Pod": ("", ()),
    "PodTemplate": ("", ("template",)),
    "ReplicationController": ("", _TEMPLATE),
    "Deployment": ("apps", _TEMPLATE),
    "ReplicaSet": ("apps", _TEMPLATE),
    "StatefulSet": ("apps", _TEMPLATE),
    "DaemonSet": ("apps", _TEMPLATE),
    "Job": ("batch", _TEMPLATE),
    "CronJob": ("batch", ("spec", "jobTemplate", *_TEMPLATE)),
}


@dataclass(frozen=True, slots=True)
class Found:
    """One object: ``network``, ``pod`` or ``pool`` is set, or else ``fault`` says why not, at the path ``field``.

    ``pool`` is a document of :data:`~underlay.ipam.pools.objects.KINDS`, not looked into but for its name. ``name`` is
    "namespace/name" as far as it is known; pools have no namespace. ``at`` is the path to the metadata that bears a
    pod's annotations ("spec.template.metadata"). ``where`` is the object's place in the file ("document 2, item 1").
    ``strange`` are keys of a network's spec that nobody reads.
    """

    where: str
    kind: str
    name: str
    at: str = "metadata"
    network: NetworkAttachmentDefinition | None = None
    pod: Pod | None = None
    pool: Mapping[str, Any] | None = None
    fault: str = ""
    field: str = ""
    strange: tuple[str, ...] = ()


class _Metadata(msgspec.Struct):
    name: str | None = None
    namespace: str | None = None
    generate_name: str | None = msgspec.field(name="generateName", default=None)
    annotations: dict[str, str] | None = None


class _Annotated(msgspec.Struct):
    annotations: dict[str, str] | None = None


class _Spec(msgspec.Struct):
    config: str | None = None


class _Wrong(Exception):
    def __init__(self, field: str, words: str) -> None:
        super().__init__(words)
        self.field = field


def of_documents(documents: Iterable[Any], namespace: str) -> Iterator[Found]:
    """Every object of a file's documents that says something of networks; ``namespace`` is that of an object that names
    none. Raises ManifestError where a document is no object at all.
    """
    for where, kind, document in manifest.flatten(documents, is_read):
        yield of_object(kind, document, namespace, where=where)


def is_read(kind: str, version: object, implied: str = "") -> bool:
    """Whether objects of this kind and apiVersion say something of networks; see :func:`manifest.flatten`."""
    group = _group(kind)
    if group is None:
        return False
    if version is None:
        return bool(implied)
    return isinstance(version, str) and version.rpartition("/")[0] == group


def kinds_beside(kind: object, version: object) -> tuple[str, ...]:
    """The kinds of an apiVersion's group, where it is one of networks or pools and ``kind`` is none of them."""
    kinds = _OF_GROUP.get(version.partition("/")[0], ()) if isinstance(version, str) else ()
    return () if isinstance(kind, str) and kind.removesuffix("List") in kinds else kinds


def _group(kind: str) -> str | None:
    if kind in KINDS:
        return GROUP.rstrip("/")
    if kind == NETWORK:
        return _NETWORKS_GROUP
    return _SOURCES[kind][0] if kind in _SOURCES else None


def of_object(kind: str, document: Mapping[str, Any], namespace: str, *, where: str = "") -> Found:
    """One object of a kind that :func:`is_read`."""
    known = _shown(document, namespace)
    if kind in KINDS:
        known = known.partition("/")[2]
    try:
        own = _converted(document.get("metadata"), _Metadata, "metadata")
        space, name = _identity(own, namespace)
        if kind in KINDS:
            metadata = {**(document.get("metadata") or {}), "name": name}  # one of generateName has none yet
            return Found(where, kind, name, pool={**document, "kind": kind, "metadata": metadata})
        shown = f"{space}/{name}"
        if kind == NETWORK:
            network = _network(document, space, name, own)
            strange = tuple(str(key) for key in document.get("spec") or () if key != "config")
            return Found(where, kind, shown, network=network, strange=strange)
        way = _SOURCES[kind][1]
        at = ".".join((*way, "metadata"))
        annotations = _annotations(document, way) if way else own.annotations
        pod = objects.pod(namespace=space, name=name, uid="", annotations=annotations or {})
        return Found(where, kind, shown, at, pod=pod)
    except _Wrong as wrong:
        return Found(where, kind, known, fault=str(wrong), field=wrong.field)


def _shown(document: Mapping[str, Any], namespace: str) -> str:
    """The name, for messages about an object that is wrong."""
    metadata = document.get("metadata")
    given = metadata if isinstance(metadata, dict) else {}
    name, space = given.get("name"), given.get("namespace")
    return f"{space if isinstance(space, str) else namespace}/{name if isinstance(name, str) else '?'}"


def _converted(value: object, kind: type[T], field: str) -> T:
    try:
        return msgspec.convert({} if value is None else value, kind)
    except (msgspec.ValidationError, RecursionError) as fault:
        words, _, place = str(fault).partition(" - at `$")
        raise _Wrong(f"{field}{place.rstrip('`')}", words[:1].lower() + words[1:].replace("`", "")) from fault


def _identity(own: _Metadata, namespace: str) -> tuple[str, str]:
    space = own.namespace or namespace
    name = own.name or ""
    if not objects.is_label(space):
        raise _Wrong("metadata.namespace", f"{space!r} is no namespace: a DNS-1123 label is wanted")
    if not name and own.generate_name:
        return space, f"{own.generate_name}*"
    if not objects.is_subdomain(name):
        raise _Wrong("metadata.name", f"{name!r} is no object's name: a DNS-1123 subdomain is wanted")
    return space, name


def _network(document: Mapping[str, Any], space: str, name: str, own: _Metadata) -> NetworkAttachmentDefinition:
    spec = document.get("spec")
    if isinstance(spec, dict) and isinstance(spec.get("config"), (dict, list)):
        raise _Wrong(
            "spec.config", 'must be text that holds JSON, not an object; write "config: \'{ … }\'" or "config: |"'
        )
    config = _converted(spec, _Spec, "spec").config
    return objects.network(namespace=space, name=name, config=config, annotations=own.annotations or {})


def _annotations(document: Mapping[str, Any], way: tuple[str, ...]) -> Mapping[str, str] | None:
    """The annotations of the pod template that ``way`` leads to."""
    value: object = document
    for n, key in enumerate((*way, "metadata")):
        if value is None:
            return None
        if not isinstance(value, dict):
            raise _Wrong(".".join(way[:n]), "an object is wanted")
        value = value.get(key)
    return _converted(value, _Annotated, ".".join((*way, "metadata"))).annotations
