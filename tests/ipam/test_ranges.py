"""What a range may be written like, and which addresses come out of it in which order."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from underlay.cni.address import Address, parse, text
from underlay.errors import InvalidConfig, NoAddressLeft
from underlay.ipam.allocate import assign, candidates
from underlay.ipam.ranges import Range, RangeSection, parse_range, parse_sets, show


def one(subnet: str, start: str = "", end: str = "", gateway: str = "") -> Range:
    return parse_range(RangeSection(subnet, start, end, gateway), "ipam")


@pytest.mark.parametrize(
    ("written", "shown", "gateway"),
    [
        (("10.1.0.0/24",), "10.1.0.1-10.1.0.254", "10.1.0.1"),
        (("10.1.0.0/30",), "10.1.0.1-10.1.0.2", "10.1.0.1"),
        (("10.1.0.0/24", "10.1.0.9"), "10.1.0.9-10.1.0.254", "10.1.0.1"),
        (("10.1.0.0/24", "", "10.1.0.9"), "10.1.0.1-10.1.0.9", "10.1.0.1"),
        (("10.1.0.0/24", "10.1.0.9", "10.1.0.9", "10.1.0.7"), "10.1.0.9-10.1.0.9", "10.1.0.7"),
        (("10.1.0.0/24", "10.1.0.0", "10.1.0.255"), "10.1.0.1-10.1.0.254", "10.1.0.1"),
        (("10.1.0.0/24", "", "", "192.0.2.1"), "10.1.0.1-10.1.0.254", "192.0.2.1"),
        (("fd00::/64",), "fd00::1-fd00::ffff:ffff:ffff:ffff", "fd00::1"),
        (("fd00::/126", "", "", "fe80::1"), "fd00::1-fd00::3", "fe80::1"),
        (("0.0.0.0/0",), "0.0.0.1-255.255.255.254", "0.0.0.1"),
        (("::/0",), "::1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::1"),
    ],
)
def test_a_range_gets_its_defaults(written, shown, gateway):
    found = one(*written)
    assert str(found) == shown
    assert text(found.family, found.gateway) == gateway


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (("",), r'"ipam.subnet" is missing'),
        (("10.1.0.0",), r'"ipam.subnet" .*CIDR'),
        (("10.1.0.0/33",), r'"ipam.subnet" .*CIDR'),
        (("10.1.0.0/-1",), r'"ipam.subnet" .*CIDR'),
        (("10.1.0.0/٢",), r'"ipam.subnet" .*CIDR'),
        (("10.1.0/24",), r'"ipam.subnet" .*CIDR'),
        (("010.1.0.0/24",), r'"ipam.subnet" .*CIDR'),
        (("fd00::/129",), r'"ipam.subnet" .*CIDR'),
        (("::ffff:10.1.0.0/120",), r'"ipam.subnet" .*CIDR'),
        (("10.1.0.0\0/24",), r'"ipam.subnet" .*CIDR'),
        (("10.1.0.7/24",), r'"ipam.subnet" .*host bits'),
        (("10.1.0.0/31",), r'"ipam.subnet" .*too small'),
        (("10.1.0.0/32",), r'"ipam.subnet" .*too small'),
        (("fd00::/127",), r'"ipam.subnet" .*too small'),
        (("10.1.0.0/24", "10.2.0.1"), r'"ipam.rangeStart" .*not in the subnet 10.1.0.0/24'),
        (("10.1.0.0/24", "fd00::1"), r'"ipam.rangeStart" .*not in the subnet'),
        (("10.1.0.0/24", "", "10.1.1.0"), r'"ipam.rangeEnd" .*not in the subnet'),
        (("10.1.0.0/24", "x"), r'"ipam.rangeStart" .*not an IP address'),
        (("10.1.0.0/24", "10.1.0.9", "10.1.0.3"), r'"ipam.rangeStart" .*after "rangeEnd"'),
        (("10.1.0.0/24", "", "", "fd00::1"), r'"ipam.gateway" .*not in the subnet'),
        (("10.1.0.0/24", "", "", "10.1.0.1/24"), r'"ipam.gateway" .*not an IP address'),
    ],
)
def test_a_wrong_range_names_its_field(written, words):
    with pytest.raises(InvalidConfig, match=words):
        one(*written)


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        ({"ipam.ranges[0]": ["10.1.0.0/24", "10.1.0.0/25"]}, "overlaps"),
        ({"ipam.ranges[0]": ["10.1.0.0/24"], "ipam.ranges[1]": ["10.1.0.0/16"]}, r'of "ipam.ranges\[0\]"'),
        ({"ipam": ["10.1.0.0/24"], "ipam.ranges[0]": ["10.1.0.0/24"]}, 'of "ipam"'),
        ({"ipam.ranges[0]": ["10.1.0.0/24", "fd00::/64"]}, "mixes"),
        ({"ipam.ranges[0]": []}, "empty"),
        ({"ipam.ranges[0]": ["10.1.0.0/24", "10.2.0.0/99"]}, r'"ipam.ranges\[0\]\[1\].subnet"'),
    ],
)
def test_wrong_sets_are_refused(sets, words):
    with pytest.raises(InvalidConfig, match=words):
        parse_sets([(at, [RangeSection(subnet) for subnet in subnets]) for at, subnets in sets.items()])


def test_parts_of_one_subnet_may_be_several_ranges():
    parts = [
        RangeSection("10.1.0.0/24", "10.1.0.9", "10.1.0.11"),
        RangeSection("10.1.0.0/24", "10.1.0.12", "10.1.0.13"),
    ]
    assert show(parse_sets([("ipam.ranges[0]", parts)])[0]) == "10.1.0.9-10.1.0.11, 10.1.0.12-10.1.0.13"


def order(ranges, last=None, limit=99):
    return [text(each.family, value) for each, value in islice(candidates(ranges, last and parse(last)), limit)]


def test_the_search_begins_at_the_start_and_leaves_the_gateway_out():
    assert order((one("10.1.0.0/29"),)) == [f"10.1.0.{n}" for n in (2, 3, 4, 5, 6)]


def test_the_search_goes_on_after_the_last_and_ends_with_it():
    assert order((one("10.1.0.0/29"),), "10.1.0.4") == [f"10.1.0.{n}" for n in (5, 6, 2, 3, 4)]


def test_the_search_wraps_over_all_ranges():
    ranges = (one("10.1.0.0/30"), one("10.2.0.0/29", "10.2.0.2", "10.2.0.4"), one("10.3.0.0/30"))
    assert order(ranges, "10.2.0.3") == ["10.2.0.4", "10.3.0.2", "10.1.0.2", "10.2.0.2", "10.2.0.3"]


def test_an_unknown_last_address_begins_anew():
    assert order((one("10.1.0.0/30"),), "192.0.2.1") == ["10.1.0.2"]
    assert order((one("fd00::/64"),), "10.1.0.1", 2) == ["fd00::2", "fd00::3"]


def test_requests_go_to_the_set_that_holds_them():
    sets = ((one("10.1.0.0/24"),), (one("fd00::/64"),), (one("10.2.0.0/24"),))
    wanted = [parse("fd00::9"), parse("10.2.0.9"), parse("10.2.0.9")]
    found = assign(sets, wanted)
    assert [match and str(match[1]) for match in found] == [None, "fd00::9", "10.2.0.9"]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (["10.9.0.1"], "no range set can serve the requested address 10.9.0.1"),
        (["10.1.0.5", "10.1.0.6"], "10.1.0.6"),
        (["10.1.0.1"], "gateway"),
    ],
)
def test_requests_that_no_set_can_serve_are_refused(wanted, words):
    with pytest.raises(NoAddressLeft, match=words):
        assign(((one("10.1.0.0/24"),),), [parse(each) for each in wanted])


@st.composite
def subnets(draw):
    family = draw(st.sampled_from([4, 6]))
    bits = {4: 32, 6: 128}[family]
    length = draw(st.integers(bits - 6, bits - 2))
    value = draw(st.integers(2**33, 2**64)) << 40 if family == 6 else draw(st.integers(0, 2**32 - 1))
    network = value >> (bits - length) << (bits - length)
    return family, length, network, 1 << (bits - length)


@given(subnets(), st.data())
def test_the_search_tries_every_address_once_whatever_came_last(subnet, data):
    family, length, network, size = subnet
    written = f"{text(family, network)}/{length}"
    found = one(written)
    last = data.draw(st.none() | st.integers(0, size - 1).map(lambda n: Address(family, network + n)))
    tried = [value for _, value in candidates((found,), last)]
    top = size - 1 if family == 4 else size
    assert sorted(tried) == [network + n for n in range(1, top) if network + n != found.gateway]
    if last is not None and found.holds(last) and last.value != found.gateway:
        assert tried[-1] == last.value


@given(st.text(), st.text(), st.text(), st.text())
def test_any_text_gives_a_range_or_a_named_error(written, start, end, gateway):
    for subnet in (written, "10.1.0.0/16"):
        try:
            one(subnet, start, end, gateway)
        except InvalidConfig as error:
            assert "ipam." in error.message  # noqa: PT017


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(24, 28)), min_size=1, max_size=8))
def test_ranges_are_refused_when_and_only_when_two_of_them_meet(wanted):
    import ipaddress

    subnets = [str(ipaddress.ip_network((f"10.0.0.{16 * n}", length), strict=False)) for n, length in wanted]
    networks = [ipaddress.ip_network(one) for one in subnets]
    meet = any(one.overlaps(other) for n, one in enumerate(networks) for other in networks[:n])
    sections = [("ipam.ranges[0]", [RangeSection(one) for one in subnets])]
    if meet:
        with pytest.raises(InvalidConfig, match="overlaps"):
            parse_sets(sections)
    else:
        assert len(parse_sets(sections)[0]) == len(subnets)
