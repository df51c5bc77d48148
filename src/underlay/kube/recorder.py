"""Events, few enough: the same one again is a count, and a pod's Events of one reason come in a trickle.

event(pod, "Warning", "NoNetworkFound", words) ──▶ new         ──▶ outbox: make it      ┐ while the bucket of the pod
                                               └─▶ seen before ──▶ outbox: its count    ┘ and reason has a token
                                               └─▶ still waits ──▶ its count, in the place where it waits
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from underlay.kube.outbox import EventWrite

if TYPE_CHECKING:
    from collections.abc import Callable

    from underlay.kube.objects import Reference
    from underlay.kube.outbox import Outbox
    from underlay.kube.source import EventType

_BURST: Final = 5
_REFILL_SECONDS: Final = 60.0
_SAME_SECONDS: Final = 3000.0  # the API server keeps an Event for an hour
_REMEMBERED: Final = 1000
_LONGEST_MESSAGE: Final = 1024
_NAMESPACE: Final = "default"  # where Events on what has no namespace lie: the API server takes no other


@dataclass(slots=True)
class _Series:
    """One Event and how often it has happened. ``sent``: the write of it has left for the outbox at least once."""

    name: str
    first: float
    at: float
    count: int = 0
    sent: bool = False


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class Recorder:
    """Thread-safe. ``clock`` is the realtime clock, in seconds."""

    def __init__(self, outbox: Outbox, *, clock: Callable[[], float] = time.time) -> None:
        self._outbox = outbox
        self._clock = clock
        self._lock = threading.Lock()
        self._series: OrderedDict[tuple[str, ...], _Series] = OrderedDict()
        self._buckets: OrderedDict[tuple[str, ...], _Bucket] = OrderedDict()

    def event(self, about: Reference, kind: EventType, reason: str, message: str) -> None:
        """Something happened to it. What the rate keeps back is told by the next count that is let through."""
        message = message if len(message) <= _LONGEST_MESSAGE else message[: _LONGEST_MESSAGE - 1] + "…"
        now, monotonic = self._clock(), time.monotonic()
        whose = (about.namespace or _NAMESPACE, about.name, about.uid)
        with self._lock:
            series = self._one(about.name, (about.kind, *whose, kind, reason, message), now, monotonic)
            series.count += 1
            waits = self._outbox.waiting_event(
                series.name, lambda old: msgspec.structs.replace(old, count=series.count, last=_rfc3339(now))
            )
            if waits or not self._token((about.kind, *whose, reason), monotonic):
                return
            self._outbox.post(
                EventWrite(
                    *whose, series.name, kind, reason, message,
                    _rfc3339(series.first), _rfc3339(now), series.count, series.sent, about.kind,
                )
            )  # fmt: skip
            series.sent = True

    def _one(self, name: str, key: tuple[str, ...], now: float, monotonic: float) -> _Series:
        series = self._series.get(key)
        if series is None or monotonic - series.at > _SAME_SECONDS:
            series = self._series[key] = _Series(f"{name[:230]}.{time.time_ns():x}", now, monotonic)
        self._series.move_to_end(key)
        while len(self._series) > _REMEMBERED:
            self._series.popitem(last=False)
        return series

    def _token(self, key: tuple[str, ...], now: float) -> bool:
        bucket = self._buckets.setdefault(key, _Bucket(_BURST, now))
        self._buckets.move_to_end(key)
        while len(self._buckets) > _REMEMBERED:
            self._buckets.popitem(last=False)
        bucket.tokens = min(_BURST, bucket.tokens + (now - bucket.at) / _REFILL_SECONDS)
        bucket.at = now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True


def _rfc3339(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
