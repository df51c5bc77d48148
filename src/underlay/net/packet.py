"""Packet sockets (packet(7)): made in a namespace, and closed without waiting."""

from __future__ import annotations

import _thread
import fcntl
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from underlay.net.netns import Namespace

_SIOCGIFNAME = 0x8910
_IFREQ = struct.Struct("=16xi20x")


def connect(ns: Namespace) -> socket.socket:
    """A packet socket in ``ns`` that receives nothing until it is bound. Raises OSError, KernelError."""
    with ns.entered():
        return socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)


def device_name(sock: socket.socket, index: int) -> str:
    """The name, in the socket's namespace, of the link ``index``, which Python's bind() wants. Raises OSError."""
    answer: bytes = fcntl.ioctl(sock.fileno(), _SIOCGIFNAME, _IFREQ.pack(index))
    return answer[:16].partition(b"\0")[0].decode()


def close_behind(sock: socket.socket) -> None:
    """Close in a thread of its own, as the kernel waits 10-30 ms for RCU; where no thread can be had, here and now."""
    try:
        _thread.start_new_thread(sock.close, ())
    except RuntimeError:
        sock.close()
