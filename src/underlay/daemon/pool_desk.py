"""What people ask of the address pools (``underlay ipam``), served by whoever holds the state directory.

{"act": "explain", "nic": {"pod": "ns/pod", …}}       {"pod": …, "rule": …, "lines": [{"pool": …, "place": 1}, …]}
{"act": "list"}                                       {"leases": [{"address": …, "pool": …, "state": …, …}, …]}
{"act": "who", "address": "172.18.40.10"}             the same, of that address alone; refused where no pool has it
{"act": "reserve", "address": …, "for": "ns/pod"}     {"leases": [the reservation]}
{"act": "release", "address": …, "force": false}      {"leases": [what it was]}
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from underlay.cni.address import parse
from underlay.cni.decoding import FAULTS, fault
from underlay.daemon.pool_explain import Nic, explain
from underlay.errors import InvalidConfig, NoAddressLeft, TryAgain
from underlay.ipam.pools import intervals
from underlay.ipam.pools.block import StoreUnreachable, key_of
from underlay.ipam.pools.lease import HELD, RESERVED

if TYPE_CHECKING:
    from underlay.cni.address import Address
    from underlay.daemon.cluster_pools import ClusterPools
    from underlay.ipam.pools.block import BlockStore
    from underlay.ipam.pools.lease import Lease
    from underlay.ipam.pools.plugin import Spiderpool
    from underlay.ipam.pools.surroundings import Catalogue
    from underlay.kube.source import Source

PLUGIN: Final = "_ipam"
_SOURCE_SECONDS: Final = 2.0
_NAMED: Final = 8  # pools that a hint names
_V4: Final = 4


class Wish(msgspec.Struct, frozen=True, rename={"whom": "for"}, omit_defaults=True):
    """One request; ``nic`` is what "explain" is about. ``whom``: the pod that a reservation is for, "" for nobody: the
    address is not handed out at all. ``everywhere``: what the nodes of the cluster report, too.
    """

    act: Literal["explain", "list", "who", "reserve", "release"]
    nic: Nic = Nic("")
    address: str = ""
    whom: str = ""
    force: bool = False
    everywhere: bool = False


class Shown(msgspec.Struct, frozen=True, omit_defaults=True):
    """A lease as people read it; ``since`` in seconds since 1970, ``node`` where it is one of a cluster's."""

    address: str
    pool: str
    state: str
    pod: str = ""
    container: str = ""
    ifname: str = ""
    keeper: str = ""
    network: str = ""
    since: float = 0.0
    node: str = ""


class Answer(msgspec.Struct, frozen=True):
    """The leases asked for, or acted on."""

    leases: tuple[Shown, ...]


def serve(pools: Spiderpool, source: Source, cluster: ClusterPools | None, request: bytes) -> bytes:
    """Carry a request out; ``source`` knows the networks, ``cluster`` what other nodes report and own. Raises
    InvalidConfig, NoAddressLeft, StateUnwritable, TryAgain, and for "explain" what that raises.
    """
    try:
        wish = msgspec.json.decode(request, type=Wish)
    except FAULTS as error:
        raise fault(error, what="the request") from error
    if wish.act == "explain":
        pools.follow()
        deadline = time.monotonic() + _SOURCE_SECONDS
        told = explain(wish.nic, pools.surroundings, source, deadline, pools.leases.room)
        return msgspec.json.encode(told)
    if wish.act == "list":
        return _reported(cluster) if wish.everywhere else _answer(*pools.leases.everything())
    address = parse(wish.address)
    if address is None:
        raise InvalidConfig(f"{wish.address[:60]!r} is no IP address", hint="Write it without a prefix length.")
    if wish.act == "reserve":
        return _answer(_reserve(pools, cluster, address, wish.whom))
    found = pools.leases.at(address)
    if found is None and cluster is not None:
        return _elsewhere(cluster.blocks, address, wish)
    if wish.act == "who":
        if found is None:
            _handed_out_by(pools.surroundings.catalogue(), address)
        return _answer(*([found] if found else []))
    if found is None:
        return _answer()
    _refuse_held(found, wish)
    return _answer(*pools.leases.drop([found]))


def _refuse_held(found: Lease, wish: Wish) -> None:
    if found.state == HELD and not wish.force:
        raise NoAddressLeft(
            f"{found.shown} is {found.owner()}: another pod would get it while this one still uses it",
            hint="Delete the pod. With --force the address is released all the same.",
        )


def _reserve(pools: Spiderpool, cluster: ClusterPools | None, address: Address, whom: str) -> Lease:
    name = _handed_out_by(pools.surroundings.catalogue(), address)
    if whom and whom.count("/") != 1:
        raise InvalidConfig(f"{whom[:120]!r} is no pod", hint="Write NAMESPACE/POD.")
    other = cluster.obtain(address, time.monotonic() + _SOURCE_SECONDS) if cluster is not None else ""
    if other:
        raise NoAddressLeft(f"{address} belongs to node {other}", hint=f'Run "underlay ipam reserve" on {other}.')
    pools.leases.keep(address, name, f"{RESERVED}/{whom}")
    found = pools.leases.at(address)
    assert found is not None, "it was reserved just now"
    return found


def _handed_out_by(catalogue: Catalogue, address: Address) -> str:
    """The name of the pool that lists the address. Raises InvalidConfig where none does, or a SpiderReservedIP keeps it
    from all of them.
    """
    alike = [pool for pool in catalogue.pools.values() if pool.family == address.family]
    name = next((pool.name for pool in alike if intervals.holds(pool.ranges, address.value)), None)
    if name is None:
        known = ", ".join(sorted(pool.name for pool in alike)[:_NAMED]) or "none"
        unread = "".join(f" Not read: {fault}" for fault in catalogue.faults[:1])
        raise InvalidConfig(
            f"no pool hands {address} out", hint=f"IPv{address.family} pools there are: {known}.{unread}"
        )
    for reserved in catalogue.reserved:
        if intervals.holds(reserved.v4 if address.family == _V4 else reserved.v6, address.value):
            raise InvalidConfig(
                f"no pod gets {address}: SpiderReservedIP {reserved.name!r} keeps it",
                hint="Take it out of there first.",
            )
    return name


def _reported(cluster: ClusterPools | None) -> bytes:
    """What every node of the cluster has reported, by address."""
    if cluster is None:
        raise InvalidConfig("there are no other nodes: the pools are this node's own", hint="Leave --all out.")
    found = sorted(
        (lease, block.owned.get(at, "")) for block in cluster.blocks.known() for at, lease in block.leases.items()
    )
    return msgspec.json.encode(Answer(tuple(_shown(lease, node) for lease, node in found)))


def _elsewhere(blocks: BlockStore, address: Address, wish: Wish) -> bytes:
    """What another node has reported of the address. Only what a dead node has left behind, owned by nobody, is
    released from here. Raises NoAddressLeft, TryAgain.
    """
    key = key_of(address)
    block = next((one for one in blocks.known() if one.key == key), None)
    lease = block.leases.get(address.value) if block is not None else None
    if block is None or lease is None:
        return _answer()
    node = block.owned.get(address.value, "")
    release = wish.act == "release"
    if release and node:
        raise NoAddressLeft(
            f"{address} is {lease.owner()}, on node {node}", hint=f'Run "underlay ipam release" on {node}.'
        )
    if release:
        _refuse_held(lease, wish)
        try:
            blocks.report(key, {address.value: None}, time.monotonic() + _SOURCE_SECONDS)
        except StoreUnreachable as error:
            raise TryAgain(f"{address} cannot be released: {error}") from error
    return msgspec.json.encode(Answer((_shown(lease, node),)))


def _answer(*leases: Lease) -> bytes:
    return msgspec.json.encode(Answer(tuple(_shown(lease) for lease in leases)))


def _shown(one: Lease, node: str = "") -> Shown:
    return Shown(
        one.shown, one.pool, one.state, one.pod, one.container_id, one.ifname, one.keeper, one.network, one.since / 1e9,
        node,
    )  # fmt: skip
