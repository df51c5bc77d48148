"""network-status in files: one a pod, written whole or not at all, and used again for the next pod.

    .spare-3.network-status.json ──write, rename──▶ default.web.network-status.json     ADD
                                 ◀─────rename─────                                      DEL

To make an inode takes ext4 20 to 600 us, the more the more of them were deleted in the last seconds: a third of a whole
ADD on a node whose pods come and go. So a dropped status is kept as a spare under a hidden name instead of deleted.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

SUFFIX = ".network-status.json"
_SPARE = ".spare-"
_MAX_SPARES = 64


class StatusFiles:
    """The status files below ``root``. Thread-safe. A spare that somebody else removed is simply made anew."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._counter = itertools.count()
        self._spares: list[str] = []
        with contextlib.suppress(OSError):
            for name in os.listdir(root):  # a daemon that ran before left them
                if name.startswith(_SPARE) and name.endswith(SUFFIX):
                    _unlink(os.path.join(root, name))

    def write(self, directory: str, name: str, status: bytes) -> None:
        """Publish ``status`` as the file ``name`` (without suffix) in ``directory``. OSError where that fails."""
        temporary = self._take(directory)
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                written = os.write(fd, status)
                while written < len(status):  # the disk is full: the next write says so
                    written += os.write(fd, status[written:])
                if os.fstat(fd).st_size > written:
                    os.ftruncate(fd, written)
            finally:
                os.close(fd)
            os.rename(temporary, os.path.join(directory, name + SUFFIX))
        except OSError:
            _unlink(temporary)
            raise

    def drop(self, directories: Iterable[str], name: str) -> None:
        """Withdraw the file ``name`` from whichever of ``directories`` has it. Nothing there: no fault."""
        for directory in directories:
            path = os.path.join(directory, name + SUFFIX)
            if len(self._spares) >= _MAX_SPARES:
                _unlink(path)
                continue
            spare = self._new(self._root)
            with contextlib.suppress(OSError):
                os.rename(path, spare)
                self._spares.append(spare)

    def listed(self, directories: Iterable[str]) -> list[tuple[str, str]]:
        """Namespace and pod of every status file in ``directories``."""
        pods: list[tuple[str, str]] = []
        for directory in directories:
            with contextlib.suppress(OSError):
                names = [name for name in os.listdir(directory) if name.endswith(SUFFIX) and not name.startswith(".")]
                split = [name.removesuffix(SUFFIX).partition(".") for name in names]
                pods += [(namespace, pod) for namespace, _, pod in split]
        return pods

    def close(self) -> None:
        """Delete the spares."""
        while self._spares:
            _unlink(self._spares.pop())

    def _take(self, directory: str) -> str:
        """A path to write to on the file system of ``directory``: a spare, or one where no file is yet."""
        try:
            return self._spares.pop()
        except IndexError:
            return self._new(directory)

    def _new(self, directory: str) -> str:
        return os.path.join(directory, f"{_SPARE}{os.getpid()}-{next(self._counter)}{SUFFIX}")


def _unlink(path: str) -> None:
    with contextlib.suppress(OSError):  # not there, or a file system that takes nothing any more
        os.unlink(path)
