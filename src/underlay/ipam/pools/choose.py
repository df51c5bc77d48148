"""Which pools a NIC is to get its addresses from, in which order, and why: pure.

    1 subnet annotation   2 pool annotation   3 namespace's defaults   4 configuration's defaults   5 "default: true"
      the first that says anything decides, for both families

Of what it names, a pool is left out that is being deleted, disabled, or whose demands on pod, node, namespace or
network are not met. Pools named one by one keep their order: the second is the fallback of the first. Where a pattern
or rule 5 names several, those come first that demand something of the pod, then of the node, the namespace, the
network; of two that demand the same kind of thing, the one that demands more; then by name.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from underlay.errors import PoolMissing
from underlay.ipam.pools import wishes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from underlay.cni.result import Route
    from underlay.ipam.pools.objects import Pool
    from underlay.ipam.pools.surroundings import Catalogue, Node, Subject
    from underlay.ipam.pools.wishes import Named, Number

CONFIGURATION: Final = "ipam"
CLUSTER: Final = "pools with default: true"


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked for: addresses for one NIC of a pod.

    ``first``: no other NIC of the pod has addresses from pools. ``network`` is the NetworkAttachmentDefinition
    ("namespace/name"), ``v4`` and ``v6`` the configuration's default pools.
    """

    subject: Subject
    ifname: str
    first: bool = True
    network: str = ""
    v4: tuple[str, ...] = ()
    v6: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """One pool and why it may be used ("" for no objection) or not. ``named``: the rule that decided named it."""

    pool: str
    family: int
    objection: str = ""
    named: bool = True


@dataclass(frozen=True, slots=True)
class Choice:
    """The outcome. ``rule`` says what decided; ``pools`` holds, by family (4 before 6), the names in the order to try
    them; every family in it is to get an address. With rule 1 ``subnets`` stands in their place, and ``number`` and
    ``reclaim`` count. ``verdicts`` covers every pool there is.
    """

    rule: str
    pools: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    subnets: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    number: Number | None = None
    reclaim: bool = True
    clean_gateway: bool = False
    routes: tuple[Route, ...] = ()
    verdicts: tuple[Verdict, ...] = ()


def choose(ask: Ask, catalogue: Catalogue) -> Choice:
    """Decide. Raises PoolMissing where what is named is not there or no pool suits, InvalidAnnotation."""
    subject = ask.subject
    routes = wishes.routes(subject.annotations)
    cut = wishes.subnets(subject.annotations, ask.ifname, first=ask.first)
    if cut is not None:
        return _subnets(cut, subject, catalogue, routes)
    named = _named(ask)
    suits = Suits(ask, catalogue.node)
    if named is None:
        return _defaults(suits, catalogue, routes)
    chosen: dict[int, tuple[str, ...]] = {}
    looked: list[Verdict] = []
    for family, patterns in ((4, named.v4), (6, named.v6)):
        if patterns:
            candidates = _expand(patterns, family, named.at, catalogue)
            judged = [Verdict(pool.name, family, suits.objection(pool)) for pool in candidates]
            looked += judged
            chosen[family] = tuple(one.pool for one in judged if not one.objection)
    verdicts = _complete(looked, catalogue, f'"{named.at}" does not name it')
    choice = Choice(named.at, chosen, clean_gateway=named.clean_gateway, routes=routes, verdicts=verdicts)
    return _checked(choice, catalogue)


def _named(ask: Ask) -> Named | None:
    """What rule 2, 3 or 4 names."""
    found = wishes.pools(ask.subject.annotations, ask.ifname, first=ask.first)
    found = found or wishes.defaults(ask.subject.namespace_annotations)
    if found is None and (ask.v4 or ask.v6):
        found = wishes.Named(f"{CONFIGURATION}.default_ipv{4 if ask.v4 else 6}_ippool", ask.v4, ask.v6)
    return found


def _defaults(suits: Suits, catalogue: Catalogue, routes: tuple[Route, ...]) -> Choice:
    """Rule 5. A family none of whose default pools suits goes without, unless that leaves none."""
    default = [pool for pool in catalogue.pools.values() if pool.default]
    verdicts = [Verdict(pool.name, pool.family, suits.objection(pool)) for pool in ranked(default)]
    chosen = {
        family: names
        for family in (4, 6)
        if (names := tuple(one.pool for one in verdicts if one.family == family and not one.objection))
    }
    judged = _complete(verdicts, catalogue, "it is no default pool, and nothing names it")
    if not default:
        raise PoolMissing(
            "nothing names a pool, and no pool has default: true" + _unread(catalogue),
            hint='Annotate the pod or its namespace, name pools in "ipam.default_ipv4_ippool", or make one a default.',
        )
    return _checked(Choice(CLUSTER, chosen or {4: ()}, routes=routes, verdicts=judged), catalogue)


def _checked(choice: Choice, catalogue: Catalogue) -> Choice:
    for family, names in choice.pools.items():
        if not names:
            objections = "; ".join(
                f"{one.pool}: {one.objection}"
                for one in choice.verdicts
                if one.objection
                and not one.objection.startswith("not ")
                and (choice.rule == CLUSTER or one.family == family)
            )
            which = "default pool" if choice.rule == CLUSTER else f'IPv{family} pool of "{choice.rule}"'
            raise PoolMissing(f"no {which} suits: {objections}" + _unread(catalogue))
    return choice


def _subnets(named: Named, subject: Subject, catalogue: Catalogue, routes: tuple[Route, ...]) -> Choice:
    for family, names in ((4, named.v4), (6, named.v6)):
        for name in names:
            found = catalogue.subnets.get(name)
            if found is None or found.family != family:
                raise _missing(f"SpiderSubnet {name!r}", found is not None, family, named.at, catalogue)
    return Choice(
        rule=named.at,
        subnets={family: names for family, names in ((4, named.v4), (6, named.v6)) if names},
        number=wishes.number(subject.annotations),
        reclaim=wishes.reclaim(subject.annotations),
        routes=routes,
        verdicts=_complete((), catalogue, f'"{named.at}" asks for a pool of the application\'s own'),
    )


def _expand(patterns: Sequence[str], family: int, at: str, catalogue: Catalogue) -> list[Pool]:
    """The pools that the patterns name, each once, at its first place."""
    found: dict[str, Pool] = {}
    for pattern in patterns:
        if "*" not in pattern:
            pool = catalogue.pools.get(pattern)
            if pool is None or pool.family != family:
                raise _missing(f"SpiderIPPool {pattern!r}", pool is not None, family, at, catalogue)
            found.setdefault(pattern, pool)
            continue
        matching = [
            pool
            for name, pool in catalogue.pools.items()
            if pool.family == family and fnmatch.fnmatchcase(name, pattern.replace("[", "[[]"))
        ]
        if not matching:
            raise _missing(f"SpiderIPPool like {pattern!r}", False, family, at, catalogue)
        for pool in ranked(matching):
            found.setdefault(pool.name, pool)
    return list(found.values())


def _missing(what: str, other_family: bool, family: int, at: str, catalogue: Catalogue) -> PoolMissing:
    words = f"is of IPv{10 - family}, not IPv{family}" if other_family else "does not exist"
    return PoolMissing(f'{what}, named by "{at}", {words}' + ("" if other_family else _unread(catalogue)))


def _unread(catalogue: Catalogue) -> str:
    if not catalogue.faults:
        return ""
    return f" among what can be read, and {len(catalogue.faults)} cannot be read: {catalogue.faults[0]}"


def _complete(verdicts: Iterable[Verdict], catalogue: Catalogue, otherwise: str) -> tuple[Verdict, ...]:
    """The verdicts, and one for every pool that was never looked at."""
    judged = tuple(verdicts)
    seen = {one.pool for one in judged}
    rest = (pool for name, pool in sorted(catalogue.pools.items()) if name not in seen)
    return judged + tuple(Verdict(pool.name, pool.family, otherwise, named=False) for pool in rest)


def ranked(pools: Iterable[Pool]) -> list[Pool]:
    """In the order to try them."""
    return sorted(pools, key=_rank)


def _rank(pool: Pool) -> tuple[object, ...]:
    """Small comes first."""
    pod, node, namespace = pool.pod_affinity, pool.node_affinity, pool.namespace_affinity
    return (
        -(pod.specific if pod else 0),
        not pool.node_names,
        -(node.specific if node else 0),
        not pool.namespace_names,
        -(namespace.specific if namespace else 0),
        not pool.multus_names,
        pool.name,
    )


class Suits:
    """Judges pools for one ask."""

    def __init__(self, ask: Ask, node: Node) -> None:
        self._ask = ask
        self._node = node

    def objection(self, pool: Pool) -> str:
        """Why the pool cannot serve the ask; "" where nothing speaks against it."""
        if pool.terminating:
            return "it is being deleted"
        if pool.disabled:
            return "it is disabled (spec.disable)"
        tests: tuple[Callable[[Pool], str], ...] = (self._of_node, self._of_namespace, self._of_pod, self._of_network)
        return next((words for test in tests if (words := test(pool))), "")

    def _of_node(self, pool: Pool) -> str:
        if pool.node_names:
            named = self._node.name in pool.node_names
            return "" if named else f"nodeName does not list this node, {self._node.name!r}"
        unmet = pool.node_affinity.unmet(self._node.labels) if pool.node_affinity else ""
        return f"node {self._node.name!r} does not meet nodeAffinity {unmet}" if unmet else ""

    def _of_namespace(self, pool: Pool) -> str:
        subject = self._ask.subject
        if pool.namespace_names:
            named = subject.namespace in pool.namespace_names
            return "" if named else f"namespaceName does not list {subject.namespace!r}"
        unmet = pool.namespace_affinity.unmet(subject.namespace_labels) if pool.namespace_affinity else ""
        return f"namespace {subject.namespace!r} does not meet namespaceAffinity {unmet}" if unmet else ""

    def _of_pod(self, pool: Pool) -> str:
        unmet = pool.pod_affinity.unmet(self._ask.subject.labels) if pool.pod_affinity else ""
        return f"the pod does not meet podAffinity {unmet}" if unmet else ""

    def _of_network(self, pool: Pool) -> str:
        """A bare name in multusName counts for a network of that name in any namespace."""
        network = self._ask.network
        if not pool.multus_names or network in pool.multus_names:
            return ""
        if "/" in network and network.partition("/")[2] in pool.multus_names:
            return ""
        return f"multusName does not list the network {network!r}"
