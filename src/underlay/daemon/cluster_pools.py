"""The address pools of a daemon in a cluster: pools and blocks at the API server, leases in its state directory.

start    listen: pools, blocks and what pools ask about
settle   before the socket opens: what the API server says this node owns, or else what the file says
keep     in a thread: report, own ahead, hand over, give back
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from underlay import __version__
from underlay.daemon.pools import FILE, teller
from underlay.daemon.wire import HostWire
from underlay.delegate.engine import boot_id
from underlay.ipam.pools.applications import MadePools
from underlay.ipam.pools.journal import Journal
from underlay.ipam.pools.leases import Leases
from underlay.ipam.pools.owned import OwnedBlocks
from underlay.ipam.pools.ownership import Ownership
from underlay.ipam.pools.plugin import Spiderpool
from underlay.ipam.pools.upkeep import Upkeep
from underlay.kube.block_store import ApiBlocks
from underlay.kube.client import Client
from underlay.kube.pool_cluster import PoolCluster

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from underlay.cni.address import Address
    from underlay.kube.access import Access
    from underlay.kube.source import Source

_CACHES: Final = "kube-pools.db"


class ClusterPools:
    """The plugin, and what it needs beside itself. ``node`` is this node's name, ``rest`` as for :class:`Leases`,
    ``pods`` where pods are known; ``blocking`` lends the caller's place in its thread pool.
    """

    def __init__(
        self,
        access: Access,
        state_dir: str,
        node: str,
        log: Callable[..., None],
        *,
        rest: float,
        pods: Source,
        blocking: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._log = log
        self._client = Client(access, f"underlay/{__version__}")
        self._around = PoolCluster(self._client, node, f"{state_dir}/{_CACHES}", log, pods, blocking=blocking)
        self.blocks = ApiBlocks(self._client, log)
        journal = Journal(f"{state_dir}/{FILE}", log)
        self._ownership = Ownership(self.blocks, journal, node, log=log, boot=boot_id())
        self._owned = owned = OwnedBlocks(self._ownership, blocking=blocking)
        self._leases = Leases(journal, owned, rest=rest)
        tell = teller(pods)
        self._upkeep = Upkeep(self._ownership, owned, self._leases, log=log, tell=tell)
        self.plugin = Spiderpool(
            self._leases, journal, self._around, boot=boot_id(), log=log, wire=HostWire(), tell=tell,
            applications=MadePools(blocking),
        )  # fmt: skip

    def start(self) -> None:
        """Begin to listen to the API server; returns at once."""
        self._around.start()
        self.blocks.start()

    def settle(self, deadline: float) -> None:
        """Know the pools and what this node owns of them, by the API server where it answers before the deadline
        (monotonic).
        """
        self._around.wait_listed(deadline)
        self.blocks.wait_listed(deadline)
        self.plugin.follow()
        if not self._ownership.begin(self._leases, deadline if self.blocks.ready() else 0.0):
            self._log("warn", "the API server has not said which addresses are this node's; those of its file count",
                      cause=self.blocks.fault())  # fmt: skip

    def obtain(self, address: Address, deadline: float) -> str:
        """See :meth:`OwnedBlocks.obtain`."""
        return self._owned.obtain(address, deadline)

    def keep(self, stopped: Callable[[], bool]) -> None:
        """The upkeep, after :meth:`settle`, for a thread of its own: until ``stopped`` and :meth:`stop`."""
        self._upkeep.run(stopped)

    def stop(self) -> None:
        """Listen no longer and wake the upkeep; what is owned stays owned. The plugin is the caller's to close."""
        with self._ownership.changed:
            self._ownership.changed.notify_all()
        self._around.stop()
        self.blocks.stop()
        self._client.close()
        self.blocks.join()
        self._around.close()
