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

    from underlay.net.netlink import Message
    from underlay.net.netns import Namespace

_RTNLGRP_LINK = 1
_SPACE = 64 << 10


def bring_up(ns: Namespace, index: int, batch: Sequence[Message], *, until: float) -> bool:
    """Carry out a batch that brings a link up, and wait for its carrier until ``until`` (monotonic clock).

    Returns whether the carrier is there. Raises KernelError.
    """
    try:
        with ns.entered():
            news = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    except OSError as error:
        raise KernelError("listen for news of links", error.errno or errno.EIO) from error
    with news:
        news.bind((0, 1 << (_RTNLGRP_LINK - 1)))
        ns.rtnl.batch(batch)
        while True:
            found = link.get_index(ns.rtnl, index)
            if found is None or found.carrier:
                return found is not None
            if not _hears(news, until):
                return False


def _hears(news: socket.socket, until: float) -> bool:
    """Whether some link changed in time; all that was told is read."""
    if not select.select([news], [], [], max(until - time.monotonic(), 0))[0]:
        return False
    try:
        while True:
            news.recv(_SPACE, socket.MSG_DONTWAIT)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.ENOBUFS):  # the latter: more news than fitted, so look again
            raise KernelError("listen for news of links", error.errno or errno.EIO) from error
    return True
