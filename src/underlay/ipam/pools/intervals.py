"""Sets of addresses as sorted, disjoint, closed intervals of numbers: a /32 of IPv6 costs as much as one address.

All functions take and return such sets; none counts addresses one by one.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

Interval = tuple[int, int]
Intervals = tuple[Interval, ...]


def union(parts: Iterable[Interval]) -> Intervals:
    """The set that ``parts`` (in any order, overlapping or not) cover. Neighbours become one."""
    merged: list[Interval] = []
    for start, end in sorted(parts):
        if merged and start <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return tuple(merged)


def without(whole: Intervals, less: Intervals) -> Intervals:
    """``whole`` less ``less``."""
    left: list[Interval] = []
    at = 0
    for first, end in whole:
        start = first
        while at < len(less) and less[at][1] < start:
            at += 1
        n = at
        while n < len(less) and less[n][0] <= end:
            if less[n][0] > start:
                left.append((start, less[n][0] - 1))
            start = less[n][1] + 1
            n += 1
        if start <= end:
            left.append((start, end))
    return tuple(left)


def common(one: Intervals, other: Intervals) -> Intervals:
    """What lies in both."""
    found: list[Interval] = []
    a = b = 0
    while a < len(one) and b < len(other):
        start, end = max(one[a][0], other[b][0]), min(one[a][1], other[b][1])
        if start <= end:
            found.append((start, end))
        if one[a][1] < other[b][1]:
            a += 1
        else:
            b += 1
    return tuple(found)


def size(of: Intervals) -> int:
    """How many addresses."""
    return sum(end - start + 1 for start, end in of)


def holds(of: Intervals, value: int) -> bool:
    """Whether the set holds ``value``."""
    at = bisect_right(of, (value, 1 << 128)) - 1
    return at >= 0 and of[at][1] >= value


def first(of: Intervals, count: int) -> Intervals:
    """The ``count`` lowest addresses of the set, or all where it has fewer."""
    taken: list[Interval] = []
    for start, end in of:
        if count <= 0:
            break
        taken.append((start, min(end, start + count - 1)))
        count -= end - start + 1
    return tuple(taken)
