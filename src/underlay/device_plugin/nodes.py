"""The device nodes that a container needs for a virtual function, and what it is told of them.

    driver      nodes                                                    told as
    network     none
    vfio-pci    /dev/vfio/vfio, /dev/vfio/GROUP                          vfio: mount, dev-mount
    uio         /dev/uioN                                                uio: mount
    isRdma      /dev/infiniband/{uverbsN, umadN, issmN}, …/rdma_cm       rdma: uverbs, umad, issm, rdma_cm
    needVhostNet  /dev/vhost-net, /dev/net/tun                           vhost: net-mount, tun-mount

Names as the SR-IOV network device plugin has them. Nothing below /dev is looked at: it may be a container's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from underlay.errors import DeviceUnfit

if TYPE_CHECKING:
    from underlay.device_plugin.inventory import Held
    from underlay.net.pci import Pci

_VERBS = {"infiniband_verbs": ("uverbs",), "infiniband_mad": ("umad", "issm")}


@dataclass(slots=True)
class Nodes:
    """``paths`` are nodes by their path in the container, ``told`` is what the container is told of each kind."""

    paths: dict[str, str] = field(default_factory=dict)
    told: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, kind: str, key: str, inside: str, outside: str = "") -> None:
        """A node, by its path in the container and on the node ("": the same), and what it is told as."""
        self.paths[inside] = outside or inside
        self.told.setdefault(kind, {})[key] = inside


def of(held: Held, pci: Pci) -> Nodes:
    """As sysfs has it now. Raises DeviceUnfit where a node of the driver is missing."""
    nodes = Nodes()
    address, driver = held.function.address, held.function.driver
    nodes.told["generic"] = {"deviceID": address}
    if "vfio" in driver:
        _vfio(nodes, address, pci)
    elif held.function.for_programs:
        _uio(nodes, address, pci)
    if held.selector.rdma:
        _rdma(nodes, address, pci)
    if held.selector.vhost_net:
        nodes.add("vhost", "net-mount", "/dev/vhost-net")
        nodes.add("vhost", "tun-mount", "/dev/net/tun")
    return nodes


def rdma_device(address: str, pci: Pci) -> str:
    """The RDMA device of a function, "" for none."""
    return next(iter(pci.listed(address, "infiniband")), "")


def _vfio(nodes: Nodes, address: str, pci: Pci) -> None:
    group = pci.target(address, "iommu_group")
    if not group:
        raise DeviceUnfit(
            f"virtual function {address} is bound to vfio-pci and has no IOMMU group",
            hint="Switch the IOMMU on (intel_iommu=on, amd_iommu=on), or load vfio with enable_unsafe_noiommu_mode=1.",
        )
    unsafe = pci.attribute(address, "iommu_group/name") == "vfio-noiommu"
    nodes.add("vfio", "mount", "/dev/vfio/vfio")
    nodes.add("vfio", "dev-mount", f"/dev/vfio/{group}", f"/dev/vfio/noiommu-{group}" if unsafe else "")


def _uio(nodes: Nodes, address: str, pci: Pci) -> None:
    name = next(iter(pci.listed(address, "uio")), "")
    if not name:
        raise DeviceUnfit(f"virtual function {address} is bound to a uio driver and has no uio device")
    nodes.add("uio", "mount", f"/dev/{name}")


def _rdma(nodes: Nodes, address: str, pci: Pci) -> None:
    found = False
    for directory, kinds in _VERBS.items():
        for name in pci.listed(address, directory):
            kind = next((each for each in kinds if name.startswith(each)), "")
            if kind:
                nodes.add("rdma", kind, f"/dev/infiniband/{name}")
                found = True
    if not found:
        raise DeviceUnfit(
            f"virtual function {address} has no RDMA device",
            hint="Load the driver's RDMA module, or leave isRdma out of the selector.",
        )
    nodes.add("rdma", "rdma_cm", "/dev/infiniband/rdma_cm")
