"""The DEL spool: deletions that the shim accepted while no daemon answered.

    RUN_DIR/spool/<realtime ns, 20 digits>-<pid>.del     one request frame, written whole or not at all
    RUN_DIR/spool/bad/                                   what no daemon will ever understand, kept for people to read

The runtime believes that these pods are gone. So each file is worked off before the socket opens, oldest first, and
again until it succeeds; what was attached after a file was written is left alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from typing import TYPE_CHECKING

from underlay.daemon import frame
from underlay.errors import (
    DecodeFailure,
    IncompatibleVersion,
    InvalidConfig,
    InvalidEnvironment,
    PluginMissing,
    UnderlayError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_NAME = re.compile(r"(\d{20})-\d+\.del")
_TEMPORARY_SECONDS = 3600.0
_BAD_KEPT = 1000
_RETRY_SECONDS = 5.0
_RETRY_LONGEST = 300.0
_HOPELESS = (DecodeFailure, IncompatibleVersion, InvalidConfig, InvalidEnvironment, PluginMissing)


class Spool:
    """Works the files of one directory off. Used by one thread at a time.

    ``deliver(call, spooled_at)`` carries out one DEL, ``spooled_at`` in realtime nanoseconds. What it
    raises is tried again, but for an error that lies in the file itself.
    """

    def __init__(self, directory: str, deliver: Callable[[frame.Call, int], None], log: Callable[..., None]) -> None:
        self._directory = directory
        self._deliver = deliver
        self._log = log
        self._again: dict[str, tuple[float, float]] = {}  # file name: when to try again, pause before that
        self._unreadable = ""

    def work_off(self) -> int:
        """One pass, oldest first. Returns how many deletions are left for later."""
        names = self._names()
        for gone in self._again.keys() - set(names):
            del self._again[gone]
        now = time.monotonic()
        left = 0
        for name in names:
            if self._again.get(name, (0.0, 0.0))[0] > now:
                left += 1
            elif _NAME.fullmatch(name):
                left += not self._one(name)
            else:
                self._stranger(name)
        return left

    def _names(self) -> list[str]:
        try:
            names = sorted(os.listdir(self._directory))
            self._unreadable = ""
        except FileNotFoundError:
            return []
        except OSError as error:
            if str(error) != self._unreadable:
                self._unreadable = str(error)
                self._log("error", "spool cannot be read", directory=self._directory, error=str(error))
            return []
        return [name for name in names if name != "bad"]

    def _one(self, name: str) -> bool:
        """Whether the file is done with."""
        path = os.path.join(self._directory, name)
        try:
            with open(path, "rb") as file:
                call = frame.parse(frame.payload(file.read(frame.LIMIT + 16)))
            if call.env.get("CNI_COMMAND") != "DEL":
                raise DecodeFailure(f"it holds no DEL but {call.env.get('CNI_COMMAND', '')[:20]!r}")
            self._deliver(call, int(name[:20]))
            os.unlink(path)
        except FileNotFoundError:
            pass
        except _HOPELESS as error:
            self._set_aside(name, error.message)
        except (UnderlayError, OSError) as error:
            _, pause = self._again.get(name, (0.0, _RETRY_SECONDS / 2))
            pause = min(pause * 2, _RETRY_LONGEST)
            self._again[name] = (time.monotonic() + pause, pause)
            self._log("warn", "spooled DEL failed", file=name, error=str(error), again_in_s=pause)
            return False
        return True

    def _set_aside(self, name: str, why: str) -> None:
        """Move a file to spool/bad; while the disk refuses that, the file stays and is tried again."""
        bad = os.path.join(self._directory, "bad")
        try:
            os.makedirs(bad, mode=0o700, exist_ok=True)
            os.rename(os.path.join(self._directory, name), os.path.join(bad, name))
            for old in sorted(os.listdir(bad))[:-_BAD_KEPT]:
                os.unlink(os.path.join(bad, old))
        except OSError as error:
            self._again[name] = (time.monotonic() + _RETRY_LONGEST, _RETRY_LONGEST)
            why = f"{why}; and it cannot be moved away: {error}"
        self._log("error", "bad spool file", file=name, moved_to=bad, error=why)

    def _stranger(self, name: str) -> None:
        """A temporary file of a shim that still writes, or that was killed; or somebody's file."""
        if not name.startswith("."):
            self._set_aside(name, "it is no spool file")
            return
        path = os.path.join(self._directory, name)
        with contextlib.suppress(FileNotFoundError):
            if time.time() - os.stat(path).st_mtime > _TEMPORARY_SECONDS:
                os.unlink(path)
