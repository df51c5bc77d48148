"""What pods that are gone from the API server left on this node: looked for at once, not at the next interval.

told gone ──▶ does the ledger name the pod? ──no──▶ forgotten
                       │ yes: its sandbox still dies, or its DEL never comes
                       └──▶ a sweep a second, until it does not or a minute has passed
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from underlay.delegate.ledger import Ledger

_SECONDS: Final = 60.0  # afterwards the interval's sweeps are enough


class Departures:
    """Used by one thread. ``told`` are the UIDs of pods that went since it was last called."""

    def __init__(
        self,
        told: Callable[[], Iterable[str]],
        ledger: Ledger,
        sweep: Callable[[], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._told = told
        self._ledger = ledger
        self._sweep = sweep
        self._monotonic = monotonic
        self._waiting: dict[str, float] = {}

    def look(self) -> None:
        """One look: sweep where the ledger still names a pod that is gone."""
        now = self._monotonic()
        self._waiting |= dict.fromkeys(self._told(), now + _SECONDS)
        if not self._waiting:
            return
        here = {row.pod_uid for row in self._ledger.rows()}
        self._waiting = {uid: until for uid, until in self._waiting.items() if uid in here and until > now}
        if self._waiting:
            self._sweep()
