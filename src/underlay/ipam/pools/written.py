"""Addresses as SpiderIPPools write them: single ones, and ranges "a-b"."""

from __future__ import annotations

from typing import TYPE_CHECKING

from underlay.cni.address import text

if TYPE_CHECKING:
    from underlay.ipam.pools.intervals import Intervals


def ranges(family: int, of: Intervals) -> list[str]:
    """The set as "spec.ips" lists it, lowest first."""
    return [text(family, start) if start == end else f"{text(family, start)}-{text(family, end)}" for start, end in of]
