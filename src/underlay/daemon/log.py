"""Structured log lines, one JSON object each, to standard error or to files that rotate.

    {"time":"2024-05-01T10:00:00.123456Z","level":"info","event":"request","verb":"ADD",…}

Writing a line never raises and never fails a request: what the disk refuses is counted and told later.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from underlay.daemon.config import LogSettings
    from underlay.plugins.log_options import LogOptions

LEVELS: Final = {"debug": 10, "info": 20, "warn": 30, "error": 40}
_DAY = 86400
# Each costs a file descriptor, and whoever writes networks may name any number.
_FILES = 64
_encode = msgspec.json.Encoder(enc_hook=str).encode


def line(level: str, event: str, fields: dict[str, Any], *, now: float) -> bytes:
    """One line. ``now`` in seconds since the epoch."""
    micros = int(now * 1e6)
    stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(micros // 1_000_000))}.{micros % 1_000_000:06}Z"
    entry = {"time": stamp, "level": level, "event": event, **fields}
    try:
        return _encode(entry) + b"\n"
    except UnicodeEncodeError:  # a file name that is no UTF-8
        plain = {key: str(value).encode("utf-8", "backslashreplace").decode() for key, value in entry.items()}
        return _encode(plain) + b"\n"


class LogFile:
    """One file that is appended to; "" is standard error, which nobody rotates.

    At ``max_size`` MB the file is renamed to NAME.YYYYMMDDTHHMMSS.ffffff; of those, what is older than ``max_age``
    days or beyond the newest ``max_count`` is removed. 0 is no limit, as for the Go plugins' log_options.
    """

    def __init__(self, path: str, *, max_size: int, max_age: int, max_count: int) -> None:
        self.path = path
        self._max_bytes = max_size << 20
        self._max_age = max_age
        self._max_count = max_count
        self._lock = threading.Lock()
        self._fd = -1
        self._size = 0
        self._lost = 0

    def write(self, content: bytes) -> None:
        """Append one line; lost where the disk refuses it."""
        if not self.path:
            with contextlib.suppress(OSError):
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, content)
            return
        with self._lock:
            try:
                if self._fd < 0:
                    self._open()
                if self._max_bytes and self._size and self._size + len(content) > self._max_bytes:
                    self._rotate()
                self._size += os.write(self._fd, content)
            except OSError as error:
                self._lose(error)

    def reopen(self) -> None:
        """Go on in a new file of that name: somebody has moved the present one."""
        with self._lock:
            self._close()

    def _open(self) -> None:
        os.makedirs(os.path.dirname(self.path), mode=0o755, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(self.path, flags, 0o640)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise OSError(f"{self.path} is no regular file")
        self._fd, self._size = fd, status.st_size
        if self._lost:
            lost, self._lost = self._lost, 0
            self._size += os.write(fd, line("warn", "log lines lost", {"lines": lost}, now=time.time()))

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _rotate(self) -> None:
        self._close()
        now = time.time()
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now))
        os.rename(self.path, f"{self.path}.{stamp}.{int(now % 1 * 1e6):06}")
        self._open()
        self._prune(now)

    def _prune(self, now: float) -> None:
        directory, name = os.path.split(self.path)
        old = re.compile(re.escape(name) + r"\.\d{8}T\d{6}\.\d{6}")
        with os.scandir(directory) as entries:
            found = sorted((entry.name for entry in entries if old.fullmatch(entry.name)), reverse=True)
        for place, rotated in enumerate(found):
            path = os.path.join(directory, rotated)
            with contextlib.suppress(FileNotFoundError):
                too_old = self._max_age and now - os.stat(path).st_mtime > self._max_age * _DAY
                if too_old or (self._max_count and place >= self._max_count):
                    os.unlink(path)

    def _lose(self, error: OSError) -> None:
        self._close()
        if not self._lost:
            told = line(
                "error", "log file cannot be written", {"file": self.path, "error": str(error)}, now=time.time()
            )
            with contextlib.suppress(OSError):
                os.write(2, told)
        self._lost += 1


class Logs:
    """The daemon's log and the files that plugins' ``log_options`` name, each opened once and shared. Thread-safe.

    A network's author is not the node's administrator: such files lie under ``plugin_dir`` and end in ".log", or
    their lines go to the daemon's log alone. Limits are those of the first who names a file.
    """

    def __init__(self, settings: LogSettings) -> None:
        self._own = LogFile(
            settings.file, max_size=settings.max_size, max_age=settings.max_age, max_count=settings.max_count
        )
        self._least = LEVELS[settings.level]
        self._under = settings.plugin_dir.rstrip("/") + "/"
        self._enabled = bool(settings.plugin_dir)
        self._lock = threading.Lock()
        self._files: dict[str, LogFile | None] = {}

    def __call__(self, level: str, event: str, /, **fields: Any) -> None:
        """Write one line, unless it is below the level; ``to``, a LogOptions, names a further file."""
        to: LogOptions | None = fields.pop("to", None)
        weight = LEVELS.get(level, LEVELS["error"])
        now = time.time()
        if to is not None and weight >= LEVELS.get(to.level, 0) and (file := self._file(to)) is not None:
            file.write(line(level, event, fields, now=now))
        if weight >= self._least:
            self._own.write(line(level, event, fields, now=now))

    def reopen(self) -> None:
        """Open every file anew (SIGHUP)."""
        with self._lock:
            files = list(self._files.values())
        for file in (self._own, *files):
            if file is not None:
                file.reopen()

    def _file(self, options: LogOptions) -> LogFile | None:
        path = options.file
        with self._lock:
            if path in self._files or not self._enabled or len(self._files) >= _FILES:
                return self._files.get(path)
            allowed = path.startswith(self._under) and path == os.path.normpath(path) and path.endswith(".log")
            made = LogFile(path, max_size=options.max_size, max_age=options.max_age, max_count=options.max_count)
            self._files[path] = made if allowed else None
        if not allowed:
            self("warn", "plugin log refused", file=path, error=f"it must lie under {self._under} and end in .log")
        return self._files[path]
