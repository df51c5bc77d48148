"""What is to be written to the API server: one request each, the same again for as long as it is wanted.

Changes are merge patches (RFC 7386) of the fields that differ, with the UID of the object meant; where a list that
others write too is replaced, such as finalizers, with its version as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple
from urllib.parse import quote

import msgspec

if TYPE_CHECKING:
    from underlay.controller.watched import Document

POOLS: Final = "spiderippools"
SUBNETS: Final = "spidersubnets"
RESERVED: Final = "spiderreservedips"
ENDPOINTS: Final = "spiderendpoints"
VERSION: Final = "spiderpool.spidernet.io/v2beta1"
# Theirs, and ours where an earlier controller set it: it is taken off what is to go, and set on pools alone.
FINALIZER: Final = "spiderpool.spidernet.io"


class Thing(NamedTuple):
    """What there is one write of at a time: a part of an object, "status", "metadata" or all of it, ""."""

    plural: str
    namespace: str
    name: str
    part: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.plural, self.namespace, self.name, self.part) if part)


@dataclass(frozen=True, slots=True)
class Write:
    """One request. ``target`` is its path, ``body`` its JSON."""

    thing: Thing
    method: Literal["POST", "PATCH", "DELETE"]
    target: str
    body: bytes


def create(plural: str, kind: str, metadata: dict[str, Any], **content: Any) -> Write:
    """Make an object."""
    namespace, name = metadata.get("namespace", ""), metadata["name"]
    body = {"apiVersion": VERSION, "kind": kind, "metadata": metadata, **content}
    target = _path(plural, namespace)
    return Write(Thing(plural, namespace, name), "POST", target, msgspec.json.encode(body))


def patch(
    plural: str, of: Document, change: dict[str, Any], *, part: str, thing: str = "", version: bool = False
) -> Write:
    """Change an object, as far as it is still the same one; with ``version`` only while nobody else has changed it.
    ``part`` "status" goes to the subresource; ``thing`` names a part of a part.
    """
    guard = {"uid": of.metadata.uid} | ({"resourceVersion": of.metadata.resource_version} if version else {})
    body = {**change, "metadata": {**change.get("metadata", {}), **guard}}
    target = f"{_path(plural, of.namespace)}/{quote(of.name, safe='')}"
    target = f"{target}/status" if part == "status" else target
    return Write(Thing(plural, of.namespace, of.name, thing or part), "PATCH", target, msgspec.json.encode(body))


def delete(plural: str, of: Document) -> Write:
    """Remove an object, as far as it is still the same one."""
    body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": of.metadata.uid}}
    target = f"{_path(plural, of.namespace)}/{quote(of.name, safe='')}"
    return Write(Thing(plural, of.namespace, of.name), "DELETE", target, msgspec.json.encode(body))


def difference(old: Any, new: dict[str, Any], among: frozenset[str] | None = None) -> dict[str, Any]:
    """The merge patch that makes ``new`` of ``old``, {} where nothing differs; ``among``: of these keys alone."""
    before = old if isinstance(old, dict) else {}
    change: dict[str, Any] = {}
    for key in before.keys() | new.keys():
        if among is not None and key not in among:
            continue
        if key not in new:
            change[key] = None
        elif isinstance(new[key], dict) and isinstance(before.get(key), dict):
            inner = difference(before[key], new[key])
            change.update({key: inner} if inner else {})
        elif key not in before or before[key] != new[key]:
            change[key] = new[key]
    return dict(sorted(change.items()))


def _path(plural: str, namespace: str) -> str:
    within = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
    return f"/apis/{VERSION}{within}/{plural}"
