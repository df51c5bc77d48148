"""Throw-away networks for tests that speak to the real kernel.

The whole pytest process (each xdist worker too) moves into a private network and mount namespace at its start, with an
empty /run, so that nothing here can touch the machine, and `ip netns` names never collide between workers or runs.

    node  eth0 172.18.0.11/16 ──veth── lan0 ┐ br0 172.18.0.1/16        lan
          fd00:18::11/64                    ┘     fd00:18::1/64
    pod   empty, lo up

Fixtures: ``host`` (the node with lo alone), ``pod``, ``lan``, ``uplink`` (the picture; the same node as ``host``).
``new_netns`` makes more; ``snapshot(ns)`` reads a namespace's state for a comparison before and after.
``shared_uplink`` is an ``uplink`` that all tests of a module share, each of which leaves it as it was.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_NOSUID_NODEV = 0x2 | 0x4
MS_REC_PRIVATE = 0x4000 | 0x40000

# The tests' kubelet and runtime speak gRPC. Its handlers of fork() end a child that forks while another thread calls;
# ours call nobody, they exec.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

LIBC = ctypes.CDLL(None, use_errno=True)
COUNTER = itertools.count()

settings.register_profile("underlay", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("underlay")


def pytest_configure() -> None:
    """Isolate this process before anything of the tests runs."""
    if os.geteuid() != 0:
        pytest.exit("the tests make network namespaces: run them as root, or under `unshare -Urnm`", returncode=4)
    if "UNDERLAY_VM" not in os.environ:  # that machine is a throw-away as a whole; its NICs are where it starts
        isolate()


def isolate() -> None:
    """Move into an own network and mount namespace; /run is empty there, lo is up."""
    _checked(LIBC.unshare(CLONE_NEWNS | CLONE_NEWNET), "unshare")
    _checked(LIBC.mount(None, b"/", None, MS_REC_PRIVATE, None), "make mounts private")
    _checked(LIBC.mount(b"run", b"/run", b"tmpfs", MS_NOSUID_NODEV, b"mode=755"), "mount /run")
    os.mkdir("/run/netns", 0o755)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def _checked(status: int, what: str) -> None:
    if status:
        number = ctypes.get_errno()
        pytest.exit(f"cannot isolate the tests ({what}: {os.strerror(number)}): CAP_SYS_ADMIN is needed", returncode=4)


@dataclass(frozen=True)
class Netns:
    """A named network namespace."""

    name: str

    @property
    def path(self) -> str:
        """What CNI_NETNS would be."""
        return f"/run/netns/{self.name}"

    def run(self, *argv: str, check: bool = True, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        """Run a program in the namespace and return it finished, with its output as text."""
        done = subprocess.run(
            ["nsenter", f"--net={self.path}", *argv], capture_output=True, text=True, check=False, **kwargs
        )
        if check and done.returncode:
            raise RuntimeError(f"{self.name}: {' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
        return done

    def popen(self, *argv: str, **kwargs: Any) -> subprocess.Popen[Any]:
        """Start a program (a daemon) in the namespace; the caller ends it."""
        return subprocess.Popen(["nsenter", f"--net={self.path}", *argv], **kwargs)

    def ip(self, *args: str) -> Any:
        """`ip -j -d ARGS` in the namespace: the parsed JSON, [] for no output."""
        done = subprocess.run(["ip", "-n", self.name, "-j", "-d", *args], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{self.name}: ip {' '.join(args)}: {done.stderr.strip()}")
        listed = json.loads(done.stdout) if done.stdout.strip() else []
        # iproute2 prints an empty object in place of what a filter hides
        return [each for each in listed if each] if isinstance(listed, list) else listed

    def batch(self, *lines: str) -> None:
        """Several `ip` commands in one process."""
        done = subprocess.run(
            ["ip", "-n", self.name, "-batch", "-"], input="\n".join(lines), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{self.name}: {lines}: {done.stderr.strip()}")

    def link(self, name: str) -> Any:
        """`ip link show` of one device, or None."""
        return next((each for each in self.ip("link", "show") if each["ifname"] == name), None)

    def pings(self, address: str) -> bool:
        """Whether an ICMP echo to the address is answered within a few seconds."""
        return self.run("ping", "-c1", "-W3", address, check=False).returncode == 0

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is in the namespace meanwhile (for code that asks for the thread's own)."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(self.path, os.O_RDONLY)
        try:
            _moved(there)
            yield
        finally:
            _moved(home)
            os.close(there)
            os.close(home)


def _moved(fd: int) -> None:
    if LIBC.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@dataclass(frozen=True)
class State:
    """What a namespace holds, as sorted text lines, so that a failed comparison shows what is different.

    Interface indexes, link-local addresses and what the kernel derives or learns by itself are left out.
    """

    links: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    sysctls: tuple[str, ...] = field(default=())


def read_state(ns: Netns) -> State:
    """The present State of a namespace, by `ip -j` and /proc/sys."""
    shown = ("addr show", "route show table all", "rule show", "neigh show nud permanent")
    links, *v4 = _shown(ns, "-4", "link show", *shown)
    v6 = _shown(ns, "-6", *shown)
    addresses, routes, rules, neighbours = ((("-4", four), ("-6", six)) for four, six in zip(v4, v6, strict=True))
    return State(
        links=_lines(_link_line(each) for each in links),
        addresses=_lines(line for _, listed in addresses for line in _address_lines(listed)),
        routes=_lines(
            _route_line(family, each) for family, listed in routes for each in listed if _is_lasting_route(each)
        ),
        rules=_lines(f"{family} {_text(each)}" for family, listed in rules for each in listed),
        neighbours=_lines(
            f"{each['dst']} {each.get('dev')} {each.get('lladdr')}"
            for _, listed in neighbours
            for each in listed
            if not each["dst"].startswith("ff") and not each["dst"].startswith("224.")
        ),
        sysctls=sysctls(ns, "ipv4/conf/*/rp_filter"),
    )


def sysctls(ns: Netns, pattern: str) -> tuple[str, ...]:
    """The settings below net/ that a pattern names, each as "/proc/sys/net/NAME:VALUE"."""
    with ns.entered():
        return tuple(sorted(f"{path}:{path.read_text().strip()}" for path in Path("/proc/sys/net").glob(pattern)))


def _shown(ns: Netns, family: str, *commands: str) -> list[list[dict[str, Any]]]:
    """What each of the `ip` commands lists, asked in one process."""
    argv = ["ip", "-n", ns.name, "-j", "-d", family, "-batch", "-"]
    done = subprocess.run(argv, input="\n".join(commands), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{ns.name}: {commands}: {done.stderr.strip()}")
    listed = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(listed) == len(commands), done.stdout
    return [[each for each in some if each] for some in listed]


def _lines(lines: Iterator[str]) -> tuple[str, ...]:
    return tuple(sorted(lines))


def _text(each: dict[str, Any]) -> str:
    return json.dumps(each, sort_keys=True)


def _link_line(each: dict[str, Any]) -> str:
    info = each.get("linkinfo", {})
    state = "up" if "UP" in each["flags"] else "down"
    mode = info.get("info_data", {}).get("mode", "")
    kind = f"{info.get('info_kind', '')} {mode} {each.get('master', '')}"
    return f"{each['ifname']} {kind} {each['address']} mtu {each['mtu']} {state}"


def _address_lines(listed: list[dict[str, Any]]) -> Iterator[str]:
    for each in listed:
        for info in each.get("addr_info", []):
            if info["scope"] != "link" or info["family"] == "inet":
                yield f"{each['ifname']} {info['local']}/{info['prefixlen']} {info['scope']} {info.get('label', '')}"


def _is_lasting_route(each: dict[str, Any]) -> bool:
    return each.get("table") != "local" and not each["dst"].startswith(("fe80:", "ff00:"))


def _route_line(family: str, each: dict[str, Any]) -> str:
    told = {key: value for key, value in each.items() if key not in ("flags", "metrics") or value}
    told.pop("flags", None)  # linkdown, dead: the state of the wire
    return f"{family} {_text(told)}"


@contextlib.contextmanager
def namespaces() -> Iterator[Callable[[str], Netns]]:
    """Gives what makes namespaces, lo up; they are deleted at the end."""
    made: list[Netns] = []

    def make(purpose: str = "ns") -> Netns:
        ns = Netns(f"{purpose}-{os.getpid()}-{next(COUNTER)}")
        subprocess.run(["ip", "netns", "add", ns.name], check=True)
        made.append(ns)
        ns.batch("link set lo up")
        return ns

    yield make
    for ns in reversed(made):
        subprocess.run(["ip", "netns", "del", ns.name], check=True)


def lay_lan(ns: Netns) -> Netns:
    """The bridge of the picture."""
    ns.batch(
        "link add br0 type bridge",
        "link set br0 up",
        "addr add 172.18.0.1/16 dev br0",
        "addr add fd00:18::1/64 dev br0 nodad",
    )
    return ns


def lay_uplink(host: Netns, lan: Netns) -> Netns:
    """The node's NIC of the picture."""
    host.batch(
        f"link add eth0 type veth peer name lan0 netns {lan.name}",
        "link set eth0 up",
        "addr add 172.18.0.11/16 dev eth0",
        "addr add fd00:18::11/64 dev eth0 nodad",
    )
    lan.batch("link set lan0 master br0 up")
    host.batch("route add default via 172.18.0.1", "route add default via fd00:18::1 dev eth0")
    return host


@pytest.fixture
def new_netns() -> Iterator[Callable[[str], Netns]]:
    """Makes further namespaces: ``new_netns("pod2")``, lo up; deleted when the test ends."""
    with namespaces() as make:
        yield make


@pytest.fixture(scope="module")
def shared_uplink() -> Iterator[Netns]:
    """A node as ``uplink`` is, one for the module: for tests whose daemon serves them all."""
    with namespaces() as make:
        yield lay_uplink(make("node"), lay_lan(make("lan")))


@pytest.fixture
def host(new_netns: Callable[[str], Netns]) -> Netns:
    """The node: a namespace with lo."""
    return new_netns("node")


@pytest.fixture
def pod(new_netns: Callable[[str], Netns]) -> Netns:
    """A pod's sandbox: a namespace with lo."""
    return new_netns("pod")


@pytest.fixture
def lan(new_netns: Callable[[str], Netns]) -> Netns:
    """The data-centre network: a bridge br0 that has 172.18.0.1/16 and fd00:18::1/64."""
    return lay_lan(new_netns("lan"))


@pytest.fixture
def uplink(host: Netns, lan: Netns) -> Netns:
    """The node (``host``) with its NIC eth0, 172.18.0.11/16 and fd00:18::11/64, joined to ``lan``, default routes."""
    return lay_uplink(host, lan)


@pytest.fixture
def snapshot() -> Callable[[Netns], State]:
    """``snapshot(ns)`` gives the namespace's State; two of them compare equal when nothing lasting has changed."""
    return read_state


@pytest.fixture
def in_host(host: Netns) -> Iterator[Netns]:
    """The test's own thread is in the node's namespace."""
    with host.entered():
        yield host
