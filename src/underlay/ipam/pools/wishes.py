"""The annotations of pods and namespaces by which pools are asked for.

    ipam.spidernet.io/ippools        [{"interface": "net1", "ipv4": ["a", "b-*"], "ipv6": [], "cleangateway": true}]
    ipam.spidernet.io/ippool         {"ipv4": ["a"], "ipv6": ["b"]}                  the pod's first NIC
    ipam.spidernet.io/subnets        [{"interface": "net1", "ipv4": ["s"], "ipv6": []}]
    ipam.spidernet.io/subnet         {"ipv4": ["s"], "ipv6": ["t"]}                  the pod's first NIC
    ipam.spidernet.io/ippool-ip-number "3" │ "+1"      ipam.spidernet.io/ippool-reclaim "true" │ "false"
    ipam.spidernet.io/routes         [{"dst": "10.0.0.0/16", "gw": "192.168.1.1"}]
    namespace: ipam.spidernet.io/default-ipv4-ippool ["a", "b"]                      and default-ipv6-ippool

Every fault names annotation, field and fix.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from underlay.cni.decoding import FAULTS, fault
from underlay.errors import InvalidAnnotation, InvalidConfig
from underlay.ipam.pools.objects import parse_route

if TYPE_CHECKING:
    from collections.abc import Mapping

    from underlay.cni.result import Route

T = TypeVar("T")

PREFIX: Final = "ipam.spidernet.io/"
IPPOOL, IPPOOLS = f"{PREFIX}ippool", f"{PREFIX}ippools"
SUBNET, SUBNETS = f"{PREFIX}subnet", f"{PREFIX}subnets"
NUMBER, RECLAIM = f"{PREFIX}ippool-ip-number", f"{PREFIX}ippool-reclaim"
ROUTES: Final = f"{PREFIX}routes"
DEFAULT_V4, DEFAULT_V6 = f"{PREFIX}default-ipv4-ippool", f"{PREFIX}default-ipv6-ippool"
_NUMBER: Final = re.compile(r"\+?\d{1,6}")


@dataclass(frozen=True, slots=True)
class Named:
    """Names (patterns, for pools) of each family, in their order; ``at`` is the annotation's field, for messages."""

    at: str
    v4: tuple[str, ...] = ()
    v6: tuple[str, ...] = ()
    clean_gateway: bool = False


@dataclass(frozen=True, slots=True)
class Number:
    """How many addresses an application's own pool has: ``count``, with ``flexible`` as many more than it has pods."""

    count: int = 1
    flexible: bool = True


class _Named(msgspec.Struct, frozen=True):
    ipv4: tuple[str, ...] | None = None
    ipv6: tuple[str, ...] | None = None
    interface: str | None = None
    cleangateway: bool | None = None


class _Route(msgspec.Struct, frozen=True):
    dst: str
    gw: str


def pools(annotations: Mapping[str, str], ifname: str, *, first: bool) -> Named | None:
    """The pools that the pod asks for on this NIC, ippools before ippool; None where it asks for none."""
    return _of_nic(annotations, IPPOOLS, ifname) or _of_first(annotations, IPPOOL, first=first)


def subnets(annotations: Mapping[str, str], ifname: str, *, first: bool) -> Named | None:
    """The subnets that the pod asks for on this NIC, subnets before subnet; None where it asks for none."""
    return _of_nic(annotations, SUBNETS, ifname) or _of_first(annotations, SUBNET, first=first)


def defaults(annotations: Mapping[str, str]) -> Named | None:
    """The default pools of a namespace; None where it names none."""
    v4, v6 = _names(annotations, DEFAULT_V4), _names(annotations, DEFAULT_V6)
    return Named(DEFAULT_V4 if v4 else DEFAULT_V6, v4, v6) if v4 or v6 else None


def routes(annotations: Mapping[str, str]) -> tuple[Route, ...]:
    """The pod's own routes."""
    written = annotations.get(ROUTES)
    if not written:
        return ()
    listed = _decode(written, tuple[_Route, ...], ROUTES, 'Write [{"dst": "10.0.0.0/16", "gw": "192.168.1.1"}].')
    try:
        return tuple(parse_route(one.dst, one.gw, f"{ROUTES}[{n}]") for n, one in enumerate(listed))
    except InvalidConfig as error:
        raise InvalidAnnotation(f"annotation {error.message}", hint=error.hint) from error


def number(annotations: Mapping[str, str]) -> Number:
    """How large an application's pool is to be; "+1" where the pod does not say."""
    written = annotations.get(NUMBER, "+1").strip()
    if not _NUMBER.fullmatch(written) or written == "0":
        raise InvalidAnnotation(
            f'annotation "{NUMBER}" {written[:40]!r} is no number of addresses',
            hint='Write "3" for a fixed number, or "+1" for as many more as there are pods.',
        )
    return Number(int(written), written.startswith("+"))


def reclaim(annotations: Mapping[str, str]) -> bool:
    """Whether the application's pool goes with the application."""
    written = annotations.get(RECLAIM, "true").strip().lower()
    if written not in ("true", "false"):
        raise InvalidAnnotation(
            f'annotation "{RECLAIM}" {written[:40]!r} is neither true nor false', hint='Write "true" or "false".'
        )
    return written == "true"


def faults(annotations: Mapping[str, str]) -> list[InvalidAnnotation]:
    """What is wrong with a pod's annotations, whichever of its NICs it concerns; the first fault of each."""
    found: list[InvalidAnnotation] = []
    for nics, key in ((True, IPPOOLS), (False, IPPOOL), (True, SUBNETS), (False, SUBNET)):
        written = annotations.get(key)
        try:
            if nics and written:
                for n, one in enumerate(_listed(written, key, "net1")):
                    _named(one, f"{key}[{n}]")
            else:
                _of_first(annotations, key, first=True)
        except InvalidAnnotation as fault:
            found.append(fault)
    for read in (routes, number, reclaim):
        try:
            read(annotations)
        except InvalidAnnotation as fault:
            found.append(fault)
    return found


def _names(annotations: Mapping[str, str], key: str) -> tuple[str, ...]:
    written = annotations.get(key)
    return _decode(written, tuple[str, ...], key, 'Write a JSON list of names: ["a", "b"].') if written else ()


def _of_nic(annotations: Mapping[str, str], key: str, ifname: str) -> Named | None:
    written = annotations.get(key)
    if not written:
        return None
    for n, one in enumerate(_listed(written, key, ifname)):
        if one.interface in (None, "", ifname):
            return _named(one, f"{key}[{n}]")
    return None


def _listed(written: str, key: str, ifname: str) -> tuple[_Named, ...]:
    listed = _decode(written, tuple[_Named, ...], key, f'Write [{{"interface": "{ifname}", "ipv4": ["a"]}}].')
    for n, one in enumerate(listed):
        if not one.interface and len(listed) > 1:
            raise InvalidAnnotation(
                f'annotation "{key}[{n}].interface" is missing',
                hint="With several elements each names its NIC: eth0, net1, net2 …",
            )
    return listed


def _of_first(annotations: Mapping[str, str], key: str, *, first: bool) -> Named | None:
    written = annotations.get(key)
    if not written or not first:
        return None
    return _named(_decode(written, _Named, key, 'Write {"ipv4": ["a"], "ipv6": ["b"]}.'), key)


def _named(one: _Named, at: str) -> Named:
    if not one.ipv4 and not one.ipv6:
        raise InvalidAnnotation(f'annotation "{at}" names nothing', hint='Give "ipv4" or "ipv6" a name, or both.')
    return Named(at, one.ipv4 or (), one.ipv6 or (), bool(one.cleangateway))


def _decode(written: str, kind: type[T], key: str, hint: str) -> T:
    try:
        return msgspec.json.decode(written, type=kind, strict=False)
    except FAULTS as error:
        wrong = fault(error, at=key, what="its value")
        raise InvalidAnnotation(f'annotation "{key}": {wrong.message}', hint=hint) from error
