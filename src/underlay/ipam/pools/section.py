"""The "ipam" section of the type ``spiderpool``: default pools, where to log, what to probe. Numbers may be strings."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

import msgspec

from underlay.cni.decoding import FAULTS, fault
from underlay.cni.log_options import LogOptions, level, limit
from underlay.errors import InvalidConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from underlay.cni.config import PluginConfig

NAME: Final = "spiderpool"
LOG_FILE: Final = "/var/log/spidernet/spiderpool.log"


class _Section(msgspec.Struct, frozen=True):
    """Sockets are the reference's own way to its agent, and need none here."""

    default_ipv4_ippool: tuple[str, ...] | None = None
    default_ipv6_ippool: tuple[str, ...] | None = None
    ipam_unix_socket_path: str | None = None
    log_level: str | None = None
    log_file_path: str | None = None
    log_file_max_size: int | None = None
    log_file_max_age: int | None = None
    log_file_max_count: int | None = None
    detect_ip_conflict: bool | None = msgspec.field(name="detectIPConflict", default=None)
    detect_gateway: bool | None = msgspec.field(name="detectGateway", default=None)


class Keys(msgspec.Struct, frozen=True):
    """The JSON keys of the section in their place."""

    ipam: _Section


class Section(msgspec.Struct, frozen=True):
    """As checked. ``log`` is None where no log key is given: no file is made unasked. ``detect_conflict``: ask the wire
    whether an address is free; ``detect_gateway``: whether the gateway answers (our own keys, "detectIPConflict" and
    "detectGateway", named as the field's coordinator names them).
    """

    v4: tuple[str, ...]
    v6: tuple[str, ...]
    log: LogOptions | None
    detect_conflict: bool
    detect_gateway: bool


class Parsing:
    """What the plugin says of a configuration before it knows of any pool (:class:`~underlay.ipam.allocator.Parsed`):
    for lint, which needs no state.
    """

    name: Final = NAME
    keys: Final = Keys

    def parse(self, conf: PluginConfig, args: Mapping[str, str]) -> Section:
        """The section, checked as ADD does first. Raises InvalidConfig naming the key."""
        return read(conf)


def read(conf: PluginConfig) -> Section:
    """The section of a configuration. Raises InvalidConfig naming the key."""
    return _read(conf.raw)


@lru_cache(maxsize=64)
def _read(raw: bytes) -> Section:
    try:
        section = msgspec.json.decode(raw, type=Keys, strict=False).ipam
    except FAULTS as error:
        raise fault(error) from error
    return Section(
        section.default_ipv4_ippool or (),
        section.default_ipv6_ippool or (),
        _log(section),
        bool(section.detect_ip_conflict),
        bool(section.detect_gateway),
    )


def _log(section: _Section) -> LogOptions | None:
    if all(getattr(section, key) is None for key in section.__struct_fields__ if key.startswith("log_")):
        return None
    file = section.log_file_path or LOG_FILE
    if not file.startswith("/") or "\0" in file:
        raise InvalidConfig(f'"ipam.log_file_path" {file[:120]!r} is no absolute path')
    return LogOptions(
        file=file,
        level=level(section.log_level or "info", "ipam.log_level"),
        max_size=limit("ipam.log_file_max_size", section.log_file_max_size, 100),
        max_age=limit("ipam.log_file_max_age", section.log_file_max_age, 30),
        max_count=limit("ipam.log_file_max_count", section.log_file_max_count, 10),
    )
