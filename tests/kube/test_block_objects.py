"""Blocks as objects: nothing is lost on the way there and back, and a patch changes what it is about and no more."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.kube.api_objects import merged

from underlay.cni.address import Address, text
from underlay.ipam.pools.block import SIZE, Block, Key, Want, swaps_of
from underlay.ipam.pools.lease import HELD, KEPT, Lease
from underlay.kube import block_objects

NODES = st.sampled_from(["n1", "n2", "n3"])
WORDS = st.text("abc/é-.", max_size=8)
TIMES = st.integers(0, 253402300799 * 10**9)
KEYS = st.builds(Key, st.just(4), st.integers(0, (1 << 28) - 1).map(lambda n: n << 4)) | st.builds(
    Key, st.just(6), st.integers(1 << 60, (1 << 124) - 1).map(lambda n: n << 4)
)


@st.composite
def blocks(draw, key=None):
    key = draw(KEYS) if key is None else key

    def of(values):
        return draw(st.dictionaries(st.integers(key.first, key.first + SIZE - 1), values, max_size=4))

    made = st.builds(
        Lease, st.none(), WORDS, st.sampled_from([HELD, KEPT]), WORDS, WORDS, WORDS, WORDS, WORDS, WORDS, WORDS, TIMES
    )
    leases = {value: one._replace(address=Address(key.family, value)) for value, one in of(made).items()}
    wanted = of(st.builds(Want, NODES, WORDS))
    return Block(key, draw(st.integers(0, (1 << 31) - 1)), of(NODES), wanted, of(TIMES), leases)


def read(document, version=""):
    document = {**document, "metadata": {**document["metadata"], "resourceVersion": version}}
    return block_objects.decode(msgspec.json.decode(json.dumps(document), type=block_objects.Shape))


@given(blocks())
def test_a_block_comes_back_as_it_went(block):
    assert read(block_objects.encode(block)) == block


@given(st.datetimes(datetime(1970, 1, 2), datetime(2099, 1, 1)), st.integers(1, 10**6), st.integers(0, (1 << 31) - 1))
def test_of_two_objects_of_one_name_the_later_is_above_and_what_is_written_counts_its_own_swaps(made, later, swaps):
    def at(time, revision):
        document = block_objects.encode(Block(Key(4, 0), revision))
        return read(
            {**document, "metadata": {**document["metadata"], "creationTimestamp": f"{time:%Y-%m-%dT%H:%M:%SZ}"}}
        )

    before, again = at(made, swaps), at(made + timedelta(seconds=later), 1)
    assert before.revision < again.revision < 1 << 63  # SQLite's integers
    assert block_objects.encode(before)["spec"].get("revision", 0) == swaps
    assert at(made, swaps_of(before.revision)).revision == before.revision


@given(st.data())
def test_a_change_makes_the_one_of_the_other_and_touches_nothing_else(data):
    before = data.draw(blocks())
    after = data.draw(blocks(before.key))
    stored = block_objects.encode(before)
    stored["spec"]["theirs"] = {"x": 1}
    patched = merged(stored, block_objects.change(before, after))
    assert read(patched) == after
    assert patched["spec"]["theirs"] == {"x": 1}


@given(st.data())
def test_a_report_replaces_what_was_reported_of_its_addresses_alone(data):
    before = data.draw(blocks())
    told = data.draw(blocks(before.key)).leases
    gone = dict.fromkeys(data.draw(st.sets(st.sampled_from(sorted(before.leases) or [before.key.first]))))
    patched = merged(block_objects.encode(before), block_objects.report(before.key, {**told, **gone}))
    wanted = {**before.leases, **told}
    assert read(patched).leases == {value: one for value, one in wanted.items() if value not in gone}
    assert read(patched).owned == before.owned


@given(KEYS)
def test_names_lead_back_to_their_blocks(key):
    assert block_objects.key_of_name(key.name) == key


@pytest.mark.parametrize(
    "name", ["", "x", "v4", "v4-", "v4-10.6.168.17", "v4-10.6.168", "v5-10.6.1.0", "v6-fd00--10", "v6-f-0-0-0-0-0-0-1"]
)  # fmt: skip
def test_what_is_named_otherwise_is_no_block(name):
    assert block_objects.key_of_name(name) is None


def test_what_is_no_address_of_the_block_is_passed_over():
    key = Key(4, 0x0A000010)
    spec = {
        "owned": {"10.0.0.17": "n1", "10.0.0.1": "n1", "x": "n1", "10.0.0.18": ""},
        "wanted": {"10.0.0.17": {"node": "n2", "more": 1}, "10.0.0.18": {}},
        "resting": {"10.0.0.19": "soon", "10.0.0.20": "2026-01-01T00:00:00Z", "10.0.0.21": "2026-99-01T00:00:00Z"},
        "leases": {"10.0.0.17": {"state": "lent"}},
    }
    block = read({"metadata": {"name": key.name}, "spec": spec})
    first = key.first
    assert (block.owned, block.wanted, block.leases) == ({first + 1: "n1"}, {first + 1: Want("n2")}, {})
    assert block.resting == {first + 3: 0, first + 4: 1767225600 * 10**9, first + 5: 0}
    assert text(4, first + 1) == "10.0.0.17"
