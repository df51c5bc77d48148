"""The address pools of a daemon without a cluster: manifests, a SQLite file in its state directory, every block."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from underlay.cni.address import parse
from underlay.daemon.wire import HostWire
from underlay.delegate import entries
from underlay.delegate.engine import boot_id
from underlay.errors import StateUnwritable
from underlay.ipam.pools.journal import Journal
from underlay.ipam.pools.lease import HELD, Lease
from underlay.ipam.pools.leases import Leases
from underlay.ipam.pools.objects import Pool, Subnet
from underlay.ipam.pools.plugin import Spiderpool
from underlay.ipam.pools.section import NAME
from underlay.ipam.pools.shares import WholePools
from underlay.ipam.undo import Release
from underlay.kube.pool_manifests import PoolManifests, here

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from underlay.daemon.config import Settings
    from underlay.delegate.ledger import Ledger, Row
    from underlay.ipam.pools.plugin import Teller
    from underlay.kube.manifests import Manifests
    from underlay.kube.source import Source

FILE = "pools.db"


def embedded(
    state_dir: str,
    manifests: Manifests,
    log: Callable[..., None],
    *,
    rest: float,
    node: str = "",
    pods: Source | None = None,
) -> Spiderpool:
    """The plugin over the manifests. ``rest`` seconds is how long a freed address is not used again; ``node`` is this
    node's name where it is known, ``pods`` where pods are known if not from manifests.
    """
    journal = Journal(f"{state_dir}/{FILE}", log)
    leases = Leases(journal, WholePools(), rest=rest)
    surroundings = PoolManifests(manifests, node or here(), log, pods)
    tell = teller(pods or manifests)
    return Spiderpool(leases, journal, surroundings, boot=boot_id(), log=log, wire=HostWire(), tell=tell)


def in_cluster(settings: Settings, manifests: Manifests) -> bool:
    """Whether pools are the API server's: said so, or one is used and no manifest has a pool. A manifest that cannot be
    read may have one.
    """
    if settings.pools != "auto" or not settings.kube.used:
        return settings.pools == "cluster"
    if not os.path.exists(settings.manifest_dir):
        return True
    objects, faults = manifests.surrounding()
    return not faults and not any(isinstance(one, Pool | Subnet) for one in objects)


def teller(source: Source) -> Teller:
    """Tells by Events on the pod, of type Warning; of a pod that is not known nobody is told but the log."""

    def tell(pod: str, uid: str, reason: str, message: str, /) -> None:
        namespace, _, name = pod.partition("/")
        found = source.known_pod(namespace, name, uid)
        if found is not None:
            source.event(found, "Warning", reason, message)

    return tell


def reconcile(pools: Spiderpool, ledger: Ledger, log: Callable[..., None]) -> None:
    """At the start, when the ledger holds nothing but what lives. The pools' file may be older than it, damaged or of
    an earlier boot: what the ledger says is held is held; what containers of an earlier boot held is free.
    """
    rows = ledger.rows()
    try:
        pools.after_reboot(frozenset((row.container_id, row.ifname) for row in rows))
        pools.restore([lease for row in rows for lease in _of(row)])
    except StateUnwritable as error:
        log("error", "address pools not reconciled", error=error.message, hint=error.hint)


def _of(row: Row) -> Iterator[Lease]:
    known, _ = entries.decode(row.undo)
    pod = f"{row.pod_namespace}/{row.pod_name}" if row.pod_name else ""
    for entry in known:
        if isinstance(entry, Release) and entry.kind == NAME:
            for written in entry.addresses:
                address = parse(written)
                if address is not None:
                    yield Lease(address, "", HELD, row.pod_uid, row.container_id, row.ifname, pod, boot=row.boot,
                                since=row.created)  # fmt: skip
