"""A network with a directory of its own, and short words for what the tests do with it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from underlay.cni.config import PluginConfig, parse_plugin
from underlay.ipam.allocator import Holder
from underlay.ipam.host_local import HOST_LOCAL

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from underlay.cni.result import Result
    from underlay.ipam.undo import Release


def soon() -> float:
    return time.monotonic() + 30


@dataclass
class Network:
    """A host-local network; ``released`` collects what its ADDs recorded."""

    data_dir: Path
    section: dict[str, Any] = field(default_factory=lambda: {"subnet": "10.1.0.0/24"})
    name: str = "net"
    recorded: list[Release] = field(default_factory=list)

    @property
    def directory(self) -> Path:
        return self.data_dir / self.name

    def conf(self, version: str = "1.0.0", **changes: Any) -> PluginConfig:
        return parse_plugin(self.stdin(version, **changes))

    def stdin(self, version: str = "1.0.0", **changes: Any) -> bytes:
        ipam = {"type": "host-local", "dataDir": str(self.data_dir), **self.section}
        return json.dumps(
            {"cniVersion": version, "name": self.name, "type": "macvlan", "ipam": ipam, **changes}
        ).encode()

    def add(self, container: str = "c1", ifname: str = "eth0", args: Any = None, **changes: Any) -> Result:
        return HOST_LOCAL.add(
            self.conf(**changes), Holder(container, ifname), args or {}, record=self.recorded.append, deadline=soon()
        )

    def address(self, container: str = "c1", ifname: str = "eth0", **more: Any) -> str:
        """ADD of a network with one range set; the address without its length."""
        return self.add(container, ifname, **more).ips[0].address.partition("/")[0]

    def delete(self, container: str = "c1", ifname: str = "eth0", **changes: Any) -> None:
        HOST_LOCAL.delete(self.conf(**changes), Holder(container, ifname), deadline=soon())

    def reserved(self) -> dict[str, str]:
        """Address to the text of its file."""
        return {
            path.name: path.read_bytes().decode()
            for path in self.directory.iterdir()
            if path.name != "lock" and not path.name.startswith(("last_reserved_ip.", ".spare-"))
        }


@pytest.fixture
def new_network(tmp_path: Path) -> Callable[[], Network]:
    """Makes networks, each with a directory of its own."""
    numbers = count()
    return lambda: Network(tmp_path / str(next(numbers)))


@pytest.fixture
def net(new_network: Callable[[], Network]) -> Network:
    network = new_network()
    network.data_dir.mkdir()
    return network
