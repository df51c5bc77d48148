"""Pools of applications' own, cut from SpiderSubnets: their names and sizes, whoever makes them.

    no cluster    the node cuts them itself                 :mod:`cuts`
    a cluster     the controller makes SpiderIPPools        the node finds them by name: :class:`MadePools`

A name holds the NIC. The annotation "subnet" names none (the pod's first NIC that asks), and the controller cannot know
which that is: in a cluster such a pool is named after eth0.
"""

from __future__ import annotations

import hashlib
import re
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from underlay.errors import NoAddressLeft, TryAgain
from underlay.ipam.pools import intervals, wishes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from underlay.ipam.pools.choose import Choice
    from underlay.ipam.pools.intervals import Intervals
    from underlay.ipam.pools.lease import Lease
    from underlay.ipam.pools.leases import Leases
    from underlay.ipam.pools.objects import Pool
    from underlay.ipam.pools.surroundings import Catalogue, Subject
    from underlay.ipam.pools.wishes import Number

FIRST_NIC: Final = "eth0"
_LOOK_SECONDS: Final = 0.05
_UNNAMEABLE: Final = re.compile(r"[^a-z0-9-]")  # in one label of an object's name


class ApplicationPools(Protocol):
    """Where a pod's application has its pools. Thread-safe. ``patience``: how long an ADD waits for them, seconds."""

    patience: float

    def pools(self, catalogue: Catalogue) -> list[Pool]:
        """Those that the catalogue does not hold."""

    def choosing(self) -> AbstractContextManager[None]:
        """No pool ends between :meth:`serve` and the taking of an address from it."""

    def follow(self, catalogue: Catalogue, leases: Leases) -> None:
        """From now on these pools count."""

    def serve(
        self, choice: Choice, subject: Subject, who: Lease, catalogue: Catalogue, leases: Leases
    ) -> Mapping[int, tuple[Pool, ...]]:
        """The pools, by family, of the pod's application."""

    def pause(self) -> None:
        """Pass the time between two looks for a pool that is waited for."""

    def tidy(self, leases: Leases, catalogue: Catalogue) -> list[str]:
        """End pools that nobody needs any more; returns their names."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a pod's annotations ask for on one NIC: the subnets of each family in their order, the pool's size, and
    whether the pool goes with the application.
    """

    nic: str
    subnets: Mapping[int, tuple[str, ...]]
    number: Number
    reclaim: bool


class _Nic(msgspec.Struct):
    interface: str | None = None


def name_of(subject: Subject, nic: str, family: int, subnet: str) -> str:
    """The name of the pool of the pod's application for a NIC in one subnet: what is held of a pool keeps its prefix
    and gateway when the application goes on in another.
    """
    kind, name = subject.application
    digest = hashlib.sha256(f"{kind}/{subject.namespace}/{name}/{nic}/{subnet}".encode()).hexdigest()[:8]
    return _UNNAMEABLE.sub("-", f"auto{family}-{name[:40]}-{nic}-{digest}".lower())


def asked(annotations: Mapping[str, str]) -> list[Asked]:
    """Everything that a pod asks subnets for. Raises InvalidAnnotation."""
    if not annotations.get(wishes.SUBNETS) and not annotations.get(wishes.SUBNET):
        return []
    number, reclaim = wishes.number(annotations), wishes.reclaim(annotations)
    found: list[Asked] = []
    for nic in _nics(annotations):
        named = wishes.subnets(annotations, nic, first=True)
        if named is not None:
            by_family = {family: names for family, names in ((4, named.v4), (6, named.v6)) if names}
            found.append(Asked(nic, by_family, number, reclaim))
    return found


def nic_of(annotations: Mapping[str, str], ifname: str) -> str:
    """The NIC in the name of the pool that the controller makes for the pod's NIC ``ifname``."""
    return ifname if ifname in _nics(annotations) else FIRST_NIC


def fitted(have: Intervals, wanted: int, free: Intervals, used: Iterable[int]) -> Intervals:
    """A pool's addresses once it has ``wanted`` of them, or as many as it can: the lowest of ``free`` are added, the
    highest that are not in use are taken away.
    """
    missing = wanted - intervals.size(have)
    if missing >= 0:
        return intervals.union((*have, *intervals.first(intervals.without(free, have), missing)))
    held = intervals.common(have, intervals.union((value, value) for value in set(used)))
    spare = intervals.without(have, held)
    left = max(0, wanted - intervals.size(held))
    return intervals.union((*held, *intervals.first(spare, left)))


class MadePools:
    """An :class:`ApplicationPools` of a cluster: the controller makes them, and they are pools like others. It begins
    when the first pod is made, which is some time before that pod's ADD. ``blocking`` lends the caller's place in its
    thread pool while it waits: an application has many pods.
    """

    patience = 3.0

    def __init__(self, blocking: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self._blocking = blocking

    def pause(self) -> None:
        """Between two looks."""
        with self._blocking():
            time.sleep(_LOOK_SECONDS)

    def pools(self, catalogue: Catalogue) -> list[Pool]:
        """None beside the catalogue's."""
        return []

    @contextmanager
    def choosing(self) -> Iterator[None]:
        """The controller ends no pool that something is held of."""
        yield

    def follow(self, catalogue: Catalogue, leases: Leases) -> None:
        """From now on these pools count."""
        leases.follow(catalogue)

    def serve(
        self, choice: Choice, subject: Subject, who: Lease, catalogue: Catalogue, leases: Leases
    ) -> Mapping[int, tuple[Pool, ...]]:
        """The pools that the controller has made. Raises TryAgain for a family of which there is none yet."""
        nic = nic_of(subject.annotations, who.ifname)
        found: dict[int, tuple[Pool, ...]] = {}
        for family, subnets in choice.subnets.items():
            names = [name_of(subject, nic, family, subnet) for subnet in subnets]
            made = (catalogue.pools[name] for name in names if name in catalogue.pools)
            found[family] = tuple(pool for pool in made if not pool.terminating and not pool.disabled)
            if not found[family]:
                raise TryAgain(
                    f"SpiderIPPool {names[0]!r}, to be cut from SpiderSubnet {subnets[0]!r}, is not there yet",
                    hint="The controller makes it; see its log where it does not: the subnet may be used up.",
                )
        return found

    def tidy(self, leases: Leases, catalogue: Catalogue) -> list[str]:
        """That is the controller's affair."""
        return []


def used_up(application: str, subnets: Iterable[str]) -> NoAddressLeft:
    """There is nothing to cut from."""
    return NoAddressLeft(
        f"no address is left to cut for {application} from {', '.join(subnets)}",
        hint="Enlarge the SpiderSubnet, or delete pools that were cut from it.",
    )


def _nics(annotations: Mapping[str, str]) -> list[str]:
    """The NICs that the annotations name, FIRST_NIC where they name none."""
    written = annotations.get(wishes.SUBNETS)
    if not written:
        return [FIRST_NIC]
    try:
        listed = msgspec.json.decode(written, type=list[_Nic], strict=False)
    except msgspec.DecodeError:
        return [FIRST_NIC]  # whoever reads the annotation as a whole says what is wrong with it
    return list(dict.fromkeys(one.interface or FIRST_NIC for one in listed))
