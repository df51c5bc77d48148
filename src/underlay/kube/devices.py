"""Which devices the kubelet gave to a pod's containers: what is asked, and what is answered.

    policy (multus) ──▶ Devices ◀── PodResources       the kubelet's own API, or its checkpoint file

An answer is the kubelet's now, or DevicesUnknown; "none" is said only where the kubelet knows the pod.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Device:
    """A device of a pod. ``id`` is its device plugin's name for it, of a network device mostly the PCI address;
    ``resources`` are the names by which a network may ask for it.
    """

    id: str
    resources: tuple[str, ...]


class Devices(Protocol):
    """The devices of this node's pods. Thread-safe."""

    def of(self, namespace: str, name: str, uid: str, deadline: float) -> tuple[Device, ...]:
        """The pod's devices in the kubelet's order, none twice. ``uid`` is the one the runtime named. ``deadline`` is
        in seconds on the ``time.monotonic`` clock. Raises DevicesUnknown where nobody can tell now.
        """


def unique(devices: Iterable[Device]) -> tuple[Device, ...]:
    """Each id once, where it comes first: a claim may belong to several containers, a device to several NUMA nodes."""
    found: dict[str, Device] = {}
    for device in devices:
        known = found.setdefault(device.id, device)
        if known.resources != device.resources:
            found[device.id] = Device(device.id, tuple(dict.fromkeys(known.resources + device.resources)))
    return tuple(found.values())
