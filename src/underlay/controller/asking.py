"""What is asked of the API server itself before something that cannot be taken back: a cache may be behind.

Every question is a quorum read (no resourceVersion). Raises Refused, Unreachable.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from underlay.controller.watched import Node, seconds
from underlay.ipam.pools.lease import CLAIM, POD, keeper_parts
from underlay.kube import objects
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
    "VirtualMachine": ("/apis/kubevirt.io/v1", "virtualmachines"),
    "VirtualMachineInstance": ("/apis/kubevirt.io/v1", "virtualmachineinstances"),
    CLAIM: ("/apis/k8s.cni.cncf.io/v1alpha1", "ipamclaims"),
}


class Left(NamedTuple):
    """A pod that a node has: ``pod`` is "namespace/name". ``static``: its UID is not the one its node reports.
    ``ended``: its containers have. ``ends``: when the time is over that it was given to terminate, realtime seconds,
    infinity where it is not deleted.
    """

    pod: str
    uid: str
    static: bool = False
    ended: bool = False
    ends: float = inf


class _Metadata(msgspec.Struct, rename="camel"):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    annotations: dict[str, str] | None = None
    deletion_timestamp: str | None = None


class _Spec(msgspec.Struct, rename="camel"):
    host_network: bool = False


class _PodStatus(msgspec.Struct):
    phase: str = ""


class _Pod(msgspec.Struct):
    metadata: _Metadata
    spec: _Spec = msgspec.field(default_factory=_Spec)
    status: _PodStatus = msgspec.field(default_factory=_PodStatus)


class _Ordinals(msgspec.Struct):
    start: int = 0


class _SetSpec(msgspec.Struct):
    replicas: int = 1
    ordinals: _Ordinals | None = None


class _Set(msgspec.Struct):
    spec: _SetSpec = msgspec.field(default_factory=_SetSpec)


class _Bare(msgspec.Struct):
    metadata: _Metadata


class _ListMetadata(msgspec.Struct):
    more: str = msgspec.field(default="", name="continue")


class _Pods(msgspec.Struct):
    metadata: _ListMetadata = msgspec.field(default_factory=_ListMetadata)
    items: list[_Pod] | None = None


_ENDED: Final = ("Succeeded", "Failed")
_PODS: Final = msgspec.json.Decoder(_Pods)
_NODE: Final = msgspec.json.Decoder(Node)
_SET: Final = msgspec.json.Decoder(_Set)
_BARE: Final = msgspec.json.Decoder(_Bare)


def is_marked_down(node: Node) -> bool:
    """Whether its administrator has said that it is down (Kubernetes, "Non-graceful node shutdown")."""
    return any(taint.key == OUT_OF_SERVICE for taint in node.taints)


def node_at(client: Client, name: str, deadline: float) -> Node | None:
    """The node; None where it does not exist."""
    try:
        raw = client.call("GET", f"/api/v1/nodes/{quote(name, safe='')}", deadline, accept=JSON)
    except Refused as fault:
        if fault.status == 404 and fault.reason == "NotFound":
            return None
        raise
    return _decoded(_NODE, raw)


def pods_left(client: Client, node: str, deadline: float) -> list[Left]:
    """The pods of a node, but for those in the host's network, which have no NICs of ours."""
    found: list[Left] = []
    query = {"fieldSelector": f"spec.nodeName={node}", "limit": str(_PAGE)}
    while True:
        page = _decoded(_PODS, client.call("GET", f"/api/v1/pods?{urlencode(query)}", deadline, accept=JSON))
        found += (_left(pod) for pod in page.items or () if not pod.spec.host_network)
        if not page.metadata.more:
            return found
        query["continue"] = page.metadata.more


def _left(pod: _Pod) -> Left:
    meta, one = pod.metadata, _pod(pod.metadata)
    shown, ended = f"{meta.namespace}/{meta.name}", pod.status.phase in _ENDED
    return Left(shown, one.uid, one.static, ended, seconds(meta.deletion_timestamp or ""))


def _pod(meta: _Metadata) -> objects.Pod:
    return objects.pod(namespace=meta.namespace, name=meta.name, uid=meta.uid, annotations=meta.annotations or {})


def _is(meta: _Metadata, uid: str) -> bool:
    """A static pod's mirror may have been made anew."""
    return meta.uid == uid or _pod(meta).static


def knows(kind: str) -> bool:
    """Whether the API server can be asked for objects of this kind."""
    return kind in _PATHS


def application_is_gone(client: Client, kind: str, namespace: str, name: str, deadline: float) -> bool:
    """Whether the API server says that it does not exist. False for a kind that it cannot be asked for."""
    return knows(kind) and _get(client, kind, namespace, name, deadline, PARTIAL_OBJECT) is None


def keeper_is_gone(client: Client, keeper: str, deadline: float) -> bool:
    """Whether the API server says that whom "Kind/namespace/name" names is not meant to exist any more: the set's pod
    is beyond its replicas, the machine or claim, or the pod with that UID, is not there. False where that cannot be
    said.
    """
    kind, namespace, name = keeper_parts(keeper)
    if not namespace or not name:
        return False
    if kind == POD:
        name, _, uid = name.partition("/")
        found = _get(client, kind, namespace, name, deadline, PARTIAL_OBJECT)
        return found is None or not _is(_decoded(_BARE, found).metadata, uid)
    if kind == "VirtualMachine":
        instance = _get(client, "VirtualMachineInstance", namespace, name, deadline, PARTIAL_OBJECT)
        return instance is None and application_is_gone(client, kind, namespace, name, deadline)
    if kind != "StatefulSet":
        return kind == CLAIM and application_is_gone(client, kind, namespace, name, deadline)
    base, _, ordinal = name.rpartition("-")
    raw = _get(client, kind, namespace, base, deadline, JSON) if ordinal.isdigit() else b"{}"
    if raw is None:
        return True
    spec = _decoded(_SET, raw).spec
    first = spec.ordinals.start if spec.ordinals else 0
    return ordinal.isdigit() and not first <= int(ordinal) < first + spec.replicas


def _get(client: Client, kind: str, namespace: str, name: str, deadline: float, accept: str) -> bytes | None:
    """The object; None where it does not exist, which is not said by a server that does not know the kind at all."""
    path, plural = _PATHS[kind]
    target = f"{path}/namespaces/{quote(namespace, safe='')}/{plural}/{quote(name, safe='')}"
    try:
        return client.call("GET", target, deadline, accept=accept)
    except Refused as fault:
        if fault.status == 404 and fault.reason == "NotFound":
            return None
        raise


def _decoded(decoder: msgspec.json.Decoder[_Answer], raw: bytes) -> _Answer:
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise Unreachable(f"the API server sent what it should not: {fault}") from fault
