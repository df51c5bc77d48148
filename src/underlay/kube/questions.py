"""Single objects asked for at the API server, where a cache does not have them.

Those who ask for the same object at the same time get the same answer: pods that start together on a network, or in a
namespace, that is new ask once.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from underlay.errors import DeadlineExceeded, TryAgain
from underlay.kube.faults import Refused, Unreachable

if TYPE_CHECKING:
    from underlay.kube.client import Client
    from underlay.kube.resources import Entry, Resource

AWAY_HINT: Final = "See why this node does not reach the API server; the runtime retries by itself."


@dataclass(slots=True)
class _Asking:
    """A request under way that others wait for as well."""

    ended: threading.Event = field(default_factory=threading.Event)
    found: Entry[Any] | None = None
    fault: Exception | None = None


class Questions:
    """Thread-safe. ``longest`` is what one request may take, in seconds."""

    def __init__(self, client: Client, longest: float) -> None:
        self._client = client
        self._longest = longest
        self._asking: dict[tuple[str, ...], _Asking] = {}
        self._lock = threading.Lock()

    def ask(self, resource: Resource[Any], key: tuple[str, ...], deadline: float) -> Entry[Any] | None:
        """The object of a key (namespace or "", name, …) as it is now; None where there is none.

        What follows the name tells questions apart: an older one's "there is none" says nothing of a pod that was made
        after it, whose UID is another. Raises TryAgain where no answer comes, DeadlineExceeded where there was no time.
        """
        while True:
            with self._lock:
                asking = self._asking.get((resource.kind, *key))
                leads = asking is None
                if asking is None:
                    asking = self._asking[(resource.kind, *key)] = _Asking()
            if leads:
                self._lead(asking, resource, key, deadline)
            elif not asking.ended.wait(max(0.0, deadline - time.monotonic())):
                raise _late(resource, key)
            elif isinstance(asking.fault, DeadlineExceeded):  # its deadline, not ours
                continue
            if asking.fault is not None:
                raise asking.fault
            return asking.found

    def _lead(self, asking: _Asking, resource: Resource[Any], key: tuple[str, ...], deadline: float) -> None:
        try:
            asking.found = self._get(resource, key[0], key[1], deadline)
        except TryAgain as fault:
            asking.fault = fault
        except BaseException:  # nobody else is to take no answer for "there is none"
            words = f"{_shown(resource, key)} is not known yet: the request for it broke off"
            asking.fault = TryAgain(words, hint=AWAY_HINT)
            raise
        finally:
            with self._lock:
                del self._asking[(resource.kind, *key)]
            asking.ended.set()

    def _get(self, resource: Resource[Any], namespace: str, name: str, deadline: float) -> Entry[Any] | None:
        limit = min(deadline, time.monotonic() + self._longest)
        if time.monotonic() >= deadline:
            raise _late(resource, (namespace, name))
        what = _shown(resource, (namespace, name))
        try:
            raw = self._client.call("GET", resource.target(namespace, name), limit, accept=resource.accept)
            return resource.entry(raw)
        except Refused as fault:
            if fault.status == 404:
                return None
            raise TryAgain(f"{what} is not known yet: the API server refuses it: {fault}", hint=AWAY_HINT) from fault
        except Unreachable as fault:
            if time.monotonic() >= deadline:
                raise _late(resource, (namespace, name)) from fault
            raise TryAgain(f"{what} is not known yet: {fault}", hint=AWAY_HINT) from fault


def _late(resource: Resource[Any], key: tuple[str, ...]) -> DeadlineExceeded:
    words = f"{_shown(resource, key)} is not known yet, and the request's time is over"
    return DeadlineExceeded(words, hint=AWAY_HINT)


def _shown(resource: Resource[Any], key: tuple[str, ...]) -> str:
    return f"{resource.kind} {key[0]}/{key[1]}" if key[0] else f"{resource.kind} {key[1]}"
