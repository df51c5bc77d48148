"""What has to be written so that statuses and SpiderEndpoints say what the views say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from underlay.controller import views, writes
from underlay.controller.writes import FINALIZER
from underlay.ipam.pools.objects import ENDPOINT

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from underlay.controller.known import Known
    from underlay.controller.watched import Document
    from underlay.controller.writes import Write

_POOL_KEYS: Final = frozenset({"totalIPCount", "allocatedIPCount", "allocatedIPs"})
_SUBNET_KEYS: Final = frozenset({"totalIPCount", "allocatedIPCount", "controlledIPPools"})


def of_views(known: Known) -> Iterator[Write]:
    """Every write; none where the objects say it already."""
    others = {lease.pool for lease in known.foreign}  # whoever gave those out may write as well
    yield from _statuses(writes.POOLS, known.pools, views.pool_statuses(known), _POOL_KEYS, others)
    yield from _statuses(writes.SUBNETS, known.subnets, views.subnet_statuses(known), _SUBNET_KEYS)
    wanted = views.endpoints(known)
    for key, status in wanted.items():
        found = known.endpoints.get(key)
        if found is None:
            namespace, name = key
            yield writes.create(writes.ENDPOINTS, ENDPOINT, {"namespace": namespace, "name": name}, status=status)
        elif not found.metadata.deletion_timestamp:
            yield from _described(found, status)
        elif FINALIZER in found.metadata.finalizers:
            yield without_finalizer(writes.ENDPOINTS, found)  # it is made anew
    for key in views.forgotten(known, wanted):
        yield from _gone(known.endpoints[key])


def _described(found: Document, status: dict[str, Any]) -> Iterator[Write]:
    """What nodes report is said of it from now on: whoever else kept it has nothing to do with that."""
    theirs = FINALIZER in found.metadata.finalizers
    change: dict[str, Any] = {"metadata": {"finalizers": _without(found)}} if theirs else {}
    if told := writes.difference(found.status, status):
        change["status"] = told
    if change:
        yield writes.patch(writes.ENDPOINTS, found, change, part="all", version=theirs)


def _without(found: Document) -> list[str] | None:
    return [each for each in found.metadata.finalizers if each != FINALIZER] or None


def without_finalizer(plural: str, found: Document) -> Write:
    """Take our finalizer off, and leave others' where they are."""
    change = {"metadata": {"finalizers": _without(found)}}
    return writes.patch(plural, found, change, part="metadata", version=True)


def _gone(found: Document) -> Iterator[Write]:
    if FINALIZER in found.metadata.finalizers:
        yield without_finalizer(writes.ENDPOINTS, found)
    elif not found.metadata.deletion_timestamp:
        yield writes.delete(writes.ENDPOINTS, found)


def _statuses(
    plural: str, documents: Mapping[str, Document], wanted: Mapping[str, dict[str, Any]], keys: frozenset[str],
    others: Collection[str] = (),
) -> Iterator[Write]:  # fmt: skip
    for name, status in wanted.items():
        if change := writes.difference(documents[name].status, status, keys):
            yield writes.patch(plural, documents[name], {"status": change}, part="status", version=name in others)
