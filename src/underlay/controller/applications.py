"""SpiderIPPools of applications' own: made, resized and removed as their pods come and go.

    pods with a subnet annotation ──by application, NIC, family──▶ a pool: as many addresses as pods, and N ("+N"), or N
    more are wanted                ──▶ the lowest addresses that no pool lists, no reservation has and nobody holds
    fewer are wanted for a while   ──▶ the highest that are not in use are taken out
    no pod, no lease, and the application is gone ──▶ the pool goes, where it is to be reclaimed

The pods that exist are counted, not the replicas that are wished for: a rollout has more of them, and every kind of
controller has pods. What was decided counts before the watch shows it, so two pools never get the same addresses.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from underlay.controller import writes
from underlay.controller.known import subject_of
from underlay.controller.upkeep import CIDR, cidr_label
from underlay.controller.views import OWNER
from underlay.controller.writes import FINALIZER
from underlay.errors import UnderlayError
from underlay.ipam.pools import intervals
from underlay.ipam.pools.applications import Asked, asked, fitted, name_of, used_up
from underlay.ipam.pools.objects import POOL, Pool, Reserved
from underlay.ipam.pools.written import ranges
from underlay.multus.lint_pools import OWNER_SUBNET

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from underlay.controller.known import Known
    from underlay.controller.watched import Document
    from underlay.controller.writes import Write
    from underlay.ipam.pools.intervals import Intervals
    from underlay.ipam.pools.objects import Subnet
    from underlay.ipam.pools.surroundings import Subject
    from underlay.kube.source import Log

_PREFIX: Final = "ipam.spidernet.io/"
RECLAIM: Final = f"{_PREFIX}ippool-reclaim"
APPLICATION: Final = "underlay.io/application"  # an annotation: a label has no room for every name
_GROUPS: Final = {
    "Pod": ("", "v1"), "ReplicationController": ("", "v1"), "Deployment": ("apps", "v1"), "ReplicaSet": ("apps", "v1"),
    "StatefulSet": ("apps", "v1"), "DaemonSet": ("apps", "v1"), "Job": ("batch", "v1"), "CronJob": ("batch", "v1"),
}  # fmt: skip
SHRINK_SECONDS: Final = 60.0
_SHOWN_SECONDS: Final = 30.0  # by then the watch has shown what was written, or it was not
_LABEL: Final = 63


@dataclass(slots=True)
class Need:
    """What the pods of one application need on one NIC in one family."""

    subject: Subject
    asked: Asked
    family: int
    pods: int = 0

    @property
    def application(self) -> str:
        """As Kind/namespace/name."""
        kind, name = self.subject.application
        return f"{kind}/{self.subject.namespace}/{name}"

    @property
    def size(self) -> int:
        """How many addresses the pool is to have."""
        number = self.asked.number
        return self.pods + number.count if number.flexible else number.count

    def name(self, subnet: str) -> str:
        """The pool's name in that subnet."""
        return name_of(self.subject, self.asked.nic, self.family, subnet)


def needs(known: Known) -> list[Need]:
    """What all pods need, in a fixed order. An annotation that is wrong is the affair of its pod's ADD. Pods that begin
    with the same subnet share its pool, whatever further ones they list.
    """
    found: dict[tuple[str, ...], Need] = {}
    for _, pod in sorted(known.pods.items()):
        subject = subject_of(pod)
        try:
            listed = asked(pod.annotations)
        except UnderlayError:
            continue
        for one in listed:
            for family, subnets in one.subnets.items():
                key = (*subject.application, pod.namespace, one.nic, str(family), subnets[0])
                need = found.setdefault(key, Need(subject, one, family))
                need.pods += 1
                if one.number.count > need.asked.number.count:  # while a rollout changes the number
                    need.asked = replace(need.asked, number=one.number)
                if len(subnets) > len(need.asked.subnets[family]):
                    need.asked = replace(need.asked, subnets=one.subnets)
    return [need for _, need in sorted(found.items())]


@dataclass(slots=True)
class _Decided:
    ranges: Intervals
    family: int
    at: float


@dataclass(slots=True)
class Plan:
    """What one look decides. ``idle``: pools that nobody needs, to be removed where their application is gone."""

    writes: list[Write] = field(default_factory=list)
    idle: list[Document] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Look:
    """What one look goes by: the picture, the addresses of each pool that are in use, and what is free of none."""

    known: Known
    used: Mapping[str, set[int]]
    occupied: Mapping[int, Intervals]


class Applications:
    """Used by one thread; it remembers what it has decided lately."""

    def __init__(
        self, log: Log, *, shrink: float = SHRINK_SECONDS, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._shrink = shrink
        self._monotonic = monotonic
        self._decided: dict[str, _Decided] = {}
        self._large: dict[str, float] = {}  # since when a pool has been larger than it need be
        self._told: set[str] = set()

    def plan(self, known: Known) -> Plan:
        """Decide for every application and every pool of one."""
        now = self._monotonic()
        self._decided = {name: one for name, one in self._decided.items() if now - one.at < _SHOWN_SECONDS}
        used: dict[str, set[int]] = {}
        for lease, _ in known.leases():
            used.setdefault(lease.pool, set()).add(lease.value)
        look = _Look(known, used, {family: _occupied(known, family) for family in (4, 6)})
        plan = Plan()
        needed: set[str] = set()
        wanting: set[str] = set()
        for need in needs(known):
            missing = self._serve(need, look, plan, needed)
            if missing > 0:
                wanting.add(need.application)
                if need.application not in self._told:
                    words = used_up(need.application, need.asked.subnets[need.family]).message
                    self._log("warn", words, missing=missing)
        self._told = wanting
        self._large = {name: since for name, since in self._large.items() if name in needed}
        plan.idle = [
            document for name, document in known.pools.items()
            if APPLICATION in document.metadata.annotations and name not in needed and name not in used
            and document.metadata.labels.get(RECLAIM) == "true" and not document.metadata.deletion_timestamp
        ]  # fmt: skip
        return plan

    # -- inside --------------------------------------------------------------------------------------------------------

    def _serve(self, need: Need, look: _Look, plan: Plan, needed: set[str]) -> int:
        """Plan what the need asks for, the next subnet where one is used up; returns how many addresses are missing.
        ``needed`` is told the pools that serve it.
        """
        listed = need.asked.subnets[need.family]
        subnets = [found for name in listed if (found := look.known.subnet(name)) is not None]
        missing = need.size if subnets else 0  # ADD says of a subnet that it is not there
        for subnet in subnets:
            name = need.name(subnet.name)
            if missing <= 0 or name in needed:  # of what another need begins with nothing is taken away
                continue
            if name not in look.known.pools and look.known.subnets[subnet.name].metadata.deletion_timestamp:
                continue
            document, pool = look.known.pools.get(name), look.known.pool(name)
            if document is not None and (pool is None or document.metadata.deletion_timestamp):
                needed.add(name)
                return 0  # it is made anew when it has gone; what cannot be read is not ours to mend
            before = self._decided[name].ranges if name in self._decided else pool.ranges if pool else ()
            after = self._sized(name, before, missing, self._free(subnet, look), look.used.get(name, set()))
            if not after:
                continue
            needed.add(name)
            missing -= intervals.size(after)
            if pool is not None and pool.ranges == after:
                self._decided.pop(name, None)
                continue
            if name not in self._decided or self._decided[name].ranges != after:
                self._decided[name] = _Decided(after, need.family, self._monotonic())
            if document is None:
                plan.writes.append(_creation(need, subnet, after))
            else:
                change = {"spec": {"ips": ranges(need.family, after)}}
                plan.writes.append(writes.patch(writes.POOLS, document, change, part="ips", version=True))
        return missing

    def _sized(self, name: str, have: Intervals, size: int, free: Intervals, used: Collection[int]) -> Intervals:
        now = self._monotonic()
        if intervals.size(have) <= size:
            self._large.pop(name, None)
        elif now - self._large.setdefault(name, now) < self._shrink:
            return have
        return fitted(have, size, free, used)

    def _free(self, subnet: Subnet, look: _Look) -> Intervals:
        """What nobody has of the subnet, nor is going to have."""
        decided = (part for one in self._decided.values() if one.family == subnet.family for part in one.ranges)
        return intervals.without(subnet.ranges, intervals.union((*look.occupied[subnet.family], *decided)))


def _occupied(known: Known, family: int) -> Intervals:
    """What pools list, reservations have and leases hold."""
    read = known.read.values()
    pools = (part for one in read if isinstance(one, Pool) and one.family == family for part in one.ranges)
    reserved = (one.v4 if family == 4 else one.v6 for one in read if isinstance(one, Reserved))
    held = ((lease.value, lease.value) for lease, _ in known.leases() if lease.family == family)
    return intervals.union((*pools, *(part for several in reserved for part in several), *held))


def application_of(document: Document) -> tuple[str, str, str]:
    """Kind, namespace and name of the application that a pool is for."""
    kind, _, rest = document.metadata.annotations.get(APPLICATION, "").partition("/")
    namespace, _, name = rest.partition("/")
    return kind, namespace, name


def _creation(need: Need, subnet: Subnet, of: Intervals) -> Write:
    kind, name = need.subject.application
    group, version = _GROUPS.get(kind, ("", ""))
    owner = {"gv": f"{group}_{version}" if group else version, "kind": kind, "name": name,
             "namespace": need.subject.namespace}  # fmt: skip
    if need.subject.owner is not None and need.subject.owner.kind == kind and need.subject.owner.uid:
        owner["uid"] = need.subject.owner.uid
    labels = {f"{OWNER}{key}": _label(value) for key, value in owner.items()}
    labels |= {
        OWNER_SUBNET: _label(subnet.name), CIDR: cidr_label(subnet), RECLAIM: str(need.asked.reclaim).lower(),
        f"{_PREFIX}ip-version": f"IPv{need.family}", f"{_PREFIX}interface": _label(need.asked.nic),
    }  # fmt: skip
    app = {"api-group": group, "api-version": version, "kind": kind, "namespace": need.subject.namespace, "name": name}
    spec: dict[str, Any] = {
        "ipVersion": need.family, "subnet": str(subnet.subnet), "ips": ranges(need.family, of), "vlan": subnet.vlan,
        "routes": [{"dst": route.dst, "gw": route.gw} for route in subnet.routes],
        "podAffinity": {"matchLabels": {f"{_PREFIX}app-{key}": value for key, value in app.items()}},
        "default": False, "disable": False,
    }  # fmt: skip
    spec |= {"gateway": subnet.gateway} if subnet.gateway else {}
    metadata = {
        "name": need.name(subnet.name), "labels": labels, "finalizers": [FINALIZER],
        "annotations": {APPLICATION: need.application},
    }  # fmt: skip
    return writes.create(writes.POOLS, POOL, metadata, spec=spec)


def _label(value: str) -> str:
    """As much of it as a label's value holds, which ends in a letter or digit."""
    return value[:_LABEL].rstrip("-_.")
