"""A bounded set of threads that all wait for work at one place; the kernel wakes one per piece of work.

There is no queue in this process: each thread blocks in accept(), so the queue is the socket's backlog, and a request
costs no hand-over from one thread to another (30-60 µs each under the interpreter's lock).

A thread that waits for something else than this process, a child or a slow client, lends its slot: another thread
stands in for it. So a child that calls this daemon again finds a thread that listens, and no set of such calls can
block all of them.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from underlay.net.netns import ThreadLost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# The deepest path (SQLite, a chain of plugins, JSON) stays far below; 100 threads of the default 8 MiB would only be
# address space, but each touches more of it.
_STACK = 512 << 10


class Workers:
    """``size`` threads that call ``work`` until it returns False; up to ``spare`` more while slots are lent."""

    def __init__(self, work: Callable[[], bool], *, size: int, spare: int) -> None:
        self._work = work
        self._size = size
        self._limit = size + spare
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._threads = 0
        self._lent = 0
        self._started = False
        self._stopping = False

    def start(self) -> None:
        """Start the threads. RuntimeError when the kernel gives none."""
        threading.stack_size(_STACK)
        self._started = True
        for _ in range(self._size):
            with self._lock:
                self._threads += 1
            self._spawn()

    @contextmanager
    def lend(self) -> Iterator[None]:
        """While the block runs, another thread may use this thread's slot.

        Before :meth:`start` there is nothing yet that a stand-in could wait for: none is started.
        """
        with self._lock:
            self._lent += 1
            serving = self._started and not self._stopping
            wanted = serving and self._threads - self._lent < self._size and self._threads < self._limit
            self._threads += wanted
        try:
            if wanted:
                # No thread to be had: this one waits all the same, only without a stand-in.
                with suppress(RuntimeError):
                    self._spawn()
            yield
        finally:
            with self._lock:
                self._lent -= 1

    def stop(self) -> None:
        """Let no thread be started any more; ``work`` is to return False from now on."""
        self._stopping = True

    def join(self, deadline: float) -> bool:
        """Wait until every thread has ended; False when the deadline, on the monotonic clock, came first."""
        with self._ended:
            while self._threads:
                left = deadline - time.monotonic()
                if left <= 0 or not self._ended.wait(left):
                    return not self._threads
        return True

    def threads(self) -> int:
        """How many threads there are now."""
        return self._threads

    def _spawn(self) -> None:
        """Start a thread that is counted already."""
        try:
            threading.Thread(target=self._run, name="worker", daemon=True).start()
        except RuntimeError:
            self._leave()
            raise

    def _run(self) -> None:
        try:
            while self._work():
                if self._threads - self._lent > self._size and self._leave(surplus=True):
                    return
        except BaseException as fault:
            # It ends, in a pod's namespace from which it cannot come back, or by a fault of ours that the log is to
            # have; a new one takes its place.
            if self._stopping:
                self._leave()
            else:
                self._spawn()
            if not isinstance(fault, ThreadLost):
                raise
        else:
            self._leave()

    def _leave(self, *, surplus: bool = False) -> bool:
        """Count this thread out; with ``surplus`` only if there are still too many."""
        with self._ended:
            if surplus and self._threads - self._lent <= self._size:
                return False
            self._threads -= 1
            self._ended.notify_all()
        return True
