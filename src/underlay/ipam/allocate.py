"""Which address comes next: pure, no files.

Round-robin: the search goes on after the address that was given out last, so that an address that was just released
rests as long as possible before another pod gets it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from underlay.errors import NoAddressLeft

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from underlay.cni.address import Address
    from underlay.ipam.ranges import Range, RangeSet


def candidates(ranges: RangeSet, last: Address | None) -> Iterator[tuple[Range, int]]:
    """Every address of the set in the order to try them, gateways left out: first those after ``last``, ``last`` itself
    at the very end. Without ``last``, or where it lies in none of the ranges, from the set's beginning.
    """
    for one, start, end in _spans(ranges, last):
        for value in range(start, end + 1):
            if value != one.gateway:
                yield one, value


def _spans(ranges: RangeSet, last: Address | None) -> Iterator[tuple[Range, int, int]]:
    at = next((n for n, one in enumerate(ranges) if last is not None and one.holds(last)), None)
    if at is None or last is None:
        for one in ranges:
            yield one, one.start, one.end
        return
    home = ranges[at]
    yield home, last.value + 1, home.end
    for one in (*ranges[at + 1 :], *ranges[:at]):
        yield one, one.start, one.end
    yield home, home.start, last.value


def assign(sets: Sequence[RangeSet], wanted: Sequence[Address]) -> list[tuple[Range, Address] | None]:
    """For every set the requested address that lies in it and its range, or None where any will do.

    Raises NoAddressLeft for a request that no set can serve.
    """
    left = list(dict.fromkeys(wanted))
    chosen: list[tuple[Range, Address] | None] = []
    for ranges in sets:
        match = next(((one, address) for address in left for one in ranges if one.holds(address)), None)
        if match is not None:
            left.remove(match[1])
            if match[1].value == match[0].gateway:
                raise NoAddressLeft(
                    f"the requested address {match[1]} is the gateway of its range {match[0]}",
                    hint="Request another address.",
                )
        chosen.append(match)
    if left:
        raise NoAddressLeft(
            f"no range set can serve the requested address {left[0]}",
            hint="Request addresses inside the ranges, and one for a range set only.",
        )
    return chosen
