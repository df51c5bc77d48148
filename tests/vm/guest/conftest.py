"""The machine's own node: a physical function with four virtual ones, and what is on the same wire.

    node (the machine itself)  PF 0000:00:04.0, up, 172.18.0.11/16 ── wire ── lan: lan0 172.18.0.1/16, fd00:18::1/64

Every test leaves the virtual functions, and the node's links, as it found them.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import Netns
from tests.plugins.conftest import Log, Node, make_engine, soon

from underlay.delegate.ledger import Ledger
from underlay.net import carrier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import State

DEVICES = Path("/sys/bus/pci/devices")
PF = "0000:00:04.0"
LAN = "0000:00:05.0"
OTHER_PF = "0000:00:06.0"
VFS = 4
NODE_ADDRESS = "172.18.0.11"


def nic_of(address: str) -> str:
    """The name of a PCI device's NIC on the node."""
    (name,) = (path.name for path in [*DEVICES.glob(f"{address}/net/*"), *DEVICES.glob(f"{address}/virtio*/net/*")])
    return name


def wait_for(what: Callable[[], Any], seconds: float = 30.0) -> Any:
    """The first true value; drivers work on their own time, and nothing tells when they are done."""
    until = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < until, "it did not come to be in time"
        time.sleep(0.05)
    return value


@dataclass(frozen=True)
class Vf:
    """A virtual function: its number, its PCI address, its NIC's name on the node."""

    number: int
    address: str
    name: str


@dataclass(frozen=True)
class Pf:
    """The physical function."""

    ns: Netns
    name: str
    vfs: tuple[Vf, ...]

    def told(self, number: int) -> dict[str, Any]:
        """What it says of a virtual function, by ip."""
        found: dict[str, Any] = self.ns.link(self.name)["vfinfo_list"][number]
        return found

    def state(self) -> list[str]:
        """Everything about all virtual functions, and every link of the node."""
        links = [
            {key: each.get(key) for key in ("ifname", "address", "mtu", "ifalias", "altnames", "master", "parentdev")}
            | {"up": "UP" in each["flags"]}
            for each in self.ns.ip("link", "show")
        ]
        told = self.ns.link(self.name)["vfinfo_list"]
        return [json.dumps(each, sort_keys=True) for each in [*told, *sorted(links, key=lambda each: each["ifname"])]]


@pytest.fixture(scope="session")
def node_ns() -> Netns:
    subprocess.run(["ip", "netns", "attach", "node", "1"], check=True)
    return Netns("node")


@pytest.fixture(scope="session")
def lan(node_ns: Netns) -> Netns:
    """What is on the physical function's wire, in place of the bridge of the other tests."""
    subprocess.run(["ip", "netns", "add", "lan"], check=True)
    ns = Netns("lan")
    subprocess.run(["ip", "link", "set", nic_of(LAN), "netns", "lan", "name", "lan0"], check=True)
    ns.batch(
        "link set lo up", "link set lan0 up", "addr add 172.18.0.1/16 dev lan0", "addr add fd00:18::1/64 dev lan0 nodad"
    )
    return ns


@pytest.fixture(scope="session")
def made_pf(node_ns: Netns, lan: Netns) -> Pf:
    name = nic_of(PF)
    # igb resets itself for its virtual functions, and forgets those that greeted it before it is up again: so they are
    # made while it is down, and get their driver when it has its link.
    (DEVICES / PF / "sriov_drivers_autoprobe").write_text("0")
    (DEVICES / PF / "sriov_numvfs").write_text(str(VFS))
    addresses = [os.path.basename(os.readlink(DEVICES / PF / f"virtfn{number}")) for number in range(VFS)]
    node_ns.batch(f"link set {name} up", f"addr add {NODE_ADDRESS}/16 dev {name}")
    wait_for(lambda: "LOWER_UP" in node_ns.link(name)["flags"])
    (DEVICES / PF / "sriov_drivers_autoprobe").write_text("1")  # until then the kernel refuses any driver
    for each in addresses:
        Path("/sys/bus/pci/drivers/igbvf/bind").write_text(each)
    wait_for(lambda: all(any(DEVICES.glob(f"{each}/net/*")) for each in addresses))
    return Pf(node_ns, name, tuple(Vf(number, each, nic_of(each)) for number, each in enumerate(addresses)))


@pytest.fixture(scope="session", autouse=True)
def patience() -> Iterator[None]:
    """Under translation, timers stand still for longer than a real NIC needs for its link."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(carrier, "SECONDS", 45.0)
        yield


@pytest.fixture
def pf(made_pf: Pf) -> Iterator[Pf]:
    """As every test finds it, and must leave it."""
    before = made_pf.state()
    yield made_pf
    with contextlib.suppress(AssertionError):  # the links of a namespace that was just deleted go a moment later
        wait_for(lambda: made_pf.state() == before, 3.0)
    assert made_pf.state() == before


@pytest.fixture
def pod2(new_netns: Callable[[str], Netns]) -> Netns:
    return new_netns("pod2")


@pytest.fixture
def overlay(pf: Pf, pod: Netns) -> Netns:
    """The pod with a cluster network's NIC eth0, 10.240.3.5; its end on the node is cali1."""
    pf.ns.batch(
        f"link add cali1 type veth peer name eth0 netns {pod.name}",
        "link set cali1 up",
        "route add 10.240.3.5 dev cali1",
    )
    pod.batch(
        "link set eth0 up", "addr add 10.240.3.5/32 dev eth0", "route add 169.254.1.1 dev eth0 scope link",
        "route add default via 169.254.1.1 dev eth0",
    )  # fmt: skip
    return pod


@pytest.fixture
def node(pf: Pf, tmp_path: Path, snapshot: Callable[[Netns], State]) -> Iterator[Node]:
    log = Log()
    ledger = Ledger(str(tmp_path / "state" / "ledger.db"), log)
    engine = make_engine(ledger, log)
    yield Node(engine, ledger, log, pf.ns, snapshot)
    for row in ledger.rows():  # of a test that failed half-way: the next one is to find the VFs whole
        engine.reclaim([row], soon())
    engine.close()
