"""Wait for the wire: a NIC that was brought up a moment ago may drop what is sent before its link is there."""

from __future__ import annotations

import errno
import select
import socket
import time
from typing import TYPE_CHECKING, Final

from underlay.errors import KernelError
from underlay.net import link

if TYPE_CHECKING:
    from types import TracebackType

    from underlay.net.netns import Namespace

SECONDS: Final = 3.0  # hardware needs up to two until its link is there
_RTNLGRP_LINK = 1
_SPACE = 64 << 10


def wait(ns: Namespace, index: int, *, until: float) -> bool:
    """Wait for a hardware link's carrier until ``until`` (monotonic clock); of other kinds, it is there or never comes.

    Returns whether it is there. Raises KernelError.
    """
    found = link.get_index(ns.rtnl, index)
    if found is None or found.carrier or found.kind or not found.up:
        return found is not None and found.carrier
    with ns.entered():
        opened = News()
    with opened as news:
        while True:
            found = link.get_index(ns.rtnl, index)
            if found is None or found.carrier:
                return found is not None
            if not news.heard(until):
                return False


class News:
    """Hears of every change of a link in the calling thread's namespace, from now on; takes no capability.

    Raises KernelError where it cannot listen.
    """

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        except OSError as error:
            raise KernelError("listen for news of links", error.errno or errno.EIO) from error
        self._socket.bind((0, 1 << (_RTNLGRP_LINK - 1)))

    def heard(self, until: float) -> bool:
        """Whether some link changes in time (monotonic clock); all that was told is read. Raises KernelError."""
        if not select.select([self._socket], [], [], max(until - time.monotonic(), 0))[0]:
            return False
        self.read()
        return True

    def read(self) -> None:
        """Read all that was told. Raises KernelError."""
        try:
            while True:
                self._socket.recv(_SPACE, socket.MSG_DONTWAIT)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ENOBUFS):  # the latter: more news than fitted, so look again
                raise KernelError("listen for news of links", error.errno or errno.EIO) from error

    def fileno(self) -> int:
        """For a selector of one's own."""
        return self._socket.fileno()

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()

    def __enter__(self) -> News:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
