"""One of several candidates leads, by a Lease (coordination.k8s.io/v1) that is changed by compare-and-swap.

    follower ──▶ the Lease is free, or nobody renewed it for as long as it says ──PATCH, version──▶ leader
    leader   ──▶ renewed every ``retry`` ··· not renewed for ``renew`` ──▶ follower
    stop     ──▶ the Lease is free at once

No clock of another machine is believed: how long a Lease has not been renewed is measured by one's own monotonic clock,
from the moment at which a change of it was last seen here. A leader stops ``renew`` after it *sent* the last renewal
that was answered, others take over ``lease`` after they *saw* it, which is later; so two never lead at once.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import msgspec

from underlay.kube.backoff import Backoff
from underlay.kube.client import MERGE_PATCH
from underlay.kube.faults import Refused, Unreachable
from underlay.kube.resources import JSON

if TYPE_CHECKING:
    from collections.abc import Callable

    from underlay.kube.client import Client
    from underlay.kube.source import Log

_API: Final = "coordination.k8s.io/v1"
_LONGEST_END: Final = 5.0


@dataclass(frozen=True, slots=True)
class Terms:
    """Seconds. ``lease`` is how long others wait for a renewal, ``renew`` how long a leader leads without one,
    ``retry`` how often each looks. The values are those of the field's controllers.
    """

    lease: float = 15.0
    renew: float = 10.0
    retry: float = 2.0


class _Metadata(msgspec.Struct, rename="camel"):
    resource_version: str = ""


class _Spec(msgspec.Struct, rename="camel"):
    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    lease_transitions: int | None = None


class _Lease(msgspec.Struct):
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)
    spec: _Spec = msgspec.field(default_factory=_Spec)


_DECODER: Final = msgspec.json.Decoder(_Lease)


class Election:
    """A candidate, and its thread. Thread-safe. ``identity`` tells candidates apart: a pod's name and something random;
    ``changed`` is called when this one begins or ceases to lead, from the thread.
    """

    def __init__(
        self, client: Client, *, namespace: str, name: str, identity: str, log: Log,
        terms: Terms | None = None, changed: Callable[[], None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._client = client
        self._namespace, self._name = namespace, name
        self._identity = identity
        self._log = log
        self._terms = terms or Terms()
        self._changed = changed
        self._monotonic = monotonic
        self._backoff = Backoff(self._terms.retry / 2, self._terms.retry)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="election", daemon=True)
        self._seen = ""  # the version last seen, at the moment
        self._seen_at = 0.0
        self._until = 0.0
        self._led = False
        self._cause = ""

    def start(self) -> None:
        """Stand for election."""
        self._thread.start()

    def stop(self) -> None:
        """Stand no more; a leader's Lease becomes free, so that another need not wait for its end."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(self._terms.renew + _LONGEST_END)

    @property
    def until(self) -> float:
        """The monotonic time up to which this one surely leads; in the past where it does not. Writes end by then."""
        return self._until

    def leads(self) -> bool:
        """Whether this one may write now."""
        return self._monotonic() < self._until

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._look()
                wait = self._terms.retry
                self._backoff.reset()
                self._cause = ""
            except Refused as fault:
                wait = self._backoff.next(fault.after)
                self._say(f"the API server refuses the Lease: {fault}", fault.status == 409)
            except Unreachable as fault:
                wait = self._backoff.next()
                self._say(str(fault), False)
            self._tell()
            left = self._until - self._monotonic()
            self._stopping.wait(min(wait, left) if left > 0 else wait)
            self._tell()
        self._give_up()

    def _look(self) -> None:
        """Read the Lease, and take or renew it where that is ours to do."""
        sent = self._monotonic()
        try:
            found = self._get(sent)
        except Refused as fault:
            if fault.status != 404:
                raise
            self._create(sent)
            return
        version, spec = found.metadata.resource_version, found.spec
        if version != self._seen:
            self._seen, self._seen_at = version, self._monotonic()
        holder = spec.holder_identity or ""
        if holder == self._identity:
            self._swap(version, {}, sent)
        elif not holder or self._monotonic() - self._seen_at > (spec.lease_duration_seconds or self._terms.lease):
            taken = {"acquireTime": _now(), "leaseTransitions": (spec.lease_transitions or 0) + 1}
            self._swap(version, taken, sent)
        else:
            self._until = 0.0

    def _get(self, sent: float) -> _Lease:
        return self._decoded(self._client.call("GET", self._target(), self._deadline(sent), accept=JSON))

    def _create(self, sent: float) -> None:
        spec = self._spec({"acquireTime": _now(), "leaseTransitions": 0})
        metadata = {"namespace": self._namespace, "name": self._name}
        body = msgspec.json.encode({"apiVersion": _API, "kind": "Lease", "metadata": metadata, "spec": spec})
        target = self._target().rpartition("/")[0]
        self._took(self._client.call("POST", target, self._deadline(sent), accept=JSON, body=body, kind=JSON), sent)

    def _swap(self, version: str, more: dict[str, object], sent: float) -> None:
        """Write ourselves into the Lease of that version; 409 where another was quicker."""
        body = msgspec.json.encode({"metadata": {"resourceVersion": version}, "spec": self._spec(more)})
        self._took(self._patch(body, self._deadline(sent)), sent)

    def _took(self, raw: bytes, sent: float) -> None:
        self._seen, self._seen_at = self._decoded(raw).metadata.resource_version, self._monotonic()
        self._until = sent + self._terms.renew

    def _give_up(self) -> None:
        """Free the Lease, if it is still the version that we wrote."""
        leads, self._until = self.leads(), 0.0
        if leads:
            spec = {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()}
            body = msgspec.json.encode({"metadata": {"resourceVersion": self._seen}, "spec": spec})
            try:
                self._patch(body, time.monotonic() + self._terms.retry)
            except (Refused, Unreachable) as fault:
                self._log("warn", "Lease is not given back, and ends by itself", cause=str(fault))
        self._tell()

    def _patch(self, body: bytes, deadline: float) -> bytes:
        return self._client.call("PATCH", self._target(), deadline, accept=JSON, body=body, kind=MERGE_PATCH)

    def _spec(self, more: dict[str, object]) -> dict[str, object]:
        seconds = max(1, round(self._terms.lease))
        return {"holderIdentity": self._identity, "leaseDurationSeconds": seconds, "renewTime": _now(), **more}

    def _deadline(self, sent: float) -> float:
        """A leader's request is worth nothing after its time."""
        left = self._until - self._monotonic()
        return time.monotonic() + (left if left > 0 else self._terms.renew)

    def _target(self) -> str:
        space, name = quote(self._namespace, safe=""), quote(self._name, safe="")
        return f"/apis/{_API}/namespaces/{space}/leases/{name}"

    def _decoded(self, raw: bytes) -> _Lease:
        try:
            return _DECODER.decode(raw)
        except msgspec.DecodeError as fault:
            raise Unreachable(f"the API server sent what is no Lease: {fault}") from fault

    def _tell(self) -> None:
        leads = self.leads()
        if leads != self._led:
            self._led = leads
            self._log("info", "leads" if leads else "leads no more", lease=self._name, identity=self._identity)
            self._changed()

    def _say(self, cause: str, expected: bool) -> None:
        if not expected and cause != self._cause:
            self._log("warn", "Lease is out of reach", lease=self._name, cause=cause)
            self._cause = cause


def _now() -> str:
    """The MicroTime of this moment, for people to read."""
    micros = time.time_ns() // 1000
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(micros // 1_000_000))}.{micros % 1_000_000:06}Z"
