"""How long to wait before the next try: twice as long each time, and never all nodes at once."""

from __future__ import annotations

import random

_LONGEST_WISH = 300.0

# Of our own: the module's is shared with whoever wants its numbers to come again.
_chance = random.Random()  # noqa: S311 - spreads load, guards nothing


class Backoff:
    """Waiting times in seconds from ``first`` up to ``most``, each between half of itself and the whole, by chance."""

    def __init__(self, first: float = 0.2, most: float = 15.0) -> None:
        self._first = first
        self._most = most
        self._next = first

    def next(self, wish: float | None = None) -> float:
        """The next waiting time; ``wish`` is the server's Retry-After, which is a least, up to 5 minutes."""
        delay = self._next * _chance.uniform(0.5, 1.0)
        self._next = min(self._next * 2, self._most)
        return delay if wish is None else min(wish, _LONGEST_WISH) + delay

    def reset(self) -> None:
        """It worked: begin at ``first`` again."""
        self._next = self._first
