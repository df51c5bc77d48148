"""Takes from nodes that are down what they own, since they cannot give it back.

    the Node is gone, or tainted node.kubernetes.io/out-of-service ──asked of the API server──▶ no pod of it is left ──▶
        its addresses ──▶ free, resting from now on       compare-and-swap, block by block
                      ──▶ whoever wants it                 in the dead owner's place
                      ──▶ kept, with no owner              what it held or kept for a keeper, who finds it there
        its wants     ──▶ gone

Nothing is decided by time: a node that is merely silent may run its pods for days. And not by the name alone: as long
as a pod exists that the node reports to hold an address of its own, somebody has merely named the node otherwise.

Unless the administrator wants it (:mod:`underlay.controller.unready`): then a node that has not been ready for that
long loses what pods held that are gone, or were to have terminated by now, and all of it where no other pod is left.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from underlay.controller import asking
from underlay.controller.unready import Unready
from underlay.ipam.pools.block import BlockConflict, StoreUnreachable
from underlay.ipam.pools.lease import HELD, KEPT
from underlay.kube.backoff import Backoff
from underlay.kube.faults import Refused, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from underlay.controller.asking import Left
    from underlay.controller.known import Known
    from underlay.controller.watched import Node
    from underlay.ipam.pools.block import Block, BlockStore
    from underlay.ipam.pools.lease import Lease
    from underlay.kube.client import Client
    from underlay.kube.source import Log

_REQUEST_SECONDS: Final = 10.0
_FIRST: Final = 1.0
_LONGEST: Final = 30.0


def suspects(known: Known, overdue: Callable[[Node], bool] = lambda _node: False) -> set[str]:
    """The nodes that own or want addresses and that seem to be down, or are ``overdue``."""
    named = {owner for block in known.blocks for owner in block.owned.values()}
    named |= {want.node for block in known.blocks for want in block.wanted.values()}
    there = known.nodes
    return {name for name in named if name not in there or asking.is_marked_down(there[name]) or overdue(there[name])}


def holder(known: Known, node: str, over: Collection[str] = ()) -> str:
    """A pod that exists and that holds, by the node's report, an address of it, in words; "" for none. Those that are
    ``over`` ("namespace/name") do not count.
    """
    for lease, owner in known.leases():
        if owner == node and lease.state == HELD and lease.pod not in over and known.has_pod(lease):
            return f"pod {lease.pod}, which holds {lease.shown}, exists"
    return ""


def is_used(lease: Lease, living: Iterable[Left]) -> bool:
    """Whether the address is one of these pods', or kept for one of them. By the name alone where no UID is known."""
    named = lease.pod or lease.keeper.partition("/")[2]
    return any(
        lease.uid == pod.uid != "" or (named == pod.pod and (pod.static or lease.state == KEPT or not lease.uid))
        for pod in living
    )


def evicted(
    block: Block, dead: str, others: Collection[str], now: int, only: Callable[[Lease], bool] | None = None
) -> Block:
    """The block without what ``dead`` owns and wants; ``others`` are dead as well, and get nothing. ``now`` in realtime
    nanoseconds. With ``only``, what is reported and of which that is so is all that goes. The same block where there is
    nothing to change.
    """
    wanted = {value: want for value, want in block.wanted.items() if want.node != dead or only is not None}
    owned, resting, leases = dict(block.owned), dict(block.resting), dict(block.leases)
    going = (value for value in block.of(dead) if only is None or (value in leases and only(leases[value])))
    for value in list(going):
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
    """Used by one thread. ``until()`` is the monotonic time up to which writing is allowed; ``unready`` knows which
    nodes have not been ready for too long.
    """

    def __init__(
        self, client: Client, store: BlockStore, log: Log, until: Callable[[], float],
        *, unready: Unready | None = None, monotonic: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._client = client
        self._store = store
        self._log = log
        self._until = until
        self._unready = unready or Unready(None)
        self._monotonic = monotonic
        self._suspects: dict[str, _Suspect] = {}

    def look(self, known: Known) -> None:
        """See to every node that seems to be down and whose time has come. Returns after a few requests for each."""
        now = self._monotonic()
        self._unready.look(known)
        named = suspects(known, self._unready.overdue)
        self._suspects = {name: self._suspects.get(name, _Suspect()) for name in sorted(named)}
        for name, suspect in self._suspects.items():
            if suspect.due <= now < self._until() and not self._see_to(name, suspect, known, named):
                break  # nor would the others be answered

    def _see_to(self, name: str, suspect: _Suspect, known: Known, others: Collection[str]) -> bool:
        """Whether the API server answered."""
        answered = True
        try:
            words = self._judge(name, known, others)
        except (Unreachable, StoreUnreachable) as fault:
            words, answered = str(fault), False
        except Refused as fault:
            words = str(fault)
        suspect.due = self._monotonic() + (suspect.backoff.next() if words else _FIRST)
        if words and words != suspect.told:
            self._log("info", "node seems to be down, its addresses stay its own", node=name, cause=words)
        suspect.told = words
        return answered

    def _judge(self, name: str, known: Known, others: Collection[str]) -> str:
        """Take what may be taken; what speaks against more, in words, "" for nothing."""
        overdue = self._unready.overdue(known.nodes.get(name))
        if not overdue and (words := holder(known, name)):
            return words
        node = asking.node_at(self._client, name, self._deadline())
        down = node is None or asking.is_marked_down(node)
        if not down and not self._unready.overdue(node):
            return "the API server says that it is there, and not out of service"
        left = asking.pods_left(self._client, name, self._deadline())
        if down:
            staying = [pod for pod in left if not pod.ended]
            return _named(staying) or holder(known, name) or self._evict(name, known, others)
        return self._reclaim(name, known, others, left)

    def _reclaim(self, name: str, known: Known, others: Collection[str], left: Sequence[Left]) -> str:
        """From a node that is overdue. A pod that exists and that it has not ``left`` is on another one."""
        living = [pod for pod in left if not pod.ended and pod.ends > time.time()]
        over = {pod.pod for pod in left} - {pod.pod for pod in living}
        words = _named(living) or holder(known, name, over)
        if not words:
            return self._evict(name, known, others, why="not ready")

        def ended(lease: Lease) -> bool:
            return not is_used(lease, living) and (lease.pod in over or not known.has_pod(lease))

        return self._evict(name, known, others, ended, why="not ready") or words

    def _evict(
        self, name: str, known: Known, others: Collection[str], only: Callable[[Lease], bool] | None = None,
        *, why: str = "down",
    ) -> str:  # fmt: skip
        freed = conflicts = 0
        for before in known.blocks:
            after = evicted(before, name, others, time.time_ns(), only)
            if after is before:
                continue
            try:
                self._store.swap(before, after, self._deadline())
            except BlockConflict:
                conflicts += 1  # the watch will show what it is by now
            else:
                taken = before.of(name) - after.of(name)
                self._unready.took(name, before, taken)
                freed += len(taken)
        if freed:
            level = "info" if why == "down" else "warn"  # its pods may use them still
            self._log(level, f"addresses taken from a node that is {why}", node=name, addresses=freed)
        return f"{conflicts} blocks were changed by others meanwhile" if conflicts else ""

    def _deadline(self) -> float:
        return min(time.monotonic() + _REQUEST_SECONDS, self._until())


def _named(pods: Sequence[Left]) -> str:
    """What speaks for the node, in words."""
    more = f" and {len(pods) - 1} more" if len(pods) > 1 else ""
    return f"there is pod {pods[0].pod}{more} on it" if pods else ""
