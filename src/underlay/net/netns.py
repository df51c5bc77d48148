"""Network namespaces: opening one, and entering it for the shortest time.

A thread belongs to one network namespace; a socket belongs to the one it was made in and keeps it. So a namespace is
entered only to make its sockets or to write its sysctls, and left in the same breath (setns(2), network_namespaces(7)).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from typing import TYPE_CHECKING

from underlay.errors import KernelError, NamespaceGone
from underlay.net.rtnl import Rtnl, connect

if TYPE_CHECKING:
    from types import TracebackType

    from underlay.net.remembered import Memory

_CLONE_NEWNET = 0x40000000
_SO_NETNS_COOKIE = 71
_OWN = "/proc/thread-self/ns/net"
# O_NONBLOCK: the path may be a FIFO that somebody put there, and opening that must not hang
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK

# os.setns came with Python 3.12. PyDLL keeps the GIL: the call takes a microsecond, giving the GIL away may take
# milliseconds until it comes back, and the thread would spend them in the wrong namespace.
_libc_setns = ctypes.PyDLL(None, use_errno=True).setns
_libc_setns.argtypes = (ctypes.c_int, ctypes.c_int)


class ThreadLost(BaseException):
    """The thread could not come back into its own namespace: it must end, or it would act on the wrong one."""


def _setns(fd: int) -> int:
    """Move the calling thread; returns 0 or an errno."""
    return ctypes.get_errno() if _libc_setns(fd, _CLONE_NEWNET) else 0


class _Visit:
    """The calling thread is in another namespace between __enter__ and __exit__.

    ``known_home`` is a descriptor of the thread's own namespace, where the caller has one: to open it takes 30 us.
    """

    __slots__ = ("_fd", "_home", "_known_home", "_path")

    def __init__(self, path: str, fd: int, known_home: int) -> None:
        self._path = path
        self._fd = fd
        self._known_home = known_home
        self._home = known_home

    def __enter__(self) -> None:
        if self._known_home < 0:
            try:
                self._home = os.open(_OWN, _OPEN_FLAGS)
            except OSError as error:
                raise KernelError("open the thread's own network namespace", error.errno or errno.EIO) from error
        number = _setns(self._fd)
        if number:
            self._leave_home_alone()
            if number == errno.EINVAL:
                raise NamespaceGone(f"{self._path} is no network namespace")
            raise KernelError(f"enter network namespace {self._path}", number)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        number = _setns(self._home)
        self._leave_home_alone()
        if number:
            raise ThreadLost(f"cannot come back from {self._path}: {os.strerror(number)}")

    def _leave_home_alone(self) -> None:
        """Close the descriptor, if it is ours."""
        if self._known_home < 0:
            os.close(self._home)


class Namespace:
    """An open network namespace with one rtnetlink socket in it. Used by one thread at a time.

    ``path`` is where it was found, ``fd`` keeps it alive, ``cookie`` (SO_NETNS_COOKIE) is unique until the next boot.
    ``memory`` is what need not be read again, where somebody keeps that.
    """

    __slots__ = ("_home", "cookie", "fd", "memory", "path", "rtnl")

    def __init__(self, path: str, fd: int, sock: socket.socket, home: Namespace | None) -> None:
        self.path = path
        self.fd = fd
        self._home = home
        self.rtnl = Rtnl(sock)
        self.memory: Memory | None = None
        self.cookie: int = struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0]

    @classmethod
    def open(cls, path: str, home: Namespace | None = None) -> Namespace:
        """The namespace at ``path``. Raises NamespaceGone when there is none, KernelError for any other fault.

        ``home`` is the namespace of every thread that will enter this one, and outlives it; None: it is found out.
        """
        try:
            fd = os.open(path, _OPEN_FLAGS)
        except (OSError, ValueError) as error:
            number = getattr(error, "errno", None)
            if number in (errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.ENOMEM):
                raise KernelError(f"open network namespace {path}", number) from error
            raise NamespaceGone(f"network namespace {path} does not exist") from error
        return cls._connected(path, fd, home, _Visit(path, fd, home.fd if home is not None else -1))

    @classmethod
    def current(cls) -> Namespace:
        """The calling thread's own namespace (the node's). Raises KernelError."""
        try:
            fd = os.open(_OWN, _OPEN_FLAGS)
        except OSError as error:
            raise KernelError("open the thread's own network namespace", error.errno or errno.EIO) from error
        return cls._connected(_OWN, fd, None, None)

    @classmethod
    def _connected(cls, path: str, fd: int, home: Namespace | None, visit: _Visit | None) -> Namespace:
        """Takes over ``fd``: it is closed when this fails."""
        sock = None
        try:
            if visit is None:
                sock = connect()
            else:
                with visit:
                    sock = connect()
            return cls(path, fd, sock, home)
        except BaseException as error:
            os.close(fd)
            if sock is not None:
                sock.close()
            if isinstance(error, OSError):
                raise KernelError(f"open an rtnetlink socket in {path}", error.errno or errno.EIO) from error
            raise

    def entered(self) -> _Visit:
        """``with ns.entered():`` the calling thread is in this namespace.

        Raises ThreadLost when it cannot come back: the thread must end then.
        """
        return _Visit(self.path, self.fd, self._home.fd if self._home is not None else -1)

    def close(self) -> None:
        """Close socket and descriptor; again is no fault."""
        self.rtnl.close()
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Namespace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Namespace({self.path!r})"
