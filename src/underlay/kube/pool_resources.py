"""What address pools ask the API server for, each object trimmed to what is read of it.

every object ──▶ Document: the trimmed JSON, which is what is compared and kept on disk, and what it says
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from underlay.errors import InvalidConfig
from underlay.ipam.pools.objects import POOL, RESERVED, SUBNET
from underlay.kube import resources, surrounding
from underlay.kube.resources import PARTIAL_LIST, PARTIAL_OBJECT, Bare, Resource

if TYPE_CHECKING:
    from underlay.kube.surrounding import Surrounding

_SPIDERPOOL: Final = "/apis/spiderpool.spidernet.io/v2beta1"
_KUBEVIRT: Final = "/apis/kubevirt.io/v1"
_READ: Final = "ipam.spidernet.io/"
MANIFEST_KIND: Final = {"namespace": "Namespace", "node": "Node"}
"""What manifests call the objects of a resource, where :attr:`Resource.kind` is another word."""
_LABELLED: Final = frozenset({"Namespace", "Node"})


@dataclass(frozen=True, slots=True)
class Document:
    """One object. ``object`` is what it says; None where that is nothing but its existence, or where ``fault`` says why
    it cannot be read. Two are equal where their trimmed JSON is.
    """

    namespace: str
    name: str
    body: bytes = b""
    object: Surrounding | None = field(default=None, compare=False)
    fault: str = field(default="", compare=False)


class _Whole(msgspec.Struct):
    metadata: resources.Metadata
    spec: Any = None


class _Ordinals(msgspec.Struct):
    start: int = 0


class _Count(msgspec.Struct):
    replicas: int | None = None
    ordinals: _Ordinals | None = None


class _Counted(msgspec.Struct):
    metadata: resources.Metadata
    spec: _Count | None = None


def read(kind: str, namespace: str, name: str, body: bytes) -> Document:
    """A document out of its trimmed JSON. Raises msgspec.DecodeError for what is none."""
    document = msgspec.json.decode(body, type=dict[str, Any])
    try:
        return Document(namespace, name, body, surrounding.parse(kind, document))
    except InvalidConfig as error:
        return Document(namespace, name, body, fault=error.message)
    except msgspec.ValidationError as error:
        return Document(namespace, name, body, fault=f"{kind} {name!r}: {error}")


def _document(kind: str, item: Any) -> Document:
    meta: resources.Metadata = item.metadata
    if not meta.name:  # a bookmark
        return Document("", "")
    told: dict[str, Any] = {"name": meta.name}
    if meta.namespace:
        told["namespace"] = meta.namespace
    if meta.deletion_timestamp is not None:
        told["deletionTimestamp"] = meta.deletion_timestamp
    if kind in _LABELLED:
        told["labels"] = meta.labels or {}
        told["annotations"] = {key: value for key, value in (meta.annotations or {}).items() if key.startswith(_READ)}
    spec = getattr(item, "spec", None)
    return read(kind, meta.namespace, meta.name, msgspec.json.encode({"metadata": told, "spec": spec}, order="sorted"))


def _bare(kind: str, plural: str, path: str, *, shown: str, selector: str = "") -> Resource[Document]:
    """Objects of which the metadata alone is asked for."""
    make = partial(_document, kind)
    return Resource(shown, plural, path, make, PARTIAL_LIST, PARTIAL_OBJECT, selector, Bare)


POOLS: Final = Resource(POOL, "spiderippools", _SPIDERPOOL, partial(_document, POOL), shape=_Whole)
RESERVATIONS: Final = Resource(RESERVED, "spiderreservedips", _SPIDERPOOL, partial(_document, RESERVED), shape=_Whole)
SUBNETS: Final = Resource(SUBNET, "spidersubnets", _SPIDERPOOL, partial(_document, SUBNET), shape=_Whole)
NAMESPACES: Final = _bare("Namespace", "namespaces", "/api/v1", shown="namespace")
SETS: Final = Resource(
    "StatefulSet", "statefulsets", "/apis/apps/v1", partial(_document, "StatefulSet"), shape=_Counted
)
MACHINES: Final = _bare("VirtualMachine", "virtualmachines", _KUBEVIRT, shown="VirtualMachine")
INSTANCES: Final = _bare("VirtualMachineInstance", "virtualmachineinstances", _KUBEVIRT, shown="VirtualMachineInstance")
CLAIMS: Final = _bare("IPAMClaim", "ipamclaims", "/apis/k8s.cni.cncf.io/v1alpha1", shown="IPAMClaim")


def node(name: str) -> Resource[Document]:
    """One node, by watching it alone."""
    return _bare("Node", "nodes", "/api/v1", shown="node", selector=f"metadata.name={name}")
