"""A node for the device plugin: a folder laid out as sysfs is, veth ends for NICs, a kubelet.

0000:3b:00.0 ice  NIC eth0 (the node's, joined to the LAN)  ── VF 0 0000:3b:02.0 iavf, NIC vf0
                                                           └─ VF 1 0000:3b:02.1 vfio-pci, IOMMU group 42
0000:5e:00.0 mlx5 NIC eth1, NUMA node 1                     ── VF 0 0000:5e:00.2 mlx5_core, RDMA mlx5_2
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import COUNTER
from tests.device_plugin.kubelet import Kubelet
from tests.multus.multus_node import Lines
from tests.net.test_pci import device

from underlay.device_plugin import plugin
from underlay.device_plugin.followed import Followed
from underlay.net.netns import Namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Netns

PF, VF0, VF1 = "0000:3b:00.0", "0000:3b:02.0", "0000:3b:02.1"
OTHER_PF, OTHER_VF = "0000:5e:00.0", "0000:5e:00.2"
SRIOV = {"resourceName": "sriov", "selectors": [{"drivers": ["iavf"]}]}
DPDK = {"resourceName": "dpdk", "selectors": {"drivers": ["vfio-pci"]}}


@dataclass
class Sysfs:
    """The folder."""

    root: Path

    def pf(self, address: str, driver: str, nic: str, numa: int = 0) -> None:
        device(
            self.root, address, driver, vendor="0x8086", device="0x1592", numa_node=str(numa), sriov_totalvfs="8",
            nics=nic,
        )  # fmt: skip

    def vf(self, pf: str, number: int, address: str, driver: str, **attributes: str) -> Path:
        at = device(self.root, address, driver, **({"vendor": "0x8086", "device": "0x1889"} | attributes))
        os.symlink(f"../{pf}", at / "physfn")
        os.symlink(f"../{address}", self.at(pf) / f"virtfn{number}")
        return at

    def at(self, address: str) -> Path:
        return self.root / "bus/pci/devices" / address

    def bind(self, address: str, driver: str) -> None:
        """Bind to another driver, "" to none."""
        link = self.at(address) / "driver"
        link.unlink(missing_ok=True)
        if driver:
            os.symlink(f"../../../../bus/pci/drivers/{driver}", link)


@dataclass
class Node:
    """Everything a plugin is given."""

    ns: Netns
    sysfs: Sysfs
    directory: Path
    plugins: Path
    log: Lines

    @property
    def info(self) -> Path:
        return self.directory / "devinfo"

    @property
    def cdi(self) -> Path:
        return self.directory / "cdi"

    def configure(self, *resources: Any, name: str = "config.json") -> Path:
        path = self.directory / name
        path.write_text(json.dumps({"resourceList": resources}))
        return path

    @contextlib.contextmanager
    def serving(self, *resources: Any, cdi: bool = False, interval: float = 0.1) -> Iterator[plugin.Plugin]:
        """A plugin in a thread of this process; the thread is in the node's namespace."""
        settings = plugin.Settings(
            str(self.plugins), str(self.info), str(self.cdi) if cdi else "", str(self.sysfs.root), interval
        )
        own = self.configure(
            *resources, name=f"config-{next(COUNTER)}.json"
        )  # a second plugin does not change the first
        followed = Followed(str(own), "intel.com", self.log)
        with self.ns.entered(), Namespace.current() as host:
            made = plugin.Plugin(followed, settings, host=host, log=self.log)
            thread = threading.Thread(target=made.serve)
            thread.start()
            try:
                yield made
            finally:
                made.stop()
                thread.join(20)
                made.close()
                assert not thread.is_alive()


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    made = Sysfs(tmp_path / "sys")
    made.pf(PF, "ice", "eth0")
    made.vf(PF, 0, VF0, "iavf", nics="vf0", numa_node="-1", acpi_index="7")
    vfio = made.vf(PF, 1, VF1, "vfio-pci")
    os.symlink("../../../../kernel/iommu_groups/42", vfio / "iommu_group")
    made.pf(OTHER_PF, "mlx5_core", "eth1", numa=1)
    rdma = made.vf(OTHER_PF, 0, OTHER_VF, "mlx5_core", vendor="0x15b3", device="0x101e", numa_node="1")
    for name in ("infiniband/mlx5_2", "infiniband_verbs/uverbs2", "infiniband_mad/umad2", "infiniband_mad/issm2"):
        (rdma / name).mkdir(parents=True)
    return made


@pytest.fixture
def node(uplink: Netns, new_netns: Any, sysfs: Sysfs, tmp_path: Path) -> Iterator[Node]:
    other = new_netns("switch")
    uplink.batch(
        f"link add eth1 type veth peer name port1 netns {other.name}", "link set eth1 up",
        f"link add vf0 type veth peer name port2 netns {other.name}",
    )  # fmt: skip
    other.batch("link set port1 up")
    # below /run: a socket's path holds 107 bytes
    with tempfile.TemporaryDirectory(dir="/run", prefix="dp-") as plugins:
        yield Node(uplink, sysfs, tmp_path, Path(plugins), Lines())


@pytest.fixture
def kubelet(node: Node) -> Iterator[Kubelet]:
    made = Kubelet(node.plugins)
    made.start()
    yield made
    made.stop()
