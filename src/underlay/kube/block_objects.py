"""UnderlayIPBlock, the object that :class:`~underlay.ipam.pools.block.Block` is kept as: addresses as text, pure.

    metadata: {name: v4-10.6.168.16, resourceVersion: "4711"}
    spec:
      revision: 7
      owned:   {10.6.168.17: node-1}
      wanted:  {10.6.168.17: {node: node-2, keeper: StatefulSet/shop/db-0}}
      resting: {10.6.168.18: "2026-01-01T10:00:00.000000001Z"}
      leases:  {10.6.168.17: {pool: rack-7, state: held, pod: shop/web-1, …}}

What an object holds that is no address of its block is passed over, and since blocks are written by merge patches
(RFC 7386) of what differs, it stays where it is.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from underlay.cni.address import Address, parse, text
from underlay.ipam.pools.block import Block, Key, Want, key_of, revision_of, swaps_of
from underlay.ipam.pools.lease import HELD, KEPT, Lease
from underlay.kube.resources import Metadata  # noqa: TC001 - msgspec reads the annotation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

KIND: Final = "UnderlayIPBlock"
PLURAL: Final = "underlayipblocks"
API_VERSION: Final = "underlay.io/v1alpha1"

Document = dict[str, Any]

_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z")
_NS: Final = 1_000_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
T = TypeVar("T")


class _Want(msgspec.Struct):
    node: str = ""
    keeper: str = ""


class _Lease(msgspec.Struct, rename={"container_id": "containerID"}):
    pool: str = ""
    state: str = ""
    uid: str = ""
    container_id: str = ""
    ifname: str = ""
    pod: str = ""
    keeper: str = ""
    network: str = ""
    boot: str = ""
    since: str = ""


class _Spec(msgspec.Struct):
    revision: int = 0
    owned: dict[str, str] | None = None
    wanted: dict[str, _Want] | None = None
    resting: dict[str, str] | None = None
    leases: dict[str, _Lease] | None = None


class Shape(msgspec.Struct):
    """What is decoded of an object."""

    metadata: Metadata
    spec: _Spec | None = None


def key_of_name(name: str) -> Key | None:
    """The inverse of :attr:`Key.name`; None for the name of no block."""
    family, _, written = name.partition("-")
    address = parse(written.replace("-", ":") if family == "v6" else written)
    if address is None:
        return None
    key = key_of(address)
    return key if key.name == name else None


def decode(shape: Shape) -> Block | None:
    """The block of an object; None where the object's name is no block's."""
    key = key_of_name(shape.metadata.name)
    if key is None:
        return None
    spec = shape.spec or _Spec()
    return Block(
        key,
        revision_of(_nanoseconds(shape.metadata.creation_timestamp or "") // _NS, swaps_of(spec.revision)),
        {value: node for value, node in _inside(key, spec.owned) if node},
        {value: Want(want.node, want.keeper) for value, want in _inside(key, spec.wanted) if want.node},
        {value: _nanoseconds(since) for value, since in _inside(key, spec.resting)},
        {value: made for value, told in _inside(key, spec.leases) if (made := _lease(key, value, told)) is not None},
        shape.metadata.resource_version,
    )


def encode(block: Block) -> Document:
    """The object of a block, without what a store adds; what is empty is left out."""

    def written(values: Mapping[int, Any]) -> Iterator[tuple[str, Any]]:
        return ((text(block.key.family, value), said) for value, said in sorted(values.items()))

    spec = {
        "revision": swaps_of(block.revision),
        "owned": dict(written(block.owned)),
        "wanted": {address: _filled(want._asdict()) for address, want in written(block.wanted)},
        "resting": {address: _time(since) for address, since in written(block.resting)},
        "leases": {address: _filled(_fields(lease)) for address, lease in written(block.leases)},
    }
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": block.key.name}, "spec": _filled(spec)}


def change(before: Block, after: Block) -> Document:
    """The merge patch that makes ``after`` of ``before``, and of nothing else: 409 where the version is another."""
    patch = _difference(encode(before)["spec"], encode(after)["spec"])
    return {"metadata": {"resourceVersion": before.version}, "spec": patch}


def report(key: Key, leases: Mapping[int, Lease | None]) -> Document:
    """The merge patch that puts these leases in the place of whatever is reported of their addresses."""
    said = {text(key.family, value): lease and _nulled(_fields(lease)) for value, lease in sorted(leases.items())}
    return {"spec": {"leases": said}}


def _inside(key: Key, values: Mapping[str, T] | None) -> Iterator[tuple[int, T]]:
    for written, said in (values or {}).items():
        address = parse(written)
        if address is not None and key_of(address) == key:
            yield address.value, said


def _lease(key: Key, value: int, told: _Lease) -> Lease | None:
    if told.state not in (HELD, KEPT):
        return None
    return Lease(
        Address(key.family, value), told.pool, HELD if told.state == HELD else KEPT, told.uid, told.container_id,
        told.ifname, told.pod, told.keeper, told.network, told.boot, _nanoseconds(told.since),
    )  # fmt: skip


def _fields(lease: Lease) -> dict[str, str]:
    return {
        "pool": lease.pool, "state": lease.state, "uid": lease.uid, "containerID": lease.container_id,
        "ifname": lease.ifname, "pod": lease.pod, "keeper": lease.keeper, "network": lease.network,
        "boot": lease.boot, "since": _time(lease.since),
    }  # fmt: skip


def _filled(values: Mapping[str, Any]) -> Document:
    return {key: value for key, value in values.items() if value not in ("", {})}


def _nulled(values: Mapping[str, Any]) -> Document:
    """A merge leaves alone what it does not name: what an older lease had and this one has not must be taken away."""
    return {key: value or None for key, value in values.items()}


def _difference(before: Any, after: Any) -> Any:
    """The merge patch from one document to another (RFC 7386); neither holds a null."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return after
    gone = dict.fromkeys(before.keys() - after.keys())
    return gone | {key: _difference(before.get(key), value) for key, value in after.items() if before.get(key) != value}


def _time(ns: int) -> str:
    """RFC 3339, to the nanosecond."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(ns // _NS))}.{ns % _NS:09}Z"


def _nanoseconds(written: str) -> int:
    """The inverse of :func:`_time`; 0, which is long ago, for what is no time."""
    found = _TIME.fullmatch(written)
    if found is None:
        return 0
    try:
        whole = datetime.fromisoformat(f"{found[1]}+00:00") - _EPOCH
    except ValueError:
        return 0
    return (whole.days * 86400 + whole.seconds) * _NS + int((found[2] or "").ljust(9, "0"))
