"""Which part of a pool a node hands out: everything where there is no cluster, what it owns where there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from underlay.ipam.pools.intervals import Intervals
    from underlay.ipam.pools.lease import Lease
    from underlay.ipam.pools.objects import Pool


class Blocks(Protocol):
    """Which part of a pool this node hands out. Thread-safe; ``deadline`` on the ``time.monotonic`` clock."""

    def owned(self, pool: Pool) -> Intervals:
        """What the node may hand out of the pool now, a part of ``pool.ranges``. Never waits, takes no lock."""

    def more(
        self, pool: Pool, take: Callable[[], Lease | None], deadline: float, *, patient: bool = False
    ) -> Lease | None:
        """Called where ``take`` finds nothing: try to own more of the pool, and ``take`` again whenever something came
        or was given back here; returns what that finds, None where there is no more. ``patient``: wait for what others
        may just have given back. Raises TryAgain where that cannot be known now.
        """

    def elsewhere(self, pools: Sequence[Pool], who: Lease, deadline: float) -> bool:
        """What is kept for ``who`` where another node owns it: have it handed over; whether any came. Raises TryAgain
        as long as it is there.
        """

    def spare(self, pool: Pool) -> int:
        """How many addresses of the pool this node might own beside what it does."""

    def touched(self, leases: Iterable[Lease], *, freed: bool = False) -> None:
        """These have changed: as they are now, or as they were when they ended. ``freed``: some of them may be taken by
        those who wait in :meth:`more`.
        """


class WholePools:
    """The blocks of a node without a cluster: it owns every one."""

    def owned(self, pool: Pool) -> Intervals:
        """All of the pool."""
        return pool.ranges

    def more(
        self, pool: Pool, take: Callable[[], Lease | None], deadline: float, *, patient: bool = False
    ) -> Lease | None:
        """There is no more."""
        return None

    def elsewhere(self, pools: Sequence[Pool], who: Lease, deadline: float) -> bool:
        """There is no other node."""
        return False

    def spare(self, pool: Pool) -> int:
        """There is no more."""
        return 0

    def touched(self, leases: Iterable[Lease], *, freed: bool = False) -> None:
        """Nobody asks."""
