"""What networks build on one NIC: kinds and modes that the kernel does not have beside each other. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from underlay.multus.findings import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from underlay.multus.findings import Subject


@dataclass(frozen=True, slots=True)
class Upper:
    """A network's links on a NIC of the node: its object, the path to its key "master", that NIC ("" for the one of the
    default route), the kind of link, and the mode where the kernel has one for all links on a NIC.
    """

    subject: Subject
    field: str
    master: str
    kind: str
    mode: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.mode}".rstrip()


def conflicts(uppers: Sequence[Upper]) -> Iterator[Finding]:
    """Networks that cannot have pods on one node at a time, each pair told of the later one.

    A warning: they may be meant for different nodes.
    """
    for earlier, later in combinations(uppers, 2):
        if earlier.master != later.master or str(earlier) == str(later):
            continue
        what = (
            "the mode is that of the last NIC made, for the pods of both"
            if earlier.kind == later.kind
            else "the kernel refuses the second on one node"
        )
        wire = f"NIC {later.master}" if later.master else "the NIC of the default route"
        words = f"{later} on {wire}, where {earlier.subject} ({earlier.subject.file}) has {earlier}: {what}"
        hint = "Give both networks the same kind and mode, or different NICs."
        yield Finding(later.subject, Severity.WARNING, later.field, words, hint)
