"""A thread that writes network-status and Events to the API server, after the ADD has been answered, until they are
there.

    outbox ──▶ the oldest write whose pod is due ──▶ PATCH pods/status   or   POST, PATCH events
      ▲                                               │ there, or never will be: forgotten
      └── everything waits (away, 429, 503, 401) ◀────┤
      └── this pod waits (403, 5xx)              ◀────┘

A status carries the pod's UID, which the API server compares: a pod that was made again under the same name never gets
its predecessor's. Events are those of core/v1, as the kubelet's own are: the one verb set "create, patch" of one group
covers them, and `kubectl describe pod` shows them with their count; events.k8s.io/v1 would want an action and a series
for the same content.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import msgspec

from underlay.kube.backoff import Backoff
from underlay.kube.client import MERGE_PATCH
from underlay.kube.faults import Refused, Unreachable
from underlay.kube.outbox import EventWrite, StatusWrite, Write
from underlay.kube.resources import JSON, PARTIAL_OBJECT

if TYPE_CHECKING:
    from collections.abc import Callable

    from underlay.kube.client import Client
    from underlay.kube.outbox import Outbox
    from underlay.kube.reflector import Timing
    from underlay.kube.resources import Key
    from underlay.kube.source import Log

ANNOTATION: Final = "k8s.v1.cni.cncf.io/network-status"
COMPONENT: Final = "underlay"
_REQUEST_SECONDS = 30.0
_LONGEST = 60.0
_LONGEST_END = 5.0  # a thread that is about to connect ends with the process
_OTHER_UID: Final = "UID in precondition"  # apiserver, storage.Preconditions.Check
_EVERYBODY = frozenset({401, 429, 503})  # says nothing about the one object


class Publisher:
    """The thread. ``held_uid(namespace, name)`` is the UID that the cache knows a pod by, None where it knows none;
    ``node`` is named as the Events' source.
    """

    def __init__(
        self, client: Client, outbox: Outbox, log: Log, *, node: str, held_uid: Callable[[str, str], str | None],
        timing: Timing,
    ) -> None:  # fmt: skip
        self._client = client
        self._outbox = outbox
        self._log = log
        self._node = node
        self._held_uid = held_uid
        self._timing = timing
        self._backoff = Backoff(timing.first, timing.most)
        self._lanes: dict[Key, tuple[float, Backoff]] = {}
        self._stopping = threading.Event()
        self._away = ""
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> None:
        """Begin, with what an earlier daemon left."""
        self._thread.start()

    def stop(self) -> None:
        """Begin nothing new. What waits is kept. The connection is the client's to cut."""
        self._stopping.set()
        with self._outbox.changed:
            self._outbox.changed.notify_all()

    def join(self) -> None:
        """Wait for the thread's end; after :meth:`stop`, and after the client is closed."""
        if self._thread.is_alive():
            self._thread.join(_LONGEST_END)

    def _run(self) -> None:
        while not self._stopping.is_set():
            taken = self._outbox.first(self._is_due)
            if taken is None:
                self._idle()
                continue
            self._try(*taken)

    def _idle(self) -> None:
        """Until something new comes or a lane becomes due."""
        with self._outbox.changed:
            if self._stopping.is_set() or self._outbox.first(self._is_due):
                return
            used = self._outbox.lanes()  # what a pod's DEL has dropped is not waited for
            self._lanes = {lane: waiting for lane, waiting in self._lanes.items() if lane in used}
            due = min((lane[0] for lane in self._lanes.values()), default=None)
            self._outbox.changed.wait(None if due is None else max(0.01, due - time.monotonic()))

    def _is_due(self, lane: Key) -> bool:
        waiting = self._lanes.get(lane)
        return waiting is None or waiting[0] <= time.monotonic()

    def _try(self, number: int, write: Write) -> None:
        try:
            self._send(write)
        except Unreachable as fault:
            self._pause(str(fault), None)
            return
        except Refused as fault:
            if fault.status in _EVERYBODY:
                self._pause(str(fault), fault.after)
                return
            if not self._settle(number, write, fault):
                return
        self._backoff.reset()
        self._lanes.pop(write.lane, None)
        self._outbox.done(number, write)
        if self._away:
            self._log("info", "status and Events are written again", waiting=len(self._outbox))
            self._away = ""

    def _pause(self, cause: str, wish: float | None) -> None:
        if not self._stopping.is_set() and cause != self._away:
            self._log("warn", "status and Events wait for the API server", waiting=len(self._outbox), cause=cause)
            self._away = cause
        self._stopping.wait(self._backoff.next(wish))

    def _settle(self, number: int, write: Write, fault: Refused) -> bool:
        """Whether that refusal is the end of it; otherwise it is tried again later, or in another way."""
        if isinstance(write, EventWrite):
            if write.made and fault.status == 404:  # Events live an hour: this one is made anew
                self._outbox.make_anew(number)
                return False
            over = fault.status < 500
            if over and fault.status not in (404, 409):
                about = f"{write.kind} {_pod(write)}"
                self._log("warn", "Event is refused", about=about, reason=write.reason, cause=str(fault))
        else:
            over = self._is_over(write, fault)
        if not over:
            _, backoff = self._lanes.get(write.lane) or (0.0, Backoff(self._timing.first, _LONGEST))
            self._lanes[write.lane] = (time.monotonic() + backoff.next(fault.after), backoff)
        return over

    def _is_over(self, write: StatusWrite, fault: Refused) -> bool:
        if fault.status in (409, 412):  # another UID, or a writer who was quicker; the cache may hear of it later
            over = _OTHER_UID in fault.message or self._held_uid(write.namespace, write.name) != write.uid
        else:
            over = fault.status in (400, 404, 405, 410, 413, 415, 422)
        if fault.status not in (404, 409, 412):
            level = "error" if over else "warn"
            self._log(level, "network-status is refused", pod=_pod(write), cause=str(fault), again=not over)
        return over

    def _send(self, write: Write) -> None:
        deadline = time.monotonic() + _REQUEST_SECONDS
        where = f"/api/v1/namespaces/{quote(write.namespace, safe='')}"
        if isinstance(write, StatusWrite):
            meta = {"uid": write.uid, "annotations": {ANNOTATION: write.status}}
            body = msgspec.json.encode({"metadata": meta if write.uid else {"annotations": meta["annotations"]}})
            target = f"{where}/pods/{quote(write.name, safe='')}/status"
            self._client.call("PATCH", target, deadline, accept=PARTIAL_OBJECT, body=body, kind=MERGE_PATCH)
        elif write.made:
            body = msgspec.json.encode({"count": write.count, "lastTimestamp": write.last})
            target = f"{where}/events/{quote(write.event, safe='')}"
            self._client.call("PATCH", target, deadline, accept=PARTIAL_OBJECT, body=body, kind=MERGE_PATCH)
        else:
            body = msgspec.json.encode(self._event(write))
            self._client.call("POST", f"{where}/events", deadline, accept=PARTIAL_OBJECT, body=body, kind=JSON)

    def _event(self, write: EventWrite) -> dict[str, object]:
        about = {"apiVersion": "v1", "kind": write.kind, "name": write.name, "uid": write.uid}
        if write.kind == "Pod":
            about["namespace"] = write.namespace
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"namespace": write.namespace, "name": write.event},
            "involvedObject": about,
            "type": write.type,
            "reason": write.reason,
            "message": write.message,
            "firstTimestamp": write.first,
            "lastTimestamp": write.last,
            "count": write.count,
            "source": {"component": COMPONENT, "host": self._node},
            "reportingComponent": COMPONENT,
            "reportingInstance": self._node,
        }


def _pod(write: Write) -> str:
    return f"{write.namespace}/{write.name}"
