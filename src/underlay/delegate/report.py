"""What a request did, gathered for its one log line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from underlay.delegate.attachment import Timing


@dataclass(slots=True)
class Report:
    """Filled in by whoever serves the request, read once it is answered. Belongs to one thread.

    ``networks`` are the attachments' shown names in their order, ``times`` the plugins' times in theirs, ``faults``
    the messages of faults that did not fail the request (a DEL's).
    """

    networks: list[str] = field(default_factory=list)
    times: list[Timing] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
