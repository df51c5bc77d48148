"""The figures of the address pools: in memory, and through the shim beside host-local.

python -m bench.pools [--rounds N]      these alone
"""

from __future__ import annotations

import json
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench import node, simulated
from bench.figures import Figure, pairwise, report, say, spread
from underlay.cni.address import Address
from underlay.ipam.pools.journal import Journal
from underlay.ipam.pools.lease import HELD, Lease
from underlay.ipam.pools.space import Space

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST = 172 << 24 | 18 << 16
TAKEN = 10_000


def in_memory() -> list[Figure]:
    """A /16 half full, every second address held: one allocation and one release at a time, on a warm heap."""
    space: Space[str] = Space(30.0)
    space.configure({"a": ((FIRST + 1, FIRST + 65534),)})
    now = 0.0
    held = [value for _ in range(65534) if (value := space.take("a", "pod", now)) is not None]
    for value in held[::2]:
        space.give_back(value, "a", now)
    now = 60.0
    takes: list[float] = []
    gives: list[float] = []
    for _ in range(20_000):
        now += 0.01
        began = time.perf_counter()
        value = space.take("a", "pod", now)
        between = time.perf_counter()
        assert value is not None
        space.give_back(value, "a", now)
        gives.append((time.perf_counter() - between) * 1e6)
        takes.append((between - began) * 1e6)
    takes, gives = takes[1:], gives[1:]
    return [
        Figure(
            "allocate in memory, IPv4 /16 half full", "<= 20 us", spread(takes, "us"), statistics.median(takes) <= 20
        ),
        Figure("release in memory, the same", "<= 20 us", spread(gives, "us"), statistics.median(gives) <= 20),
    ]


def conf(name: str, ipam: dict[str, object]) -> dict[str, object]:
    """One macvlan plugin."""
    return {
        "cniVersion": "1.0.0",
        "name": name,
        "type": "macvlan",
        "master": node.MASTER,
        "mode": "bridge",
        "ipam": ipam,
    }


def through_the_shim(rounds: int) -> list[Figure]:
    """ADD of macvlan with spiderpool and with host-local, in turn; then with many addresses taken."""
    daemon = node.Daemon()
    pool = {"subnet": "172.18.0.0/16", "ips": ["172.18.8.1-172.18.250.254"], "gateway": "172.18.0.1", "default": True}
    manifest = {"apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderIPPool", "metadata": {"name": "a"}}
    (daemon.root / "manifests" / "pool.json").write_text(json.dumps({**manifest, "spec": pool}))
    ipam = {"type": "host-local", "ranges": [node.V4], "dataDir": str(daemon.root / "data")}
    ours = node.Caller(daemon.bin, "macvlan", conf("pools", {"type": "spiderpool"}), daemon.root)
    peer = node.Caller(daemon.bin, "macvlan", conf("files", ipam), daemon.root)
    pods = node.make_pods("s", rounds)
    figures = compare("macvlan ADD through the shim, spiderpool less host-local", ours, peer, pods)
    say(f"{TAKEN} addresses taken")
    plain = node.Caller(daemon.bin, "spiderpool", conf("pools", {"type": "spiderpool"}), daemon.root)
    for start in range(0, TAKEN, 100):
        names = [f"many{n}" for n in range(start, start + 100)]
        for child, name in [(plain.spawn("ADD", name), name) for name in names]:
            plain.reap(child, "ADD", name)
    figures += compare(f"the same with {TAKEN} addresses taken", ours, peer, pods)
    figures.append(Figure(f"daemon: RSS with {TAKEN} leases", "", f"{daemon.memory():.1f} MiB", None))
    node.drop_pods(pods)
    daemon.stop()
    return figures


def compare(what: str, ours: node.Caller, peer: node.Caller, pods: list[str]) -> list[Figure]:
    """The differences, pair by pair."""
    seen = pairwise(ours, peer, pods)
    more = [a - b for a, b in zip(seen["ours ADD"], seen["peer ADD"], strict=True)][5:]
    return [
        Figure(what, "<= 0.3 ms", spread(more), statistics.median(more) <= 0.3),
        Figure("- spiderpool", "", spread(seen["ours ADD"][5:]), None),
        Figure("- host-local", "", spread(seen["peer ADD"][5:]), None),
    ]


def shared_write() -> list[Figure]:
    """200 leases by 20 threads, durable, without the rest of an ADD."""

    with tempfile.TemporaryDirectory() as directory:
        journal = Journal(str(Path(directory) / "pools.db"), lambda *_, **__: None)

        def work(number: int) -> None:
            for turn in range(10):
                value = FIRST + number * 10 + turn
                journal.put([Lease(Address(4, value), "a", HELD, container_id=str(value))])

        walls = [timed(lambda: in_threads(work, 20)) for _ in range(11)]
        journal.close()
    return [Figure("200 leases written at 20 parallel (disk alone)", "", spread(walls), None)]


def in_threads(work: Callable[[int], None], count: int) -> None:
    """Run and wait."""
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()


def timed(work: Callable[[], None]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def measure(rounds: int) -> list[Figure]:
    """All of them; the caller is in the bench's node already."""
    say("address pools")
    return [*in_memory(), *shared_write(), *simulated.measure(), *through_the_shim(rounds)]


def main() -> None:
    """These figures alone."""
    node.alone("bench.pools", __doc__, lambda rounds: report(measure(rounds)))


if __name__ == "__main__":
    main()
