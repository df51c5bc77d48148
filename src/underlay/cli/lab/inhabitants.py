"""The processes that live in a network namespace: a lab's daemon, its responders, a user's shell."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_PATIENCE = 5.0


def end(namespaces: Iterable[Path]) -> None:
    """SIGTERM to every process in the namespaces at these paths, where they exist; SIGKILL to those that stay 5 s."""
    inodes = frozenset(path.stat().st_ino for path in namespaces if path.exists())
    left = [fd for pid in _pids() if (fd := _open_if_inside(pid, inodes)) is not None] if inodes else []
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        for fd in left:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal_number)
        left = _wait(left)
    for fd in left:
        os.close(fd)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]


def _open_if_inside(pid: int, inodes: frozenset[int]) -> int | None:
    """A pidfd, taken before the look: a later process with the same number is never meant."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        if os.stat(f"/proc/{pid}/ns/net").st_ino in inodes:
            return fd
    os.close(fd)
    return None


def _wait(fds: list[int]) -> list[int]:
    """Close the pidfds of processes as they end; those that stay."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    left, deadline = set(fds), time.monotonic() + _PATIENCE
    while left and (rest := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(rest * 1000):
            poll.unregister(fd)
            left.discard(fd)
            os.close(fd)
    return list(left)
