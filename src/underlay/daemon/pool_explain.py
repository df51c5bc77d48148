"""Why a NIC of a pod gets its addresses from the pools that it does: the choice that ADD makes, told pool by pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from underlay.cni.config import parse_network
from underlay.errors import InvalidConfig, NetworkMissing, PoolMissing
from underlay.ipam.pools import section as sections
from underlay.ipam.pools.choose import Ask, Suits, choose, ranked

if TYPE_CHECKING:
    from collections.abc import Callable

    from underlay.ipam.pools.choose import Choice
    from underlay.ipam.pools.objects import Pool
    from underlay.ipam.pools.surroundings import Catalogue, Surroundings
    from underlay.kube.source import Source


class Nic(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is asked: ``network`` "namespace/name" of a NetworkAttachmentDefinition, whose configuration may name pools;
    ``second``: another NIC of the pod has addresses of pools already.
    """

    pod: str
    ifname: str = "eth0"
    network: str = ""
    second: bool = False


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One pool. ``place``: as which it is tried, from 1 on, 0 where it is not; ``why`` it is not; ``free`` is how many
    addresses are free, -1 where nobody was asked.
    """

    pool: str
    family: int
    place: int = 0
    why: str = ""
    free: int = -1


class Explained(msgspec.Struct, frozen=True, omit_defaults=True):
    """``rule`` decided, or ``fault`` says why nothing could. ``known``: the pod's object was found. ``unread`` are the
    files that cannot be read, ``cut`` the subnets that a pool of the application's own is cut from.
    """

    pod: str
    ifname: str
    rule: str = ""
    fault: str = ""
    known: bool = True
    lines: tuple[Line, ...] = ()
    cut: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


def explain(
    nic: Nic, surroundings: Surroundings, source: Source, deadline: float, room: Callable[[Pool], int] | None = None
) -> Explained:
    """Decide as ADD does. ``room`` counts a pool's free addresses. Raises InvalidConfig, InvalidAnnotation,
    NetworkMissing, TryAgain.
    """
    namespace, slash, name = nic.pod.partition("/")
    if not slash or not name:
        raise InvalidConfig(f"{nic.pod[:120]!r} is no pod", hint="Write NAMESPACE/POD.")
    section = _section(nic.network, source, deadline)
    catalogue = surroundings.catalogue()
    subject = surroundings.subject(namespace, name, "", deadline)
    v4, v6 = (section.v4, section.v6) if section else ((), ())
    ask = Ask(subject, nic.ifname, not nic.second, nic.network, v4, v6)
    try:
        choice = choose(ask, catalogue)
    except PoolMissing as error:
        suits = Suits(ask, catalogue.node)
        pools = ranked(catalogue.pools.values())
        lines = [_line(one, 0, suits.objection(one) or "nothing names it", room) for one in pools]
        return Explained(
            nic.pod, nic.ifname, fault=error.message, known=subject.known, lines=tuple(lines), unread=catalogue.faults
        )
    return Explained(
        nic.pod,
        nic.ifname,
        choice.rule,
        known=subject.known,
        lines=tuple(_lines(choice, catalogue, room)),
        cut=tuple(name for names in choice.subnets.values() for name in names),
        unread=catalogue.faults,
    )


def _section(network: str, source: Source, deadline: float) -> sections.Section | None:
    """What the network's own configuration says of pools."""
    if not network:
        return None
    namespace, slash, name = network.partition("/")
    if not slash or not name:
        raise InvalidConfig(f"{network[:120]!r} is no network", hint="Write NAMESPACE/NAME.")
    found = source.network(namespace, name, deadline)
    if found is None:
        raise NetworkMissing(f"network {network} is not defined")
    plugins = parse_network(found.config.encode(), name=name).plugins if found.config else ()
    return next((sections.read(conf) for conf in plugins if conf.ipam_type == sections.NAME), None)


def _lines(choice: Choice, catalogue: Catalogue, room: Callable[[Pool], int] | None) -> list[Line]:
    places = {name: n for names in choice.pools.values() for n, name in enumerate(names, 1)}
    return [_line(catalogue.pools[one.pool], places.get(one.pool, 0), one.objection, room) for one in choice.verdicts]


def _line(pool: Pool, place: int, why: str, room: Callable[[Pool], int] | None) -> Line:
    return Line(pool.name, pool.family, place, why, -1 if room is None else room(pool))
