"""SR-IOV devices as sysfs shows them (the kernel's Documentation/ABI/testing/sysfs-bus-pci).

    /sys/bus/pci/devices/0000:3b:00.0/sriov_totalvfs, sriov_numvfs      a physical function
                                      virtfn0 → ../0000:3b:02.0         its first virtual function
                                      net/eth0                          its NIC
                         0000:3b:02.0/physfn → ../0000:3b:00.0
                                      driver → …/drivers/iavf, or vfio-pci, or nothing

Below net/ are the NICs in the network namespace of whoever mounted sysfs: of a VF that a pod has there are none.
"""

from __future__ import annotations

import contextlib
import os
import re

import msgspec

ROOT = "/sys"
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")
_VIRTFN = re.compile(r"virtfn(\d+)")


class Function(msgspec.Struct, frozen=True):
    """One PCI function, virtual or physical.

    ``vendor`` and ``model`` are four hexadecimal digits, ``driver`` "" where none is bound, ``nics`` the names in the
    node's namespace, ``numa`` None where the node is not told. ``pf`` is the physical function's address, and
    ``number`` which of its virtual functions this is; "" and -1 for what is none.
    """

    address: str
    vendor: str
    model: str
    driver: str
    nics: tuple[str, ...]
    numa: int | None
    pf: str = ""
    number: int = -1
    most_vfs: int = 0

    @property
    def for_programs(self) -> bool:
        """Whether the driver hands the device to a program (vfio, uio), so that it has no NIC anywhere."""
        return "vfio" in self.driver or "uio" in self.driver


def is_address(text: str) -> bool:
    """Whether it is the address of a PCI function, domain included, in the kernel's spelling."""
    return _ADDRESS.fullmatch(text) is not None


class Pci:
    """The PCI functions of this node, below ``root``."""

    def __init__(self, root: str = ROOT) -> None:
        self.root = root
        self._devices = os.path.join(root, "bus/pci/devices")

    def function(self, address: str) -> Function | None:
        """The function at an address, None when there is none."""
        pf = self.target(address, "physfn")
        number = next((number for number, vf in self.vfs(pf) if vf == address), -1) if pf else -1
        return self._read(address, pf, number)

    def functions(self, pf: str) -> list[Function]:
        """The virtual functions of a physical one, in their order."""
        found = (self._read(address, pf, number) for number, address in self.vfs(pf))
        return [each for each in found if each is not None]

    def _read(self, address: str, pf: str, number: int) -> Function | None:
        if not os.path.isdir(os.path.join(self._devices, address)):
            return None
        numa = self.attribute(address, "numa_node")
        return Function(
            address=address,
            vendor=self.attribute(address, "vendor").removeprefix("0x"),
            model=self.attribute(address, "device").removeprefix("0x"),
            driver=self.target(address, "driver"),
            nics=tuple(self.listed(address, "net")),
            numa=int(numa) if numa.isdecimal() else None,  # -1: the machine has only one
            pf=pf,
            number=number,
            most_vfs=int(self.attribute(address, "sriov_totalvfs") or 0),
        )

    def vfs(self, pf: str) -> list[tuple[int, str]]:
        """The virtual functions of a physical one: (number, address), in order."""
        named = ((_VIRTFN.fullmatch(name), name) for name in self.listed(pf))
        return sorted((int(match[1]), self.target(pf, name)) for match, name in named if match)

    def pfs(self) -> list[Function]:
        """The physical functions that can have virtual ones, by address."""
        with contextlib.suppress(OSError):
            names = sorted(os.listdir(self._devices))
            able = [name for name in names if self.attribute(name, "sriov_totalvfs") not in ("", "0")]
            return [found for found in map(self.function, able) if found is not None]
        return []

    def is_infiniband(self, function: Function) -> bool:
        """Whether its NIC speaks InfiniBand (ARPHRD_INFINIBAND)."""
        return any(self.attribute(function.address, f"net/{nic}/type") == "32" for nic in function.nics)

    def attribute(self, address: str, name: str) -> str:
        """The content of an attribute, "" where it is not there."""
        try:
            with open(os.path.join(self._devices, address, name), encoding="ascii") as file:
                return file.read().strip()
        except (OSError, ValueError):
            return ""

    def target(self, address: str, name: str) -> str:
        """What a link leads to, by its last part; "" where there is none."""
        try:
            return os.path.basename(os.readlink(os.path.join(self._devices, address, name)))
        except OSError:
            return ""

    def listed(self, address: str, name: str = "") -> list[str]:
        """The names in a directory of the device, in order; none where it is not there."""
        try:
            return sorted(os.listdir(os.path.join(self._devices, address, name)))
        except OSError:
            return []
