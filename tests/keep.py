"""What GC is to keep, as a list that does not grow: for tests that ask a plugin alone."""

from __future__ import annotations


class Keep(frozenset[tuple[str, str]]):
    """An ``underlay.ipam.allocator.Keep`` of (container id, NIC)."""

    __slots__ = ()

    def listed(self) -> frozenset[tuple[str, str]]:
        """All of them."""
        return self
