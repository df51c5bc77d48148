"""One Kubernetes manifest file, YAML or JSON, to the objects that policy reads.

Several YAML documents in a file, and lists (`kind: List`, `PodList` …) in them, are taken apart; kinds that policy does
not read are passed over. One wrong object makes the whole file wrong, so that a file is never half in force.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from underlay.errors import InvalidConfig
from underlay.ipam.pools.surroundings import Owner
from underlay.kube import objects, surrounding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from underlay.kube.objects import NetworkAttachmentDefinition, Pod
    from underlay.kube.surrounding import Surrounding

ENDINGS = (".yaml", ".yml", ".json")
_GROUP = "k8s.cni.cncf.io/"
# PyYAML's constructors trip over tags that do not fit their value, such as "!!bool x" or "!!int ''"
_TRIPS = (ValueError, LookupError, AttributeError, TypeError, RecursionError)


class ManifestError(Exception):
    """What is wrong with a file, in words: the place in it and the cause."""


@dataclass(frozen=True, slots=True)
class Objects:
    """What a file defines, in its order."""

    pods: tuple[Pod, ...] = ()
    networks: tuple[NetworkAttachmentDefinition, ...] = ()
    around: tuple[Surrounding, ...] = ()


class _Owner(msgspec.Struct):
    kind: str
    name: str
    uid: str = ""
    controller: bool | None = None


class _Metadata(msgspec.Struct, rename="camel"):
    name: str
    namespace: str | None = None
    uid: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owner_references: list[_Owner] | None = None


class _Spec(msgspec.Struct):
    config: str | None = None


class _Pod(msgspec.Struct):
    metadata: _Metadata


class _Network(msgspec.Struct):
    metadata: _Metadata
    spec: _Spec | None = None


def parse(name: str, raw: bytes) -> Objects:
    """The objects of a file's bytes; ``name`` tells YAML from JSON by its ending. Raises ManifestError."""
    if not raw:
        raise ManifestError("the file is empty: whoever writes it should write a temporary file and rename it")
    documents = decode(name, raw)
    pods: list[Pod] = []
    networks: list[NetworkAttachmentDefinition] = []
    around: list[Surrounding] = []
    for where, kind, document in flatten(documents, _read):
        try:
            if kind == "Pod":
                pods.append(_pod(msgspec.convert(document, _Pod)))
            elif kind == "NetworkAttachmentDefinition":
                networks.append(_network(msgspec.convert(document, _Network)))
            else:
                around.append(surrounding.parse(kind, document))
        except (msgspec.ValidationError, ManifestError) as fault:
            raise ManifestError(f"{where}, {kind}: {fault}") from fault
        except InvalidConfig as fault:
            raise ManifestError(f"{where}: {fault.message}; {fault.hint}") from fault
    return Objects(tuple(pods), tuple(networks), tuple(around))


def decode(name: str, raw: bytes) -> list[Any]:
    """A file's documents, not looked into. Raises ManifestError."""
    return _json(raw) if name.endswith(".json") else _yaml(raw)


def _json(raw: bytes) -> list[Any]:
    try:
        return [msgspec.json.decode(raw)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise ManifestError(f"no JSON: {fault}") from fault


def _yaml(raw: bytes) -> list[Any]:
    import yaml  # 15 ms and 3 MiB: only who keeps YAML pays for it

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return list(yaml.load_all(raw, Loader=loader))
    except (yaml.YAMLError, *_TRIPS) as fault:
        raise ManifestError("no YAML: " + " ".join(str(fault).split())) from fault


def flatten(documents: Iterable[Any], read: Callable[[str, object, str], bool]) -> Iterator[tuple[str, str, Any]]:
    """(place, kind, object) of each object that is to be read, in order, lists taken apart.

    ``read(kind, apiVersion, the kind that a typed list implies or "")`` says which are. Raises ManifestError.
    """
    todo = [(f"document {number}", "", document) for number, document in enumerate(documents, 1)][::-1]
    while todo:
        where, implied, document = todo.pop()
        if document is None:  # nothing but comments between two "---"
            continue
        if not isinstance(document, dict):
            raise ManifestError(f"{where}: an object with apiVersion and kind is wanted, not {type(document).__name__}")
        kind = document.get("kind") or implied
        if not isinstance(kind, str) or not kind:
            raise ManifestError(f'{where}: "kind" is missing')
        items = document.get("items")
        if kind.endswith("List") and isinstance(items, list):
            todo += [(f"{where}, item {number}", kind[:-4], item) for number, item in enumerate(items, 1)][::-1]
        elif read(kind, document.get("apiVersion"), implied):
            yield where, kind, document


def _read(kind: str, version: object, implied: str) -> bool:
    """Whether policy reads objects of this kind and group. Items of a typed list may leave their own version out."""
    if kind == "Pod":
        return version == "v1" or (version is None and bool(implied))
    if kind == "NetworkAttachmentDefinition":
        return (isinstance(version, str) and version.startswith(_GROUP)) or (version is None and bool(implied))
    return surrounding.reads(kind, version, implied)


def _identity(metadata: _Metadata) -> tuple[str, str]:
    namespace = metadata.namespace or "default"
    if not objects.is_label(namespace):
        raise ManifestError(f"metadata.namespace {namespace!r} is no namespace: a DNS-1123 label is wanted")
    if not objects.is_subdomain(metadata.name):
        raise ManifestError(f"metadata.name {metadata.name!r} is no object's name: a DNS-1123 subdomain is wanted")
    return namespace, metadata.name


def _pod(found: _Pod) -> Pod:
    namespace, name = _identity(found.metadata)
    metadata = found.metadata
    owners = (Owner(one.kind, one.name, one.uid) for one in metadata.owner_references or () if one.controller)
    return objects.pod(
        namespace=namespace,
        name=name,
        uid=metadata.uid or "",
        annotations=metadata.annotations or {},
        labels=metadata.labels or {},
        owner=next(owners, None),
    )


def _network(found: _Network) -> NetworkAttachmentDefinition:
    namespace, name = _identity(found.metadata)
    config = found.spec.config if found.spec else None
    return objects.network(namespace=namespace, name=name, config=config, annotations=found.metadata.annotations or {})
