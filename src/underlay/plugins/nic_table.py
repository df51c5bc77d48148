"""Which NIC of a pod comes before which, and which routing table is whose.

    eth0 < eth1 < net1 < net2 < net10 < anything else

netN has table 100 + N - 1, as users of the field's plugins know it. A NIC of another name ("@name" in a pod's
annotation), or one whose table somebody else fills already, gets the lowest table that is free.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from underlay.errors import InterfaceExists

if TYPE_CHECKING:
    from collections.abc import Container

FIRST: Final = 100
LAST: Final = 250  # 253 to 255 are the kernel's own
_KINDS: Final = {"eth": 0, "net": 1}
_NUMBERED: Final = re.compile(r"(eth|net)(0|[1-9][0-9]{0,5})", re.ASCII)


def order(name: str, overlay: str = "") -> tuple[int, int, str]:
    """The key to sort NICs by; the cluster network's own NIC (``overlay``) comes first whatever it is called."""
    if name == overlay:
        return (-1, 0, name)
    numbered = _NUMBERED.fullmatch(name)
    if numbered is None:
        return (2, 0, name)
    return (_KINDS[numbered[1]], int(numbered[2]), "")


def of_name(name: str) -> int | None:
    """The table that a NIC's name stands for; None for names other than net1, net2 …"""
    kind, number, _ = order(name)
    table = FIRST + number - 1
    return table if kind == _KINDS["net"] and FIRST <= table <= LAST else None


def choose(name: str, used: Container[int]) -> int:
    """The table for a NIC, given the tables in which the pod has routes or to which it has rules.

    Raises InterfaceExists when all are taken.
    """
    own = of_name(name)
    if own is not None and own not in used:
        return own
    for table in range(FIRST, LAST + 1):
        if table not in used:
            return table
    raise InterfaceExists(
        f"no routing table from {FIRST} to {LAST} is left in the pod for {name}",
        hint="The pod has too many NICs, or another plugin fills these tables.",
    )
