"""Which block a node turns to, how much it takes, and what it knows of all of them."""

from __future__ import annotations

from itertools import islice

import hypothesis.strategies as st
import pytest
from hypothesis import given
from tests.ipam.pools.simulation import pool

from underlay.cni.address import Address, parse
from underlay.ipam.pools import intervals, seek
from underlay.ipam.pools.block import Block, Key, Want, key_of
from underlay.ipam.pools.lease import HELD, KEPT, Lease
from underlay.ipam.pools.view import View, numbers, part

BASE = 10 << 24
VALUES = st.integers(BASE, BASE + 79)
OWNERS = st.dictionaries(VALUES, st.sampled_from("abc"), max_size=30)


def blocks(owned: dict[int, str], reported: set[int], revision: int) -> list[Block]:
    found = []
    for key in sorted({key_of(Address(4, value)) for value in (*owned, *reported)}):
        here = set(part(key, ((BASE, BASE + 79),)))
        leases = {value: Lease(Address(4, value), "a", HELD) for value in reported & here}
        found.append(Block(key, revision, {v: o for v, o in owned.items() if v in here}, leases=leases, version="1"))
    return found


@given(st.lists(st.tuples(OWNERS, st.sets(VALUES, max_size=20)), max_size=4), st.integers(0, 40), st.integers(40, 79))
def test_a_tally_counts_what_the_blocks_say(news: list[tuple[dict[int, str], set[int]]], first: int, last: int) -> None:
    """Kept up to date block by block it says what counting afresh says."""
    ranges = ((BASE + first, BASE + last),)
    view, known = View(), dict[Key, Block]()
    kept = view.tally(4, ranges)
    for revision, (owned, reported) in enumerate(news):
        for block in blocks(owned, reported, revision):
            view.put(block, 0.0)
            known[block.key] = block
    inside = [(block, value) for block in known.values() for value in part(block.key, ranges)]
    assert kept.taken == sum(value in block.owned or value in block.leases for block, value in inside)
    names = [block.owned[value] for block, value in inside if value in block.owned]
    assert kept.owners == {name: names.count(name) for name in names}
    assert set(kept.open) == {b.key for b, v in inside if v not in b.owned and v not in b.leases}
    assert set(kept.silent) == {b.key for b, v in inside if v in b.owned and v not in b.leases}
    for key in known:
        view.drop(key)
    assert (kept.taken, dict(kept.owners), kept.open, kept.silent) == (0, {}, {}, {})


@pytest.mark.parametrize("ips", [["10.0.0.1"], ["10.0.0.1-10.0.0.40", "10.0.0.45-10.0.2.3"], ["10.0.0.15-10.0.0.16"]])
def test_a_path_visits_every_block_once(ips: list[str]) -> None:
    ranges = pool("a", ips).ranges
    for node in ("one", "two", "three"):
        path = list(seek.path(4, ranges, node))
        assert len(path) == len(set(path)) == intervals.size(numbers(ranges))
        assert sorted(value for key in path for value in part(key, ranges)) == [
            value for start, end in ranges for value in range(start, end + 1)
        ]


def test_nodes_begin_at_different_blocks() -> None:
    ranges = pool("a", ["10.0.0.0-10.0.255.255"]).ranges
    begin = {next(seek.path(4, ranges, f"node-{n}")) for n in range(100)}
    assert len(begin) > 90


def test_of_a_slash_64_only_what_is_known_is_looked_at() -> None:
    whole = pool("a", ["fd00::-fd00::ffff:ffff:ffff:ffff"])
    view = View()
    for n, key in enumerate(islice(seek.path(6, whole.ranges, "one"), 50)):
        view.put(Block(key, 1, dict.fromkeys(part(key, whole.ranges), f"n{n}"), version="1"), 0.0)
    block, values = seek.free(whole, view, "one", ())
    assert len(values) == 16
    assert block.version == ""
    assert values == part(block.key, whole.ranges)


@pytest.mark.parametrize(("free", "nodes", "portion"), [(10**9, 10, 16), (320, 10, 16), (319, 10, 15), (39, 10, 1),
                                                        (1, 10, 1), (40, 1, 16), (3, 1, 1)])  # fmt: skip
def test_the_less_is_left_the_less_is_taken(free: int, nodes: int, portion: int) -> None:
    assert seek.Supply(free, nodes).portion == portion


def test_the_address_that_rests_longest_and_none_that_is_kept_for_somebody() -> None:
    one = pool("a", ["10.0.0.1-10.0.0.5"])
    kept = Lease(Address(4, BASE + 3), "a", KEPT, keeper="StatefulSet/default/db-0")
    resting = {BASE + 1: 30, BASE + 2: 10, BASE + 4: 20}
    view = View()
    view.put(Block(Key(4, BASE), 3, {BASE + 5: "two"}, {}, resting, {BASE + 3: kept}, "1"), 0.0)
    assert seek.supply(one, view, "one") == (3, 2)
    assert seek.free(one, view, "one", ())[1] == [BASE + 2]
    assert view.reported("StatefulSet/default/db-0", "") == (Address(4, BASE + 3),)


def test_old_news_is_none() -> None:
    view, key = View(), key_of(parse("10.0.0.1") or Address(0, 0))
    new = Block(key, 5, {BASE + 1: "two"}, version="9")
    assert view.put(new, 1.0)
    assert not view.put(Block(key, 4, {BASE + 1: "one"}, version="7"), 2.0)
    assert view.get(key) == new
    assert (view.since(key, BASE + 1), view.since(key, BASE + 2)) == (1.0, float("-inf"))
    view.drop(key)
    assert view.put(Block(key, 1, {BASE + 1: "one"}, version="12"), 3.0)


def test_parting_serves_who_asked_and_frees_the_rest() -> None:
    key = Key(4, BASE)
    kept = Lease(Address(4, BASE + 2), "a", KEPT, keeper="StatefulSet/default/db-0")
    wanted = {
        BASE + 1: Want("two"),  # leaving: its
        BASE + 2: Want("three", kept.keeper),  # leaving, and kept for whom it is wanted
        BASE + 3: Want("two"),  # in use: another address instead
        BASE + 4: Want("two", "StatefulSet/default/x"),  # in use by somebody else than wanted for: refused
        BASE + 5: Want("two", "StatefulSet/default/y"),  # its pod has yet to end
        BASE + 9: Want("one"),  # the node's own question to another
    }
    owned = dict.fromkeys(range(BASE + 1, BASE + 9), "one") | {BASE + 9: "four"}
    block = Block(key, 7, owned, wanted, {}, {BASE + 2: kept}, "1")
    leaving = {BASE + 1: 5, BASE + 2: 6, BASE + 7: 0, BASE + 8: 8}
    after = seek.parting(block, leaving, "one", [BASE + 5], {BASE + 2: kept})
    assert after.revision == 8
    assert after.owned == {
        BASE + 1: "two", BASE + 2: "three", BASE + 3: "one", BASE + 4: "one", BASE + 5: "one", BASE + 6: "one",
        BASE + 8: "two", BASE + 9: "four",
    }  # fmt: skip
    assert after.wanted == {BASE + 5: wanted[BASE + 5], BASE + 9: wanted[BASE + 9]}
    assert after.resting == {BASE + 1: 5, BASE + 2: 6, BASE + 8: 8}
    assert after.leases == {BASE + 2: kept}
