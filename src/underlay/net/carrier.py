"""Wait for the wire: a NIC that was brought up a moment ago may drop what is sent before its link is there.

Even then: the kernel shows the carrier as soon as the driver says so, and lets packets out once its link watch, a work
queue, has come round (net/core/link_watch.c; newer kernels wait for it in the look). What is sent in between is dropped
without a word: measured, with igbvf and Linux 6.1, 5 of 40 that were sent at the first sight of the carrier.
"""

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
QUEUE_SECONDS: Final = 0.25  # a work queue's turn, on a processor that others want too
_RTNLGRP_LINK = 1
_SPACE = 64 << 10


def wait(ns: Namespace, index: int, *, until: float) -> bool:
    """Wait for a hardware link's carrier until ``until`` (monotonic clock); of other kinds, it is there or never comes.

    Returns whether it is there. Raises KernelError.
    """
    found = _wait(ns, index, until)
    return found is not None and found.carrier


def wait_to_send(ns: Namespace, index: int, *, until: float) -> bool:
    """:func:`wait`, and for the kernel to let a hardware link's packets out, of which nothing tells (see above)."""
    found = _wait(ns, index, until)
    if found is None or not found.carrier:
        return False
    if not found.kind:
        time.sleep(QUEUE_SECONDS)
    return True


def _wait(ns: Namespace, index: int, until: float) -> link.Link | None:
    """The link as it was seen last."""
    found = link.get_index(ns.rtnl, index)
    if found is None or found.carrier or found.kind or not found.up:
        return found
    with ns.entered():
        opened = News()
    with opened as news:
        while True:
            found = link.get_index(ns.rtnl, index)
            if found is None or found.carrier or not news.heard(until):
                return found


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
