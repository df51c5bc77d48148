"""An address pool looked at among the others of its cluster: what neither its own fields nor a file of manifests says.

    one pool, its fields         lint_objects.address_pool
    beside the others            beside()      overlaps, and what a SpiderSubnet does not list
    in the place of the old      instead_of()  addresses in use that it no longer lists
    taken away                   without()     while something of it is in use

The rules are those that the field's own webhook has, and whatever slips past them does no harm: an address has one
owner whichever pools list it, and a pool that goes stays until its last address is free.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from underlay.cni.address import text
from underlay.ipam.pools import intervals
from underlay.ipam.pools.objects import Pool, Reserved, Subnet, overlaps
from underlay.ipam.pools.written import ranges
from underlay.multus.findings import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from underlay.ipam.pools.lease import Lease
    from underlay.multus.findings import Subject

OWNER_SUBNET: Final = "ipam.spidernet.io/owner-spider-subnet"
_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Around:
    """The pools of a cluster by name, those that can be read, and the leases of each, held and kept."""

    pools: Mapping[str, Pool] = field(default_factory=dict)
    subnets: Mapping[str, Subnet] = field(default_factory=dict)
    leases: Mapping[str, Sequence[Lease]] = field(default_factory=dict)

    def clashes(self) -> dict[str, dict[str, tuple[int, int]]]:
        """For each pool, the others that list the same addresses: family and the first of those."""
        return clashes(self.pools.values())


def clashes(pools: Iterable[Pool]) -> dict[str, dict[str, tuple[int, int]]]:
    """For each pool, the others that list the same addresses: family and the first of those."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for one, other, family, first in overlaps(list(pools)):
        found.setdefault(one, {}).setdefault(other, (family, first))
        found.setdefault(other, {}).setdefault(one, (family, first))
    return found


def beside(
    subject: Subject, found: Pool | Reserved | Subnet, around: Around,
    clashing: Mapping[str, tuple[int, int]] | None = None,
) -> list[Finding]:  # fmt: skip
    """What speaks against an object, given the others. ``clashing`` is its part of :func:`clashes`, where known."""
    if isinstance(found, Pool):
        if clashing is None:
            others = (pool for pool in around.pools.values() if pool.name != found.name)
            clashing = clashes([found, *others]).get(found.name, {})
        return [*_overlaps(subject, found, clashing, around), *_outside(subject, found, around)]
    if isinstance(found, Subnet):
        return list(_same_range(subject, found, around))
    return list(_reserved_in_use(subject, found, around))


def instead_of(subject: Subject, old: Pool | Reserved | Subnet, new: object, around: Around) -> list[Finding]:
    """What speaks against a change."""
    if isinstance(old, Pool) and isinstance(new, Pool):
        gone = intervals.without(old.ranges, new.ranges)
        used = [lease for lease in around.leases.get(old.name, ()) if intervals.holds(gone, lease.value)]
        return [_in_use(subject, used)] if used else []
    if isinstance(old, Subnet) and isinstance(new, Subnet):
        gone = intervals.without(old.ranges, new.ranges)
        return [
            _of_pool(subject, pool, lost)
            for pool in _pools_of(old, around)
            if (lost := intervals.common(gone, pool.ranges))
        ]
    return []


def without(subject: Subject, old: Pool | Reserved | Subnet, around: Around) -> list[Finding]:
    """What speaks against taking an object away."""
    if isinstance(old, Pool):
        used = around.leases.get(old.name, ())
        hint = "Delete the pods that use it first; disable it (spec.disable) to have it hand out nothing more."
        words = f"it is in use: {_shown(used)}"
        return [Finding(subject, Severity.ERROR, "", words, hint)] if used else []
    if isinstance(old, Subnet):
        pools = [pool.name for pool in _pools_of(old, around)]
        words = f"pools were cut from it: {', '.join(pools[:_SHOWN])}{_more(len(pools))}"
        hint = "Delete those pools, or the applications that they are for, first."
        return [Finding(subject, Severity.ERROR, "", words, hint)] if pools else []
    return []


def left_over(subject: Subject, pool: Pool, around: Around) -> list[Finding]:
    """Addresses in use that the pool does not list: somebody has changed it without asking the webhook."""
    used = [lease for lease in around.leases.get(pool.name, ()) if not intervals.holds(pool.ranges, lease.value)]
    if not used:
        return []
    words = f"it does not list addresses in use: {_shown(used)}; their pods keep them, and then they are gone"
    return [Finding(subject, Severity.WARNING, "spec.ips", words, "List them again if that was not meant.")]


def _overlaps(
    subject: Subject, pool: Pool, clashing: Mapping[str, tuple[int, int]], around: Around
) -> Iterator[Finding]:
    for name, (family, first) in sorted(clashing.items()):
        same = around.pools[name].subnet == pool.subnet
        words = f"its addresses overlap those of SpiderIPPool {name!r}, from {text(family, first)} on"
        more = "" if same else ": each is handed out once, by whichever pool comes first"
        severity = Severity.ERROR if same else Severity.WARNING
        yield Finding(subject, severity, "spec.ips", words + more, "Part the ranges of the two pools.")


def _outside(subject: Subject, pool: Pool, around: Around) -> Iterator[Finding]:
    """A SpiderSubnet of the same CIDR says what may be handed out of it."""
    for subnet in around.subnets.values():
        if subnet.subnet != pool.subnet:
            continue
        outside = intervals.without(pool.ranges, subnet.ranges)
        if outside:
            words = f"SpiderSubnet {subnet.name!r} does not list {_listed(pool.family, outside)}"
            hint = 'Keep to the addresses of the subnet\'s "ips", or enlarge those.'
            yield Finding(subject, Severity.ERROR, "spec.ips", words, hint)


def _same_range(subject: Subject, found: Subnet, around: Around) -> Iterator[Finding]:
    mine = found.subnet
    for name, other in sorted(around.subnets.items()):
        theirs = other.subnet
        apart = mine.family != theirs.family or mine.last < theirs.network or theirs.last < mine.network
        if name != found.name and not apart:
            words = f"{mine} overlaps {theirs} of SpiderSubnet {name!r}"
            yield Finding(subject, Severity.ERROR, "spec.subnet", words, "Make one subnet of the two, or part them.")


def _reserved_in_use(subject: Subject, found: Reserved, around: Around) -> Iterator[Finding]:
    used = [
        lease
        for leases in around.leases.values()
        for lease in leases
        if intervals.holds(found.v4 if lease.family == 4 else found.v6, lease.value)
    ]
    if used:
        words = f"addresses of it are in use: {_shown(sorted(used))}; their pods keep them, and then they are reserved"
        yield Finding(subject, Severity.WARNING, "spec.ips", words, "Delete those pods to have them free now.")


def _in_use(subject: Subject, used: Sequence[Lease]) -> Finding:
    hint = "Delete those pods first, or leave the addresses in the list."
    return Finding(subject, Severity.ERROR, "spec.ips", f"it takes out addresses in use: {_shown(used)}", hint)


def _of_pool(subject: Subject, pool: Pool, lost: intervals.Intervals) -> Finding:
    words = f"it takes out {_listed(pool.family, lost)}, which SpiderIPPool {pool.name!r} lists"
    return Finding(subject, Severity.ERROR, "spec.ips", words, "Take them out of the pool first.")


def _pools_of(subnet: Subnet, around: Around) -> list[Pool]:
    return [pool for _, pool in sorted(around.pools.items()) if pool.subnet == subnet.subnet]


def _shown(used: Sequence[Lease]) -> str:
    first = ", ".join(f"{lease.shown} is {lease.owner()}" for lease in used[:_SHOWN])
    return first + _more(len(used))


def _more(number: int) -> str:
    return f" and {number - _SHOWN} more" if number > _SHOWN else ""


def _listed(family: int, of: intervals.Intervals) -> str:
    listed = ranges(family, of)
    return ", ".join(listed[:_SHOWN]) + _more(len(listed))
