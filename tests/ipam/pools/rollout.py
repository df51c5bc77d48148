"""A rollout in a pool of exactly as many addresses as pods: every pod is deleted on one node and made again on another.

Which node gets how many is what makes the difference: where each has as many as before, no address need change its
owner; by chance one node has twenty pods more and another twenty fewer, and as many addresses have to move.
"""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from tests.ipam.pools.simulation import world

if TYPE_CHECKING:
    from collections.abc import Sequence

PARALLEL = 20


class Rollout(NamedTuple):
    """Seconds until the last pod has its address; API writes until all is reported, and the most to one object."""

    seconds: float
    writes: int
    hottest: int


def roll_out(seed: int, nodes: int, count: int, ips: Sequence[str], *, even: bool, gone: float = 0.0) -> Rollout:
    """``count`` pods, as many on each node; ``even``: afterwards too, and by chance otherwise. Each is made again after
    ``gone`` seconds at most. Whatever fails raises.
    """
    chance = random.Random(seed)
    with world(seed, a=ips) as made:
        names = [f"node-{n}" for n in range(nodes)]
        for name in names:
            made.node(name)
        before = {f"pod-{n}": names[n % nodes] for n in range(count)}
        order = chance.sample(sorted(before), count)
        if even:
            places = [names[n % nodes] for n in range(count)]
            chance.shuffle(places)
        else:
            places = [chance.choice(names) for _ in order]
        after = dict(zip(order, places, strict=True))

        def make(pod: str) -> None:
            made.nodes[before[pod]].add(pod)

        def make_again(pod: str) -> None:
            made.nodes[before[pod]].delete(pod)
            if gone:
                made.time.sleep(chance.uniform(0.0, gone))
            made.nodes[after[pod]].add(f"{pod}-again")

        made.on_all(PARALLEL, {name: [partial(make, pod) for pod in before if before[pod] == name] for name in names})
        made.time.sleep(5)
        writes = made.api.truth.writes
        writes.clear()
        work = {name: [partial(make_again, pod) for pod in order if after[pod] == name] for name in names}
        seconds = made.on_all(PARALLEL, work)
        made.time.sleep(10)
        made.check()
        reported = {at.container_id for block in made.api.truth.blocks.values() for at in block.leases.values()}
        assert reported == {f"{pod}-again" for pod in order}
        assert len(made.users) == count
        return Rollout(seconds, writes.total(), max(writes.values()))
