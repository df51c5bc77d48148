"""What an API server keeps: objects with resourceVersions, and the history that watches read.

Written from the Kubernetes API concepts ("Efficient detection of changes", "Retrieving large results sets in chunks")
and RFC 7386 (JSON merge patch). One lock; every change wakes those who wait on :attr:`Objects.changed`.
"""

from __future__ import annotations

import copy
import itertools
import threading
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]

PODS = "pods"
NETWORKS = "network-attachment-definitions"
EVENTS = "events"
LEASES = "leases"
POOLS, RESERVED, SUBNETS = "spiderippools", "spiderreservedips", "spidersubnets"
BLOCKS = "underlayipblocks"
ENDPOINTS = "spiderendpoints"

API_VERSION = {
    PODS: ("v1", "Pod"),
    EVENTS: ("v1", "Event"),
    "namespaces": ("v1", "Namespace"),
    "nodes": ("v1", "Node"),
    NETWORKS: ("k8s.cni.cncf.io/v1", "NetworkAttachmentDefinition"),
    LEASES: ("coordination.k8s.io/v1", "Lease"),
    POOLS: ("spiderpool.spidernet.io/v2beta1", "SpiderIPPool"),
    RESERVED: ("spiderpool.spidernet.io/v2beta1", "SpiderReservedIP"),
    SUBNETS: ("spiderpool.spidernet.io/v2beta1", "SpiderSubnet"),
    BLOCKS: ("underlay.io/v1alpha1", "UnderlayIPBlock"),
    "statefulsets": ("apps/v1", "StatefulSet"),
    "virtualmachines": ("kubevirt.io/v1", "VirtualMachine"),
    "virtualmachineinstances": ("kubevirt.io/v1", "VirtualMachineInstance"),
    ENDPOINTS: ("spiderpool.spidernet.io/v2beta1", "SpiderEndpoint"),
    "deployments": ("apps/v1", "Deployment"),
    "ipamclaims": ("k8s.cni.cncf.io/v1alpha1", "IPAMClaim"),
}
CLUSTER_SCOPED = {"namespaces", "nodes", POOLS, RESERVED, SUBNETS, BLOCKS}
WITH_STATUS = {PODS, "nodes", POOLS, SUBNETS, RESERVED}  # what only a request for the subresource changes


class Refused(Exception):
    """An answer other than success, as a Status object."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message

    def status(self) -> Object:
        return {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        }  # fmt: skip


def gone() -> Refused:
    return Refused(410, "Expired", "too old resource version")


@dataclass(frozen=True)
class Change:
    """One entry of the history: ``old`` is what the object was before, None where it is new."""

    version: int
    resource: str
    type: str
    object: Object
    old: Object | None


@dataclass
class Objects:
    """Everything the server holds. ``history`` entries are kept; older watches are told 410 Gone."""

    history: int = 100_000
    changed: threading.Condition = field(default_factory=threading.Condition)
    version: int = 1000
    _kept: dict[str, dict[tuple[str, str], Object]] = field(default_factory=dict)
    _changes: deque[Change] = field(default_factory=deque)
    _lost: int = 0
    _pages: dict[str, tuple[int, list[Object]]] = field(default_factory=dict)
    _tokens: Any = field(default_factory=itertools.count)

    # -- what tests do -------------------------------------------------------------------------------------------------

    def put(self, resource: str, wanted: Object) -> Object:
        """Create or replace an object, as any other client would; returns it as stored."""
        wanted = copy.deepcopy(wanted)
        meta = wanted.setdefault("metadata", {})
        if resource not in CLUSTER_SCOPED:
            meta.setdefault("namespace", "default")
        with self.changed:
            old = self._all(resource).get((meta.get("namespace", ""), meta["name"]))
            for key in ("uid", "creationTimestamp") if old is not None else ():
                meta.setdefault(key, old["metadata"][key])
            return self._store(resource, wanted, old)

    def delete(self, resource: str, namespace: str, name: str) -> None:
        """Remove an object at once."""
        with self.changed:
            old = self._all(resource).pop((namespace, name))
            last = copy.deepcopy(old)
            self._note(resource, "DELETED", last, old)

    def get(self, resource: str, namespace: str, name: str) -> Object | None:
        """The object as stored, or None."""
        with self.changed:
            return copy.deepcopy(self._all(resource).get((namespace, name)))

    def all(self, resource: str) -> list[Object]:
        """Every object of a resource, in the order of their making."""
        with self.changed:
            return copy.deepcopy(list(self._all(resource).values()))

    def lose_history(self) -> None:
        """Compact: a watch or a page that is older than now is told 410 Gone."""
        with self.changed:
            self.version += 1
            self._lost = self.version
            self._changes.clear()
            self._pages.clear()
            self.changed.notify_all()

    # -- what requests do ----------------------------------------------------------------------------------------------

    def page(self, resource: str, chosen: Any, limit: int, token: str) -> Object:
        """A list, or one page of it. 410 where the continue token's version is compacted."""
        with self.changed:
            if token:
                if token not in self._pages:
                    raise gone()
                version, rest = self._pages.pop(token)
            else:
                version, rest = self.version, [each for each in self._all(resource).values() if chosen(each)]
            taken = rest[:limit] if limit else rest
            meta: Object = {"resourceVersion": str(version)}
            if len(taken) < len(rest):
                meta["continue"] = f"page-{next(self._tokens)}"
                meta["remainingItemCount"] = len(rest) - len(taken)
                self._pages[meta["continue"]] = (version, rest[limit:])
        api, kind = API_VERSION[resource]
        return {"kind": f"{kind}List", "apiVersion": api, "metadata": meta, "items": taken}

    def since(self, resource: str, version: int, patience: float) -> list[Change]:
        """The changes after ``version``, waiting up to ``patience`` seconds for the first. 410 where they are lost."""
        with self.changed:
            self.changed.wait_for(lambda: version < self._lost or self.version > version, patience)
            if version < self._lost:
                raise gone()
            return [each for each in self._changes if each.version > version and each.resource == resource]

    def create(self, resource: str, wanted: Object) -> Object:
        meta = wanted.setdefault("metadata", {})
        if meta.get("resourceVersion"):
            raise Refused(400, "BadRequest", "resourceVersion should not be set on objects to be created")
        if not meta.get("name"):
            meta["name"] = f"{meta.get('generateName', '')}{next(self._tokens):05}"
        with self.changed:
            if (meta.get("namespace", ""), meta["name"]) in self._all(resource):
                raise Refused(409, "AlreadyExists", f'{resource} "{meta["name"]}" already exists')
            return self._store(resource, wanted, None)

    def update(self, resource: str, namespace: str, name: str, wanted: Object) -> Object:
        """Replace an object. Its metadata.resourceVersion must be the current one where it is given; identity and time
        of making stay.
        """
        with self.changed:
            old = self._existing(resource, namespace, name)
            meta = wanted.setdefault("metadata", {})
            _precondition(resource, name, meta, old)
            if meta.get("name") != name:
                raise Refused(400, "BadRequest", f"the name of the object ({meta.get('name')}) is not that of the URL")
            for key in ("uid", "creationTimestamp"):
                meta[key] = old["metadata"][key]
            return self._store(resource, wanted, old)

    def patch(self, resource: str, namespace: str, name: str, patch: Object, subresource: str) -> Object:
        """Apply a merge patch. metadata.uid and resourceVersion in it are preconditions: 409 where they differ.

        Through ``status`` only metadata and status change, as the pod's status strategy has it.
        """
        with self.changed:
            old = self._existing(resource, namespace, name)
            _precondition(resource, name, patch.get("metadata", {}), old)
            if subresource:
                patch = {key: value for key, value in patch.items() if key in ("metadata", subresource)}
            elif resource in WITH_STATUS:
                patch = {key: value for key, value in patch.items() if key != "status"}
            new = merged(old, patch)
            new["metadata"] = dict(new["metadata"])  # what a patch does not name is the old one's, whose history stays
            new["metadata"]["name"], new["metadata"]["uid"] = name, old["metadata"]["uid"]
            if "deletionTimestamp" in new["metadata"] and not new["metadata"].get("finalizers"):
                self.delete(resource, namespace, name)
                return new
            return self._store(resource, new, old)

    def remove(self, resource: str, namespace: str, name: str, options: Object) -> Object:
        """A request to delete: with finalizers the object is only marked, and goes when the last of them is taken off.
        Preconditions: 409 where they differ.
        """
        with self.changed:
            old = self._existing(resource, namespace, name)
            _precondition(resource, name, options.get("preconditions", {}), old)
            if not old["metadata"].get("finalizers"):
                self.delete(resource, namespace, name)
                return old
            if "deletionTimestamp" in old["metadata"]:
                return old
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            return self._store(resource, merged(old, {"metadata": {"deletionTimestamp": now}}), old)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _all(self, resource: str) -> dict[tuple[str, str], Object]:
        return self._kept.setdefault(resource, {})

    def _existing(self, resource: str, namespace: str, name: str) -> Object:
        found = self._all(resource).get((namespace, name))
        if found is None:
            raise Refused(404, "NotFound", f'{resource} "{name}" not found')
        return found

    def _store(self, resource: str, new: Object, old: Object | None) -> Object:
        meta = new["metadata"]
        new["apiVersion"], new["kind"] = API_VERSION[resource]
        meta.setdefault("uid", str(uuid.uuid4()))
        meta.setdefault("creationTimestamp", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        self._all(resource)[meta.get("namespace", ""), meta["name"]] = new
        self._note(resource, "MODIFIED" if old else "ADDED", new, old)
        return copy.deepcopy(new)

    def _note(self, resource: str, kind: str, new: Object, old: Object | None) -> None:
        self.version += 1
        new["metadata"]["resourceVersion"] = str(self.version)
        self._changes.append(Change(self.version, resource, kind, new, old))
        while len(self._changes) > self.history:
            self._lost = self._changes.popleft().version
        self.changed.notify_all()


def _precondition(resource: str, name: str, meta: Object, old: Object) -> None:
    """409 where the UID or the resourceVersion that a writer names is not the object's."""
    for key, shown in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
        asked, has = meta.get(key), old["metadata"][key]
        if asked is not None and asked != has:
            words = f"Precondition failed: {shown} in precondition: {asked}, {shown} in object meta: {has}"
            raise Refused(409, "Conflict", f'Operation cannot be fulfilled on {resource} "{name}": {words}')


def merged(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result
