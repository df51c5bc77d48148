"""Pictures of clusters, in a few words.

picture(pool("p", ips=["10.0.0.10-10.0.0.19"]), lease("10.0.0.10", "p", pod="default/web"), pod("web"))
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from underlay.cni.address import parse
from underlay.controller import known
from underlay.controller.known import Known
from underlay.controller.watched import Document, Node
from underlay.ipam.pools.block import Block, key_of
from underlay.ipam.pools.lease import HELD, Lease
from underlay.ipam.pools.surroundings import Owner
from underlay.kube import objects
from underlay.kube.objects import Pod


@dataclass(frozen=True)
class Object:
    kind: str
    document: Document


@dataclass(frozen=True)
class Owned:
    """An address that a node owns, and its lease."""

    address: str
    node: str
    lease: Lease | None = None
    wanted: tuple[str, str] | None = None


def document(kind: str, name: str, spec: Any, status: Any = None, **metadata: Any) -> Object:
    meta = {"name": name, "uid": f"uid-{name}", "resourceVersion": "1", **metadata}
    return Object(kind, msgspec.convert({"metadata": meta, "spec": spec, "status": status}, Document))


def pool(name: str = "p", status: Any = None, metadata: Any = None, **spec: Any) -> Object:
    spec = {"subnet": "10.0.0.0/24", "ips": ["10.0.0.10-10.0.0.19"], **spec}
    return document("SpiderIPPool", name, spec, status, **(metadata or {}))


def subnet(name: str = "s", status: Any = None, metadata: Any = None, **spec: Any) -> Object:
    spec = {"subnet": "10.0.0.0/24", "ips": ["10.0.0.10-10.0.0.99"], **spec}
    return document("SpiderSubnet", name, spec, status, **(metadata or {}))


def reserved(*ips: str, name: str = "r") -> Object:
    return document("SpiderReservedIP", name, {"ips": list(ips)})


def endpoint(name: str, status: Any = None, namespace: str = "default", **metadata: Any) -> Object:
    return document("SpiderEndpoint", name, None, status, namespace=namespace, **metadata)


def lease(
    address: str, pool: str = "p", pod: str = "default/web", *, node: str = "n1", uid: str = "", **more: Any
) -> Owned:
    found = parse(address)
    assert found is not None
    values = {"state": HELD, "ifname": "net1", "container_id": "c1", "since": 1, **more}
    uid = uid or f"uid-{pod.rpartition('/')[2]}"
    return Owned(address, node, Lease(found, pool, pod=pod, uid=uid, **values))


def pod(name: str, namespace: str = "default", *, owner: tuple[str, str] | None = None, **more: Any) -> Pod:
    more = {"uid": f"uid-{name}", "annotations": {}, **more}
    return objects.pod(namespace=namespace, name=name, owner=Owner(*owner) if owner else None, **more)


def a_node(name: str, *taints: str, unready: float = 0.0) -> dict[str, Any]:
    """``unready``: how many seconds ago it became so."""
    spec = {"taints": [{"key": key, "effect": "NoExecute"} for key in taints]}
    ready = {"type": "Ready", "status": "Unknown" if unready else "True", "lastTransitionTime": ago(unready)}
    return {"metadata": {"name": name}, "spec": spec, "status": {"conditions": [{"type": "Other"}, ready]}}


def node(name: str, *taints: str, unready: float = 0.0) -> Node:
    return msgspec.convert(a_node(name, *taints, unready=unready), Node)


def ago(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - seconds))


def blocks(*owned: Owned) -> tuple[Block, ...]:
    made: dict[Any, Block] = {}
    for each in owned:
        address = parse(each.address)
        assert address is not None
        key = key_of(address)
        block = made.get(key, Block(key, version="1"))
        more = {address.value: each.lease} if each.lease else {}
        owner = {address.value: each.node} if each.node else {}
        made[key] = replace(block, owned={**block.owned, **owner}, leases={**block.leases, **more})
    return tuple(made.values())


def picture(*things: Object | Owned | Pod | Node) -> Known:
    def of(kind: str) -> dict[str, Document]:
        return {each.document.name: each.document for each in things if isinstance(each, Object) and each.kind == kind}

    return known.picture(
        Known(
            pools=of("SpiderIPPool"),
            subnets=of("SpiderSubnet"),
            reserved=of("SpiderReservedIP"),
            endpoints={(one.namespace, one.name): one for one in of("SpiderEndpoint").values()},
            pods={(one.namespace, one.name): one for one in things if isinstance(one, Pod)},
            nodes={one.name: one for one in things if isinstance(one, Node)},
            blocks=blocks(*(one for one in things if isinstance(one, Owned))),
        )
    )
