"""Policy routing rules (linux/fib_rules.h, ip-rule(8)). Ours carry FRA_PROTOCOL 117, as our routes do."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import msgspec

from underlay.net.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    Malformed,
    Message,
    attribute,
    attribute_u8,
    attribute_u32,
    attributes,
    fixed,
    integer,
    pack_cidr,
    unpack_address,
)
from underlay.net.route import PROTOCOL

if TYPE_CHECKING:
    from underlay.net.rtnl import Rtnl

RTM_NEWRULE = 32
RTM_DELRULE = 33
RTM_GETRULE = 34

FRA_DST = 1
FRA_SRC = 2
FRA_PRIORITY = 6
FRA_TABLE = 15
FRA_SUPPRESS_PREFIXLEN = 14
FRA_PROTOCOL = 21
_FR_ACT_TO_TBL = 1
# attributes that belong to every rule, or say nothing of what it selects
_PLAIN = frozenset((FRA_DST, FRA_SRC, FRA_PRIORITY, FRA_TABLE, FRA_PROTOCOL, FRA_SUPPRESS_PREFIXLEN))

# family u8, dst_len u8, src_len u8, tos u8, table u8, reserved u8 x2, action u8, flags u32
_RULE_HEADER = struct.Struct("=BBBBBBBBI")


class Rule(msgspec.Struct, frozen=True):
    """One rule: ``src`` and ``dst`` are CIDRs, "" selects all. ``table`` is 0 for a rule that looks nothing up.

    ``plain`` says that it has no selector or action besides these fields.
    """

    family: int
    table: int
    src: str
    dst: str
    priority: int
    protocol: int
    plain: bool = True


def parse(body: bytes) -> Rule:
    """The rule in the body of an RTM_NEWRULE. Raises Malformed."""
    family, dst_len, src_len, tos, table, _, _, action, flags = fixed(_RULE_HEADER, body)
    told = attributes(body, 12)
    return Rule(
        family=family,
        table=integer(told[FRA_TABLE]) if FRA_TABLE in told else table,
        src=_selector(told.get(FRA_SRC), src_len),
        dst=_selector(told.get(FRA_DST), dst_len),
        priority=integer(told.get(FRA_PRIORITY, b"")),
        protocol=integer(told.get(FRA_PROTOCOL, b"")),
        plain=action == _FR_ACT_TO_TBL and not tos and not flags and told.keys() <= _PLAIN,
    )


def _selector(packed: bytes | None, length: int) -> str:
    if packed is None:
        if length:
            raise Malformed("a rule's prefix length without its address")
        return ""
    return f"{unpack_address(packed)}/{length}"


def add(*, family: int, table: int, src: str = "", dst: str = "", priority: int | None = None) -> Message:
    """Look up ``table`` for what comes from ``src`` to ``dst``; EEXIST when that very rule exists.

    ``family`` is AF_INET or AF_INET6 (4 and 6 are understood). Without a priority the kernel takes one below
    (before) the first it finds after the local table's. A selector's host bits are kept, as the kernel does.
    Raises ValueError for a selector that is no CIDR of the family.
    """
    return _message(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, "add", family, (src, dst), table, priority)


def delete(*, family: int, table: int, src: str = "", dst: str = "", priority: int | None = None) -> Message:
    """Delete the first rule of ours that matches; ENOENT when there is none. What is left out matches anything."""
    return _message(RTM_DELRULE, 0, "delete", family, (src, dst), table, priority)


def _message(
    kind: int, flags: int, verb: str, family: int, selectors: tuple[str, str], table: int, priority: int | None
) -> Message:
    family = numeric_family(family)
    parts: list[bytes] = []
    lengths: list[int] = []
    for attribute_kind, cidr in zip((FRA_SRC, FRA_DST), selectors, strict=True):
        lengths.append(0)
        if cidr:
            own, packed, lengths[-1] = pack_cidr(cidr)
            if own != family:
                raise ValueError(f"{cidr!r} is not of the rule's family")
            if lengths[-1]:
                parts.append(attribute(attribute_kind, packed))
    head = _RULE_HEADER.pack(family, lengths[1], lengths[0], 0, table if table < 256 else 0, 0, 0, _FR_ACT_TO_TBL, 0)
    parts.append(attribute_u32(FRA_TABLE, table))
    parts.append(attribute_u8(FRA_PROTOCOL, PROTOCOL))
    if priority is not None:
        parts.append(attribute_u32(FRA_PRIORITY, priority))
    src, dst = selectors
    what = f"{verb} rule from {src or 'all'}{' to ' + dst if dst else ''} lookup {table}"
    return Message(kind, flags, head + b"".join(parts), what)


def numeric_family(family: int) -> int:
    """AF_INET or AF_INET6 for 4, 6 or the constants themselves."""
    return {4: 2, 6: 10}.get(family, family)


def dump(rtnl: Rtnl, family: int) -> list[Rule]:
    """All rules of a family, in the order in which the kernel asks them. Raises KernelError."""
    head = _RULE_HEADER.pack(numeric_family(family), 0, 0, 0, 0, 0, 0, 0, 0)
    return [parse(body) for _, body in rtnl.dump(Message(RTM_GETRULE, 0, head, "list rules"))]
