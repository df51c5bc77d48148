"""Hardware addresses: what users write, and those made of ``mac_prefix`` and an IP address."""

from __future__ import annotations

import re
from typing import Final

# The three forms of Go's net.ParseMAC for 48 bits.
_FORMS: Final = re.compile(
    r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}|(?:[0-9a-f]{2}-){5}[0-9a-f]{2}|(?:[0-9a-f]{4}\.){2}[0-9a-f]{4}",
    re.IGNORECASE | re.ASCII,
)
_PREFIX: Final = re.compile(r"([0-9a-f]{2})[:-]([0-9a-f]{2})", re.IGNORECASE | re.ASCII)


def parse(text: str) -> str:
    """The address as "02:00:00:00:00:09"; raises ValueError for what is no unicast EUI-48 address."""
    if not _FORMS.fullmatch(text):
        raise ValueError(f"{text[:60]!r} is no hardware address such as 02:00:00:00:00:09")
    digits = re.sub("[^0-9a-f]", "", text.lower())
    if int(digits[:2], 16) & 1 or not int(digits, 16):
        raise ValueError(f"{text[:60]!r} is no unicast hardware address")
    return _colons(digits)


def parse_prefix(text: str) -> str:
    """Two octets, "0a:1b" or "0A-1b", as "0a:1b"; raises ValueError."""
    octets = _PREFIX.fullmatch(text)
    if octets is None:
        raise ValueError(f"{text[:60]!r} is not two hexadecimal octets such as 0a:1b")
    if int(octets[1], 16) & 1:
        raise ValueError(f"{text[:60]!r} begins a multicast address: its first octet must be even")
    return f"{octets[1]}:{octets[2]}".lower()


def from_number(prefix: str, value: int) -> str:
    """``prefix`` and the last four bytes of an IP address, given as a number."""
    return f"{prefix}:{_colons(f'{value & 0xFFFFFFFF:08x}')}"


def _colons(digits: str) -> str:
    return ":".join(digits[at : at + 2] for at in range(0, len(digits), 2))
