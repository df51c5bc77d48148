"""The node's file system, for a daemon whose own is a container's.

    container  /            python, the daemon, its state
               /hostroot    the node's "/", mounted with propagation HostToContainer: what the node mounts comes along
    thread     unshare(CLONE_FS), once │ chroot(/hostroot) · find, vfork + exec, realpath · chroot(back)

A path that the runtime or a configuration names means the node's file of that name, and only a walk that has the
node's root for its root finds it: /var/run is a symbolic link to /run on most nodes, and "/hostroot" + path would
follow it into the container's own /run.

Root and working directory belong to the thread once it has left those of its process (unshare(2), CLONE_FS), so other
threads notice nothing, and a child keeps the root that it was started with. Budget: a visit 6 us, a path 20 us.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import nullcontext
from typing import TYPE_CHECKING

from underlay.errors import InvalidConfig, KernelError
from underlay.net.netns import ThreadLost

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from types import TracebackType

_CLONE_FS = 0x200
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)


class HostRoot:
    """The directory in which the node's root lies; "" where the daemon's own root is the node's. Thread-safe."""

    def __init__(self, path: str = "") -> None:
        """Raises InvalidConfig where there is no such directory, KernelError where its root cannot be taken."""
        self.path = "" if path == "/" else path.rstrip("/")
        if not self.path:
            return
        try:
            self._root = os.open(self.path, _DIRECTORY)
        except OSError as error:
            raise InvalidConfig(
                f"chroot_dir {self.path}: {error.strerror}", hint="Mount the node's root there, or leave the key out."
            ) from error
        self._home = os.open("/", _DIRECTORY)
        self._cwd = os.open(".", _DIRECTORY)
        with self.entered():
            pass

    def entered(self) -> AbstractContextManager[None]:
        """``with root.entered():`` paths of the calling thread, and of children that it starts, are the node's.

        For a few system calls only: whatever Python loads by itself (an import, a traceback's source, a log file)
        is not there. Raises KernelError; ThreadLost when the thread cannot come back: it must end then.
        """
        return _Visit(self._root, self._home, self._cwd) if self.path else nullcontext()

    def locate(self, path: str) -> str:
        """Where a path of the node is found from here: without symbolic links, whether or not its end exists."""
        if not self.path:
            return path
        with self.entered():
            return self.path + os.path.realpath(path)


class _Visit:
    """The calling thread's root and working directory are the node's between __enter__ and __exit__."""

    __slots__ = ("_cwd", "_home", "_root")

    def __init__(self, root: int, home: int, cwd: int) -> None:
        self._root = root
        self._home = home
        self._cwd = cwd

    def __enter__(self) -> None:
        if _libc.unshare(_CLONE_FS):
            raise KernelError("separate the thread's root directory", ctypes.get_errno())
        try:
            os.fchdir(self._root)
            os.chroot(".")
        except OSError as error:
            self._leave()
            hint = "The daemon needs CAP_SYS_CHROOT; its container has to be privileged."
            raise KernelError("take the node's root (chroot_dir)", error.errno or 0, hint=hint) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        try:
            os.fchdir(self._home)
            os.chroot(".")
            os.fchdir(self._cwd)
        except OSError as error:
            raise ThreadLost(f"cannot come back from the node's root: {error.strerror}") from error
