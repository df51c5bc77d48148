"""Threads under a clock of their own: one runs at a time, and all time passes while none does.

A thread gives up the turn where it sleeps, waits for a condition or for a request; whoever is due next goes on, those
due at the same moment in the order they came. So a run is the same each time, and takes what its computing takes.
"""

from __future__ import annotations

import threading
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_STACK = 512 * 1024  # a hundred nodes have twenty threads each


class Task:
    """One thread. Made by :meth:`VirtualTime.start`."""

    def __init__(self, run: Callable[[], object] | None) -> None:
        self.gate = threading.Lock()
        self.gate.acquire()
        self.turn = 0  # an alarm that was set for an earlier turn is void
        self.done = False
        self.fault: BaseException | None = None
        self.run = run


class VirtualTime:
    """Seconds since the beginning. The thread that makes it has the first turn."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.set_by = 0.0  # seconds by which somebody has set the clock
        self._seq = 0
        self._due: list[tuple[float, int, Task | Callable[[], None], int]] = []
        self._current = Task(None)

    def start(self, run: Callable[[], object]) -> Task:
        """A thread that has its turn as soon as this one waits."""
        task = Task(run)
        usual = threading.stack_size(_STACK)
        threading.Thread(target=self._body, args=(task,), daemon=True).start()
        threading.stack_size(usual)
        self._alarm(self.now, task, task.turn)
        return task

    def at(self, moment: float, act: Callable[[], None]) -> None:
        """Have ``act``, which must not wait, done then."""
        self._alarm(moment, act, 0)

    def sleep(self, seconds: float) -> None:
        task = self._current
        self._alarm(self.now + seconds, task, task.turn)
        self._yield()

    def join(self, *tasks: Task) -> None:
        """Wait for their end; raises what they raised."""
        while not all(task.done for task in tasks):
            self.sleep(0.005)
        for task in tasks:
            if task.fault is not None:
                raise task.fault

    def condition(self) -> Condition:
        return Condition(self)

    def monotonic(self) -> float:
        return self.now

    def realtime_ns(self) -> int:
        return int((1_700_000_000 + self.now + self.set_by) * 1e9)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _body(self, task: Task) -> None:
        task.gate.acquire()
        try:
            assert task.run is not None
            task.run()
        except BaseException as error:
            task.fault = error
        task.done = True
        task.turn += 1
        self._next().gate.release()

    def _alarm(self, moment: float, what: Task | Callable[[], None], turn: int) -> None:
        self._seq += 1
        heappush(self._due, (moment, self._seq, what, turn))

    def _next(self) -> Task:
        while True:
            moment, _, what, turn = heappop(self._due)
            self.now = max(self.now, moment)
            if not isinstance(what, Task):
                what()
            elif what.turn == turn and not what.done:
                what.turn += 1
                self._current = what
                return what

    def _yield(self) -> None:
        mine = self._current
        following = self._next()
        if following is not mine:
            following.gate.release()
            mine.gate.acquire()


class Condition:
    """As :class:`threading.Condition`; the turn is lock enough."""

    def __init__(self, time: VirtualTime) -> None:
        self._time = time
        self._waiting: list[tuple[Task, int]] = []

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *_: Any) -> None:
        pass

    def wait(self, timeout: float | None = None) -> bool:
        time = self._time
        task = time._current
        began = time.now
        self._waiting.append((task, task.turn))
        if timeout is not None:
            time._alarm(time.now + timeout, task, task.turn)
        time._yield()
        return timeout is None or time.now < began + timeout

    def notify_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        for task, turn in waiting:
            self._time._alarm(self._time.now, task, turn)
