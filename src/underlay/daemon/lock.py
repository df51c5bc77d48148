"""One daemon per run directory and per state directory: a lock that the kernel drops when its holder dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from typing import Final

from underlay.errors import IOFailure, StateUnwritable

_HINTS: Final = {
    errno.EACCES: "Run it as root, or name another directory.",
    errno.EPERM: "Run it as root, or name another directory.",
    errno.EEXIST: "A file is in its place: move that away, or name another directory.",
    errno.ENOTDIR: "A file stands in its path: move that away, or name another directory.",
}


class AlreadyRunning(IOFailure):
    """Another daemon holds the directory."""

    hint = "Stop that daemon first, or give this one a --run-dir and a --state-dir of its own."


def private_directory(path: str) -> None:
    """Make ``path``, with its parents, or make it ours: a real directory of this user, mode 0700.

    Raises StateUnwritable where it cannot be made, IOFailure where somebody else owns it.
    """
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode):
            raise IOFailure(f"{path} is not a directory", hint="Move it away, or name another directory.")
        if status.st_uid != os.geteuid():
            raise IOFailure(
                f"{path} belongs to uid {status.st_uid}, not to the daemon's uid {os.geteuid()}",
                hint=_HINTS[errno.EACCES]
                if os.geteuid()
                else f'Give it to the daemon ("chown 0 {path}"), or name another directory.',
            )
        if stat.S_IMODE(status.st_mode) != 0o700:
            os.chmod(path, 0o700)
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, StateUnwritable.hint)
        raise StateUnwritable(f"cannot make the directory {path}: {error.strerror}", hint=hint) from error


class Lock:
    """An exclusive lock on DIRECTORY/underlay.lock, which holds the holder's process id in decimal."""

    def __init__(self, directory: str) -> None:
        """Take the lock. Raises AlreadyRunning naming the holder, StateUnwritable where the file cannot be opened."""
        path = f"{directory}/underlay.lock"
        self._directory = directory
        self._fd = _open(path)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._fd, 20, 0).decode(errors="replace") or "unknown"
            os.close(self._fd)
            if not isinstance(error, BlockingIOError):
                raise StateUnwritable(f"cannot lock {path}: {error.strerror}") from error
            raise AlreadyRunning(f"another daemon, process {holder}, holds {path}") from error
        # The lock is held; a disk that takes no bytes only costs the number that people read.
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, str(os.getpid()).encode(), 0)

    def renew(self) -> None:
        """Take it again where the file is gone, or is another one by now. Raises as the first time."""
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(f"{self._directory}/underlay.lock"), os.fstat(self._fd)):
                return
        former, self._fd = self._fd, Lock(self._directory)._fd
        os.close(former)

    def release(self) -> None:
        """Let the next daemon in. The file stays: removing it would let two daemons lock two files of one name."""
        os.close(self._fd)


def _open(path: str) -> int:
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags | os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        # A file system that became read-only still keeps two daemons apart, if the file is there.
        if error.errno == errno.EROFS:
            with contextlib.suppress(OSError):
                return os.open(path, flags | os.O_RDONLY)
        raise StateUnwritable(f"cannot open {path}: {error.strerror}") from error
