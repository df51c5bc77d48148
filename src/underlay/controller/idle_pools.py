"""Which pools of applications may go: nothing is held of them, no pod asks for them, and the application is gone.

Whether it is gone the API server is asked, so that a Deployment that is scaled to none keeps its pool. Of a kind that
it cannot be asked about (another controller's own) the pods are all that is known: its pool goes after a minute.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from underlay.controller import asking
from underlay.controller.applications import application_of
from underlay.kube.faults import Refused, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from underlay.controller.watched import Document
    from underlay.kube.client import Client
    from underlay.kube.source import Log

_REQUEST_SECONDS: Final = 10.0
_AGAIN: Final = 15.0
UNKNOWN_SECONDS: Final = 60.0


class IdlePools:
    """``look`` is for one thread, :meth:`gone` for any. ``again``: seconds between two questions about one."""

    def __init__(
        self, client: Client, log: Log, until: Callable[[], float], *, again: float = _AGAIN,
        unknown: float = UNKNOWN_SECONDS, monotonic: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._client = client
        self._log = log
        self._until = until
        self._again = again
        self._unknown = unknown
        self._monotonic = monotonic
        self._idle: dict[str, float] = {}  # by UID, since when
        self._due: dict[str, float] = {}
        self._gone: frozenset[str] = frozenset()

    def gone(self, document: Document) -> bool:
        """Whether this pool may go."""
        return document.metadata.uid in self._gone

    def look(self, idle: Iterable[Document]) -> None:
        """Ask about those that are idle now."""
        now = self._monotonic()
        by_uid = {document.metadata.uid: document for document in idle}
        self._idle = {uid: self._idle.get(uid, now) for uid in by_uid}
        self._due = {uid: self._due.get(uid, 0.0) for uid in by_uid}
        gone = self._gone & by_uid.keys()
        for uid, document in by_uid.items():
            if self._due[uid] <= now and now < self._until():
                self._due[uid] = now + self._again
                gone = gone | {uid} if self._is_gone(document, now - self._idle[uid]) else gone - {uid}
        self._gone = gone

    def _is_gone(self, document: Document, idle: float) -> bool:
        kind, namespace, name = application_of(document)
        if not asking.knows(kind):
            return idle >= self._unknown
        deadline = min(time.monotonic() + _REQUEST_SECONDS, self._until())
        try:
            return asking.application_is_gone(self._client, kind, namespace, name, deadline)
        except (Refused, Unreachable) as fault:
            self._log("debug", "application is not known", pool=document.name, cause=str(fault))
            return False
