"""Carries an undo log out: newest first, exactly, in one batch a namespace, and as often as one likes.

What is missing is no fault, and what is not ours stays: links are matched by MAC or kind, routes and rules by
rtm_protocol, neighbours by MAC. All links of a namespace go in one kernel wait (16-32 ms each otherwise).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from underlay.errors import KernelError
from underlay.net import addr, link, neigh, route, route_copy, rule, vf_restore
from underlay.net.netlink import Malformed, Message, pack_cidr, unpack_address
from underlay.net.undo import (
    DropAddress,
    DropIdleRule,
    DropLink,
    DropNeighbour,
    DropRoute,
    DropRule,
    PutRoute,
    RestoreMac,
    RestoreVf,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from underlay.net.netns import Namespace
    from underlay.net.rtnl import Rtnl

# The object, or what it hung on, is gone.
_MISSING = frozenset((errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.ENXIO, errno.EADDRNOTAVAIL))
# The route is back already, or its device or gateway is down or gone, so that the kernel would have dropped it by now.
_NO_USE = _MISSING | {errno.EEXIST, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN}


class Stuck(NamedTuple):
    """What the kernel refused, and the entries that are still to be carried out for that."""

    error: KernelError
    entries: tuple[msgspec.Struct, ...]


def replay(entries: Sequence[msgspec.Struct], *, host: Namespace, pod: Namespace | None) -> list[Stuck]:
    """Undo the entries, newest first; returns what the kernel refused. Entries of other layers are passed over.

    ``pod`` None: the namespace is gone, and all that was in it. The pod goes first: a veth's end on the host goes with
    its peer, in the same kernel wait.
    """
    failed: list[Stuck] = []
    newest_first = entries[::-1]
    for ns, where in ((pod, "pod"), (host, "host")):
        mine = [entry for entry in newest_first if getattr(entry, "where", "") == where]
        if ns is not None and mine:
            failed += _replay_in(ns.rtnl, mine)
    for entry in dict.fromkeys(newest_first):
        if isinstance(entry, RestoreVf):
            failed += [Stuck(error, (entry,)) for error in vf_restore.restore(entry, host=host, pod=pod)]
    return failed


class _Step(msgspec.Struct, frozen=True):
    """One message, the errnos that mean there was nothing to do, and the entries that it carries out."""

    message: Message
    tolerated: frozenset[int]
    entries: tuple[msgspec.Struct, ...]


def _replay_in(rtnl: Rtnl, entries: Sequence[msgspec.Struct]) -> list[Stuck]:
    failed: list[Stuck] = []
    try:
        links = _links(rtnl, entries)
        steps = _steps(rtnl, entries, links, failed)
        steps += _deletions(entries, links)
        refused = rtnl.failures([step.message for step in steps])
    except KernelError as error:  # nobody knows how far it came
        return [*failed, Stuck(error, tuple(entries))]
    for position, refusal in refused.items():
        if refusal.errno not in steps[position].tolerated:
            failed.append(Stuck(refusal, steps[position].entries))
    for entry in dict.fromkeys(entries):
        if isinstance(entry, DropIdleRule):
            failed += [Stuck(refusal, (entry,)) for refusal in _drop_idle(rtnl, entry)]
    return failed


def _deletions(entries: Sequence[msgspec.Struct], links: dict[str, link.Link]) -> list[_Step]:
    """What deletes the links, all in the last message; one before it, where there are any, concerns one link."""
    doomed: dict[int, list[msgspec.Struct]] = {}
    for index, entry in _doomed(entries, links):
        doomed.setdefault(index, []).append(entry)
    every = tuple(entry for some in doomed.values() for entry in some)
    messages = link.group_deletion(list(doomed))
    single = [tuple(some) for some in doomed.values()] if len(messages) > 1 else []
    return [_Step(message, _MISSING, of) for message, of in zip(messages, [*single, every], strict=False)]


def _drop_idle(rtnl: Rtnl, entry: DropIdleRule) -> list[KernelError]:
    family = rule.numeric_family(entry.family)
    shared = DropRule(entry.where, entry.family, entry.table, priority=entry.priority)
    try:
        if route.dump(rtnl, family=family, table=entry.table):
            return []
        deletion = _Rules(rtnl).deletion(shared)
        if deletion is None:
            return []
        rtnl.batch((deletion,), tolerate=_MISSING)
        if route.dump(rtnl, family=family, table=entry.table):  # of an attachment that found the rule still there
            again = rule.add(family=family, table=entry.table, priority=entry.priority)
            rtnl.batch((again,), tolerate=frozenset((errno.EEXIST,)))
    except KernelError as error:
        return [error]
    return []


def _links(rtnl: Rtnl, entries: Iterable[msgspec.Struct]) -> dict[str, link.Link]:
    """The links that the entries name and that exist, in one send."""
    names = {getattr(entry, "name", "") or getattr(entry, "dev", "") for entry in entries} - {""}
    ordered = sorted(names)
    found = link.get_many(rtnl, ordered)
    return {name: each for name, each in zip(ordered, found, strict=True) if each is not None}


def _doomed(entries: Iterable[msgspec.Struct], links: dict[str, link.Link]) -> Iterable[tuple[int, msgspec.Struct]]:
    """The indexes of the links to delete, each with an entry that wants it: those that have the MAC, or will once the
    changes after it are undone.
    """
    macs = {name: [found.mac] for name, found in links.items()}
    for entry in entries:
        if isinstance(entry, RestoreMac) and macs.get(entry.name, [""])[-1] == entry.new.lower():
            macs[entry.name].append(entry.old.lower())
        if isinstance(entry, DropLink) and entry.name in links:
            found = links[entry.name]
            mine = entry.mac.lower() in macs[found.name] if entry.mac else entry.kind and found.kind == entry.kind
            if mine:
                yield found.index, entry


def _steps(
    rtnl: Rtnl, entries: Iterable[msgspec.Struct], links: dict[str, link.Link], failed: list[Stuck]
) -> list[_Step]:
    """What undoes all but the links, in the order of the entries; unusable entries are added to ``failed``."""
    steps: list[_Step] = []
    rules = _Rules(rtnl)
    neighbours = _neighbours(rtnl, entries, links)
    for entry in entries:
        try:
            if isinstance(entry, DropRule):
                message = rules.deletion(entry)
            elif isinstance(entry, DropNeighbour):
                message = _neighbour_deletion(entry, links, neighbours)
            elif isinstance(entry, RestoreMac):
                message = _mac_change(entry, links)
            else:
                message = _located(entry, links)
        except (ValueError, Malformed) as error:
            failed.append(Stuck(KernelError(f"undo {entry!r}", errno.EINVAL, str(error)), (entry,)))
            continue
        if message is not None:
            steps.append(_Step(message, _NO_USE if isinstance(entry, PutRoute) else _MISSING, (entry,)))
    return steps


def _located(entry: msgspec.Struct, links: dict[str, link.Link]) -> Message | None:
    """The message for a route or an address; None when its device is gone, and the object with it."""
    if not isinstance(entry, DropRoute | PutRoute | DropAddress):
        return None
    if entry.dev and entry.dev not in links:
        return None
    index = links[entry.dev].index if entry.dev else 0
    if isinstance(entry, DropRoute):
        return route.delete(entry.dst, dev=index, via=entry.gw, table=entry.table)
    if isinstance(entry, PutRoute):
        return route_copy.put(bytes.fromhex(entry.message), index)
    return addr.delete(index, entry.address)


def _mac_change(entry: RestoreMac, links: dict[str, link.Link]) -> Message | None:
    found = links.get(entry.name)
    if found is None or found.mac != entry.new.lower():
        return None
    return link.change(index=found.index, mac=entry.old)


def _neighbours(
    rtnl: Rtnl, entries: Iterable[msgspec.Struct], links: dict[str, link.Link]
) -> dict[tuple[int, str], neigh.Neighbour]:
    """The neighbour entries that the undo entries name and that exist, by device and address, in one send."""
    wanted = {
        (links[entry.dev].index, entry.dst)
        for entry in entries
        if isinstance(entry, DropNeighbour) and entry.dev in links
    }
    keys = sorted(wanted)
    found: dict[tuple[int, str], neigh.Neighbour] = {}
    for key, answer in zip(keys, rtnl.requests([neigh.get_message(*key) for key in keys]), strict=True):
        if isinstance(answer, bytes):
            found[key] = neigh.parse(answer)
        elif answer.errno not in _MISSING:
            raise answer
    return found


def _neighbour_deletion(
    entry: DropNeighbour, links: dict[str, link.Link], neighbours: dict[tuple[int, str], neigh.Neighbour]
) -> Message | None:
    if entry.dev not in links:
        return None
    found = neighbours.get((links[entry.dev].index, entry.dst))
    if found is None or not found.permanent or found.mac != entry.mac.lower():
        return None
    return neigh.delete(found.index, entry.dst)


class _Rules:
    """The rules of a namespace, read when the first is to be deleted.

    The kernel's own matching takes what is left out for "any": without reading first, undoing "from all lookup 500"
    could delete "from 10.0.0.5 lookup 500".
    """

    def __init__(self, rtnl: Rtnl) -> None:
        self._rtnl = rtnl
        self._families: dict[int, list[rule.Rule]] = {}

    def deletion(self, entry: DropRule) -> Message | None:
        """The message that deletes exactly one rule equal to the entry; None when there is none. Raises KernelError."""
        family = rule.numeric_family(entry.family)
        if family not in self._families:
            self._families[family] = rule.dump(self._rtnl, family)
        left = self._families[family]
        src, dst = _canonical(entry.src), _canonical(entry.dst)
        for found in left:
            if _is_ours(found, entry) and (found.src, found.dst) == (src, dst):
                left.remove(found)
                return rule.delete(family=family, table=found.table, src=src, dst=dst, priority=found.priority)
        return None


def _is_ours(found: rule.Rule, entry: DropRule) -> bool:
    return (
        found.plain
        and found.protocol == route.PROTOCOL
        and found.table == entry.table
        and entry.priority in (None, found.priority)
    )


def _canonical(selector: str) -> str:
    """A selector as the kernel shows it. Raises ValueError."""
    if not selector:
        return ""
    _, packed, length = pack_cidr(selector)
    return f"{unpack_address(packed)}/{length}" if length else ""
