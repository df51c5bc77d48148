"""What the statuses of pools, of subnets, and the SpiderEndpoints are to say: functions of one picture of the cluster.

    leases in blocks ──by pool────▶ SpiderIPPool.status    totalIPCount, allocatedIPCount, allocatedIPs
                     ──by pod─────▶ SpiderEndpoint         status.current, ownerControllerType, ownerControllerName
    pools            ──by subnet──▶ SpiderSubnet.status    totalIPCount, allocatedIPCount, controlledIPPools

A SpiderEndpoint is named as the pod, that of a virtual machine as the machine. It stays while the pod is there or while
something is held or kept by that name; then it goes. It has neither finalizer nor owner: what is a view can be made
again, and keeps no namespace from being deleted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from underlay.cni.address import parse, text
from underlay.controller.known import subject_of
from underlay.errors import UnderlayError
from underlay.ipam.pools import intervals, wishes
from underlay.ipam.pools.lease import HELD, KEPT
from underlay.ipam.pools.objects import Pool
from underlay.ipam.pools.written import ranges

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from underlay.controller.known import Known
    from underlay.ipam.pools.lease import Lease
    from underlay.kube.objects import Pod
    from underlay.kube.resources import Key

OWNER: Final = "ipam.spidernet.io/owner-application-"
# etcd takes objects of 1.5 MB; what does not fit is counted and not listed
LISTED_BYTES: Final = 1_000_000
_MACHINE: Final = "VirtualMachine"
_SET: Final = "StatefulSet"


@dataclass(slots=True)
class _Held:
    lease: Lease
    node: str


def pool_statuses(known: Known) -> dict[str, dict[str, Any]]:
    """The status of every pool that can be read, by name, without its conditions."""
    by_pool: dict[str, list[Lease]] = {}
    for lease, _ in known.leases():
        if lease.state in (HELD, KEPT):
            by_pool.setdefault(lease.pool, []).append(lease)
    found: dict[str, dict[str, Any]] = {}
    for name in known.pools:
        pool = known.pool(name)
        if pool is not None:
            leases = sorted(by_pool.get(name, ()))
            found[name] = {"totalIPCount": pool.listed, "allocatedIPCount": len(leases)}
            if leases:
                found[name]["allocatedIPs"] = _allocated(leases, known.foreign)
    return found


def _allocated(leases: Sequence[Lease], foreign: Collection[Lease]) -> str:
    """Ours are told by their ``state`` from those of another IPAM, which nothing else knows of: they come first."""
    parts: list[bytes] = []
    size = 2
    for lease in (*(one for one in leases if one in foreign), *(one for one in leases if one not in foreign)):
        told = {"pod": lease.pod or lease.keeper.partition("/")[2], "podUid": lease.uid}
        one = msgspec.json.encode({lease.shown: told if lease in foreign else {**told, "state": lease.state}})[1:-1]
        size += len(one) + 1
        if size > LISTED_BYTES:
            break
        parts.append(one)
    return (b"{" + b",".join(parts) + b"}").decode()


def subnet_statuses(known: Known) -> dict[str, dict[str, Any]]:
    """The status of every subnet that can be read, by name, without its conditions: its pools are those of the same
    CIDR, and what they list is allocated.
    """
    by_cidr: dict[str, list[Pool]] = {}
    for each in known.read.values():
        if isinstance(each, Pool):
            by_cidr.setdefault(str(each.subnet), []).append(each)
    found: dict[str, dict[str, Any]] = {}
    for name in known.subnets:
        subnet = known.subnet(name)
        if subnet is not None:
            pools = sorted(by_cidr.get(str(subnet.subnet), ()), key=lambda pool: pool.name)
            taken = intervals.common(subnet.ranges, intervals.union(part for pool in pools for part in pool.ranges))
            found[name] = {"totalIPCount": subnet.listed, "allocatedIPCount": intervals.size(taken)}
            if pools:
                found[name]["controlledIPPools"] = _controlled(pools, known)
    return found


def _controlled(pools: Iterable[Pool], known: Known) -> str:
    listed: dict[str, dict[str, Any]] = {}
    for pool in pools:
        labels = known.pools[pool.name].metadata.labels
        listed[pool.name] = {"ips": ranges(pool.family, pool.ranges)}
        if f"{OWNER}name" in labels:
            parts = (labels.get(f"{OWNER}{part}", "") for part in ("gv", "kind", "namespace", "name"))
            listed[pool.name]["application"] = ":".join(parts)
    return msgspec.json.encode(listed).decode()


# -- SpiderEndpoints ---------------------------------------------------------------------------------------------------


def endpoints(known: Known) -> dict[Key, dict[str, Any]]:
    """The status of every SpiderEndpoint that is to say something, by (namespace, name)."""
    grouped: dict[Key, list[_Held]] = {}
    for lease, node in known.leases():
        key = _key(lease) if lease not in known.foreign else None
        if key is not None:
            grouped.setdefault(key, []).append(_Held(lease, node))
    pods = {endpoint_of(pod): pod for pod in known.pods.values()}
    return {key: _status(key, _current(held, pods.get(key)), pods.get(key), known) for key, held in grouped.items()}


def endpoint_of(pod: Pod) -> Key:
    """The name of a pod's SpiderEndpoint."""
    kind, _, name = subject_of(pod).keeper.partition("/")
    if kind == _MACHINE:
        return pod.namespace, name.partition("/")[2]
    return pod.namespace, pod.name


def forgotten(known: Known, wanted: Mapping[Key, object]) -> list[Key]:
    """The SpiderEndpoints whose pod is gone and of which nothing is held or kept."""
    alive = {endpoint_of(pod) for pod in known.pods.values()} | {_key(lease) for lease in known.foreign}
    return [key for key in known.endpoints if key not in wanted and key not in alive]


def _key(lease: Lease) -> Key | None:
    if lease.adopted:
        return None  # theirs says it
    kind, _, named = lease.keeper.partition("/")
    shown = named if kind == _MACHINE or (lease.state == KEPT and kind == _SET) else ""
    if not shown and lease.state == HELD:
        shown = lease.pod
    namespace, slash, name = shown.partition("/")
    return (namespace, name) if slash else None


def _current(held: list[_Held], pod: Pod | None) -> list[_Held]:
    """Of one pod: of the one there is, where it has something, or else of the one that came last. What is held stands
    before what is kept.
    """
    newest = max(held, key=lambda one: (one.lease.state == HELD, one.lease.since))
    uids = {one.lease.uid for one in held}
    uid = pod.uid if pod is not None and pod.uid in uids else newest.lease.uid
    of_it = [one for one in held if one.lease.uid == uid]
    used = {(one.lease.ifname, one.lease.family) for one in of_it if one.lease.state == HELD}
    return [one for one in of_it if one.lease.state == HELD or (one.lease.ifname, one.lease.family) not in used]


def _status(key: Key, held: list[_Held], pod: Pod | None, known: Known) -> dict[str, Any]:
    lease, node = held[0].lease, held[0].node
    kind, name = _owner(key, lease, pod, known)
    nics: dict[str, dict[str, Any]] = {}
    for one in sorted(held, key=lambda one: (one.lease.ifname, one.lease.address)):
        nic = nics.setdefault(one.lease.ifname, _nic(one.lease.ifname, pod, known.pool(one.lease.pool)))
        _add(nic, one.lease, known.pool(one.lease.pool))
    current = {"uid": lease.uid, "node": node, "ips": list(nics.values())}
    return {"current": current, "ownerControllerType": kind, "ownerControllerName": name}


def _owner(key: Key, lease: Lease, pod: Pod | None, known: Known) -> tuple[str, str]:
    if pod is not None:
        return subject_of(pod).application
    before = known.endpoints.get(key)
    if before is not None and isinstance(before.status, dict) and before.status.get("ownerControllerType"):
        return str(before.status["ownerControllerType"]), str(before.status.get("ownerControllerName", ""))
    if lease.keeper.startswith(f"{_SET}/"):
        return _SET, key[1].rpartition("-")[0]
    if lease.keeper.startswith(f"{_MACHINE}/"):
        return _MACHINE, key[1]
    return "Pod", key[1]


def _nic(ifname: str, pod: Pod | None, pool: Pool | None) -> dict[str, Any]:
    nic: dict[str, Any] = {"interface": ifname, "vlan": pool.vlan if pool else 0, "cleanGateway": False}
    if pod is not None:
        try:
            named = wishes.pools(pod.annotations, ifname, first=True)
            nic["cleanGateway"] = named is not None and named.clean_gateway
            nic["routes"] = [{"dst": route.dst, "gw": route.gw} for route in wishes.routes(pod.annotations)]
        except UnderlayError:  # the annotation has become wrong since ADD
            pass
    return nic


def _add(nic: dict[str, Any], lease: Lease, pool: Pool | None) -> None:
    ip = f"ipv{lease.family}"
    length = pool.subnet.length if pool else (32 if lease.family == 4 else 128)
    nic[ip], nic[f"{ip}Pool"] = f"{lease.shown}/{length}", lease.pool
    if pool is None:
        return
    if pool.gateway:
        nic[f"{ip}Gateway"] = _plain(pool.gateway)
    told = nic.setdefault("routes", [])
    known = {route["dst"] for route in told}
    told += ({"dst": route.dst, "gw": route.gw} for route in pool.routes if route.dst not in known)


def _plain(address: str) -> str:
    found = parse(address)
    return text(*found) if found else address
