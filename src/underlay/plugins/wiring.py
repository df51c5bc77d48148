"""Routes, rules and neighbours of an attachment, written down as what would drop them again.

The entries of the undo log say exactly which object each takes away, so a list of them is also the plan: lay it into
the kernel for ADD, compare it with the kernel for CHECK, replay it for a DEL that has no ledger to look into.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from underlay.net import neigh, route, rule
from underlay.net.undo import DropNeighbour, DropRoute, DropRule

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from underlay.net.netlink import Message
    from underlay.net.netns import Namespace
    from underlay.net.rule import Rule
    from underlay.net.undo import Where

Piece = DropNeighbour | DropRoute | DropRule

# Priorities of the rules in a pod: a cluster destination decides before the source does, so that a NIC other than the
# first can answer a pod of the cluster; a NIC's subnet decides last.
TO_CLUSTER: Final = 1000
FROM_ADDRESS: Final = 1100
TO_SUBNET: Final = 1200
# The node's rule, for all its pods.
NODE_RULE: Final = 1000

# What a deletion may answer when the object, or what it hung on, is gone.
MISSING: Final = frozenset({errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL})


def of(pieces: Sequence[Piece], where: Where) -> list[Piece]:
    """The pieces that belong on the node, or in the pod."""
    return [piece for piece in pieces if piece.where == where]


def messages(pieces: Sequence[Piece], devices: Mapping[str, int]) -> list[Message]:
    """What makes the pieces, ``devices`` being the indexes of the links they name.

    On the node an object of a dead pod may be in the way: it is replaced. In a pod nothing may be.
    """
    return [_message(piece, devices) for piece in pieces]


def _message(piece: Piece, devices: Mapping[str, int]) -> Message:
    if isinstance(piece, DropNeighbour):
        return neigh.replace(index=devices[piece.dev], address=piece.dst, mac=piece.mac)
    if isinstance(piece, DropRoute):
        return route.add(
            piece.dst, dev=devices[piece.dev], via=piece.gw, table=piece.table, replace=piece.where == "host"
        )
    return rule.add(family=piece.family, table=piece.table, src=piece.src, dst=piece.dst, priority=piece.priority)


def missing(pieces: Sequence[Piece], ns: Namespace, devices: Mapping[str, int]) -> str:
    """The first of the pieces that the namespace lacks, in words; "" when it has all."""
    routes = rules = neighbours = None
    for piece in pieces:
        if isinstance(piece, DropRoute):
            routes = _routes(ns) if routes is None else routes
            if (piece.dst, piece.table, devices.get(piece.dev, 0), piece.gw) not in routes:
                return f"the route to {piece.dst} in table {piece.table} by {piece.dev}"
        elif isinstance(piece, DropRule):
            rules = _rules(ns) if rules is None else rules
            if (piece.family, piece.src, piece.dst, piece.table) not in rules:
                return f"the rule from {piece.src or 'all'} to {piece.dst or 'all'} lookup {piece.table}"
        else:
            neighbours = _neighbours(ns) if neighbours is None else neighbours
            if (devices.get(piece.dev, 0), piece.dst, piece.mac) not in neighbours:
                return f"the neighbour {piece.dst} lladdr {piece.mac} on {piece.dev}"
    return ""


def _routes(ns: Namespace) -> set[tuple[str, int, int, str]]:
    return {
        (one.dst, one.table, hop.dev, hop.gateway)
        for one in route.dump(ns.rtnl, family=0)
        for hop in one.nexthops or (one,)
    }


def _rules(ns: Namespace) -> set[tuple[int, str, str, int]]:
    return {(family, one.src, one.dst, one.table) for family in (4, 6) for one in rule.dump(ns.rtnl, family)}


def _neighbours(ns: Namespace) -> set[tuple[int, str, str]]:
    return {(one.index, one.address, one.mac) for one in neigh.dump(ns.rtnl) if one.permanent}


def lay(pieces: Sequence[Piece], ns: Namespace, devices: Mapping[str, int], before: Sequence[Message] = ()) -> None:
    """Make the pieces in one batch, after the messages ``before``; raises KernelError."""
    ns.rtnl.batch([*before, *messages(pieces, devices)])


def rule_deletions(rules: Sequence[Rule]) -> list[Message]:
    """What deletes exactly these rules."""
    return [
        rule.delete(family=one.family, table=one.table, src=one.src, dst=one.dst, priority=one.priority)
        for one in rules
    ]
