"""Which virtual functions a selector means, by what sysfs tells of them (and nothing else, so that it stays so while a
pod has the device).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from underlay.net.pci import Function, Pci


@dataclass(frozen=True, slots=True)
class Share:
    """The virtual functions of one physical one, named as NIC or as PCI address: ``numbers`` are first and last, both
    included; none: all.
    """

    parent: str
    numbers: tuple[tuple[int, int], ...] = ()

    def holds(self, parents: tuple[str, ...], number: int) -> bool:
        """Whether function ``number`` of a physical function with these names is of this share."""
        inside = any(first <= number <= last for first, last in self.numbers)
        return self.parent in parents and (inside or not self.numbers)


@dataclass(frozen=True, slots=True)
class Selector:
    """All that is set must be so; of each, one value is enough.

    ``unserved`` are filters that cannot be applied here: nothing passes them. ``rdma`` asks for devices of RDMA and
    adds their nodes, ``vhost_net`` adds nodes alone.
    """

    vendors: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()
    drivers: frozenset[str] = frozenset()
    addresses: frozenset[str] = frozenset()
    acpi_indexes: frozenset[str] = frozenset()
    pf_names: tuple[Share, ...] = ()
    pf_addresses: tuple[Share, ...] = ()
    link_types: frozenset[str] = frozenset()
    rdma: bool = False
    vhost_net: bool = False
    unserved: tuple[str, ...] = ()

    @property
    def everything(self) -> bool:
        """Whether it sets no condition."""
        bare = Selector(rdma=False, vhost_net=self.vhost_net)
        return self == bare

    def takes(self, function: Function, pf: Function, pci: Pci) -> bool:
        """Whether a virtual function of ``pf`` is meant."""
        return (
            not self.unserved
            and _one_of(function.vendor, self.vendors)
            and _one_of(function.model, self.models)
            and _one_of(function.driver, self.drivers)
            and _one_of(function.address, self.addresses)
            and (not self.acpi_indexes or pci.attribute(function.address, "acpi_index") in self.acpi_indexes)
            and _in_share(self.pf_names, pf.nics, function.number)
            and _in_share(self.pf_addresses, (pf.address,), function.number)
            # a pod may have the virtual function's NIC; the physical one's is of the same kind
            and (not self.link_types or ("infiniband" if pci.is_infiniband(pf) else "ether") in self.link_types)
            and (not self.rdma or bool(pci.listed(function.address, "infiniband")))
        )


@dataclass(frozen=True, slots=True)
class Resource:
    """An extended resource: ``prefix`` "intel.com" and ``short`` "sriov" are "intel.com/sriov".

    ``extra`` are further facts for containers, by PCI address or "*". ``numa`` tells whether the kubelet is to
    know where the devices are.
    """

    prefix: str
    short: str
    selectors: tuple[Selector, ...]
    extra: Mapping[str, Mapping[str, str]]
    numa: bool = True

    @property
    def name(self) -> str:
        """As pods request it."""
        return f"{self.prefix}/{self.short}"

    def selector(self, function: Function, pf: Function, pci: Pci) -> Selector | None:
        """The first of its selectors that takes the function."""
        return next((each for each in self.selectors if each.takes(function, pf, pci)), None)


def _one_of(value: str, wanted: frozenset[str]) -> bool:
    return not wanted or value in wanted


def _in_share(shares: tuple[Share, ...], parents: tuple[str, ...], number: int) -> bool:
    return not shares or any(share.holds(parents, number) for share in shares)
