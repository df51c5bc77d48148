"""Sees to leases of addresses that no node owns: nobody else would ever end them.

    for a keeper (its node is down)        kept, until the API server says that the keeper is not wanted any more
    for a pod of another IPAM's (adopted)  held, until it says that the pod is gone; then kept, if there is a keeper
    for nobody (a report that came late)   ended: who does not own an address holds nothing of it

A keeper's address is left alone as long as somebody might come back for it: a reservation, a kind that cannot be asked
about, an API server that does not answer.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from underlay.controller import asking
from underlay.controller.dead_nodes import kept
from underlay.ipam.pools.block import BlockConflict, StoreUnreachable
from underlay.ipam.pools.lease import pod_keeper
from underlay.kube.faults import Refused, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from underlay.controller.known import Known
    from underlay.ipam.pools.block import Block, BlockStore
    from underlay.ipam.pools.lease import Lease
    from underlay.kube.client import Client
    from underlay.kube.source import Log

_REQUEST_SECONDS: Final = 10.0
_AGAIN: Final = 15.0


def keepers(known: Known) -> set[str]:
    """For whom something is kept that no node owns, and of pods that hold such those that seem to be gone."""
    found: set[str] = set()
    for block in known.blocks:
        for value, lease in block.leases.items():
            if value not in block.owned and not (lease.adopted and known.has_pod(lease)):
                found.add(_waits_for(lease))
    return found - {""}


def _waits_for(lease: Lease) -> str:
    return pod_keeper(lease.pod, lease.uid) if lease.adopted else lease.keeper


def settled(block: Block, gone: Collection[str], now: int = 0) -> Block:
    """The block without the leases that are nobody's, ``gone`` being keepers that are not wanted any more. ``now`` in
    realtime nanoseconds. The same block where there is nothing to change.
    """
    leases, resting = dict(block.leases), dict(block.resting)
    for value, lease in block.leases.items():
        if value in block.owned or (lease.adopted and _waits_for(lease) not in gone):
            continue
        if lease.adopted:
            resting[value] = now
        if lease.keeper and lease.keeper not in gone:
            leases[value] = kept(lease)
        else:
            del leases[value]
    if leases == block.leases:
        return block
    return replace(block, revision=block.revision + 1, leases=leases, resting=resting)


class Ownerless:
    """Used by one thread. ``until()`` is the monotonic time up to which writing is allowed; a keeper is asked about
    every ``again`` seconds.
    """

    def __init__(
        self, client: Client, store: BlockStore, log: Log, until: Callable[[], float], *, again: float = _AGAIN
    ) -> None:
        self._client = client
        self._store = store
        self._log = log
        self._until = until
        self._again = again
        self._due: dict[str, float] = {}
        self._gone: set[str] = set()

    def look(self, known: Known) -> None:
        """See to every block that has such leases."""
        now = time.monotonic()
        if now >= self._until():
            return
        named = keepers(known)
        self._due = {keeper: self._due.get(keeper, 0.0) for keeper in named}
        self._gone &= named
        try:
            for keeper, due in self._due.items():
                if due <= now:
                    self._due[keeper] = now + self._again
                    self._ask(keeper)
            for before in known.blocks:
                after = settled(before, self._gone, time.time_ns())
                if after is not before:
                    self._swap(before, after)
        except (Unreachable, StoreUnreachable) as fault:  # nor would the others be answered
            self._log("debug", "leases without an owner are left alone", cause=str(fault))

    def _ask(self, keeper: str) -> None:
        """A set that was scaled up again since the last look is wanted again."""
        self._gone.discard(keeper)
        try:
            if asking.keeper_is_gone(self._client, keeper, self._deadline()):
                self._gone.add(keeper)
        except Refused as fault:
            self._log("debug", "keeper is not known", keeper=keeper, cause=str(fault))

    def _swap(self, before: Block, after: Block) -> None:
        ended = len(before.leases) - len(after.leases)
        try:
            self._store.swap(before, after, self._deadline())
        except BlockConflict:
            return  # the watch will show what it is by now
        self._log("info", "leases without an owner are settled", block=before.key.name, ended=ended)

    def _deadline(self) -> float:
        return min(time.monotonic() + _REQUEST_SECONDS, self._until())
