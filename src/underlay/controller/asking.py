"""What is asked of the API server itself before something that cannot be taken back: a cache may be behind.

Every question is a quorum read (no resourceVersion). Raises Refused, Unreachable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from underlay.controller.watched import Node
from underlay.kube.faults import Refused, Unreachable
from underlay.kube.resources import JSON, PARTIAL_OBJECT

if TYPE_CHECKING:
    from underlay.kube.client import Client

OUT_OF_SERVICE: Final = "node.kubernetes.io/out-of-service"
_Answer = TypeVar("_Answer")

_PAGE: Final = 250
_PATHS: Final = {
    "Pod": ("/api/v1", "pods"),
    "ReplicationController": ("/api/v1", "replicationcontrollers"),
    "Deployment": ("/apis/apps/v1", "deployments"),
    "ReplicaSet": ("/apis/apps/v1", "replicasets"),
    "StatefulSet": ("/apis/apps/v1", "statefulsets"),
    "DaemonSet": ("/apis/apps/v1", "daemonsets"),
    "Job": ("/apis/batch/v1", "jobs"),
    "CronJob": ("/apis/batch/v1", "cronjobs"),
}


class _Metadata(msgspec.Struct):
    name: str = ""
    namespace: str = ""


class _Spec(msgspec.Struct, rename="camel"):
    host_network: bool = False


class _Pod(msgspec.Struct):
    metadata: _Metadata
    spec: _Spec = msgspec.field(default_factory=_Spec)


class _ListMetadata(msgspec.Struct):
    more: str = msgspec.field(default="", name="continue")


class _Pods(msgspec.Struct):
    metadata: _ListMetadata = msgspec.field(default_factory=_ListMetadata)
    items: list[_Pod] | None = None


_PODS: Final = msgspec.json.Decoder(_Pods)
_NODE: Final = msgspec.json.Decoder(Node)


def is_marked_down(node: Node) -> bool:
    """Whether its administrator has said that it is down (Kubernetes, "Non-graceful node shutdown")."""
    return any(taint.key == OUT_OF_SERVICE for taint in node.taints)


def node_is_down(client: Client, name: str, deadline: float) -> bool:
    """Whether the node does not exist, or is marked as being down."""
    try:
        raw = client.call("GET", f"/api/v1/nodes/{quote(name, safe='')}", deadline, accept=JSON)
    except Refused as fault:
        if fault.status == 404 and fault.reason == "NotFound":
            return True
        raise
    return is_marked_down(_decoded(_NODE, raw))


def pods_left(client: Client, node: str, deadline: float) -> list[str]:
    """The pods of a node as "namespace/name", but for those in the host's network, which have no NICs of ours."""
    found: list[str] = []
    query = {"fieldSelector": f"spec.nodeName={node}", "limit": str(_PAGE)}
    while True:
        page = _decoded(_PODS, client.call("GET", f"/api/v1/pods?{urlencode(query)}", deadline, accept=JSON))
        own = (pod for pod in page.items or () if not pod.spec.host_network)
        found += (f"{pod.metadata.namespace}/{pod.metadata.name}" for pod in own)
        if not page.metadata.more:
            return found
        query["continue"] = page.metadata.more


def application_is_gone(client: Client, kind: str, namespace: str, name: str, deadline: float) -> bool:
    """Whether the API server says that it does not exist. False for a kind that it cannot be asked for."""
    if kind not in _PATHS:
        return False
    path, plural = _PATHS[kind]
    target = f"{path}/namespaces/{quote(namespace, safe='')}/{plural}/{quote(name, safe='')}"
    try:
        client.call("GET", target, deadline, accept=PARTIAL_OBJECT)
    except Refused as fault:
        if fault.status == 404:
            return True
        raise
    return False


def _decoded(decoder: msgspec.json.Decoder[_Answer], raw: bytes) -> _Answer:
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise Unreachable(f"the API server sent what it should not: {fault}") from fault
