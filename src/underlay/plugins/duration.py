"""Durations as Go's ``time.ParseDuration`` writes them: "1s", "500ms", "1m30s"."""

from __future__ import annotations

import re
from typing import Final

_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST: Final = (2**63 - 1) * 1e-9  # an int64 of nanoseconds, as in Go
_PART: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)


def seconds(text: str) -> float:
    """The duration in seconds; raises ValueError for what Go would refuse, and for a negative one."""
    total, at = 0.0, 0
    while part := _PART.match(text, at):
        total += float(part[1]) * _UNITS[part[2]]
        at = part.end()
    if not text or at != len(text):
        raise ValueError(f"{text[:60]!r} is no duration such as 1s or 500ms")
    if total > _LONGEST:
        raise ValueError(f"{text[:60]!r} is too long a duration")
    return total
