"""The lab's network: a node, a LAN with an outside host, a pod of the cluster behind a ClusterIP, and pods to attach.

      lan 172.18.0.1 ─────────── eth0 172.18.0.11  node ── calibackend ── backend 10.240.9.2:8080
      (outside host)              │  │  │           │       ClusterIP 172.96.0.10:80 → backend
                              alone veth router ────┘
                                (macvlan, made by ADD)   calirouter: the router pod's overlay NIC

Everything lies in network namespaces ``underlay-LAB-MEMBER`` and below /run/underlay-lab/LAB. Nothing is made outside.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from underlay.cli.lab import inhabitants, networks
from underlay.errors import UnderlayError
from underlay.net.netns import Namespace

if TYPE_CHECKING:
    from collections.abc import Iterable

NODE, LAN, BACKEND = "node", "lan", "backend"
MEMBERS = (NODE, LAN, BACKEND, *(pod.name for pod in networks.PODS))
NODE_V4, NODE_V6 = "172.18.0.11", "fd00:18::11"
BACKEND_V4, BACKEND_V6 = "10.240.9.2", "fd00:10:244::9:2"
CLUSTER_V4, CLUSTER_V6 = "172.96.0.10", "2001:4860:fd00::10"
NODE_PORT, LAN_PORT, POD_PORT, CLUSTER_PORT = 10250, 8888, 8080, 80

_HOME = Path("/run/underlay-lab")
_NAMESPACES = Path("/run/netns")
_OVERLAY_V4, _OVERLAY_V6 = "169.254.1.1", "fd00:fe::1"  # every overlay pod's gateway, as Calico has it
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,22}[a-z0-9])?")


class LabError(UnderlayError):
    """The lab cannot be built or used."""

    hint = "`underlay lab down` removes what is left of a lab."


@dataclass(frozen=True, slots=True)
class Lab:
    """Names and places of one lab. ``ipv6``: this kernel has it."""

    name: str
    ipv6: bool = True

    @classmethod
    def named(cls, name: str) -> Lab:
        """The lab of that name, built or not; LabError for a name that cannot be part of a path."""
        if not _NAME.fullmatch(name):
            raise LabError(f"{name!r} is no name for a lab", hint="Use up to 24 of a-z, 0-9 and '-'.")
        return cls(name, ipv6=Path("/proc/sys/net/ipv6").is_dir())

    @property
    def root(self) -> Path:
        """Where its files are."""
        return _HOME / self.name

    def netns(self, member: str) -> str:
        """Name of a member's namespace, as `ip netns` shows it."""
        return f"underlay-{self.name}-{member}"

    def path(self, member: str) -> Path:
        """Path of a member's namespace."""
        return _NAMESPACES / self.netns(member)

    def exists(self) -> bool:
        """Whether anything of it is there, whole or in parts."""
        return self.root.exists() or any(self.path(member).exists() for member in MEMBERS)

    def open(self, member: str) -> Namespace:
        """A member's namespace; LabError where it is not there."""
        if not self.path(member).exists():
            raise LabError(
                f"the lab {self.name!r} is not up: it has no {member}", hint=f"underlay lab up --name {self.name}"
            )
        return Namespace.open(str(self.path(member)))


def all_labs() -> list[Lab]:
    """Every lab of which something is there. The files of each are made first and removed last."""
    names = sorted(path.name for path in _HOME.iterdir()) if _HOME.is_dir() else []
    return [Lab.named(name) for name in names if _NAME.fullmatch(name)]


def build(lab: Lab) -> None:
    """Make the namespaces and the wires between them; pods get nothing but what the overlay gives them."""
    for member in MEMBERS:
        _run("ip", "netns", "add", lab.netns(member))
    _configure(lab, LAN, ["link set lo up"])
    _configure(lab, NODE, _node_lines(lab))
    outside = _addresses("eth0", f"{networks.GATEWAY_V4}/16", f"{networks.GATEWAY_V6}/64")
    _configure(lab, LAN, [*outside, "link set eth0 up"])
    _configure(lab, BACKEND, _overlay_lines((f"{BACKEND_V4}/32", f"{BACKEND_V6}/128")))
    for pod in networks.PODS:
        _configure(lab, pod.name, _overlay_lines(pod.overlay) if pod.overlay else ["link set lo up"])
    with lab.open(NODE) as node, node.entered():
        _forward(ipv6=lab.ipv6)
        if have_nft():
            _run("nft", "-f", "-", stdin=_cluster_ip_rules(ipv6=lab.ipv6))


def have_nft() -> bool:
    """Whether the ClusterIP is a DNAT rule, as kube-proxy makes it; otherwise responders.py relays it."""
    return shutil.which("nft") is not None


def remove(lab: Lab) -> None:
    """End every process in the lab's namespaces, delete these, remove the files. No lab: nothing to do."""
    end_processes(lab)
    for member in MEMBERS:
        if lab.path(member).exists():
            _run("ip", "netns", "del", lab.netns(member))
    shutil.rmtree(lab.root, ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty: another lab's
        _HOME.rmdir()


def end_processes(lab: Lab) -> None:
    """End every process in the lab's namespaces."""
    inhabitants.end(lab.path(member) for member in MEMBERS)


def _node_lines(lab: Lab) -> list[str]:
    lines = ["link set lo up", f"link add eth0 type veth peer name eth0 netns {lab.netns(LAN)}", "link set eth0 up"]
    lines += _addresses("eth0", f"{NODE_V4}/16", f"{NODE_V6}/64")
    lines += [f"route add default via {networks.GATEWAY_V4}", f"route add default via {networks.GATEWAY_V6}"]
    lines += _host_end(lab, BACKEND, (f"{BACKEND_V4}/32", f"{BACKEND_V6}/128"))
    for pod in networks.PODS:
        if pod.overlay:
            lines += _host_end(lab, pod.name, pod.overlay)
    if not have_nft():
        lines += _addresses("lo", f"{CLUSTER_V4}/32", f"{CLUSTER_V6}/128")
    return lines


def _host_end(lab: Lab, member: str, addresses: Iterable[str]) -> list[str]:
    """The node's side of an overlay pod: a veth end with the gateway's address, and routes to the pod's addresses."""
    end = f"cali{member}"
    lines = [f"link add {end} type veth peer name eth0 netns {lab.netns(member)}", f"link set {end} up"]
    lines += _addresses(end, f"{_OVERLAY_V4}/32", f"{_OVERLAY_V6}/128")
    return lines + [f"route add {address} dev {end}" for address in addresses]


def _overlay_lines(addresses: Iterable[str]) -> list[str]:
    """The pod's side."""
    lines = ["link set lo up", "link set eth0 up", *_addresses("eth0", *addresses)]
    for gateway in (_OVERLAY_V4, _OVERLAY_V6):
        lines += [f"route add {gateway} dev eth0", f"route add default via {gateway} dev eth0"]
    return lines


def _addresses(dev: str, *addresses: str) -> list[str]:
    return [f"addr add {address} dev {dev}{' nodad' if ':' in address else ''}" for address in addresses]


def _configure(lab: Lab, member: str, lines: Iterable[str]) -> None:
    """Run lines of `ip` in a member's namespace, all by one process."""
    wanted = [line for line in lines if lab.ipv6 or "::" not in line]
    _run("ip", "-n", lab.netns(member), "-batch", "-", stdin="\n".join(wanted) + "\n")


def _forward(*, ipv6: bool) -> None:
    """Make the thread's namespace a router."""
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    if ipv6:
        Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")


def _cluster_ip_rules(*, ipv6: bool) -> str:
    """A ClusterIP by nftables, for connections that come in and for the node's own."""
    rules = []
    for family, service, backend in (("ip", CLUSTER_V4, BACKEND_V4), ("ip6", CLUSTER_V6, f"[{BACKEND_V6}]")):
        if family == "ip6" and not ipv6:
            continue
        dnat = f"{family} daddr {service} tcp dport {CLUSTER_PORT} dnat to {backend}:{POD_PORT}"
        rules.append(
            f"table {family} lab {{\n"
            f"  chain prerouting {{ type nat hook prerouting priority -100; {dnat}; }}\n"
            f"  chain output {{ type nat hook output priority -100; {dnat}; }}\n"
            "}\n"
        )
    return "".join(rules)


def _run(*command: str, stdin: str = "") -> None:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip()}")
