from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from underlay.ipam.pools import intervals
from underlay.ipam.pools.space import Space

REST = 30.0
NAMES = ("a", "b")
VALUES = st.integers(0, 15)
RANGES = st.lists(st.tuples(VALUES, VALUES).map(lambda pair: (min(pair), max(pair))), max_size=3).map(intervals.union)


def space(**pools: intervals.Intervals) -> Space[str]:
    made: Space[str] = Space(REST)
    made.configure(pools)
    return made


def test_the_lowest_address_first_and_a_given_back_one_only_when_it_has_rested() -> None:
    made = space(a=((1, 4),))
    assert [made.take("a", "x", 0.0) for _ in range(3)] == [1, 2, 3]
    made.give_back(2, "a", 10.0)
    made.give_back(1, "a", 20.0)
    assert made.take("a", "x", 21.0) == 4
    made.give_back(4, "a", 21.0)
    assert made.take("a", "x", 51.0) == 1  # 1, 2 and 4 have rested: the lowest
    assert made.take("a", "x", 51.0) == 2


def test_where_nothing_has_rested_the_one_that_rests_longest_is_taken() -> None:
    made = space(a=((1, 3),))
    for _ in range(3):
        made.take("a", "x", 0.0)
    for at, value in enumerate((3, 1, 2)):
        made.give_back(value, "a", float(at))
    assert [made.take("a", "x", 5.0) for _ in range(4)] == [3, 1, 2, None]


def test_an_address_that_was_never_used_need_not_rest() -> None:
    made = space(a=((1, 3),))
    assert made.take("a", "x", 0.0) == 1
    made.give_back(1, "a", 0.0, rested=True)
    assert made.take("a", "x", 0.0) == 1


def test_two_pools_that_list_one_address_hand_it_out_once() -> None:
    made = space(a=((1, 2),), b=((2, 3),))
    assert [made.take("a", "x", 0.0), made.take("a", "x", 0.0)] == [1, 2]
    assert made.take("b", "x", 0.0) == 3
    made.give_back(2, "a", 0.0)
    assert made.take("b", "x", 100.0) == 2
    assert made.take("a", "x", 100.0) is None


def test_a_pool_shrunk_below_what_is_in_use_hands_out_nothing_and_takes_back() -> None:
    made = space(a=((1, 4),))
    for _ in range(3):
        made.take("a", "x", 0.0)
    made.configure({"a": ((1, 1),)})
    assert made.take("a", "x", 0.0) is None
    made.give_back(3, "a", 0.0)
    made.give_back(1, "a", 0.0)
    assert [made.take("a", "x", 99.0), made.take("a", "x", 99.0)] == [1, None]


def test_a_pool_deleted_and_made_again_hands_out_nothing_that_is_still_held() -> None:
    made = space(a=((1, 3),))
    assert made.take("a", "x", 0.0) == 1
    made.configure({})
    assert made.take("a", "x", 0.0) is None
    made.configure({"a": ((1, 3),)})
    assert [made.take("a", "x", 0.0) for _ in range(3)] == [2, 3, None]


def test_what_a_deleted_pool_held_comes_back_to_the_one_that_took_its_place() -> None:
    made = space(a=((1, 2),))
    assert made.take("a", "x", 0.0) == 1
    made.configure({"b": ((1, 2),)})
    assert [made.take("b", "x", 0.0), made.take("b", "x", 0.0)] == [2, None]
    made.give_back(1, "a", 0.0)
    assert made.take("b", "x", 0.0) == 1


def test_an_address_set_aside_comes_back_after_its_time() -> None:
    made = space(a=((1, 2),))
    assert made.take("a", "x", 0.0) == 1
    made.give_back(1, "a", 0.0)
    made.set_aside(1, 300.0)
    assert [made.take("a", "x", 200.0), made.take("a", "x", 200.0)] == [2, None]
    assert made.take("a", "x", 301.0) == 1


def test_a_huge_range_costs_nothing() -> None:
    made = space(a=((1, 1 << 127),))
    assert made.claim(1 << 100, "x")
    assert [made.take("a", "x", 0.0) for _ in range(3)] == [1, 2, 3]
    assert made.room("a") == (1 << 127) - 4


class Model(RuleBasedStateMachine):
    """Two pools that may overlap and change, against sets: who holds what, and since when what rests."""

    def __init__(self) -> None:
        super().__init__()
        self.space: Space[str] = Space(REST)
        self.ranges: dict[str, intervals.Intervals] = {}
        self.held: dict[int, str] = {}
        self.freed: dict[int, float] = {}
        self.aside: dict[int, float] = {}
        self.now = 100.0

    def open_values(self, pool: str) -> set[int]:
        return {
            value
            for start, end in self.ranges.get(pool, ())
            for value in range(start, end + 1)
            if value not in self.held and self.aside.get(value, 0.0) <= self.now
        }

    @rule(pool=st.sampled_from(NAMES), ranges=RANGES)
    def edit(self, pool: str, ranges: intervals.Intervals) -> None:
        self.ranges[pool] = ranges
        self.space.configure(self.ranges)

    @rule(pool=st.sampled_from(NAMES))
    def remove(self, pool: str) -> None:
        self.ranges.pop(pool, None)
        self.space.configure(self.ranges)

    @rule(pool=st.sampled_from(NAMES))
    def take(self, pool: str) -> None:
        free = self.open_values(pool)
        value = self.space.take(pool, pool, self.now)
        if not free:
            assert value is None
            return
        assert value in free
        self.held[value] = pool

    @rule(value=VALUES)
    def claim(self, value: int) -> None:
        free = value not in self.held and value not in self.space._aside
        assert self.space.claim(value, "a") == free
        if free:
            self.held[value] = "a"

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        value = data.draw(st.sampled_from(sorted(self.held)))
        self.space.give_back(value, self.held.pop(value), self.now)
        self.freed[value] = self.now

    @rule(value=VALUES, seconds=st.floats(1, 100))
    def put_aside(self, value: int, seconds: float) -> None:
        self.aside[value] = self.now + seconds
        self.space.set_aside(value, self.aside[value])

    @rule(seconds=st.floats(0, 60))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def no_address_has_two_owners_and_none_is_lost(self) -> None:
        assert set(self.space.taken) == set(self.held)

    def teardown(self) -> None:
        """Everything drains to free, and all of it is handed out again."""
        for value, pool in self.held.items():
            self.space.give_back(value, pool, self.now)
        self.held.clear()
        self.now += 200.0
        everything = set().union(*(self.open_values(pool) for pool in NAMES))
        found = {
            value for pool in NAMES for _ in range(20) if (value := self.space.take(pool, pool, self.now)) is not None
        }
        assert found == everything


class Ordered(RuleBasedStateMachine):
    """One pool: the order is the documented one, to the letter."""

    def __init__(self) -> None:
        super().__init__()
        self.space: Space[str] = Space(REST)
        self.space.configure({"a": ((0, 5), (8, 11))})
        self.all = {*range(6), *range(8, 12)}
        self.held: set[int] = set()
        self.freed: dict[int, tuple[float, int]] = {}
        self.now = 100.0
        self.turn = 0

    @rule()
    def take(self) -> None:
        free = self.all - self.held
        rested = {value for value in free if value not in self.freed or self.freed[value][0] <= self.now - REST}
        wanted = min(rested) if rested else min(free, key=lambda value: self.freed[value][1]) if free else None
        assert self.space.take("a", "x", self.now) == wanted
        if wanted is not None:
            self.held.add(wanted)
            self.freed.pop(wanted, None)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        value = data.draw(st.sampled_from(sorted(self.held)))
        self.held.remove(value)
        self.turn += 1
        self.freed[value] = (self.now, self.turn)
        self.space.give_back(value, "a", self.now)

    @precondition(lambda self: self.all - self.held)
    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        value = data.draw(st.sampled_from(sorted(self.all - self.held)))
        assert self.space.claim(value, "x")
        self.held.add(value)
        self.freed.pop(value, None)

    @rule(seconds=st.floats(0, 40))
    def wait(self, seconds: float) -> None:
        self.now += seconds


TestModel = Model.TestCase
TestOrdered = Ordered.TestCase
TestModel.settings = TestOrdered.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
