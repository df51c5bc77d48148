"""IP addresses and prefixes as numbers: what the protocol writes as text, parsed once.

Plain integers, because the allocator counts with them on the path of ADD; :mod:`ipaddress` objects cost ten times as
much.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Address
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import NamedTuple

_MAPPED = 0xFFFF  # the upper 96 bits of ::ffff:0:0/96
_TEXTS = 512  # kept parsed: gateways and subnets come again with every pod
BITS = {4: 32, 6: 128}


class Address(NamedTuple):
    """One address: ``family`` 4 or 6, ``value`` as a number."""

    family: int
    value: int

    def __str__(self) -> str:
        return text(self.family, self.value)


class Prefix(NamedTuple):
    """An address with the length of its prefix, host bits kept."""

    family: int
    value: int
    length: int

    @property
    def network(self) -> int:
        """The number of the first address."""
        hosts = BITS[self.family] - self.length
        return self.value >> hosts << hosts

    @property
    def last(self) -> int:
        """The number of the last address."""
        return self.value | ((1 << (BITS[self.family] - self.length)) - 1)

    def holds(self, address: Address) -> bool:
        """Whether the address lies inside."""
        return address.family == self.family and self.network <= address.value <= self.last

    def __str__(self) -> str:
        return f"{text(self.family, self.value)}/{self.length}"


def text(family: int, value: int) -> str:
    """The canonical text of an address (RFC 5952)."""
    if family == 4:
        return inet_ntop(AF_INET, value.to_bytes(4, "big"))
    if value >> 32 in (0, _MAPPED):
        return str(IPv6Address(value))  # the C library would write the last 32 bits as dotted decimal
    return inet_ntop(AF_INET6, value.to_bytes(16, "big"))


@lru_cache(_TEXTS)
def parse(value: str) -> Address | None:
    """An address without prefix length; None where the text is none. IPv4-mapped IPv6 is IPv4, as elsewhere in CNI."""
    try:
        if ":" not in value:
            return Address(4, int.from_bytes(inet_pton(AF_INET, value), "big"))
        number = int.from_bytes(inet_pton(AF_INET6, value), "big")
    except (OSError, ValueError):
        return None
    return Address(4, number & 0xFFFFFFFF) if number >> 32 == _MAPPED else Address(6, number)


@lru_cache(_TEXTS)
def parse_prefix(value: str) -> Prefix | None:
    """An address in CIDR form, host bits kept; None where the text is none."""
    host, _, length = value.partition("/")
    if not (length.isascii() and length.isdigit() and len(length) <= 3):
        return None
    address = parse(host)
    if address is None or int(length) > BITS[address.family]:
        return None
    if ":" in host and address.family == 4:
        return None  # the length of an IPv4-mapped prefix counts from another end; nobody means it
    return Prefix(address.family, address.value, int(length))
