"""Many nodes on one pool, with the allocator that runs on nodes, in virtual time: an API of 10 ms, 20 ADDs at a time.

python -m bench.simulated      these alone; needs neither root nor a network
"""

from __future__ import annotations

from functools import partial

from tests.ipam.pools.rollout import roll_out
from tests.ipam.pools.simulation import World, world

from bench.figures import Figure, report, say

PODS = 100


def phase(made: World, verb: str, settle: float = 10.0) -> tuple[float, int, float]:
    """Seconds until the last pod has what it asks for; API writes until all is reported; the most-written object's
    share of them.
    """

    def work(name: str, n: int) -> None:
        node = made.nodes[name]
        if verb != "create":
            node.delete(f"{name}-{n}")
        if verb != "delete":
            node.add(f"{name}-{n}")

    writes = made.api.truth.writes
    writes.clear()
    seconds = made.on_all(20, {name: [partial(work, name, n) for n in range(PODS)] for name in made.nodes})
    made.time.sleep(settle)
    return seconds, writes.total(), max(writes.values()) / writes.total()


def cluster(nodes: int, last: str) -> list[Figure]:
    """Exactly as many addresses as pods: whoever fails raises."""
    count = nodes * PODS
    say(f"{nodes} simulated nodes with {PODS} pods each")
    with world(1, a=[f"10.0.0.1-{last}"]) as made:
        for n in range(nodes):
            made.node(f"node-{n}")
        made.time.sleep(1)
        seen = {verb: phase(made, verb) for verb in ("create", "re-create", "delete")}
        assert not made.users
    shown = ", ".join(f"{verb} {seconds:.2f} s" for verb, (seconds, _, _) in seen.items())
    writes = ", ".join(f"{verb} {total / count:.2f}" for verb, (_, total, _) in seen.items())
    hottest = max(share for _, _, share in seen.values())
    return [
        Figure(f"{nodes} nodes x {PODS} pods, exactly {count} addresses, API of 10 ms", "<= 5 s each, none fails",
               shown,
               max(seconds for seconds, _, _ in seen.values()) <= 5),
        Figure("- API writes an address", "<= 0.3 each", writes,
               max(total for _, total, _ in seen.values()) <= 0.3 * count),
        Figure("- the most-written object", "<= 5 % of writes" if nodes >= 100 else "", f"{hottest:.1%}",
               hottest <= 0.05 if nodes >= 100 else None),
    ]  # fmt: skip


def elsewhere(nodes: int, last: str, seeds: int) -> list[Figure]:
    """Every pod made again on another node; the worst of several rollouts."""
    say(f"the pods of {nodes} nodes made again on other nodes")

    def worst(*, even: bool, gone: float = 0.0) -> tuple[str, bool]:
        seen = [
            roll_out(seed, nodes, nodes * PODS, [f"10.0.0.1-{last}"], even=even, gone=gone)
            for seed in range(1, seeds + 1)
        ]
        seconds, writes = max(one.seconds for one in seen), max(one.writes for one in seen) / (nodes * PODS)
        shown = f"{seconds:.2f} s, {writes:.2f} writes" + (f": the worst of {seeds}" if seeds > 1 else "")
        return shown, seconds <= 5 and writes <= 0.3

    must = "<= 5 s, <= 0.3 writes an address"
    return [
        Figure("- made again on other nodes, as many on each as before", must, *worst(even=True)),
        Figure("- made again on other nodes, by chance", must, *worst(even=False)),
        Figure("- the same, each pod gone for up to a second", "", worst(even=False, gone=1.0)[0], None),
    ]


def measure() -> list[Figure]:
    """All of them."""
    few, many = (10, "10.0.3.232"), (100, "10.0.39.16")
    return [*cluster(*few), *elsewhere(*few, seeds=10), *cluster(*many), *elsewhere(*many, seeds=1)]


if __name__ == "__main__":
    print(report(measure()))
