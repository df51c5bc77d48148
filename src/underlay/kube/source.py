"""Where policy reads pods and networks from, and writes network-status to.

      policy (multus) ──▶ Source ◀── Manifests        files of a directory: every answer is immediate
                                 ◀── API caches       list + watch: an answer may have to wait for the watch

Every lookup takes a deadline, and has three outcomes, never two: the object; None, which says *it does not exist*;
and TryAgain, which says *it cannot be known yet* (the cache is not synchronised, a manifest is broken). A pod that is
wrongly taken for absent would run without its network, so a source that is not sure must not answer None.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from underlay.kube.objects import NetworkAttachmentDefinition, Pod

EventType = Literal["Normal", "Warning"]


class Log(Protocol):
    """Writes one structured line; ``level`` is "debug", "info", "warn" or "error"."""

    def __call__(self, level: str, event: str, /, **fields: object) -> None:
        """Write ``event`` and its fields."""


class Source(Protocol):
    """Pods and networks as they are now. Thread-safe. Deadlines are seconds on the ``time.monotonic`` clock."""

    def pod(self, namespace: str, name: str, deadline: float, uid: str = "") -> Pod | None:
        """The pod. ``uid`` is the one the runtime named, or empty: a cache that holds an older pod of that name waits
        for the one asked for, and hands out the other only where that is sure to be the newest (the caller compares).
        """

    def known_pod(self, namespace: str, name: str, uid: str) -> Pod | None:
        """The pod as last told, without waiting or asking; None where it is not known, or is known by another UID."""

    def network(self, namespace: str, name: str, deadline: float) -> NetworkAttachmentDefinition | None:
        """The NetworkAttachmentDefinition; found without waiting where the source is synchronised."""

    def write_status(self, pod: Pod, status: bytes) -> None:
        """Publish the pod's network-status (a JSON list). Where the place is out of reach, a source that can repeat the
        write later keeps it and returns; one that cannot raises StateUnwritable.
        """

    def drop_status(self, namespace: str, name: str, uid: str) -> None:
        """Withdraw what :meth:`write_status` published, where it does not vanish with the pod."""

    def published(self) -> list[tuple[str, str]]:
        """Namespace and name of every pod whose status is published in a place that it does not vanish from with the
        pod: what a daemon that crashed, or a sandbox that died without DEL, may have left there.
        """

    def event(self, pod: Pod, kind: EventType, reason: str, message: str) -> None:
        """Tell the pod's owner what happened, as a Kubernetes Event: ``reason`` one word in CamelCase
        ("AddedInterface", "NoNetworkFound"), ``message`` a sentence. Returns at once and raises nothing; what happens
        again is counted, not repeated, and too much of one reason is kept back. Where nobody is told it is a log line.
        """

    def node_event(self, kind: EventType, reason: str, message: str) -> None:
        """Tell the node's operator in the same way, by an Event on the node that this daemon runs on, and in any case
        by a line of the log, which operators read.
        """

    def check(self) -> None:
        """Raise NotAvailable, naming the cause, where lookups cannot be answered now."""
