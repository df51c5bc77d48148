"""A plugin's own log file: where it is, how much of it is kept, from which level on. Whatever its keys are called."""

from __future__ import annotations

from typing import Final

import msgspec

from underlay.errors import InvalidConfig

# Names of zap and of the files in the field, lower case, onto the daemon's four levels.
_LEVELS: Final = {
    "debug": "debug", "info": "info", "warn": "warn", "warning": "warn", "error": "error",
    "dpanic": "error", "panic": "error", "fatal": "error",
}  # fmt: skip


class LogOptions(msgspec.Struct, frozen=True):
    """``level`` is debug, info, warn or error; ``file`` an absolute path; a limit of 0 means none.

    ``max_size`` is in MiB, ``max_age`` in days, ``max_count`` counts rotated files.
    """

    file: str
    level: str = "debug"
    max_size: int = 100
    max_age: int = 5
    max_count: int = 5


def level(name: str, key: str) -> str:
    """One of the four levels; raises InvalidConfig naming ``key``."""
    found = _LEVELS.get(name.lower())
    if found is None:
        raise InvalidConfig(f'"{key}" {name[:60]!r} is none of debug, info, warn, error')
    return found


def limit(key: str, value: int | None, default: int) -> int:
    """A limit or its default; raises InvalidConfig naming ``key``."""
    if value is None:
        return default
    if value < 0:
        raise InvalidConfig(f'"{key}" {value} is negative')
    return value
