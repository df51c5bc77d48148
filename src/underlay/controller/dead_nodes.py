"""Takes from nodes that are down what they own, since they cannot give it back.

    the Node is gone, or tainted node.kubernetes.io/out-of-service ──asked of the API server──▶ no pod of it is left ──▶
        its addresses ──▶ free, resting from now on       compare-and-swap, block by block
                      ──▶ whoever wants it                 in the dead owner's place
                      ──▶ kept, with no owner              what it held or kept for a keeper, who finds it there
        its wants     ──▶ gone

Nothing is decided by time: a node that is merely silent may run its pods for days. And not by the name alone: as long
as a pod exists that the node reports to hold an address of its own, somebody has merely named the node otherwise.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from underlay.controller import asking
from underlay.ipam.pools.block import BlockConflict, StoreUnreachable
from underlay.ipam.pools.lease import HELD, KEPT
from underlay.kube.backoff import Backoff
from underlay.kube.faults import Refused, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from underlay.controller.known import Known
    from underlay.ipam.pools.block import Block, BlockStore
    from underlay.ipam.pools.lease import Lease
    from underlay.kube.client import Client
    from underlay.kube.source import Log

_REQUEST_SECONDS: Final = 10.0
_FIRST: Final = 1.0
_LONGEST: Final = 30.0


def suspects(known: Known) -> set[str]:
    """The nodes that own or want addresses and that seem to be down."""
    named = {owner for block in known.blocks for owner in block.owned.values()}
    named |= {want.node for block in known.blocks for want in block.wanted.values()}
    return {name for name in named if name not in known.nodes or asking.is_marked_down(known.nodes[name])}


def holder(known: Known, node: str) -> str:
    """A pod that exists and that holds, by the node's report, an address of it, in words; "" for none."""
    for lease, owner in known.leases():
        if owner == node and lease.state == HELD:
            namespace, _, name = lease.pod.partition("/")
            pod = known.pods.get((namespace, name))
            if pod is not None and (pod.static or pod.uid == lease.uid):
                return f"pod {lease.pod}, which holds {lease.shown}, exists"
    return ""


def evicted(block: Block, dead: str, others: Collection[str], now: int) -> Block:
    """The block without what ``dead`` owns and wants; ``others`` are dead as well, and get nothing. ``now`` in realtime
    nanoseconds. The same block where there is nothing to change.
    """
    wanted = {value: want for value, want in block.wanted.items() if want.node != dead}
    owned, resting, leases = dict(block.owned), dict(block.resting), dict(block.leases)
    for value in block.of(dead):
        lease, want = leases.pop(value, None), wanted.pop(value, None)
        del owned[value]
        resting[value] = now
        keeper = lease.keeper if lease is not None else ""
        if lease is not None and keeper:
            leases[value] = kept(lease)
        if want is not None and want.node not in others and want.keeper == keeper:
            owned[value] = want.node
    if owned == block.owned and wanted == block.wanted:
        return block
    return replace(block, revision=block.revision + 1, owned=owned, wanted=wanted, resting=resting, leases=leases)


def kept(lease: Lease) -> Lease:
    """The lease as it is once its container is gone, for its keeper to come back to."""
    return lease._replace(state=KEPT, uid="", container_id="", boot="")


@dataclass(slots=True)
class _Suspect:
    """What is remembered of a node that seems to be down."""

    due: float = 0.0
    backoff: Backoff = field(default_factory=lambda: Backoff(_FIRST, _LONGEST))
    told: str = ""


class DeadNodes:
    """Used by one thread. ``until()`` is the monotonic time up to which writing is allowed."""

    def __init__(
        self, client: Client, store: BlockStore, log: Log, until: Callable[[], float],
        *, monotonic: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._client = client
        self._store = store
        self._log = log
        self._until = until
        self._monotonic = monotonic
        self._suspects: dict[str, _Suspect] = {}

    def look(self, known: Known) -> None:
        """See to every node that seems to be down and whose time has come. Returns after a few requests for each."""
        now = self._monotonic()
        named = suspects(known)
        self._suspects = {name: self._suspects.get(name, _Suspect()) for name in sorted(named)}
        for name, suspect in self._suspects.items():
            if suspect.due <= now < self._until() and not self._see_to(name, suspect, known, named):
                break  # nor would the others be answered

    def _see_to(self, name: str, suspect: _Suspect, known: Known, others: Collection[str]) -> bool:
        """Whether the API server answered."""
        answered = True
        try:
            words = holder(known, name) or self._obstacle(name) or self._evict(name, known, others)
        except (Unreachable, StoreUnreachable) as fault:
            words, answered = str(fault), False
        except Refused as fault:
            words = str(fault)
        suspect.due = self._monotonic() + (suspect.backoff.next() if words else _FIRST)
        if words and words != suspect.told:
            self._log("info", "node seems to be down, its addresses stay its own", node=name, cause=words)
        suspect.told = words
        return answered

    def _obstacle(self, name: str) -> str:
        """What speaks against the node's being dead, in words; "" for nothing."""
        if not asking.node_is_down(self._client, name, self._deadline()):
            return "the API server says that it is there, and not out of service"
        left = asking.pods_left(self._client, name, self._deadline())
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        return f"there is pod {left[0]}{more} on it" if left else ""

    def _evict(self, name: str, known: Known, others: Collection[str]) -> str:
        freed = conflicts = 0
        for before in known.blocks:
            after = evicted(before, name, others, time.time_ns())
            if after is before:
                continue
            try:
                self._store.swap(before, after, self._deadline())
            except BlockConflict:
                conflicts += 1  # the watch will show what it is by now
            else:
                freed += len(before.of(name)) - len(after.of(name))
        if freed:
            self._log("info", "addresses taken from a node that is down", node=name, addresses=freed)
        return f"{conflicts} blocks were changed by others meanwhile" if conflicts else ""

    def _deadline(self) -> float:
        return min(time.monotonic() + _REQUEST_SECONDS, self._until())
