"""Pods and networks from a live API server.

      ADD ──▶ Cluster ──▶ cache of this node's pods, cache of all networks ◀── list + watch, a thread each
                 │  └──▶ not there: wait for the watch, then ask the API server once
                 └─────▶ outbox (on disk) ──▶ publisher, a thread ──▶ network-status, Events

With warm caches an ADD makes no request, and two follow it: its status and an Event. While the API server is away,
what is in the caches is served, over a restart of the daemon, too, and what cannot be known is TryAgain.

Budget: a look-up 2 us; a status into the outbox 80 us, an Event 150 us, most of it SQLite.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import nullcontext
from typing import TYPE_CHECKING

from underlay import __version__
from underlay.errors import NotAvailable, TryAgain
from underlay.kube import objects, resources
from underlay.kube.cache import Cache
from underlay.kube.client import Client
from underlay.kube.kept import Kept
from underlay.kube.outbox import Outbox, StatusWrite
from underlay.kube.publisher import Publisher
from underlay.kube.questions import AWAY_HINT, Questions
from underlay.kube.recorder import Recorder
from underlay.kube.reflector import Reflector, Timing

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from underlay.kube.access import Access
    from underlay.kube.objects import NetworkAttachmentDefinition, Pod
    from underlay.kube.resources import Entry, Key
    from underlay.kube.source import EventType, Log

_MIRROR_HINT = "The kubelet makes the mirror of a static pod as soon as the API server lets it; the runtime retries."


class Cluster:
    """A :class:`~underlay.kube.source.Source` over an API server.

    ``node`` is this node's name there, ``path`` the source's file in the state directory; ``blocking`` lends the
    caller's place in its thread pool while the API server is waited for.
    """

    def __init__(
        self,
        access: Access,
        node: str,
        path: str,
        log: Log,
        *,
        blocking: Callable[[], AbstractContextManager[None]] = nullcontext,
        timing: Timing | None = None,
    ) -> None:
        self._node = objects.node_reference(node)
        self._log = log
        self._blocking = blocking
        self._timing = timing = timing or Timing()
        self._client = client = Client(access, f"underlay/{__version__}")
        self._pods_resource, self._networks_resource = resources.pods(node), resources.networks()
        self._kept = Kept(path, log, node)
        self._departed: deque[str] = deque()
        self._pods: Cache[Pod] = Cache("pod", self._kept, gone=lambda entry: self._departed.append(entry.uid))
        self._networks: Cache[NetworkAttachmentDefinition] = Cache("network", self._kept)
        self._questions = Questions(client, timing.ask)
        self._outbox = Outbox(self._kept, log)
        self._recorder = Recorder(self._outbox)
        self._threads = (
            Reflector(client, self._pods_resource, self._pods, log, timing),
            Reflector(client, self._networks_resource, self._networks, log, timing),
            Publisher(client, self._outbox, log, node=node, held_uid=self._held_uid, timing=timing),
        )

    def start(self) -> None:
        """Begin to listen to the API server; returns at once, whether or not it is there."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop; what is not written yet is kept for the next start."""
        for thread in self._threads:
            thread.stop()
        self._client.close()
        for thread in self._threads:
            thread.join()
        self._kept.close()

    # -- look-ups ----------------------------------------------------------------------------------------------------

    def pod(self, namespace: str, name: str, deadline: float, uid: str = "") -> Pod | None:
        """The pod. Where the cache does not have it, or has one of another UID, the watch is waited for, and then the
        API server asked, whose answer counts.

        Raises TryAgain where neither knows, DeadlineExceeded where the time was too short to tell.
        """
        if not _can_exist(namespace, name):
            return None
        entry = self._pods.find((namespace, name))
        if entry is not None and _is(entry, uid):
            return entry.value
        with self._blocking():
            patience = min(deadline, time.monotonic() + self._timing.patience)
            entry = self._pods.wait((namespace, name), lambda entry: _is(entry, uid), patience)
            if entry is None:
                entry = self._questions.ask(self._pods_resource, (namespace, name, uid), deadline)
        if entry is None and len(uid) == 32 and "-" not in uid:  # the hash that the kubelet names a static pod by
            raise TryAgain(f"static pod {namespace}/{name} has no mirror at the API server yet", hint=_MIRROR_HINT)
        return entry.value if entry else None

    def known_pod(self, namespace: str, name: str, uid: str) -> Pod | None:
        """The pod in the cache."""
        entry = self._pods.find((namespace, name))
        return entry.value if entry is not None and _is(entry, uid) else None

    def network(self, namespace: str, name: str, deadline: float) -> NetworkAttachmentDefinition | None:
        """The NetworkAttachmentDefinition; None where the API server says that there is none, asked once for each name.

        Raises TryAgain where that cannot be known, DeadlineExceeded where the time was too short to tell.
        """
        key = (namespace, name)
        if not _can_exist(namespace, name):
            return None
        entry = self._networks.find(key)
        if entry is None and not (self._networks.is_absent(key) and self._networks.state != "listing"):
            with self._blocking():
                entry = self._looked_for(key, deadline)
        return entry.value if entry else None

    def check(self) -> None:
        """Raise NotAvailable where the caches have never been whole."""
        if fault := self.fault():
            raise NotAvailable(f"nothing is known of the cluster's objects yet: {fault}", hint=AWAY_HINT)

    def fault(self) -> str:
        """Why the caches have never been whole; "" where they have."""
        return next((f"{cache.kind}s: {cache.cause}" for cache in (self._pods, self._networks) if not cache.ever), "")

    def departed(self) -> list[str]:
        """The UIDs of pods that the API server has told to exist no more, each once."""
        return [self._departed.popleft() for _ in range(len(self._departed))]

    # -- writing -----------------------------------------------------------------------------------------------------

    def write_status(self, pod: Pod, status: bytes) -> None:
        """Put the pod's network-status into the outbox; it takes the place of an older one that still waits there."""
        self._outbox.post(StatusWrite(pod.namespace, pod.name, pod.uid, pod.static, status.decode()))

    def drop_status(self, namespace: str, name: str, uid: str) -> None:
        """Forget what waits; what is written goes with the pod."""
        self._outbox.drop_status(namespace, name, uid)

    def published(self) -> list[tuple[str, str]]:
        """None: an annotation vanishes with its pod."""
        return []

    def event(self, pod: Pod, kind: EventType, reason: str, message: str) -> None:
        """Put an Event on the pod into the outbox, counted and rate-limited."""
        self._recorder.event(pod.reference, kind, reason, message)

    def node_event(self, kind: EventType, reason: str, message: str) -> None:
        """A line of the log, and an Event on this node into the outbox, counted and rate-limited."""
        self._log("info" if kind == "Normal" else "warn", "event", reason=reason, message=message)
        self._recorder.event(self._node, kind, reason, message)

    def waiting(self) -> int:
        """How many statuses and Events have yet to be written."""
        return len(self._outbox)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _looked_for(self, key: Key, deadline: float) -> Entry[NetworkAttachmentDefinition] | None:
        """A network that is not in the cache: the first list may bring it; otherwise the API server is asked."""
        cache = self._networks
        cache.wait_listed(min(deadline, time.monotonic() + self._timing.patience))
        if (entry := cache.find(key)) is not None:
            return entry
        try:
            entry = self._questions.ask(self._networks_resource, key, deadline)
        except TryAgain:
            if cache.is_absent(key):
                return None
            raise
        if entry is None:
            cache.note_absent(key)
        return entry

    def _held_uid(self, namespace: str, name: str) -> str | None:
        entry = self._pods.find((namespace, name))
        return entry.uid if entry else None


def _is(entry: Entry[Pod], uid: str) -> bool:
    """Whether it is the pod that the runtime calls ``uid``. A static pod's is what its mirror is marked with (kubelet:
    the annotation kubernetes.io/config.mirror holds the hash that is the static pod's UID).
    """
    if not uid or entry.uid == uid:
        return True
    return entry.value.static and entry.value.annotations.get(objects.MIRROR) == uid


def _can_exist(namespace: str, name: str) -> bool:
    return objects.is_label(namespace) and objects.is_subdomain(name)
