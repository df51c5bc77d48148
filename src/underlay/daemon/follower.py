"""The thread that keeps 00-multus.conf in step: it sleeps until the kernel tells of a change (inotify(7))."""

from __future__ import annotations

import os
import select
import threading
from typing import TYPE_CHECKING

from underlay.kube.inotify import Watch

if TYPE_CHECKING:
    from underlay.kube.source import Log
    from underlay.multus.autoconf import Autoconf

_BLIND = 2.0  # seconds between looks where the node has no watch left, or a directory is not there yet


class Follower:
    """Runs an Autoconf until it is stopped."""

    def __init__(self, autoconf: Autoconf, log: Log) -> None:
        self._autoconf = autoconf
        self._log = log
        self._wake, self._waker = os.pipe()
        self._thread = threading.Thread(target=self._run, name="autoconf", daemon=True)

    def start(self) -> None:
        """Start the thread; the first cluster network may come at any time."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and what it holds."""
        os.close(self._waker)
        self._thread.join()
        os.close(self._wake)
        self._autoconf.close()

    def _run(self) -> None:
        watch = self._watch()
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if watch is not None:
            poll.register(watch.fileno(), select.POLLIN)
        timeout: float | None = 0.0
        while not any(fd == self._wake for fd, _ in poll.poll(None if timeout is None else timeout * 1000)):
            timeout = self._look(watch)
        if watch is not None:
            watch.close()

    def _look(self, watch: Watch | None) -> float | None:
        """Watch first, look then: what changes in between is seen."""
        if watch is not None:
            watch.changed()
        seen = self._follow(watch)
        timeout = self._autoconf.look()
        if not seen and self._follow(watch):  # look() has made the directory
            return 0.0
        return timeout if seen else _BLIND

    def _follow(self, watch: Watch | None) -> bool:
        if watch is None:
            return False
        try:
            for directory in self._autoconf.directories:
                watch.add(directory)
        except OSError:
            return False
        return True

    def _watch(self) -> Watch | None:
        try:
            return Watch(ignore=lambda name: name.startswith("."))
        except OSError as fault:
            self._log("warn", "network configurations are watched by looking at them", cause=str(fault))
            return None
