"""What DEL must take away again, read with iproute2: the node's links, routes, rules and permanent neighbours."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from underlay.cli.lab import topology

if TYPE_CHECKING:
    from underlay.cli.lab.topology import Lab

_QUESTIONS = (
    ("link", "-oneline", "-brief", "link", "show"),
    ("address", "-oneline", "-brief", "address", "show", "scope", "global"),
    ("route", "route", "show", "table", "all"),
    ("route", "-6", "route", "show", "table", "all"),
    ("rule", "rule", "show"),
    ("rule", "-6", "rule", "show"),
    ("neighbour", "neighbour", "show", "nud", "permanent"),
)


def on_node(lab: Lab) -> frozenset[str]:
    """One line of text an object. Two readings are equal unless something came or went."""
    seen: set[str] = set()
    for kind, *question in _QUESTIONS:
        if "-6" in question and not lab.ipv6:
            continue
        command = ["ip", "-n", lab.netns(topology.NODE), *question]
        shown = subprocess.run(command, check=True, capture_output=True, text=True)
        lines = (" ".join(line.split()) for line in shown.stdout.splitlines())
        # the kernel's own routes come and go with the addresses above, and some link-local ones a second late
        seen.update(f"{kind} {line}" for line in lines if "proto kernel" not in line)
    return frozenset(seen)
