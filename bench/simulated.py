"""Many nodes on one pool, with the allocator that runs on nodes, in virtual time: an API of 10 ms, 20 ADDs at a time.

python -m bench.simulated      these alone; needs neither root nor a network
"""

from __future__ import annotations

import random
from functools import partial

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


def elsewhere(nodes: int, last: str) -> Figure:
    """Every pod made again, on whichever node chance puts it: some nodes get more than they had, and others fewer."""
    chance, count = random.Random(1), nodes * PODS
    with world(1, a=[f"10.0.0.1-{last}"]) as made:
        names = [f"node-{n}" for n in range(nodes)]
        for name in names:
            made.node(name)
        before = {f"pod-{n}": names[n % nodes] for n in range(count)}
        after = {pod: chance.choice(names) for pod in chance.sample(sorted(before), count)}

        def make(pod: str) -> None:
            made.nodes[before[pod]].add(pod)

        def make_again(pod: str) -> None:
            made.nodes[before[pod]].delete(pod)
            made.nodes[after[pod]].add(f"{pod}-again")

        made.on_all(20, {name: [partial(make, pod) for pod in before if before[pod] == name] for name in names})
        made.time.sleep(5)
        made.api.truth.writes.clear()
        seconds = made.on_all(
            20, {name: [partial(make_again, pod) for pod in after if after[pod] == name] for name in names}
        )
        made.time.sleep(10)
        assert len(made.users) == count
        writes = made.api.truth.writes.total() / count
    return Figure(
        "- made again on other nodes, by chance", "", f"{seconds:.2f} s, {writes:.2f} writes an address", None
    )


def measure() -> list[Figure]:
    """All of them."""
    return [*cluster(10, "10.0.3.232"), elsewhere(10, "10.0.3.232"), *cluster(100, "10.0.39.16")]


if __name__ == "__main__":
    print(report(measure()))
