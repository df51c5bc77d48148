"""A node's ownership with real threads and a real file."""

from __future__ import annotations

import sqlite3
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.ipam.pools.block_memory import MemoryStore, Truth
from tests.ipam.pools.simulation import pool

from underlay.cni.address import Address
from underlay.errors import NoAddressLeft, StateUnwritable, TryAgain
from underlay.ipam.pools import intervals
from underlay.ipam.pools.block import Block, Key, StoreUnreachable
from underlay.ipam.pools.journal import COLUMNS, Journal
from underlay.ipam.pools.lease import HELD, Lease, row
from underlay.ipam.pools.leases import Leases
from underlay.ipam.pools.owned import GATHER_SECONDS, OwnedBlocks
from underlay.ipam.pools.ownership import Ownership
from underlay.ipam.pools.surroundings import Catalogue
from underlay.ipam.pools.upkeep import Upkeep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BASE = 10 << 24


class Daemon:
    """One process's pools."""

    def __init__(self, name: str, truth: Truth, path: Path, *ips: str) -> None:
        self.lines: list[tuple[Any, ...]] = []
        self.catalogue = Catalogue({"a": pool("a", ips or ["10.0.0.1-10.0.0.120"])})
        self.journal = Journal(str(path / f"{name}.db"), self.log)
        self.ownership = Ownership(MemoryStore(truth), self.journal, name, log=self.log, boot="b")
        self.blocks = OwnedBlocks(self.ownership)
        self.leases = Leases(self.journal, self.blocks)
        self.leases.follow(self.catalogue)
        assert self.ownership.begin(self.leases, time.monotonic() + 5)
        self.upkeep = Upkeep(self.ownership, self.blocks, self.leases, log=self.log)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self.upkeep.run, args=(self._stopping.is_set,))
        self._thread.start()

    def log(self, *line: Any, **fields: Any) -> None:
        self.lines.append((*line, fields))

    def add(self, container: str) -> Lease:
        while True:
            try:
                who = Lease(Address(0, 0), "", HELD, "u", container, "eth0", f"default/{container}", since=1)
                lease = self.leases.take([self.catalogue.pools["a"]], who, time.monotonic() + 20)
            except TryAgain:
                time.sleep(0.05)
            else:
                self.leases.confirm([lease])
                return lease

    def stop(self) -> None:
        self._stopping.set()
        with self.ownership.changed:
            self.ownership.changed.notify_all()
        self._thread.join(10)
        assert not self._thread.is_alive()
        self.journal.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    truth, made = Truth(), list[Daemon]()

    def make(name: str, *ips: str) -> Daemon:
        made.append(Daemon(name, truth, tmp_path, *ips))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def test_threads_of_three_nodes_share_a_pool_to_its_last_address(start: Callable[..., Daemon]) -> None:
    nodes = [start(f"n{n}") for n in range(3)]
    got: list[Lease] = []

    def work(node: Daemon, first: int) -> None:
        for n in range(first, first + 4):
            got.append(node.add(f"c{n}"))  # noqa: PERF401 - threads share it

    threads = [
        threading.Thread(target=work, args=(node, 100 * n + 4 * k)) for n, node in enumerate(nodes) for k in range(10)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(got) == len({lease.address for lease in got}) == 120
    with pytest.raises(NoAddressLeft):
        nodes[0].add("one-too-many")


def test_adds_that_wait_share_one_request(start: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch) -> None:
    node = start("one")
    swap, requests = MemoryStore.swap, list[int]()

    def slow(self: MemoryStore, *args: Any) -> Any:
        requests.append(1)
        time.sleep(0.05)
        return swap(self, *args)

    monkeypatch.setattr(MemoryStore, "swap", slow)
    threads = [threading.Thread(target=node.add, args=(f"c{n}",)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(node.leases.everything()) == 12
    assert len(requests) <= 2  # one for all, and perhaps the first of those in advance


def test_adds_that_wait_take_what_is_given_back_meanwhile(start: Callable[..., Daemon]) -> None:
    """Each in its turn, and sooner than any other node could have been asked."""
    node = start("one", "10.0.0.1-10.0.0.8")
    for n in range(8):
        node.add(f"c{n}")
    got: list[Lease] = []
    threads = [threading.Thread(target=lambda n=n: got.append(node.add(f"d{n}"))) for n in range(8)]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    began = time.monotonic()
    for n in range(8):
        assert node.leases.release(f"c{n}", "eth0")
    for thread in threads:
        thread.join(10)
    assert time.monotonic() - began < GATHER_SECONDS
    assert len({lease.address for lease in got}) == 8


def test_what_is_not_written_is_not_given_up(start: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch) -> None:
    node = start("one")
    lease = node.add("p")
    before = node.ownership.owned(4)

    def refuse(*_: Any) -> None:
        raise StateUnwritable("full")

    monkeypatch.setattr(node.journal, "put_share", refuse)
    key = next(iter(node.ownership.shares()))
    with pytest.raises(StateUnwritable):
        node.ownership.withhold(key, [lease.value + 1])
    assert node.ownership.owned(4) == before


def test_a_file_of_the_schema_before_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "one.db"
    held = Lease(Address(4, BASE + 7), "a", HELD, "u", "c", "eth0", "default/p", since=5)
    with sqlite3.connect(path) as db:
        types = ", ".join(f"{name} {'INTEGER' if name == 'since' else 'TEXT'}" for name in COLUMNS)
        db.execute(f"CREATE TABLE lease ({types}, PRIMARY KEY (address)) WITHOUT ROWID")
        db.execute(f"INSERT INTO lease VALUES ({', '.join('?' * len(COLUMNS))})", row(held))
        db.execute("PRAGMA user_version = 1")
    db.close()
    lines: list[Any] = []
    journal = Journal(str(path), lambda *line, **fields: lines.append(line))
    assert journal.leases() == [held]
    journal.put_share("10.0.0.0", 0b10000000, 3, "b")
    assert journal.shares() == [("10.0.0.0", 128, 3, "b")]
    assert lines == []
    journal.close()


def test_what_pods_hold_when_a_node_joins_a_cluster_becomes_its_own(
    start: Callable[..., Daemon], tmp_path: Path
) -> None:
    journal = Journal(str(tmp_path / "one.db"), lambda *line, **fields: None)
    held = Lease(Address(4, BASE + 7), "a", HELD, "u", "c", "eth0", "default/p", since=5)
    journal.put([held])
    journal.close()
    node = start("one")
    limit = time.monotonic() + 10
    while not intervals.holds(node.ownership.owned(4), held.value):
        assert time.monotonic() < limit
        time.sleep(0.01)


@pytest.mark.parametrize(("seconds", "away"), [(0.01, False), (0.0, False), (30.0, True)])
def test_an_add_without_time_says_nothing_of_the_api_to_others(seconds: float, away: bool, tmp_path: Path) -> None:
    now = [100.0]

    class Hanging(MemoryStore):
        def swap(self, before: Block, after: Block, deadline: float) -> Block:
            now[0] = deadline
            raise StoreUnreachable("timed out")

    journal = Journal(str(tmp_path / "one.db"), lambda *line, **fields: None)
    own = Ownership(Hanging(Truth()), journal, "one", log=lambda *line, **fields: None, monotonic=lambda: now[0])
    block = Block(Key(4, BASE))
    with pytest.raises(StoreUnreachable, match="timed out"), own.turn(now[0] + seconds):
        own.swap(block, block, now[0] + seconds)
    assert (own.away_until > now[0]) is away
    journal.close()
