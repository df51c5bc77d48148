"""Changes below a directory, told by the kernel (inotify(7)), so that "has anything changed?" costs one system call.

Budget: a question without news 3 us.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import struct
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_IN_MODIFY = 0x2
_IN_ATTRIB = 0x4
_IN_MOVED_FROM = 0x40
_IN_MOVED_TO = 0x80
_IN_CREATE = 0x100
_IN_DELETE = 0x200
_IN_DELETE_SELF = 0x400
_IN_MOVE_SELF = 0x800
_IN_ONLYDIR = 0x01000000
_MOVED = _IN_MOVED_FROM | _IN_MOVED_TO | _IN_MOVE_SELF
_WATCHED = _IN_MODIFY | _IN_ATTRIB | _IN_CREATE | _IN_DELETE | _IN_DELETE_SELF | _MOVED | _IN_ONLYDIR
_EVENT = struct.Struct("=iIII")  # struct inotify_event: wd, mask, cookie, length of the name that follows

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, path: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


class Watch:
    """One inotify instance. ``ignore`` is asked for each event's file name ("" for the directory itself).

    Only the local kernel's writes are seen: what another host writes to a shared file system is not. OSError where
    the node has no instance left (fs.inotify.max_user_instances).
    """

    def __init__(self, ignore: Callable[[str], bool]) -> None:
        self._ignore = ignore
        self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify")

    def add(self, directory: str) -> None:
        """Watch a directory, not those below it. Again: no change. OSError where it is none or no watch is left."""
        _checked(_libc.inotify_add_watch(self._fd, os.fsencode(directory), _WATCHED), directory)

    def changed(self) -> bool:
        """Whether anything but ignored names has changed since the last question."""
        news = False
        while True:
            try:
                events = os.read(self._fd, 65536)
            except BlockingIOError:
                return news
            news = news or self._concerns(events)

    def wait(self, timeout: float) -> None:
        """Return at the next event, or after ``timeout`` seconds."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.poll(max(0, int(timeout * 1000)))

    def fileno(self) -> int:
        """For a poll of one's own: readable at the next event, ignored ones included."""
        return self._fd

    def close(self) -> None:
        """End all watches."""
        os.close(self._fd)

    def _concerns(self, events: bytes) -> bool:
        at = 0
        while at < len(events):
            length = _EVENT.unpack_from(events, at)[3]
            at += _EVENT.size + length
            if not self._ignore(os.fsdecode(events[at - length : at].rstrip(b"\0"))):
                return True
        return False


def wait_for_file(path: str, deadline: float) -> bool:
    """Whether ``path`` (absolute) exists by ``deadline`` (``time.monotonic`` clock); returns as soon as it does.

    The nearest directory above it that exists is watched, so neither the file nor its directory need be there. On a
    node without a watch to spare it is looked for once.
    """
    if os.path.exists(path):
        return True
    if deadline <= time.monotonic():
        return False
    try:
        watch = Watch(ignore=lambda _name: False)
    except OSError:
        return False
    try:
        return _appears(path, deadline, watch)
    finally:
        watch.close()


def _appears(path: str, deadline: float, watch: Watch) -> bool:
    while True:
        above = os.path.dirname(path)
        while not os.path.isdir(above):
            above = os.path.dirname(above)
        with contextlib.suppress(FileNotFoundError):  # it went away again: look once more
            watch.add(above)
        if os.path.exists(path):  # it may have come between the first look and the watch
            return True
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        watch.wait(left)
        watch.changed()
