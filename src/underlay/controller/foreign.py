"""Addresses that another IPAM has given to pods: what is left of it in the objects of the cluster.

    SpiderIPPool.status.allocatedIPs   {"10.0.0.5": {"pod": "shop/web", "podUid": "…"}}   ours have a "state" besides
    SpiderEndpoint.status.current      with the finalizer of theirs, while something is held by it

An entry counts while its pod exists, under that UID (a static pod by its name), or while a SpiderEndpoint of a
StatefulSet or a machine bears it; and until a block says something of its address, which "underlay ipam adopt" sees to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from underlay.cni.address import Address, parse
from underlay.controller.writes import FINALIZER
from underlay.ipam.pools import surroundings
from underlay.ipam.pools.lease import HELD, KEPT, RESERVED, Lease, pod_keeper
from underlay.multus.findings import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from underlay.controller.known import Known
    from underlay.controller.watched import Document
    from underlay.kube.objects import Pod
    from underlay.kube.resources import Key
    from underlay.multus.findings import Subject

_KEEPERS: Final = {  # theirs, and as ours are called
    "StatefulSet": "StatefulSet",
    "VirtualMachineInstance": "VirtualMachine",
    "VirtualMachine": "VirtualMachine",
}


class Listed(NamedTuple):
    """One address. ``gone``: its pod is, and nobody is to come back for it."""

    lease: Lease
    gone: bool = False


class _Entry(msgspec.Struct, rename={"pod_uid": "podUid"}):
    pod: str | None = None
    pod_uid: str | None = None
    state: str | None = None


class _Nic(msgspec.Struct, rename={"v4_pool": "ipv4Pool", "v6_pool": "ipv6Pool"}):
    interface: str = ""
    ipv4: str | None = None
    v4_pool: str | None = None
    ipv6: str | None = None
    v6_pool: str | None = None


class _Current(msgspec.Struct):
    uid: str = ""
    ips: tuple[_Nic, ...] = ()


class _Status(msgspec.Struct, rename={"kind": "ownerControllerType"}):
    current: _Current = msgspec.field(default_factory=_Current)
    kind: str = ""


class _Said(NamedTuple):
    pool: str
    pod: str
    uid: str


class _Endpoint(NamedTuple):
    key: Key
    status: _Status
    addresses: Mapping[Address, tuple[str, str]]  # pool, NIC


_ALLOCATED: Final = msgspec.json.Decoder(dict[str, _Entry])


def leases(known: Known) -> frozenset[Lease]:
    """Those that count."""
    return frozenset(one.lease for one in listed(known) if not one.gone)


def findings(subject: Subject, known: Known, pool: str) -> list[Finding]:
    """What a pool's author is to know of them."""
    found = sorted(lease for lease in known.foreign if lease.pool == pool)
    if not found:
        return []
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    words = f"{found[0].shown} of {found[0].pod}{more} were given out by another IPAM: nodes may give them out again"
    return [Finding(subject, Severity.WARNING, "status.allocatedIPs", words, 'Run "underlay ipam adopt --apply".')]


def listed(known: Known) -> list[Listed]:
    """What pools and SpiderEndpoints list and no block says anything of, by address."""
    reported = _reported(known)
    return [one for one in _everything(known) if one.lease.address not in reported]


def given_again(known: Known) -> list[tuple[Lease, Lease]]:
    """What pools and SpiderEndpoints list and a block says to be somebody else's, with what it says."""
    reported = _reported(known)
    found = [(one.lease, reported.get(one.lease.address)) for one in _everything(known) if not one.gone]
    return [(lease, other) for lease, other in found if other is not None and not _same(lease, other)]


def _same(lease: Lease, other: Lease) -> bool:
    """Whether both are of one pod, or on behalf of one keeper; or it is reserved, which is another way to set it aside.
    By the pod's name: there is one pod of a name.
    """
    reserved = other.state == KEPT and other.keeper.startswith(f"{RESERVED}/")
    return reserved or lease.pod == other.pod or lease.keeper == other.keeper != ""


def _reported(known: Known) -> dict[Address, Lease]:
    return {lease.address: lease for block in known.blocks for lease in block.leases.values()}


def _everything(known: Known) -> list[Listed]:
    entries = {address: said for name, pool in known.pools.items() for address, said in _allocated(name, pool)}
    endpoints = {uid: one for one in _endpoints(known.endpoints) if (uid := one.status.current.uid)}
    if not entries and not endpoints:
        return []
    pods = {pod.uid: pod for pod in known.pods.values()}
    by_name = {f"{namespace}/{name}": pod for (namespace, name), pod in known.pods.items()}
    for uid, endpoint in endpoints.items():
        for address, (pool, _) in endpoint.addresses.items():
            entries.setdefault(address, _Said(pool, "/".join(endpoint.key), uid))

    def pod_of(said: _Said) -> Pod | None:
        named = by_name.get(said.pod)
        return pods.get(said.uid) or (named if named is not None and (named.static or not said.uid) else None)

    return [
        _listed(address, said, pod_of(said), endpoints.get(said.uid)) for address, said in sorted(entries.items())
    ]  # fmt: skip


def _listed(address: Address, said: _Said, pod: Pod | None, endpoint: _Endpoint | None) -> Listed:
    pool, shown, uid = said
    ifname = endpoint.addresses.get(address, ("", ""))[1] if endpoint else ""
    if pod is not None:
        shown, uid = f"{pod.namespace}/{pod.name}", pod.event_uid  # a static pod's ADD names the kubelet's own
        keeper = surroundings.Subject(pod.namespace, pod.name, owner=pod.owner).keeper or pod_keeper(shown, uid)
        return Listed(Lease(address, pool, HELD, uid, "", ifname, shown, keeper))
    if endpoint is not None and endpoint.status.kind in _KEEPERS:
        keeper = "/".join((_KEEPERS[endpoint.status.kind], *endpoint.key))
        return Listed(Lease(address, pool, KEPT, "", "", ifname, shown, keeper))
    return Listed(Lease(address, pool, HELD, uid, "", ifname, shown), gone=True)


def unread(known: Known) -> list[str]:
    """The pools whose status cannot be read: what they list is not known."""
    return sorted(name for name, pool in known.pools.items() if _entries(pool) is None)


def _allocated(name: str, pool: Document) -> Iterator[tuple[Address, _Said]]:
    """What a pool's status lists that is not ours. Nothing of what cannot be read."""
    for written, entry in (_entries(pool) or {}).items():
        address = parse(written)
        if address is not None and not entry.state:
            yield address, _Said(name, entry.pod or "", entry.pod_uid or "")


def _entries(pool: Document) -> dict[str, _Entry] | None:
    text = pool.status.get("allocatedIPs") if isinstance(pool.status, dict) else None
    try:
        return _ALLOCATED.decode(text) if isinstance(text, str) and text else {}
    except (msgspec.DecodeError, RecursionError):
        return None


def _endpoints(documents: Mapping[Key, Document]) -> Iterator[_Endpoint]:
    for key, document in documents.items():
        if FINALIZER in document.metadata.finalizers and not document.metadata.deletion_timestamp:
            try:
                status = msgspec.convert(document.status or {}, _Status)
            except msgspec.ValidationError:
                continue
            yield _Endpoint(key, status, dict(_addresses(status.current.ips)))


def _addresses(nics: Iterable[_Nic]) -> Iterator[tuple[Address, tuple[str, str]]]:
    for nic in nics:
        for written, pool in ((nic.ipv4, nic.v4_pool), (nic.ipv6, nic.v6_pool)):
            address = parse((written or "").partition("/")[0])
            if address is not None:
                yield address, (pool or "", nic.interface)
