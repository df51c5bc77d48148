"""The plugin over surroundings made by the test, and a clock that the test moves."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from underlay.cni.config import parse_plugin
from underlay.ipam.allocator import Holder
from underlay.ipam.pools.journal import Journal
from underlay.ipam.pools.leases import Leases
from underlay.ipam.pools.objects import Pool, Reserved, Subnet, parse_object
from underlay.ipam.pools.plugin import Spiderpool
from underlay.ipam.pools.shares import WholePools
from underlay.ipam.pools.surroundings import Catalogue, Owner, Subject

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from underlay.cni.config import PluginConfig
    from underlay.cni.result import Result
    from underlay.ipam.undo import Release

P = "ipam.spidernet.io/"


@dataclass
class World:
    """What the plugin is told: pools and pods as the test has them."""

    objects: dict[str, Pool | Reserved | Subnet] = field(default_factory=dict)
    pods: dict[tuple[str, str], Subject] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    seen: Catalogue = field(default_factory=Catalogue)

    def define(self, name: str, kind: str = "SpiderIPPool", **spec: Any) -> None:
        deleted = spec.pop("deleted", False)
        metadata = {"name": name} | ({"deletionTimestamp": "now"} if deleted else {})
        self.objects[name] = parse_object({"kind": kind, "metadata": metadata, "spec": spec})
        self.publish()

    def remove(self, name: str) -> None:
        del self.objects[name]
        self.publish()

    def publish(self) -> None:
        pools = {name: one for name, one in self.objects.items() if isinstance(one, Pool)}
        subnets = {name: one for name, one in self.objects.items() if isinstance(one, Subnet)}
        reserved = tuple(one for one in self.objects.values() if isinstance(one, Reserved))
        self.seen = Catalogue(pools, reserved, subnets)

    def pod(self, name: str, owner: Owner | None = None, **annotations: Any) -> None:
        written = {
            P + key.replace("_", "-"): value if isinstance(value, str) else json.dumps(value)
            for key, value in annotations.items()
        }
        self.pods["default", name] = Subject("default", name, annotations=written, owner=owner)

    def catalogue(self) -> Catalogue:
        return self.seen

    def subject(self, namespace: str, name: str, uid: str, deadline: float) -> Subject:
        return replace(self.pods.get((namespace, name), Subject(namespace, name, known=False)), uid=uid)

    def wanted(self, keeper: str) -> bool | None:
        return keeper not in self.gone


@dataclass
class Clock:
    """Seconds since an epoch, and since a boot; a test may set the first back."""

    now: float = 1000.0
    real: float = 1_700_000_000.0

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.real += seconds

    def monotonic(self) -> float:
        return self.now

    def realtime_ns(self) -> int:
        return int(self.real * 1e9)


@dataclass
class Node:
    """A node's plugin; ``restart`` makes the next process's."""

    path: str
    world: World = field(default_factory=World)
    clock: Clock = field(default_factory=Clock)
    wire: Any = None
    boot: str = "boot-1"
    recorded: list[Release] = field(default_factory=list)
    lines: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    told: list[tuple[str, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.journal = Journal(self.path, self.log)
        clock = self.clock
        self.leases = Leases(self.journal, WholePools(), monotonic=clock.monotonic, realtime_ns=clock.realtime_ns)
        self.plugin = Spiderpool(
            self.leases, self.journal, self.world, boot=self.boot, log=self.log, wire=self.wire, tell=self.tell
        )

    def restart(self) -> None:
        self.journal.close()
        self.start()

    def tell(self, *event: str) -> None:
        self.told.append(event)

    def log(self, level: str, event: str, **fields: Any) -> None:
        self.lines.append((level, event, fields))

    def conf(self, version: str = "1.0.0", prev: Result | None = None, name: str = "net", **ipam: Any) -> PluginConfig:
        raw = {"cniVersion": version, "name": name, "type": "macvlan", "ipam": {"type": "spiderpool", **ipam}}
        return msgspec.structs.replace(parse_plugin(json.dumps(raw).encode()), prev=prev)

    def add(self, pod: str, container: str = "", ifname: str = "eth0", uid: str = "u", **ipam: Any) -> Result:
        args = {"K8S_POD_NAMESPACE": "default", "K8S_POD_NAME": pod, "K8S_POD_UID": uid}
        conf = ipam.pop("conf", None) or self.conf(**ipam)
        holder = Holder(container or pod, ifname)
        return self.plugin.add(conf, holder, args, record=self.recorded.append, deadline=time.monotonic() + 10)

    def address(self, pod: str, container: str = "", **more: Any) -> str:
        return self.add(pod, container, **more).ips[0].address.partition("/")[0]

    def delete(self, container: str, ifname: str = "eth0") -> None:
        self.plugin.delete(self.conf(), Holder(container, ifname), deadline=0.0)

    def states(self) -> Mapping[str, str]:
        return {lease.shown: lease.state for lease in self.leases.everything()}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(str(tmp_path / "pools.db"))
    made.world.define("a", subnet="10.1.0.0/16", ips=["10.1.0.10-10.1.0.19"], gateway="10.1.0.1", default=True)
    yield made
    made.journal.close()


def stateful(name: str = "db") -> Owner:
    return Owner("StatefulSet", name, "set-uid")


def shown(results: Sequence[Result]) -> list[str]:
    return [ip.address for result in results for ip in result.ips]
