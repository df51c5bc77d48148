"""Pools of an application's own, cut from a SpiderSubnet.

    subnet annotation + controller ──▶ auto4-web-eth0-1b2c3d4e    "3": three addresses   "+1": one more than pods

A cut takes the lowest addresses of the subnet that no pool lists and no other cut has. Pods whose controller asks
again find their pool by its name. With reclaim it goes when its last address is free.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from underlay.cni.address import text
from underlay.errors import InvalidConfig
from underlay.ipam.pools import intervals
from underlay.ipam.pools.applications import fitted, name_of, used_up
from underlay.ipam.pools.lease import KEPT
from underlay.ipam.pools.objects import Pool, parse_range

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from underlay.ipam.pools.choose import Choice
    from underlay.ipam.pools.intervals import Intervals
    from underlay.ipam.pools.journal import Journal
    from underlay.ipam.pools.lease import Lease
    from underlay.ipam.pools.leases import Leases
    from underlay.ipam.pools.objects import Subnet
    from underlay.ipam.pools.surroundings import Catalogue, Subject


@dataclass(frozen=True, slots=True)
class Cut:
    """One application's pool in one family; the fields are the journal's columns."""

    name: str
    subnet: str
    family: int
    application: str
    ranges: Intervals
    count: int
    flexible: bool
    reclaim: bool

    def pool(self, subnet: Subnet) -> Pool:
        """As a pool like others."""
        size = intervals.size(self.ranges)
        return Pool(self.name, subnet.subnet, self.ranges, size, subnet.gateway, subnet.routes, subnet.vlan)

    def row(self) -> tuple[object, ...]:
        """As the journal stores it."""
        ips = ",".join(f"{text(self.family, start)}-{text(self.family, end)}" for start, end in self.ranges)
        return (self.name, self.subnet, self.family, self.application, ips, self.count, self.flexible, self.reclaim)


def of_row(columns: tuple[object, ...]) -> Cut | None:
    """The inverse of :meth:`Cut.row`; None for what a damaged file should not have held."""
    name, subnet, family, application, ips, count, flexible, reclaim = columns
    try:
        parts = [parse_range(one, "ips")[1] for one in str(ips).split(",") if one]
        family, count = int(str(family)), int(str(count))
    except (InvalidConfig, ValueError):
        return None
    whole = intervals.union(parts)
    return Cut(str(name), str(subnet), family, str(application), whole, count, bool(flexible), bool(reclaim))


class Cuts:
    """An :class:`~underlay.ipam.pools.applications.ApplicationPools`: the pools that this node has cut."""

    patience = 0.0

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lock = threading.RLock()
        self._known = {cut.name: cut for columns in journal.cuts() if (cut := of_row(columns)) is not None}

    def pools(self, catalogue: Catalogue) -> list[Pool]:
        """All of them whose subnet there is."""
        known = list(self._known.values())
        return [cut.pool(catalogue.subnets[cut.subnet]) for cut in known if cut.subnet in catalogue.subnets]

    @contextmanager
    def choosing(self) -> Iterator[None]:
        """No cut ends or is shared out to others between :meth:`serve` and the taking of an address from it."""
        with self._lock:
            yield

    def pause(self) -> None:
        """Nothing is waited for: they are cut at once."""

    def follow(self, catalogue: Catalogue, leases: Leases) -> None:
        """From now on these pools count, and the cuts as they are."""
        with self._lock:  # what another thread cuts meanwhile would be left out
            leases.follow(catalogue, self.pools(catalogue))

    def serve(
        self, choice: Choice, subject: Subject, who: Lease, catalogue: Catalogue, leases: Leases
    ) -> Mapping[int, tuple[Pool, ...]]:
        """The pools, by family, that the pod's application has or gets, large enough for one pod more where they may
        grow. ``who`` names NIC and keeper. Raises NoAddressLeft where the subnets have nothing left, StateUnwritable.
        """
        with self._lock:
            before = dict(self._known)
            try:
                return {
                    family: (self._serve(choice, subject, who, family, catalogue, leases),) for family in choice.subnets
                }
            finally:  # of two families the first may have got its cut, and the second nothing
                if self._known != before:
                    leases.follow(catalogue, self.pools(catalogue), anew=True)

    def tidy(self, leases: Leases, catalogue: Catalogue) -> list[str]:
        """End the cuts that no lease is left of and that are to be reclaimed; returns their names."""
        with self._lock:
            used = {lease.pool for lease in leases.taken()}
            gone = [cut.name for cut in self._known.values() if cut.reclaim and cut.name not in used]
            for name in gone:
                self._journal.forget_cut(name)
                del self._known[name]
            if gone:
                leases.follow(catalogue, self.pools(catalogue), anew=True)
        return gone

    def _serve(
        self, choice: Choice, subject: Subject, who: Lease, family: int, catalogue: Catalogue, leases: Leases
    ) -> Pool:
        number = choice.number
        assert number is not None, "rule 1 always gives one"
        known = [lease for lease in leases.taken() if not _waits_for(lease, who)]
        application = "/".join((subject.application[0], subject.namespace, subject.application[1]))
        for subnet_name in choice.subnets[family]:
            subnet = catalogue.subnets[subnet_name]
            name = name_of(subject, who.ifname, family, subnet_name)
            held = sum(1 for lease in known if lease.pool == name)
            wanted = held + 1 + number.count if number.flexible else number.count
            cut = self._known.get(name)
            if cut is None:
                cut = Cut(name, subnet_name, family, application, (), number.count, number.flexible, choice.reclaim)
            cut = replace(cut, count=number.count, flexible=number.flexible, reclaim=choice.reclaim)
            if wanted > intervals.size(cut.ranges):
                occupied = intervals.union(self._occupied(catalogue, family, subnet_name))
                free = intervals.without(subnet.ranges, occupied)
                cut = replace(cut, ranges=fitted(cut.ranges, wanted, free, ()))
            if intervals.size(cut.ranges) > held or (cut.ranges and not number.flexible):
                if cut != self._known.get(name):
                    self._journal.put_cut(cut.row())
                    self._known[name] = cut
                return cut.pool(subnet)
        raise used_up(application, choice.subnets[family])

    def _occupied(self, catalogue: Catalogue, family: int, subnet: str) -> Iterator[tuple[int, int]]:
        """What pools, reservations and cuts of the family have of the subnet already."""
        for pool in catalogue.pools.values():
            if pool.family == family:
                yield from pool.ranges
        for cut in self._known.values():
            if cut.family == family:
                yield from cut.ranges
        for reserved in catalogue.reserved:
            yield from reserved.v4 if family == 4 else reserved.v6


def _waits_for(lease: Lease, who: Lease) -> bool:
    """Whether the address is kept for exactly this one."""
    return lease.state == KEPT and bool(who.keeper) and (lease.keeper, lease.ifname) == (who.keeper, who.ifname)
