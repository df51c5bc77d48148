"""Plugins as the daemon calls them, on a node that is joined to a LAN: chains for the NICs of pods, and the wire."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import sysctls

from underlay.cni import request, versions
from underlay.daemon.builtin import ALLOCATORS, PLUGINS
from underlay.delegate import plain
from underlay.delegate.attachment import Attachment, Origin, Sandbox
from underlay.delegate.engine import Engine
from underlay.delegate.exec import Executor
from underlay.delegate.ledger import Ledger
from underlay.errors import UnderlayError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Netns, State

    from underlay.cni.result import Result
    from underlay.delegate.report import Report

Conf = dict[str, Any]
CONTAINER = "c0ffee0123456789"
PATH = "/usr/lib/cni"
ETH_P_ALL = 3
SECONDS = 60.0


def soon() -> float:
    """A deadline."""
    return time.monotonic() + SECONDS


def addresses(*cidrs: str) -> Conf:
    """An ``ipam`` section of fixed addresses of the LAN, with a default route for each family among them."""
    families = {":" in each for each in cidrs}
    gateway = {False: "172.18.0.1", True: "fd00:18::1"}
    return {
        "type": "static",
        "addresses": [{"address": each, "gateway": gateway[":" in each]} for each in cidrs],
        "routes": [{"dst": "::/0" if v6 else "0.0.0.0/0"} for v6 in sorted(families)],
    }


def macvlan(*cidrs: str, **keys: Any) -> Conf:
    """macvlan over the node's eth0; without addresses it is of layer 2 only. A key that is None is left out."""
    conf = {"type": "macvlan", "master": "eth0", "ipam": addresses(*cidrs) if cidrs else None} | keys
    return {key: value for key, value in conf.items() if value is not None}


def meta(kind: str, **keys: Any) -> Conf:
    """veth or router with a cluster's subnets."""
    subnets = {
        "overlay_hijack_subnet": ["10.240.0.0/12", "fd00:240::/48"],
        "service_hijack_subnet": ["10.96.0.0/16", "fd00:96::/108"],
    }
    return {"type": kind, **subnets, **keys}


@dataclass
class Log:
    """Keeps the lines; ``also`` gets them too."""

    lines: list[tuple[str, str, Conf]] = field(default_factory=list)
    also: Callable[..., None] | None = None

    def __call__(self, level: str, event: str, **fields: Any) -> None:
        self.lines.append((level, event, fields))
        if self.also is not None:
            self.also(level, event, **fields)


@dataclass
class Node:
    """The node: attach NICs by chains of plugins, and take them off, by the ledger or (``plainly``) without one."""

    engine: Engine
    ledger: Ledger
    log: Log
    ns: Netns
    snapshot: Callable[[Netns], State]

    def add(
        self, pod: Netns | str, ifname: str, *chain: Conf, version: str = "1.0.0", container: str = CONTAINER,
        args: str = "", runtime: Conf | None = None, deadline: float | None = None, report: Report | None = None,
    ) -> Conf:  # fmt: skip
        """ADD; the result as its version prints it. ``report`` may keep back what is done once it is answered."""
        sandbox = self._sandbox(pod, container, args)
        attachment = _attachment(ifname, chain, version, runtime)
        with self.engine.session(sandbox, _origin(ifname), deadline or soon(), report) as session:
            result = session.add(attachment)
        printed: Conf = json.loads(versions.encode(result, version))
        return printed

    def refused(self, pod: Netns | str, ifname: str, *chain: Conf, **how: Any) -> UnderlayError:
        """ADD that must fail and leave node and pod as they were, settings included."""
        before = self.state(pod)
        with pytest.raises(UnderlayError) as caught:
            self.add(pod, ifname, *chain, **how)
        assert self.state(pod) == before
        assert self.ledger.rows() == [] or all(row.state == "added" for row in self.ledger.rows())
        return caught.value

    def check(self, pod: Netns, ifname: str, container: str = CONTAINER) -> None:
        with self.engine.session(self._sandbox(pod, container), _origin(ifname), soon()) as session:
            session.check()

    def delete(self, pod: Netns | str, ifname: str, container: str = CONTAINER) -> list[UnderlayError]:
        with self.engine.session(self._sandbox(pod, container), _origin(ifname), soon()) as session:
            return session.delete()

    def state(self, pod: Netns | str) -> tuple[Any, ...]:
        """What node and pod hold, with the settings of IPv6."""
        spaces = [self.ns] if isinstance(pod, str) else [self.ns, pod]
        return tuple((self.snapshot(each), ipv6_settings(each)) for each in spaces)

    def plainly(self, verb: str, plugin: str, pod: str, ifname: str, conf: Conf, prev: Conf | None = None) -> Any:
        """One plugin as a process of its own runs it, that is without a ledger. Faults of DEL are lost, as there."""
        whole = {"cniVersion": "1.0.0", "name": "plain", **conf} | ({"prevResult": prev} if prev else {})
        env = {"CNI_COMMAND": verb, "CNI_CONTAINERID": CONTAINER, "CNI_NETNS": pod, "CNI_IFNAME": ifname}
        parsed = request.parse(plugin, env | {"CNI_PATH": PATH}, json.dumps(whole).encode())
        result = plain.run(
            parsed, soon(), plugins=PLUGINS, allocators=ALLOCATORS, executor=self.engine.executor, log=self.log
        )
        return None if result is None else json.loads(versions.encode(result, "1.0.0"))

    def chain_plainly(self, pod: Netns, ifname: str, *chain: Conf) -> list[Conf]:
        """ADD of a chain without a ledger; the result of each plugin."""
        results: list[Conf] = []
        for conf in chain:
            results.append(self.plainly("ADD", conf["type"], pod.path, ifname, conf, results[-1] if results else None))
        return results

    def result_of(self, printed: Conf) -> Result:
        """A printed result of 1.0.0 as the program's own value."""
        return versions.decode(json.dumps(printed).encode(), "1.0.0")

    def _sandbox(self, pod: Netns | str, container: str, args: str = "") -> Sandbox:
        netns = pod if isinstance(pod, str) else pod.path
        return Sandbox(container, netns, args_text=args, args=request.parse_args(args), path=(PATH,))


def _origin(ifname: str) -> Origin:
    return Origin("test", "underlay", ifname)


def _attachment(ifname: str, chain: tuple[Conf, ...], version: str, runtime: Conf | None) -> Attachment:
    network = {"cniVersion": version, "name": f"net-{ifname}", "plugins": chain}
    return Attachment(f"default/{ifname}", json.dumps(network).encode(), ifname, runtime=runtime or {})


def ipv6_settings(ns: Netns) -> tuple[str, ...]:
    """disable_ipv6 of every interface."""
    return sysctls(ns, "ipv6/conf/*/disable_ipv6")


def setting(ns: Netns, path: str) -> str:
    """The value of a sysctl below net/."""
    return ns.run("cat", f"/proc/sys/net/{path}").stdout.strip()


def make_engine(ledger: Ledger, log: Log) -> Engine:
    """The engine as the daemon makes it, with its plugins."""
    executor = Executor(log=log, environ={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    return Engine(ledger=ledger, executor=executor, plugins=PLUGINS, allocators=ALLOCATORS, log=log)


@pytest.fixture
def node(uplink: Netns, in_host: Netns, tmp_path: Path, snapshot: Callable[[Netns], State]) -> Iterator[Node]:
    log = Log()
    ledger = Ledger(str(tmp_path / "state" / "ledger.db"), log)
    engine = make_engine(ledger, log)
    yield Node(engine, ledger, log, uplink, snapshot)
    engine.close()


@pytest.fixture
def overlay(uplink: Netns, pod: Netns) -> Netns:
    """The pod with the cluster network's NIC eth0 (10.240.3.5, fd00:240::5): a pair whose end on the node is cali1."""
    uplink.batch(
        f"link add cali1 type veth peer name eth0 netns {pod.name}",
        "link set cali1 up",
        "route add 10.240.3.5 dev cali1",
        "route add fd00:240::5 dev cali1",
    )
    pod.batch(
        "link set eth0 up",
        "addr add 10.240.3.5/32 dev eth0",
        "addr add fd00:240::5/128 dev eth0 nodad",
        "route add 169.254.1.1 dev eth0 scope link",
        "route add default via 169.254.1.1 dev eth0",
        "route add default via fe80::1 dev eth0",
    )
    return pod


class Tap:
    """Every frame that arrives at an interface of a namespace, since it was made."""

    def __init__(self, ns: Netns, device: str) -> None:
        with ns.entered():
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._sock.bind((device, ETH_P_ALL))
        self._sock.settimeout(SECONDS)

    def until(self, *wanted: Callable[[bytes], bool]) -> list[bytes]:
        """The first frame of each kind, waited for."""
        found: dict[int, bytes] = {}
        while len(found) < len(wanted):
            frame = self._sock.recv(2048)
            for number, fits in enumerate(wanted):
                if number not in found and fits(frame):
                    found[number] = frame
        return [found[number] for number in range(len(wanted))]

    def until_the(self, last: Callable[[bytes], bool]) -> list[bytes]:
        """Every frame up to the first of a kind."""
        frames = [self._sock.recv(2048)]
        while not last(frames[-1]):
            frames.append(self._sock.recv(2048))
        return frames

    def close(self) -> None:
        self._sock.close()


@pytest.fixture
def wire(lan: Netns, uplink: Netns) -> Iterator[Tap]:
    """What the LAN hears of the node."""
    tap = Tap(lan, "br0")
    yield tap
    tap.close()
