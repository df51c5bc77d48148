"""Kernel settings below /proc/sys.

What lies below net/ is that of the calling thread's network namespace at the time of opening: for a pod's, call
inside ``with pod.entered():``, or hand the namespace to :func:`write_all`.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from underlay.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from underlay.net.netns import Namespace

_ROOT = "/proc/sys/"
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def read(path: str) -> str:
    """The value of a setting, e.g. of ``net/ipv4/conf/eth0/rp_filter``, without the line's end. Raises KernelError."""
    try:
        fd = os.open(_ROOT + path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, 4096).decode().rstrip("\n")
        finally:
            os.close(fd)
    except OSError as error:
        raise KernelError(f"read sysctl {path}", error.errno or errno.EIO) from error


def write(path: str, value: str | int) -> bool:
    """Set a setting; False when it was so already, and then nothing is written. Raises KernelError.

    Read first: /proc/sys is often mounted read-only, and a value that is right needs no write.
    """
    wanted = str(value)
    try:
        fd = os.open(_ROOT + path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _READ_ONLY and read(path) == wanted:
            return False
        raise KernelError(f"set sysctl {path} to {wanted}", error.errno or errno.EIO) from error
    try:
        if os.read(fd, 4096).rstrip(b"\n") == wanted.encode():
            return False
        os.pwrite(fd, wanted.encode(), 0)
    except OSError as error:
        raise KernelError(f"set sysctl {path} to {wanted}", error.errno or errno.EIO) from error
    finally:
        os.close(fd)
    return True


def write_new(path: str, value: int) -> None:
    """Set a setting of an interface that was just made, and so is not read first. Raises KernelError."""
    try:
        fd = os.open(_ROOT + path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str(value).encode())
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in _READ_ONLY:
            write(path, value)
            return
        raise KernelError(f"set sysctl {path} to {value}", error.errno or errno.EIO) from error


def write_all(settings: Iterable[tuple[str, str | int]], *, ns: Namespace | None = None) -> list[str]:
    """Set several in one entry of ``ns`` (None: the thread's own); returns the paths that had to be written.

    Raises KernelError of the first that fails; the ones before it stay written.
    """
    if ns is None:
        return [path for path, value in settings if write(path, value)]
    with ns.entered():
        return [path for path, value in settings if write(path, value)]
