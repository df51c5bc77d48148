"""Which devices each resource has, and whether a pod could use them.

    sysfs: functions, drivers ─┐
    links of the node ─────────┴▶ look() ─▶ {"intel.com/sriov": (Held(…), …)}

A device that was once a resource's stays with it, out of order, for a while after it has lost its driver or has gone:
what comes back within minutes (a reset, a driver loaded anew) has not become another device to the kubelet, and who
looks at the node sees that one is missing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from underlay.net import addr, link

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from underlay.device_plugin.selection import Resource, Selector
    from underlay.net.link import Link
    from underlay.net.netns import Namespace
    from underlay.net.pci import Function, Pci

_PATIENCE: Final = 300.0  # seconds; a firmware update with its reset takes one or two minutes


@dataclass(frozen=True, slots=True)
class Held:
    """A device of a resource, as it was last seen: ``selector`` is what took it, ``fault`` why no pod can use it now,
    "" for nothing. ``since`` is when it was last taken, on the clock of :meth:`Inventory.look`.
    """

    function: Function
    pf: Function
    selector: Selector
    fault: str
    since: float

    @property
    def numa(self) -> int | None:
        """The NUMA node it is at, None where there is no choice."""
        return self.pf.numa if self.function.numa is None else self.function.numa


class Inventory:
    """The virtual functions of this node, shared out among the resources. Used by one thread."""

    def __init__(
        self, pci: Pci, host: Namespace, resources: Sequence[Resource], *, patience: float = _PATIENCE
    ) -> None:
        self._pci = pci
        self._host = host
        self._resources = resources
        self._patience = patience
        self._held: dict[str, dict[str, Held]] = {each.name: {} for each in resources}

    def look(self, now: float) -> Mapping[str, tuple[Held, ...]]:
        """Every resource's devices, by address. ``now`` is in seconds on any clock that goes on. Raises KernelError."""
        present = [(pf, self._pci.functions(pf.address)) for pf in self._pci.pfs()]
        known = {function.address: function for _, functions in present for function in functions}
        taken = {found.function.address: (resource, found) for resource, found in self._taken(present, now)}
        for held in self._held.values():
            for address, former in list(held.items()):
                if address in taken or now - former.since > self._patience:
                    del held[address]  # a taken one is put in below, here or with another resource
                else:
                    held[address] = replace(former, fault=_lost(former, known.get(address)))
        for address, (resource, found) in taken.items():
            self._held[resource][address] = found
        return {resource: tuple(held[each] for each in sorted(held)) for resource, held in self._held.items()}

    def _taken(self, present: Sequence[tuple[Function, Sequence[Function]]], now: float) -> Iterator[tuple[str, Held]]:
        """Every function that a selector takes, with its resource's name."""
        used = {each.index: each.address for each in addr.dump(self._host.rtnl) if not each.address.startswith("fe80:")}
        for pf, functions in present:
            wire = self._wire(pf)
            for function in functions:
                for resource in self._resources:
                    selector = resource.selector(function, pf, self._pci)
                    if selector is not None:
                        fault = wire or self._fault(function, used)
                        yield resource.name, Held(function, pf, selector, fault, now)
                        break

    def _wire(self, pf: Function) -> str:
        """What is wrong with the physical function."""
        if pf.for_programs:
            return ""  # a program has it, and the link is that program's affair
        nics = [found for nic in pf.nics if (found := link.get(self._host.rtnl, nic, vfs=True)) is not None]
        uplink = next((one for one in nics if one.vfs), nics[0] if nics else None)
        if uplink is None:
            return f"its physical function {pf.address} has no NIC on the node"
        if not uplink.up:
            return f"its physical function {uplink.name} is down"
        return "" if uplink.carrier else f"its physical function {uplink.name} has no link"

    def _fault(self, function: Function, used: Mapping[int, str]) -> str:
        """What is wrong with a virtual one; that a pod has its NIC is not."""
        if not function.driver:
            return "no driver is bound to it"
        for nic in self._nics(function):
            if nic.master is not None:
                return f"the node uses it: {nic.name} is part of a bond or bridge"
            if nic.index in used:
                return f"the node uses it: {nic.name} has the address {used[nic.index]}"
        return ""

    def _nics(self, function: Function) -> Iterator[Link]:
        found = (link.get(self._host.rtnl, nic) for nic in function.nics)
        return (nic for nic in found if nic is not None)


def _lost(former: Held, now: Function | None) -> str:
    if now is None:
        return "it is gone"
    if not now.driver:
        return "no driver is bound to it"
    if now.driver != former.function.driver:
        return f"its driver is {now.driver} and no longer {former.function.driver}"
    return "no selector takes it any more"
