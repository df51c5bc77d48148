"""Takes over from another IPAM: what its pods hold is set aside in blocks, so that no node hands it out.

    what pools and SpiderEndpoints list ──▶ of a pod that lives, or kept for a set ──▶ a lease that nobody's node owns
                                        ──▶ its pod is gone                        ──▶ nothing: it is free
                                        ──▶ a node owns the address already        ──▶ told: too late for that one
                                        ──▶ another pod has it by now              ──▶ told: two pods use it

The controller ends each lease when its pod is gone; a pod that is started anew in its sandbox, and the next one of a
StatefulSet, finds its address there. Whoever gives out addresses meanwhile must have stopped: what it gives out after
the look is not seen.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from underlay.cni.address import Address
from underlay.controller import foreign, watched
from underlay.controller.known import Known
from underlay.errors import InvalidConfig, NotAvailable
from underlay.ipam.pools.block import BlockConflict, StoreRefuses, StoreUnreachable, key_of
from underlay.kube.block_store import BLOCKS
from underlay.kube.faults import Refused, Unreachable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from underlay.ipam.pools.block import Block, BlockStore, Key
    from underlay.ipam.pools.lease import Lease
    from underlay.kube.client import Client
    from underlay.kube.resources import Key as Name
    from underlay.kube.resources import Resource, Value

_PAGE: Final = 250
_PAGE_SECONDS: Final = 60.0
_SWAP_SECONDS: Final = 10.0
_TRIES: Final = 5
_RIGHTS: Final = "It takes the rights to list pods and Spiderpool's objects, and to write underlayipblocks."


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is done about one address: it is set aside, or else ``why`` it is not. ``lost``: it ought to be."""

    lease: Lease
    why: str = ""
    lost: bool = False


def look(client: Client) -> Known:
    """What there is, pods last but for the blocks: one that is gone by then needs no address. Raises NotAvailable."""
    pools = _listed(client, watched.documents("spiderippool", "spiderippools"))
    endpoints = _listed(client, watched.documents("spiderendpoint", "spiderendpoints"))
    pods = _listed(client, watched.pods())
    blocks = tuple(one.block for one in _listed(client, BLOCKS).values() if one.block is not None)
    return Known({name: each for (_, name), each in pools.items()}, endpoints=endpoints, pods=pods, blocks=blocks)


def judged(known: Known) -> list[Verdict]:
    """What is to be done about every address that another IPAM has given out and that no block says to be set aside, by
    address. Raises InvalidConfig where a pool's status cannot be read.
    """
    if unread := foreign.unread(known):
        raise InvalidConfig(
            f"status.allocatedIPs of SpiderIPPool {unread[0]!r} is not what Spiderpool writes",
            hint="Mend it, or delete it where no pod holds an address of that pool.",
        )
    owners = {Address(block.key.family, at): node for block in known.blocks for at, node in block.owned.items()}
    found = [_verdict(one, owners.get(one.lease.address, "")) for one in foreign.listed(known)]
    found += [_another_has_it(lease, other) for lease, other in foreign.given_again(known)]
    return sorted(found, key=lambda verdict: verdict.lease)


def _verdict(one: foreign.Listed, owner: str) -> Verdict:
    if one.gone:
        return Verdict(one.lease, "free: its pod is gone")
    return Verdict(one.lease, f"node {owner} may hand it out" if owner else "", bool(owner))


def _another_has_it(lease: Lease, other: Lease) -> Verdict:
    return Verdict(lease, f"it is {other.owner()}", lost=True)


def apply(store: BlockStore, verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Set aside what is to be, block by block; what became of each. Raises NotAvailable, and what was written stays."""
    done: list[Verdict] = []
    wanted: dict[Key, list[Lease]] = {}
    for verdict in verdicts:
        if verdict.why:
            done.append(verdict)
        else:
            wanted.setdefault(key_of(verdict.lease.address), []).append(verdict.lease)
    for key, leases in wanted.items():
        done += _set_aside(store, key, leases)
    return sorted(done, key=lambda verdict: verdict.lease)


def _set_aside(store: BlockStore, key: Key, leases: Sequence[Lease]) -> list[Verdict]:
    deadline = time.monotonic() + _SWAP_SECONDS
    try:
        for _ in range(_TRIES):
            before = store.read(key, deadline)
            free = [one for one in leases if one.value not in before.owned and one.value not in before.leases]
            try:
                if free:
                    store.swap(before, _with(before, free), deadline)
                return [Verdict(one) if one in free else _taken(one, before) for one in leases]
            except BlockConflict:
                continue
    except StoreUnreachable as fault:
        hint = _RIGHTS if isinstance(fault, StoreRefuses) else "Run it again: it goes on."
        raise NotAvailable(f"block {key.name} is not written: {fault}", hint=hint) from fault
    raise NotAvailable(f"block {key.name} was written by others each time", hint="Run it again: it goes on.")


def _with(before: Block, leases: Iterable[Lease]) -> Block:
    now = time.time_ns()
    added = {one.value: one._replace(since=now) for one in leases}
    return replace(before, revision=before.revision + 1, leases={**before.leases, **added})


def _taken(lease: Lease, block: Block) -> Verdict:
    owner, other = block.owned.get(lease.value, ""), block.leases.get(lease.value)
    if other is not None and (other.uid, other.keeper) == (lease.uid, lease.keeper):
        return Verdict(lease)
    if other is not None:
        return _another_has_it(lease, other)
    return Verdict(lease, f"node {owner} may hand it out", lost=True)


def _listed(client: Client, resource: Resource[Value]) -> Mapping[Name, Value]:
    """Every object of a resource as it is now."""
    found: dict[Any, Value] = {}
    more = ""
    try:
        while True:
            target = resource.list_target(limit=_PAGE, version=None, more=more)
            raw = client.call("GET", target, time.monotonic() + _PAGE_SECONDS, accept=resource.accept_list)
            entries, _, more = resource.page(raw)
            found |= {entry.key: entry.value for entry in entries}
            if not more:
                return found
    except (Refused, Unreachable) as fault:
        raise NotAvailable(f"{resource.plural} cannot be listed: {fault}", hint=_hint(fault)) from fault


def _hint(fault: Refused | Unreachable) -> str:
    if isinstance(fault, Unreachable):
        return "Is the address in the kubeconfig the API server's, and can it be reached from here?"
    if fault.status == 404:
        return "Apply deploy/crds: they are taken for Spiderpool's own objects, which stay as they are."
    return _RIGHTS
