"""What a request did, gathered for its one log line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from underlay.delegate.attachment import Timing
    from underlay.errors import UnderlayError


class Report(msgspec.Struct):
    """Filled in by whoever serves the request, read once it is answered. Belongs to one thread.

    ``networks`` are the attachments' shown names in their order, ``times`` the plugins' times in theirs, ``faults``
    the messages of faults that did not fail the request (a DEL's). ``afterwards`` are called once the answer is sent,
    with the failure that was answered, or None: what nobody is to wait for. ``waits``: somebody will say when that is.
    """

    networks: list[str] = msgspec.field(default_factory=list)
    times: list[Timing] = msgspec.field(default_factory=list)
    faults: list[str] = msgspec.field(default_factory=list)
    afterwards: list[Callable[[UnderlayError | None], None]] = msgspec.field(default_factory=list)
    waits: bool = False

    def after(self, act: Callable[[], None]) -> None:
        """Do this once the answer is sent; at once where nobody will say so."""
        if self.waits:
            self.afterwards.append(lambda _: act())
        else:
            act()

    def answered(self, failure: UnderlayError | None) -> None:
        """The answer is sent."""
        for each in self.afterwards:
            each(failure)
