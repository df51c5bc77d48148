"""Wait for the wire: a NIC that was brought up a moment ago may drop what is sent before its link is there."""

from __future__ import annotations

import errno
import select
import socket
import time
from typing import TYPE_CHECKING

from underlay.errors import KernelError
from underlay.net import link

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from underlay.net.netlink import Message
    from underlay.net.netns import Namespace

_RTNLGRP_LINK = 1
_SPACE = 64 << 10


def bring_up(ns: Namespace, index: int, batch: Sequence[Message], *, until: float) -> bool:
    """Carry out a batch that brings a link up, and wait for its carrier until ``until`` (monotonic clock).

    Returns whether the carrier is there. Raises KernelError.
    """
    with ns.entered():
        opened = News()
    with opened as news:
        ns.rtnl.batch(batch)
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
