"""Removes blocks that nothing is in, so that pools which were deleted, or had a busy day, leave no objects behind.

    no owner, no want, no lease, all has rested ──the same version for ``after`` seconds──▶ DELETE, if it still is

The version is the precondition: whoever takes an address meanwhile has written another one, and whoever comes later
finds no block, which is a free one. One that is made again goes on above it (see ``block.revision_of``).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import msgspec

from underlay.ipam.pools.seek import RESTING_KEPT_NS
from underlay.kube.block_store import BLOCKS
from underlay.kube.faults import Refused, Unreachable
from underlay.kube.resources import JSON

if TYPE_CHECKING:
    from collections.abc import Callable

    from underlay.controller.known import Known
    from underlay.ipam.pools.block import Block, Key
    from underlay.kube.client import Client
    from underlay.kube.source import Log

AFTER_SECONDS: Final = 3600.0
_REQUEST_SECONDS: Final = 10.0
_AT_A_TIME: Final = 20
_OVERTAKEN: Final = (404, 409)


def is_empty(block: Block, now: int) -> bool:
    """Whether there is nothing in it that anybody could miss. ``now`` in realtime nanoseconds."""
    rested = all(now - at >= RESTING_KEPT_NS for at in block.resting.values())
    return rested and not (block.owned or block.wanted or block.leases)


class EmptyBlocks:
    """Used by one thread. ``until()`` is the monotonic time up to which writing is allowed."""

    def __init__(
        self, client: Client, log: Log, until: Callable[[], float], *, after: float = AFTER_SECONDS,
        monotonic: Callable[[], float] = time.monotonic, realtime_ns: Callable[[], int] = time.time_ns,
    ) -> None:  # fmt: skip
        self._client = client
        self._log = log
        self._until = until
        self._after = after
        self._monotonic = monotonic
        self._realtime_ns = realtime_ns
        self._seen: dict[tuple[Key, str], float] = {}
        self._told = ""

    def look(self, known: Known) -> None:
        """Remove what has been empty for long enough, a few at a time."""
        now, real = self._monotonic(), self._realtime_ns()
        empty = ((block.key, block.version) for block in known.blocks if is_empty(block, real))
        self._seen = {each: self._seen.get(each, now) for each in empty}
        due = [each for each, since in self._seen.items() if now - since >= self._after]
        removed = 0
        try:
            for key, version in due[:_AT_A_TIME]:
                if self._monotonic() >= self._until():
                    break
                removed += self._remove(key, version)
        except (Unreachable, Refused) as fault:  # nor would the others be
            if str(fault) != self._told:
                self._log("warn", "empty blocks are not removed", cause=str(fault))
            self._told = str(fault)
            self._seen = dict.fromkeys(self._seen, now)
        if removed:
            self._told = ""
            self._log("info", "empty blocks removed", blocks=removed)

    def _remove(self, key: Key, version: str) -> bool:
        """False where somebody has written it, or removed it, before. Raises Refused, Unreachable."""
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"resourceVersion": version}}
        deadline = min(time.monotonic() + _REQUEST_SECONDS, self._until())
        try:
            self._client.call(
                "DELETE",
                BLOCKS.target("", key.name),
                deadline,
                accept=JSON,
                body=msgspec.json.encode(options),
                kind=JSON,
            )
        except Refused as fault:
            if fault.status not in _OVERTAKEN:
                raise
            return False
        return True
