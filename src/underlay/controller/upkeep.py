"""What pools, subnets and reservations carry beside what their authors write: finalizer, derived fields, a condition.

    finalizer    spiderpool.spidernet.io on pools and subnets: a pool in deletion stays until nothing of it is held or
                 kept, a subnet until no pool was cut from it
    derived      spec.ipVersion, of reservations too; label ipam.spidernet.io/ippool-cidr of pools
    condition    Valid: False where the webhook would have refused it, and why

A node hands out nothing of a pool once it sees it in deletion, and reports what it handed out before within seconds. So
the finalizer is taken off no sooner than ``grace`` seconds after the deletion was first seen here.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from underlay.controller import foreign, writes
from underlay.controller.known import as_manifest
from underlay.controller.view_writes import without_finalizer
from underlay.controller.writes import FINALIZER
from underlay.ipam.pools.objects import POOL, RESERVED, SUBNET, Pool, Reserved, Subnet
from underlay.multus import lint_objects, lint_pools
from underlay.multus.findings import Finding, Severity, Subject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from underlay.controller.known import Known, Spec
    from underlay.controller.watched import Document
    from underlay.controller.writes import Write
    from underlay.ipam.pools.lease import Lease
    from underlay.multus.lint_pools import Around

GRACE_SECONDS: Final = 10.0
CIDR: Final = "ipam.spidernet.io/ippool-cidr"
VALID: Final = "Valid"
_MESSAGE: Final = 4096  # the API server takes 32768
_PLURALS: Final = {POOL: writes.POOLS, SUBNET: writes.SUBNETS, RESERVED: writes.RESERVED}


def around(known: Known) -> Around:
    """What the webhook and the condition judge by."""
    leases: dict[str, list[Lease]] = {}
    for lease, _ in known.leases():
        leases.setdefault(lease.pool, []).append(lease)
    return lint_pools.Around(
        {name: pool for name in known.pools if (pool := known.pool(name)) is not None},
        {name: subnet for name in known.subnets if (subnet := known.subnet(name)) is not None},
        {name: sorted(each) for name, each in leases.items()},
    )


class Upkeep:
    """Used by one thread; it remembers when it first saw an object in deletion."""

    def __init__(self, *, grace: float = GRACE_SECONDS, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._grace = grace
        self._monotonic = monotonic
        self._leaving: dict[str, float] = {}

    def writes(self, known: Known) -> Iterator[Write]:
        """Every write that is due."""
        around_ = around(known)
        now = self._monotonic()
        leaving: dict[str, float] = {}
        for plural, documents in ((writes.POOLS, known.pools), (writes.SUBNETS, known.subnets)):
            for name, document in documents.items():
                meta = document.metadata
                if not meta.deletion_timestamp:
                    yield from _dressed(plural, document, known.pool(name) or known.subnet(name))
                    continue
                leaving[meta.uid] = since = self._leaving.get(meta.uid, now)
                if FINALIZER in meta.finalizers and now - since >= self._grace and not _used(plural, name, around_):
                    yield without_finalizer(plural, document)
        self._leaving = leaving
        for name, document in known.reserved.items():
            yield from _family(document, known.read.get((RESERVED, name)))
        yield from _conditions(known, around_)


def _used(plural: str, name: str, around_: Around) -> bool:
    if plural == writes.POOLS:
        return bool(around_.leases.get(name))
    subnet = around_.subnets.get(name)
    return subnet is not None and any(pool.subnet == subnet.subnet for pool in around_.pools.values())


def _dressed(plural: str, document: Document, read: Spec | None) -> Iterator[Write]:
    """Finalizer and derived fields, of an object that can be read."""
    if not isinstance(read, Pool | Subnet):
        return
    meta, spec = document.metadata, document.spec
    change: dict[str, Any] = {}
    if FINALIZER not in meta.finalizers:
        change["metadata"] = {"finalizers": [*meta.finalizers, FINALIZER]}
    if plural == writes.POOLS and meta.labels.get(CIDR) != (label := cidr_label(read)):
        change.setdefault("metadata", {})["labels"] = {CIDR: label}
    if not spec.get("ipVersion"):
        change["spec"] = {"ipVersion": read.family}
    if change:
        yield writes.patch(plural, document, change, part="metadata", version=True)


def _family(document: Document, read: Spec | None) -> Iterator[Write]:
    """Of a reservation in one family, which that is."""
    if isinstance(read, Reserved) and not document.spec.get("ipVersion") and bool(read.v4) != bool(read.v6):
        change = {"spec": {"ipVersion": 4 if read.v4 else 6}}
        yield writes.patch(writes.RESERVED, document, change, part="metadata", version=True)


def cidr_label(of: Pool | Subnet) -> str:
    """The subnet as a label's value: "172-31-0-0-16"."""
    return "".join(char if char.isalnum() else "-" for char in str(of.subnet)).strip("-")


# -- the condition -----------------------------------------------------------------------------------------------------


def _conditions(known: Known, around_: Around) -> Iterator[Write]:
    clashing = around_.clashes()
    for kind, documents in ((POOL, known.pools), (SUBNET, known.subnets), (RESERVED, known.reserved)):
        for name, document in documents.items():
            subject = Subject("", kind, name)
            findings, read = lint_objects.address_pool(subject, as_manifest(kind, document))
            if read is not None:
                findings += lint_pools.beside(subject, read, around_, clashing.get(name, {}))
            if isinstance(read, Pool):
                findings += [*lint_pools.left_over(subject, read, around_), *foreign.findings(subject, known, name)]
            wanted = _condition(document, findings)
            before = _before(document)
            if wanted != before.get(VALID):
                others = [each for type_, each in before.items() if type_ != VALID]
                change = {"status": {"conditions": [*others, wanted]}}
                yield writes.patch(_PLURALS[kind], document, change, part="status", thing="condition", version=True)


def _before(document: Document) -> Mapping[str, dict[str, Any]]:
    conditions = document.status.get("conditions") if isinstance(document.status, dict) else None
    return {each.get("type", ""): each for each in conditions or () if isinstance(each, dict)}


def _condition(document: Document, findings: Sequence[Finding]) -> dict[str, Any]:
    """As it is to be; the time of the last change stays where nothing changes, so that it is written once."""
    errors = [each for each in findings if each.severity is Severity.ERROR]
    told = errors or [each for each in findings if each.severity is Severity.WARNING]
    status = "False" if errors else "True"
    before = _before(document).get(VALID, {})
    since = before.get("lastTransitionTime") if before.get("status") == status else None
    return {
        "type": VALID,
        "status": status,
        "reason": "Invalid" if errors else "Doubtful" if told else "Valid",
        "message": "; ".join(_words(each) for each in told)[:_MESSAGE],
        "lastTransitionTime": since or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "observedGeneration": document.metadata.generation,
    }


def _words(finding: Finding) -> str:
    field = f"{finding.field}: " if finding.field else ""
    return f"{field}{finding.message}" + (f" ({finding.hint})" if finding.hint else "")
