"""The ``log_options`` of a plugin: where its own log file is, how much of it is kept, from which level on."""

from __future__ import annotations

import msgspec

from underlay.cni.log_options import LogOptions, level, limit
from underlay.errors import InvalidConfig

__all__ = ["Keys", "LogOptions", "parse", "parse_flat"]


class Keys(msgspec.Struct, frozen=True):
    """The JSON object ``log_options``."""

    log_level: str | None = None
    log_file: str | None = None
    log_max_size: int | None = None
    log_max_age: int | None = None
    log_max_count: int | None = None


def parse(keys: Keys | None, plugin: str) -> LogOptions:
    """The options of ``plugin``, defaults filled in; raises InvalidConfig naming the key."""
    default = LogOptions(file=f"/var/log/meta-plugins/{plugin}.log")
    if keys is None:
        return default
    file = keys.log_file or default.file
    if not file.startswith("/") or "\0" in file:
        raise InvalidConfig(f'"log_options.log_file" {file[:60]!r} is no absolute path')
    return LogOptions(
        file=file,
        level=level(keys.log_level or default.level, "log_options.log_level"),
        max_size=limit("log_options.log_max_size", keys.log_max_size, default.max_size),
        max_age=limit("log_options.log_max_age", keys.log_max_age, default.max_age),
        max_count=limit("log_options.log_max_count", keys.log_max_count, default.max_count),
    )


def parse_flat(named: str | None, file: str | None) -> LogOptions | None:
    """The options of a plugin that has "logLevel" and "logFile" beside its other keys; None without a file.

    Raises InvalidConfig naming the key.
    """
    wanted = level(named or "info", "logLevel")
    if not file:
        return None
    if not file.startswith("/") or "\0" in file:
        raise InvalidConfig(f'"logFile" {file[:60]!r} is no absolute path')
    return LogOptions(file=file, level=wanted)
