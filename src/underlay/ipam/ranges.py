"""Ranges of addresses: written in a configuration, checked once, counted with as numbers.

A *range set* is a list of ranges of one family, of which a NIC gets one address; a configuration has one set or more.
"""

from __future__ import annotations

from bisect import bisect, insort
from typing import TYPE_CHECKING

import msgspec

from underlay.cni.address import BITS, Address, Prefix, parse, parse_prefix, text
from underlay.errors import InvalidConfig

if TYPE_CHECKING:
    from collections.abc import Sequence


class RangeSection(msgspec.Struct, frozen=True, rename="camel"):
    """A range as it is written: ``subnet`` in CIDR form, the others addresses."""

    subnet: str | None = None
    range_start: str | None = None
    range_end: str | None = None
    gateway: str | None = None


class Range(msgspec.Struct, frozen=True):
    """Addresses ``start`` to ``end``, both included, of a subnet with prefix ``length``, except ``gateway``."""

    family: int
    length: int
    start: int
    end: int
    gateway: int

    def holds(self, address: Address) -> bool:
        """Whether the address lies between start and end."""
        return address.family == self.family and self.start <= address.value <= self.end

    def overlaps(self, other: Range) -> bool:
        """Whether an address lies in both."""
        return self.family == other.family and self.start <= other.end and other.start <= self.end

    def __str__(self) -> str:
        return f"{text(self.family, self.start)}-{text(self.family, self.end)}"


RangeSet = tuple[Range, ...]


def show(ranges: RangeSet) -> str:
    """The ranges of a set, for messages."""
    return ", ".join(map(str, ranges))


def parse_range(written: RangeSection, at: str) -> Range:
    """A checked range; ``at`` ("ipam.ranges[0][1]") goes before the names of wrong fields."""
    if not written.subnet:
        raise InvalidConfig(f'"{at}.subnet" is missing', hint='Write the subnet in CIDR form, such as "10.1.0.0/16".')
    subnet = parse_subnet(written.subnet, f"{at}.subnet")
    family, hosts = subnet.family, BITS[subnet.family] - subnet.length
    if hosts < 2:
        raise InvalidConfig(
            f'"{at}.subnet" {written.subnet!r} is too small to allocate from',
            hint=f"The prefix length must be {BITS[family] - 2} at most.",
        )
    # The network's own address stays out, in IPv6 because it is the routers' anycast address (RFC 4291, 2.6.1);
    # and in IPv4 the broadcast address.
    first, last = subnet.value + 1, subnet.last - (family == 4)
    gateway = _address(written.gateway, subnet, f"{at}.gateway", inside=False)
    start = _address(written.range_start, subnet, f"{at}.rangeStart", inside=True)
    end = _address(written.range_end, subnet, f"{at}.rangeEnd", inside=True)
    start = first if start is None else max(start, first)
    end = last if end is None else min(end, last)
    if start > end:
        raise InvalidConfig(f'"{at}.rangeStart" {text(family, start)} comes after "rangeEnd" {text(family, end)}')
    return Range(family, subnet.length, start, end, first if gateway is None else gateway)


def parse_subnet(written: str, field: str) -> Prefix:
    """A prefix without host bits; InvalidConfig naming ``field`` otherwise."""
    subnet = parse_prefix(written)
    if subnet is None:
        raise InvalidConfig(
            f'"{field}" {written[:60]!r} is no subnet in CIDR form',
            hint='Write it as "10.1.0.0/16" or "fd00:1::/64".',
        )
    if subnet.value != subnet.network:
        right = f"{text(subnet.family, subnet.network)}/{subnet.length}"
        raise InvalidConfig(f'"{field}" {written!r} has host bits set', hint=f'Write "{right}".')
    return subnet


def _address(written: str | None, subnet: Prefix, field: str, *, inside: bool) -> int | None:
    if not written:
        return None
    address = parse(written)
    if address is None:
        raise InvalidConfig(f'"{field}" {written[:60]!r} is not an IP address')
    if address.family != subnet.family or (inside and not subnet.holds(address)):
        raise InvalidConfig(f'"{field}" {written!r} is not in the subnet {subnet}')
    return address.value


def parse_sets(written: Sequence[tuple[str, Sequence[RangeSection]]]) -> tuple[RangeSet, ...]:
    """Checked range sets; each comes with the name of its field. No two ranges may overlap, wherever they stand."""
    sets: list[RangeSet] = []
    seen: list[_Seen] = []
    for at, sections in written:
        if not sections:
            raise InvalidConfig(f'"{at}" is an empty range set')
        ranges = tuple(parse_range(section, at if len(sections) == 1 and "[" not in at else f"{at}[{n}]")
                       for n, section in enumerate(sections))  # fmt: skip
        if len({one.family for one in ranges}) > 1:
            raise InvalidConfig(
                f'"{at}" mixes IPv4 and IPv6',
                hint="Give each family a range set of its own: a NIC gets one address a set.",
            )
        for one in ranges:
            _refuse_overlap(at, one, seen)
            insort(seen, (one.family, one.start, at, one))
        sets.append(ranges)
    return tuple(sets)


_Seen = tuple[int, int, str, Range]


def _refuse_overlap(at: str, one: Range, seen: Sequence[_Seen]) -> None:
    """``seen`` is in order and without overlaps, so that a range can meet its neighbours only; thousands stay cheap."""
    place = bisect(seen, (one.family, one.start), key=lambda each: each[:2])
    for _, _, where, other in seen[max(0, place - 1) : place + 1]:
        if one.overlaps(other):
            raise InvalidConfig(
                f'"{at}": {one} overlaps {other}' + ("" if where == at else f' of "{where}"'),
                hint="Every address may lie in one range only.",
            )
