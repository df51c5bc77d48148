from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from underlay.ipam.pools import intervals

NUMBERS = st.integers(0, 60)
PARTS = st.lists(st.tuples(NUMBERS, NUMBERS).map(lambda pair: (min(pair), max(pair))), max_size=8)


def members(of: intervals.Intervals) -> set[int]:
    return {value for start, end in of for value in range(start, end + 1)}


@given(PARTS, PARTS)
def test_set_algebra_is_that_of_sets(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    one, other = intervals.union(a), intervals.union(b)
    for found, wanted in (
        (one, {value for start, end in a for value in range(start, end + 1)}),
        (intervals.without(one, other), members(one) - members(other)),
        (intervals.common(one, other), members(one) & members(other)),
    ):
        assert members(found) == wanted
        assert intervals.size(found) == len(wanted)
        assert all(start <= end for start, end in found)
        assert list(found) == sorted(found)
        assert all(intervals.holds(found, value) == (value in wanted) for value in range(-1, 62))


@given(PARTS, st.integers(0, 70))
def test_the_first_addresses_are_the_lowest(a: list[tuple[int, int]], count: int) -> None:
    one = intervals.union(a)
    assert sorted(members(intervals.first(one, count))) == sorted(members(one))[:count]


def test_a_whole_ipv6_internet_is_one_interval() -> None:
    everything = ((0, (1 << 128) - 1),)
    assert intervals.size(intervals.without(everything, ((5, 5), (9, 10)))) == (1 << 128) - 3
