"""How a figure is told, and how two programs are compared."""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench import node


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the report."""

    what: str
    must: str
    seen: str
    met: bool | None


def spread(values: list[float], unit: str = "ms") -> str:
    """Median with the 10th and 90th percentile."""
    tenths = statistics.quantiles(values, n=10)
    return f"{statistics.median(values):.2f} {unit} ({tenths[0]:.2f}-{tenths[-1]:.2f}, n={len(values)})"


def say(text: str) -> None:
    """Progress, on standard error."""
    print(f"bench: {text} …", file=sys.stderr, flush=True)


def pairwise(ours: node.Caller, peer: node.Caller, pods: list[str]) -> dict[str, list[float]]:
    """The same work by both, call by call in turn, so that the machine's moods hit both alike."""
    seen: dict[str, list[float]] = {"ours ADD": [], "peer ADD": [], "ours DEL": [], "peer DEL": []}
    for pod in pods:
        for who, caller in (("ours", ours), ("peer", peer)):
            seen[f"{who} ADD"].append(caller.timed("ADD", pod))
            seen[f"{who} DEL"].append(caller.timed("DEL", pod))
    return seen


def burst(caller: node.Caller, verb: str, pods: list[str]) -> float:
    """Seconds until all pods, started at once, are done."""
    began = time.perf_counter()
    children = [(caller.spawn(verb, pod), pod) for pod in pods]
    for child, pod in children:
        caller.reap(child, verb, pod)
    return time.perf_counter() - began


def report(figures: list[Figure]) -> str:
    """The figures as a Markdown table."""
    verdict = {True: "met", False: "**missed**", None: ""}
    rows = [f"| {f.what} | {f.must} | {f.seen} | {verdict[f.met]} |" for f in figures]
    return "\n".join(["| figure | must | median (p10-p90) | |", "|---|---|---|---|", *rows])
