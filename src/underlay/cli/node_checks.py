"""What a node needs for pods to get their NICs, looked at one by one: each check says what it found and what to do.

Nothing is changed: links are made in a network namespace of this process's own, which ends with the check.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from underlay import __version__
from underlay.cli import install, runtime_files, shim_binary, status
from underlay.errors import KernelError, UnderlayError
from underlay.net import link, link_info, sysctl, veth
from underlay.net.netns import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from underlay.daemon.config import Settings
    from underlay.net.link_info import Data
    from underlay.net.rtnl import Rtnl

State = Literal["ok", "warn", "fail"]
_CLONE_NEWNET = 0x40000000
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronized
_SIZE_OF_TIMEX = 208
_SECONDS = 5.0
_LITTLE_SPACE = 64 << 20
_ANOTHER_DAEMON = "/run/multus/multus.sock"
_NETWORKS = "/apis/k8s.cni.cncf.io/v1/network-attachment-definitions?limit=1"
_BLOCKS = "/apis/underlay.io/v1alpha1/underlayipblocks?limit=1"
_AWAY_IN_CLUSTER: Final = "Is kube-proxy (or what serves ClusterIPs) running?"
_AWAY_BY_KUBECONFIG: Final = "Is the address in the kubeconfig the API server's, and can it be reached from this node?"
_AS_ROOT: Final = "Run it as root on the node, or in the daemon's own container."


class Finding(msgspec.Struct, frozen=True):
    """One line. ``what`` was looked at; ``hint`` says what to do where ``state`` is not "ok"."""

    state: State
    what: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """What the checks are told. ``locate`` finds a path of the node from here, ``conf_dir`` is where the runtime reads,
    as this process finds it.
    """

    settings: Settings
    conf_dir: str
    locate: Callable[[str], str]


def every(node: Node) -> Iterator[Finding]:
    """All checks, in the order in which they depend on each other."""
    yield from _of_a_thread_in_a_namespace()
    yield clock()
    yield state_directory(node)
    yield from executables(node)
    yield daemon(node)
    yield from runtime(node)
    yield from api_server(node)
    yield from others(node)


# -- the kernel ------------------------------------------------------------------------------------------------------


def _of_a_thread_in_a_namespace() -> list[Finding]:
    """:func:`kernel`, on a thread that has left this process's network namespace for a new one, and ends."""
    found: list[Finding] = []

    def look() -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
            fault = os.strerror(ctypes.get_errno())
            found.append(Finding("fail", "kernel", f"no network namespace can be made: {fault}", _AS_ROOT))
            return
        try:
            with Namespace.current() as ns:
                found.extend(kernel(ns.rtnl))
        except KernelError as error:
            found.append(Finding("fail", "kernel", error.message, "Linux 5.14 or later is needed."))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return found


def kernel(rtnl: Rtnl) -> Iterator[Finding]:
    """Whether every kind of link can be made, which loads its module, and settings be written. ``rtnl`` is an empty
    namespace's.
    """
    ends = link.random_index(), link.random_index()
    try:
        rtnl.batch(
            [veth.create(
                name="a", mac=link.random_mac(), peer_name="b", peer_mac=link.random_mac(), mtu=1500,
                peer_netns_fd=None, up=False, index=ends[0], peer_index=ends[1],
            )]
        )  # fmt: skip
    except KernelError as error:
        yield _no_such_links("veth", "fail", error)
        return
    yield Finding("ok", "kernel", "makes veth")
    # ipvlan and macvlan do not share a parent
    kinds: tuple[tuple[Data, int, State], ...] = (
        (link_info.macvlan("bridge"), ends[0], "fail"),
        (link_info.ipvlan("l2"), ends[1], "warn"),
        (link_info.vlan(1), ends[0], "warn"),
    )
    for info, parent, verdict in kinds:
        try:
            rtnl.batch([link.create_upper(info, name=info.kind, parent=parent)])
        except KernelError as error:
            yield _no_such_links(info.kind, verdict, error)
        else:
            yield Finding("ok", "kernel", f"makes {info.kind}")
    setting = "net/ipv4/conf/a/rp_filter"
    try:
        sysctl.write(setting, 0 if sysctl.read(setting) == "1" else 1)  # one that is right already needs no write
    except KernelError as error:
        hint = "Mount /proc/sys so that it can be written: the daemon's container has to be privileged."
        yield Finding("fail", "kernel", error.message, hint)


def _no_such_links(kind: str, verdict: State, error: KernelError) -> Finding:
    module = "8021q" if kind == "vlan" else kind
    hint = f"modprobe {module}; some distributions have it in a package of its own (linux-modules-extra)."
    return Finding(verdict, "kernel", f"makes no {kind}: {error.message}", hint)


def clock() -> Finding:
    """Whether the clock is kept: certificates and tokens depend on it."""
    told = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(_SIZE_OF_TIMEX))
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    if told == _TIME_ERROR:
        hint = (
            "Run an NTP client (chrony, systemd-timesyncd) if the time is wrong: certificates and tokens depend on it."
        )
        return Finding("warn", "clock", f"it is {now}, and nobody synchronizes the clock", hint)
    return Finding("ok", "clock", f"it is {now}")


# -- files -----------------------------------------------------------------------------------------------------------


def state_directory(node: Node) -> Finding:
    """Whether the ledger can be written."""
    path = node.settings.state_dir
    while not os.path.exists(path) and path != "/":
        path = os.path.dirname(path)
    if not os.path.isdir(path):
        return Finding("fail", "state", f"{path} is not a directory", "Move it away, or correct state_dir.")
    space = os.statvfs(path)
    if space.f_flag & os.ST_RDONLY or not os.access(path, os.W_OK):
        return Finding("fail", "state", f"{path} cannot be written", "Mount it so that it can be; no pod starts else.")
    free = space.f_bavail * space.f_frsize
    if free < _LITTLE_SPACE or (space.f_files and not space.f_favail):
        hint = "Free disk space: without it no pod starts."
        return Finding("warn", "state", f"{path} has {free >> 20} MiB and {space.f_favail} inodes left", hint)
    return Finding("ok", "state", f"{path} has {free >> 20} MiB left")


def executables(node: Node) -> Iterator[Finding]:
    """Whether the runtime finds the shim, of this version and for this daemon, and may execute it."""
    from pathlib import Path

    for named in node.settings.bin_dir:
        bin_dir = Path(node.locate(named))
        faults = [fault for name in install.DEFAULT_NAMES if (fault := _executable(bin_dir / name, node))]
        yield from faults
        if not faults:
            yield Finding("ok", "executables", f"{' '.join(install.DEFAULT_NAMES)} in {bin_dir} lead to this daemon")


def _executable(path: Path, node: Node) -> Finding | None:
    lay = f"underlay install --bin-dir {path.parent} --run-dir {node.settings.run_dir}"
    try:
        run_dir = shim_binary.run_dir_of(path)
        if run_dir is None:
            what = "is another's" if os.path.lexists(path) else "is not there"
            hint = f"{lay}{' --force' if os.path.lexists(path) else ''}"
            return Finding("fail", "executables", f"{path} {what}", hint)
        if run_dir != node.settings.run_dir:
            words = f"{path} looks for its daemon in {run_dir}, not in {node.settings.run_dir}"
            return Finding("fail", "executables", words, lay)
        done = subprocess.run(
            [path], env={"CNI_COMMAND": "VERSION"}, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS,
            check=False,
        )  # fmt: skip
        if done.returncode:
            return Finding("fail", "executables", f"{path} ends with status {done.returncode}", lay)
        if path.read_bytes() != shim_binary.with_run_dir(shim_binary.load(), run_dir):
            return Finding("warn", "executables", f"{path} is of another version than this command", lay)
    except (OSError, subprocess.TimeoutExpired, UnderlayError) as fault:
        return Finding("fail", "executables", f"{path} cannot be executed: {fault}", "Is it mounted noexec?")
    return None


def runtime(node: Node) -> Iterator[Finding]:
    """Whether the file that the runtime takes leads to the daemon."""
    paths = runtime_files.listed(node.conf_dir)
    if not paths:
        hint = "Install the cluster's own network; the daemon wraps its file (docs/multus.md), or write one by hand."
        yield Finding("fail", "runtime", f"{node.conf_dir} holds no configuration: no pod starts", hint)
        return
    first, *rest = paths
    said = runtime_files.calls(first)
    if said is None:
        yield Finding("fail", "runtime", f"{first} comes first and is no JSON of a network", "Correct or remove it.")
    elif not said.types & set(install.NAMES):
        hint = "The first by name counts: remove or rename it, or let the daemon keep 00-multus.conf (docs/multus.md)."
        words = f"{first} comes first and calls {', '.join(sorted(said.types)) or 'nobody'}: pods get its network alone"
        yield Finding("fail", "runtime", words, hint)
    elif said.cluster_network.startswith("/") and not os.path.exists(said.cluster_network):
        hint = "Name the file of the cluster's own network."
        yield Finding("fail", "runtime", f"{first}: clusterNetwork {said.cluster_network} does not exist", hint)
    else:
        yield Finding("ok", "runtime", f"{first} comes first and calls {', '.join(sorted(said.types))}")
    for path in rest:
        if (other := runtime_files.calls(path)) and "multus" in other.types:
            hint = "Remove it: it has no effect as long as the other is there, and a surprising one afterwards."
            yield Finding("warn", "runtime", f"{path} calls multus too", hint)


def others(node: Node) -> Iterator[Finding]:
    """Whether Multus' own daemon is still here."""
    if os.path.exists(path := node.locate(_ANOTHER_DAEMON)):
        hint = "Delete its DaemonSet, and then this file: both would keep 00-multus.conf (docs/install.md)."
        yield Finding("warn", "others", f"{path} is of Multus' own daemon", hint)


# -- who answers -----------------------------------------------------------------------------------------------------


def daemon(node: Node) -> Finding:
    """Whether it is ready, and of this version."""
    where = node.settings.run_dir
    try:
        told = status.ask(where)
    except (OSError, UnderlayError) as fault:
        told_of = fault if isinstance(fault, UnderlayError) else status.unanswered(where, fault)
        return Finding("fail", "daemon", told_of.message, told_of.hint)
    if not told["ready"]:
        return Finding("fail", "daemon", f"{status.in_words(told)}: {'; '.join(told['faults'])}", "See its log.")
    if told["version"] != __version__:
        words = f"it is of version {told['version']}, this command of {__version__}"
        return Finding("warn", "daemon", words, "Restart it.")
    if told["spooled"]:
        words = f"{told['spooled']} deletions wait in {where}/spool"
        return Finding("warn", "daemon", words, "Its log says what stands in their way.")
    return Finding("ok", "daemon", f"ready: process {told['pid']}, version {told['version']}")


def api_server(node: Node) -> Iterator[Finding]:
    """Whether it answers as the daemon's settings say, and has the definitions."""
    settings = node.settings
    if not settings.kube.used:
        if os.path.isdir(settings.manifest_dir):
            yield Finding("ok", "API server", f"none is used; pods and networks are files in {settings.manifest_dir}")
            return
        words = f"none is used, and {settings.manifest_dir}, where pods and networks are files then, is not there"
        yield Finding("warn", "API server", words, f"mkdir -p {settings.manifest_dir}, or set kube.kubeconfig.")
        return
    from underlay.kube.access import InCluster
    from underlay.kube.client import Client
    from underlay.kube.faults import Refused, Unreachable
    from underlay.kube.kubeconfig import Kubeconfig
    from underlay.kube.resources import JSON

    kube = settings.kube
    asked: tuple[tuple[str, State], ...] = ((_NETWORKS, "fail"), (_BLOCKS, "warn"))
    try:
        access = InCluster(os.environ, _quiet) if kube.in_cluster else Kubeconfig(kube.kubeconfig, _quiet, kube.context)
        client = Client(access, "underlay-doctor")
        for target, verdict in asked:
            try:
                client.call("GET", target, time.monotonic() + _SECONDS, accept=JSON)
            except Refused as refused:
                hint = f"kubectl apply -f {'deploy/crds' if refused.status == 404 else 'deploy/rbac.yaml'}"
                yield Finding(verdict, "API server", f"{target.partition('?')[0]}: {refused}", hint)
            else:
                yield Finding("ok", "API server", f"{access.endpoint()} answers for {target.split('/')[2]}")
        client.close()
    except (Unreachable, UnderlayError) as fault:
        away = _AWAY_IN_CLUSTER if kube.in_cluster else _AWAY_BY_KUBECONFIG
        hint = fault.hint if isinstance(fault, UnderlayError) else away
        yield Finding("fail", "API server", str(fault), hint)


def _quiet(_level: str, _event: str, /, **_fields: object) -> None:
    """What is wrong becomes a finding."""
