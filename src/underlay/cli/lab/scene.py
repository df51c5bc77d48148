"""What the lab asks, and how it shows the answers: the paths that matter to a pod, each for every kind of pod."""

from __future__ import annotations

import shlex
import shutil
import sys
from typing import TYPE_CHECKING

from underlay.cli.lab import networks, probes, runtime, topology
from underlay.cli.lab.table import Cell, Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from underlay.cli.lab.runtime import Attached
    from underlay.cli.lab.topology import Lab

HEALTH, TO_NODE, TO_SERVICE = "node → pod  health check", "pod  → node", "pod  → ClusterIP"
FROM_LAN, TO_LAN = "LAN  → pod", "pod  → LAN"
_REPAIRED = frozenset({HEALTH, TO_NODE, TO_SERVICE})  # what a macvlan lacks


def questions(attached: Sequence[Attached]) -> list[probes.Probe]:
    """Every path, for every pod, over each family that the pod has."""
    asked = []
    for pod in attached:
        for address in pod.addresses:
            six = ":" in address
            node = topology.NODE_V6 if six else topology.NODE_V4
            outside = networks.GATEWAY_V6 if six else networks.GATEWAY_V4
            service = topology.CLUSTER_V6 if six else topology.CLUSTER_V4
            name = pod.pod.name
            for path, source, target, port, answerer in (
                (HEALTH, topology.NODE, address, topology.POD_PORT, name),
                (TO_NODE, name, node, topology.NODE_PORT, topology.NODE),
                (TO_SERVICE, name, service, topology.CLUSTER_PORT, topology.BACKEND),
                (FROM_LAN, topology.LAN, address, topology.POD_PORT, name),
                (TO_LAN, name, outside, topology.LAN_PORT, topology.LAN),
            ):
                expected = pod.pod.mended or path not in _REPAIRED
                asked.append(probes.Probe(path, name, source, target, port, answerer, expected))
    return asked


def ask(lab: Lab, attached: Sequence[Attached]) -> dict[probes.Probe, bool]:
    """Probe every path at once."""
    return probes.run(questions(attached), lab.open)


def table(
    attached: Sequence[Attached], answers: Mapping[probes.Probe, bool], notes: Mapping[str, Sequence[str]]
) -> Table:
    """One column a pod; ``notes`` are further rows of text."""
    cells: dict[tuple[str, str], list[Cell]] = {}
    for probe, reached in answers.items():
        cells.setdefault((probe.path, probe.column), []).append(Cell(reached, probe.expected))
    paths = (HEALTH, TO_NODE, TO_SERVICE, FROM_LAN, TO_LAN)
    rows = {path: [cells[path, pod.pod.name] for pod in attached] for path in paths}
    families = ("IPv4", "IPv6")[: max(len(pod.addresses) for pod in attached)]
    return Table([pod.pod.title for pod in attached], families, rows, notes)


PICTURE = """\
  lan   172.18.0.1   outside host
   │
  eth0  172.18.0.11  node ── ClusterIP 172.96.0.10:80 → backend 10.240.9.2:8080
   ├─ macvlan ── pod alone
   ├─ macvlan ── pod veth      + a veth pair to the node
   └─ macvlan ── pod router    + eth0 in the cluster's overlay network"""


def notes(attached: Sequence[Attached]) -> dict[str, list[str]]:
    """Rows below the table: addresses, and how long ADD and DEL take."""
    rows: dict[str, list[str]] = {}
    for number, family in enumerate(("IPv4", "IPv6")[: max(len(pod.addresses) for pod in attached)]):
        rows[f"{family} address in the LAN"] = [pod.addresses[number] for pod in attached]
    rows[f"ADD, median of {runtime.ROUNDS}"] = [f"{pod.add_ms:.1f} ms" for pod in attached]
    rows[f"DEL, median of {runtime.ROUNDS}"] = [f"{pod.delete_ms:.1f} ms" for pod in attached]
    return rows


def hints(lab: Lab, attached: Sequence[Attached]) -> list[str]:
    """Commands worth trying in a lab that is up, as they can be typed here."""
    name = "" if lab.name == "lab" else f" --name {lab.name}"
    underlay = "underlay" if shutil.which("underlay") else shlex.quote(sys.argv[0])
    veth = next(pod for pod in attached if pod.pod.name == "veth")
    tries = (
        ("exec", "veth -- ip -br addr", "the pod's NICs"),
        ("exec", "router -- ip rule", "how the router plugin sorts the traffic"),
        ("exec", "node -- ip route", "the node's way to its pods"),
        ("exec", f"node -- curl {veth.addresses[0]}:{topology.POD_PORT}", "the kubelet's health check"),
        ("exec", f"alone -- curl -m2 {topology.CLUSTER_V4}", "what a macvlan alone lacks"),
        ("status", "", "the table again"),
        ("down", "", "the end"),
    )
    commands = [(f"{underlay} lab {word}{name} {rest}".rstrip(), about) for word, rest, about in tries]
    commands.append((f"less {lab.root}/log/daemon.log", "one line a request"))
    commands.append((f"ls {lab.root}/manifests", "the networks and pods it reads"))
    width = max(len(command) for command, _ in commands)
    return [f"{command:{width}}  # {about}" for command, about in commands]
