"""The leases that the journal knows, found by address, by container and by keeper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from underlay.ipam.pools.lease import HELD, RESERVED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from underlay.cni.address import Address
    from underlay.ipam.pools.lease import Lease

K = TypeVar("K")

_NOTHING: Final[Mapping[Address, Lease]] = {}


class Index:
    """Held and kept leases. Not thread-safe."""

    def __init__(self) -> None:
        self.by_address: dict[Address, Lease] = {}
        self._containers: dict[str, dict[Address, Lease]] = {}
        self._keepers: dict[tuple[str, str], dict[Address, Lease]] = {}

    def container(self, container_id: str) -> Mapping[Address, Lease]:
        """What the container's NICs hold."""
        return self._containers.get(container_id, _NOTHING)

    def keeper(self, keeper: str, ifname: str) -> Mapping[Address, Lease]:
        """What is held by, or kept for, a keeper's NIC; of a reservation, whichever NIC."""
        return self._keepers.get(identity(keeper, ifname), _NOTHING)

    def add(self, lease: Lease) -> None:
        """Know a lease, in the place of what was known of its address."""
        self.remove(lease.address)
        self.by_address[lease.address] = lease
        if lease.state == HELD:
            self._containers.setdefault(lease.container_id, {})[lease.address] = lease
        if lease.keeper:
            self._keepers.setdefault(identity(lease.keeper, lease.ifname), {})[lease.address] = lease

    def remove(self, address: Address) -> None:
        """Forget an address."""
        lease = self.by_address.pop(address, None)
        if lease is None:
            return
        if lease.state == HELD:
            _remove(self._containers, lease.container_id, address)
        if lease.keeper:
            _remove(self._keepers, identity(lease.keeper, lease.ifname), address)

    def __iter__(self) -> Iterator[Lease]:
        return iter(self.by_address.values())


def identity(keeper: str, ifname: str) -> tuple[str, str]:
    """Under what a lease is found by its keeper; a reservation is for whichever NIC."""
    return keeper, "" if keeper.startswith(RESERVED) else ifname


def _remove(groups: dict[K, dict[Address, Lease]], key: K, address: Address) -> None:
    group = groups[key]
    del group[address]
    if not group:
        del groups[key]
