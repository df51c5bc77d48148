"""The lab's container runtime: starts the daemon, and calls the plugins as containerd does, with a stop-watch."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from underlay.cli import status
from underlay.cli.lab import networks, topology

if TYPE_CHECKING:
    from collections.abc import Iterable

    from underlay.cli.lab.topology import Lab

_START_PATIENCE = 10.0
_KEPT = "attached.json"
ROUNDS = 10  # as many as a pool has addresses, so that the pod gets the first


@dataclass(frozen=True, slots=True)
class Attached:
    """A pod with its network: its addresses in the LAN (IPv4 first, no prefix length), how long ADD and DEL take."""

    pod: networks.Pod
    addresses: tuple[str, ...]
    add_ms: float
    delete_ms: float


def start_daemon(lab: Lab) -> None:
    """Run `underlay daemon` in the node's namespace and wait until it is ready. Raises LabError with its last words."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(lab.root / "notify"))
        daemon = _start(lab, "daemon", "underlay", "daemon", "--config", str(lab.root / "underlay.json"), talks=False)
        poll = select.poll()
        ended = os.pidfd_open(daemon.pid)
        for waited in (notified.fileno(), ended):
            poll.register(waited, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(_START_PATIENCE * 1000)] == [notified.fileno()]
        os.close(ended)
        if not ready or b"READY=1" not in notified.recv(4096):
            raise topology.LabError(f"the lab's daemon did not start: {_last_words(lab, 'daemon')}")


def start_responders(lab: Lab) -> None:
    """Run responders.py in the node's namespace and wait until it listens everywhere."""
    responders = _start(lab, "responders", "underlay.cli.lab.responders", lab.name, talks=True)
    assert responders.stdout is not None
    with responders.stdout as output:
        if not output.readline():
            raise topology.LabError(f"the lab's responders did not start: {_last_words(lab, 'responders')}")


def _start(lab: Lab, what: str, *module_and_arguments: str, talks: bool) -> subprocess.Popen[bytes]:
    """A Python program in the node's namespace, that outlives this process; its standard error in log/WHAT.err.

    ``talks``: its standard output is a pipe to us, otherwise nothing.
    """
    errors = lab.root / f"log/{what}.err"
    with errors.open("wb") as stream, lab.open(topology.NODE) as node, node.entered():
        return subprocess.Popen(
            [sys.executable, "-m", *module_and_arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if talks else subprocess.DEVNULL,
            stderr=stream,
            env=os.environ | {"NOTIFY_SOCKET": str(lab.root / "notify")},
            start_new_session=True,
        )


def abandon(lab: Lab) -> None:
    """End what runs, and wait for children that an interrupt has cut us off from.

    A signal may come between the fork of an `ip` and the moment that somebody has its process id: such a one would go
    on building while the lab is removed.
    """
    topology.end_processes(lab)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def attach(lab: Lab, pods: Iterable[networks.Pod]) -> list[Attached]:
    """ADD each pod through the shim, after ROUNDS times ADD and DEL to learn how long they take.

    Raises LabError with the plugin's own words.
    """
    attached = []
    for pod in pods:
        rounds = [(_add(lab, pod), _call(lab, "DEL", pod)[1]) for _ in range(ROUNDS)]
        add_ms, delete_ms = (statistics.median(times) for times in zip(*rounds, strict=True))
        _add(lab, pod)
        attached.append(Attached(pod, _lan_addresses(lab, pod), add_ms, delete_ms))
    return attached


def _add(lab: Lab, pod: networks.Pod) -> float:
    """Milliseconds. Raises LabError with the plugin's own words."""
    answer, milliseconds = _call(lab, "ADD", pod)
    if "code" in answer:
        words, hint = str(answer.get("msg")), str(answer.get("details") or "")
        raise topology.LabError(f"ADD of pod {pod.name}: {words}", hint=hint)
    return milliseconds


def detach(lab: Lab, pods: Iterable[networks.Pod]) -> None:
    """DEL each pod through the shim."""
    for pod in pods:
        _call(lab, "DEL", pod)


def remember(lab: Lab, attached: Iterable[Attached]) -> None:
    """Keep for later commands what is attached; with this the lab is complete."""
    kept = {pod.pod.name: (pod.addresses, pod.add_ms, pod.delete_ms) for pod in attached}
    written = lab.root / f"{_KEPT}.new"
    written.write_text(json.dumps(kept))
    written.rename(lab.root / _KEPT)


def is_complete(lab: Lab) -> bool:
    """Whether `up` has finished it."""
    return (lab.root / _KEPT).exists()


def recall(lab: Lab) -> list[Attached]:
    """What is attached; empty for a lab that is not complete, or whose daemon has ended."""
    try:
        kept = json.loads((lab.root / _KEPT).read_bytes())
        status.ask(str(lab.root / "run"))
    except OSError:
        return []
    return [Attached(pod, tuple(kept[pod.name][0]), *kept[pod.name][1:]) for pod in networks.PODS]


def _call(lab: Lab, verb: str, pod: networks.Pod) -> tuple[dict[str, object], float]:
    """Exec the multus shim once: what it printed (empty: nothing), and milliseconds from before fork to after exit."""
    program = str(lab.root / "bin/multus")
    arguments = {"K8S_POD_NAMESPACE": "default", "K8S_POD_NAME": pod.name, "K8S_POD_UID": networks.uid(pod)}
    environment = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": networks.container_id(pod),
        "CNI_NETNS": str(lab.path(pod.name)),
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(lab.root / "bin"),
        "CNI_ARGS": ";".join(("IgnoreUnknown=1", *(f"{key}={value}" for key, value in arguments.items()))),
    }
    out = lab.root / "answer"
    streams = [
        (os.POSIX_SPAWN_OPEN, 0, str(lab.root / "multus.conf"), os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(out), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
    ]
    began = time.perf_counter()
    shim = os.posix_spawn(program, [program], environment, file_actions=streams)
    try:
        os.waitpid(shim, 0)
    except SystemExit:
        os.kill(shim, signal.SIGKILL)  # it would wait for a daemon that is about to end
        raise
    milliseconds = (time.perf_counter() - began) * 1000
    return json.loads(out.read_bytes() or b"{}"), milliseconds


def _lan_addresses(lab: Lab, pod: networks.Pod) -> tuple[str, ...]:
    """The global addresses of the pod's NIC in the LAN, as the kernel has them."""
    shown = subprocess.run(
        ["ip", "-n", lab.netns(pod.name), "-json", "addr", "show", "dev", pod.nic, "scope", "global"],
        check=True,
        capture_output=True,
    )
    entries = json.loads(shown.stdout)[0].get("addr_info", [])
    return tuple(sorted((entry["local"] for entry in entries if "local" in entry), key=lambda address: ":" in address))


def _last_words(lab: Lab, what: str) -> str:
    text = (lab.root / f"log/{what}.err").read_text().strip()
    return text.splitlines()[-1] if text else "it said nothing"
