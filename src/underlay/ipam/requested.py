"""The addresses that somebody asks for by name: CNI_ARGS, ``args.cni.ips`` and the ``ips`` capability."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec

from underlay.cni.address import Address, parse, parse_prefix
from underlay.cni.decoding import FAULTS, fault
from underlay.errors import InvalidConfig, InvalidEnvironment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from underlay.cni.address import Prefix
    from underlay.cni.config import PluginConfig
    from underlay.errors import UnderlayError

T = TypeVar("T")


class Wish(NamedTuple):
    """One address asked for, as written, and where ("runtimeConfig.ips[0]")."""

    at: str
    written: str

    def address(self) -> Address:
        """The address; a prefix length, which some write, is checked and left out."""
        found = parse(self.written)
        if found is None:
            prefix = parse_prefix(self.written)
            if prefix is None:
                raise self.fault("is not an IP address")
            found = Address(prefix.family, prefix.value)
        return found

    def prefix(self) -> Prefix:
        """The address in CIDR form."""
        found = parse_prefix(self.written)
        if found is None:
            raise self.fault("is not an address in CIDR form", hint='Write it as "10.1.0.7/16".')
        return found

    def fault(self, words: str, hint: str | None = None) -> UnderlayError:
        """The error that says what is wrong with this wish."""
        kind = InvalidEnvironment if self.at.startswith("CNI_ARGS") else InvalidConfig
        return kind(f'"{self.at}" {self.written[:60]!r} {words}', hint=hint)


def from_args(args: Mapping[str, str], key: str) -> list[Wish]:
    """The addresses of a CNI_ARGS key, separated by commas."""
    return [Wish(f"CNI_ARGS {key}", part.strip()) for part in args[key].split(",")] if args.get(key) else []


def from_cni_args(conf: PluginConfig) -> list[Wish]:
    """The addresses of ``args.cni.ips``."""
    return _listed(conf.cni_args, "args.cni.ips")


def from_runtime(conf: PluginConfig) -> list[Wish]:
    """The addresses of the ``ips`` capability."""
    return _listed(conf.runtime, "runtimeConfig.ips")


def _listed(values: Mapping[str, object], at: str) -> list[Wish]:
    if not values.get("ips"):
        return []
    return [Wish(f"{at}[{n}]", written) for n, written in enumerate(convert(values["ips"], list[str], at))]


def convert(value: object, kind: type[T], at: str) -> T:
    """A decoded value as a typed one; InvalidConfig naming the field below ``at`` otherwise."""
    try:
        return msgspec.convert(value, kind)
    except FAULTS as error:
        raise fault(error, at=at) from error
