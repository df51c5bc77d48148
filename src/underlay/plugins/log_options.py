"""The ``log_options`` of a plugin: where its own log file is, how much of it is kept, from which level on."""

from __future__ import annotations

from typing import Final

import msgspec

from underlay.errors import InvalidConfig

# Names of zap and of the files in the field, lower case, onto the daemon's four levels.
_LEVELS: Final = {
    "debug": "debug", "info": "info", "warn": "warn", "warning": "warn", "error": "error",
    "dpanic": "error", "panic": "error", "fatal": "error",
}  # fmt: skip


class Keys(msgspec.Struct, frozen=True):
    """The JSON object ``log_options``."""

    log_level: str | None = None
    log_file: str | None = None
    log_max_size: int | None = None
    log_max_age: int | None = None
    log_max_count: int | None = None


class LogOptions(msgspec.Struct, frozen=True):
    """``level`` is debug, info, warn or error; ``file`` an absolute path; a limit of 0 means none.

    ``max_size`` is in MiB, ``max_age`` in days, ``max_count`` counts rotated files.
    """

    file: str
    level: str = "debug"
    max_size: int = 100
    max_age: int = 5
    max_count: int = 5


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
        level=_level(keys.log_level or default.level),
        max_size=_limit("log_max_size", keys.log_max_size, default.max_size),
        max_age=_limit("log_max_age", keys.log_max_age, default.max_age),
        max_count=_limit("log_max_count", keys.log_max_count, default.max_count),
    )


def _level(name: str) -> str:
    level = _LEVELS.get(name.lower())
    if level is None:
        raise InvalidConfig(f'"log_options.log_level" {name[:60]!r} is none of debug, info, warn, error')
    return level


def _limit(key: str, value: int | None, default: int) -> int:
    if value is None:
        return default
    if value < 0:
        raise InvalidConfig(f'"log_options.{key}" {value} is negative')
    return value
