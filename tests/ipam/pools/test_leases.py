"""Leases against a model: pods, restarts, kills, a disk that refuses, pools that are edited, clocks that jump."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import threading
import time
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.ipam.pools.conftest import Node, stateful

from underlay.cni.address import Address
from underlay.errors import NoAddressLeft, PoolMissing, StateUnwritable
from underlay.ipam.pools.journal import Journal
from underlay.ipam.pools.lease import HELD, Lease
from underlay.state.database import Database

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator
    from pathlib import Path

PODS = st.sampled_from([f"db-{n}" for n in range(3)] + [f"web-{n}" for n in range(4)])
TOPS = st.integers(10, 16)


class Refusal:
    """A disk that refuses the next writes of a node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._write = node.journal._write

    def __enter__(self) -> None:
        def refuse(statements: list[Any]) -> None:
            if statements:
                raise StateUnwritable("full")

        self._node.journal._write = refuse  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        self._node.journal._write = self._write  # type: ignore[method-assign]


class Pods(RuleBasedStateMachine):
    """What every container was told is its own until it gives it back, whatever happens in between."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp()
        self.node = Node(f"{self.directory}/pools.db")
        self.node.world.define("a", subnet="10.1.0.0/16", ips=["10.1.0.10-10.1.0.13"], default=True)
        self.node.world.define("b", subnet="10.1.0.0/16", ips=["10.1.0.12-10.1.0.15"])
        for n in range(3):
            self.node.world.pod(f"db-{n}", stateful())
        self.held: dict[str, tuple[str, str]] = {}  # container: its pod and address
        self.containers = 0

    @rule(pod=PODS)
    def add(self, pod: str) -> None:
        self.containers += 1
        container = f"c{self.containers}"
        try:
            self.held[container] = pod, self.node.address(pod, container)
        except (NoAddressLeft, PoolMissing):
            assert container not in {lease.container_id for lease in self.node.leases.everything()}

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def add_again(self, data: st.DataObject) -> None:
        container = data.draw(st.sampled_from(sorted(self.held)))
        pod, address = self.held[container]
        if "a" in self.node.world.objects and "b" in self.node.world.objects:
            assert self.node.address(pod, container) == address

    @precondition(lambda self: self.held)
    @rule(data=st.data(), times=st.integers(1, 2))
    def delete(self, data: st.DataObject, times: int) -> None:
        container = data.draw(st.sampled_from(sorted(self.held)))
        for _ in range(times):
            self.node.delete(container)
        del self.held[container]

    @rule()
    def delete_a_stranger(self) -> None:
        self.node.delete("never-added")

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def delete_on_a_disk_that_refuses(self, data: st.DataObject) -> None:
        container = data.draw(st.sampled_from(sorted(self.held)))
        with Refusal(self.node), pytest.raises(StateUnwritable):
            self.node.delete(container)

    @rule(pod=PODS)
    def add_on_a_disk_that_refuses(self, pod: str) -> None:
        with Refusal(self.node), pytest.raises((StateUnwritable, NoAddressLeft, PoolMissing)):
            self.node.add(pod, "refused")

    @rule(pod=PODS)
    def die_before_the_lease_is_written(self, pod: str) -> None:
        """The answer was never given; the ledger's entry takes back what is there."""
        with Refusal(self.node), pytest.raises((StateUnwritable, NoAddressLeft, PoolMissing)):
            self.node.add(pod, "dead")
        self.node.restart()
        for entry in self.node.recorded[-1:]:
            if entry.container_id == "dead":
                self.node.plugin.release(entry, deadline=0.0)

    @rule(pod=PODS)
    def die_after_the_lease_is_written(self, pod: str) -> None:
        try:
            self.node.add(pod, "dead")
        except (NoAddressLeft, PoolMissing):
            return
        self.node.restart()
        self.node.plugin.release(self.node.recorded[-1], deadline=0.0)

    @rule()
    def restart(self) -> None:
        self.node.restart()

    @rule(pool=st.sampled_from("ab"), top=TOPS)
    def edit(self, pool: str, top: int) -> None:
        self.node.world.define(pool, subnet="10.1.0.0/16", ips=[f"10.1.0.10-10.1.0.{top}"], default=pool == "a")

    @rule(pool=st.sampled_from("ab"))
    def delete_a_pool(self, pool: str) -> None:
        if pool in self.node.world.objects:
            self.node.world.remove(pool)

    @rule(pod=st.sampled_from([f"db-{n}" for n in range(3)]), gone=st.booleans())
    def scale(self, pod: str, gone: bool) -> None:
        keeper = f"StatefulSet/default/{pod}"
        (self.node.world.gone.add if gone else self.node.world.gone.discard)(keeper)

    @rule(names=st.sampled_from([["a"], ["b"], ["b", "a"]]), pod=PODS)
    def annotate(self, names: list[str], pod: str) -> None:
        self.node.world.pod(pod, stateful() if pod.startswith("db") else None, ippool={"ipv4": names})

    @rule()
    def tidy(self) -> None:
        self.node.plugin.tidy()

    @rule(seconds=st.floats(0, 60), jump=st.floats(-1e6, 1e6))
    def wait(self, seconds: float, jump: float) -> None:
        self.node.clock.wait(seconds)
        self.node.clock.real += jump

    @invariant()
    def no_address_has_two_owners_and_none_is_lost(self) -> None:
        held = {lease.container_id: lease for lease in self.node.leases.everything() if lease.state == "held"}
        assert {name: lease.shown for name, lease in held.items()} == {
            name: address for name, (_, address) in self.held.items()
        }
        addresses = [lease.shown for lease in self.node.leases.everything()]
        assert len(addresses) == len(set(addresses))

    @invariant()
    def the_disk_says_the_same_as_memory(self) -> None:
        written = {one.shown: one for one in self.node.journal.leases() if one.state in ("held", "kept")}
        assert written == {one.shown: one for one in self.node.leases.everything()}

    def teardown(self) -> None:
        """Everything drains to free, and all of it is handed out again."""
        node = self.node
        for container in self.held:
            node.delete(container)
        node.world.gone |= {f"StatefulSet/default/db-{n}" for n in range(3)}
        node.plugin.tidy()
        assert node.states() == {}
        node.world.objects.clear()
        node.world.define("all", subnet="10.1.0.0/16", ips=["10.1.0.10-10.1.0.20"], default=True)
        assert len({node.address(f"last-{n}") for n in range(11)}) == 11
        node.journal.close()
        shutil.rmtree(self.directory)


TestPods = Pods.TestCase
TestPods.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


# -- the file ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def journal(tmp_path: Path, log: list[str]) -> Iterator[Journal]:
    made = Journal(str(tmp_path / "pools.db"), lambda level, event, **fields: log.append(event))
    yield made
    made.close()


@pytest.mark.parametrize("limit", range(1, 6))
@pytest.mark.parametrize("verb", ["add", "delete", "restart"])
def test_killed_after_any_write_an_address_is_held_or_free_and_its_entry_takes_it_back(
    tmp_path: Path, verb: str, limit: int
) -> None:
    """Each statement on the disk is one act; the process dies after the ``limit``-th."""
    path = str(tmp_path / "pools.db")
    node = Node(path)
    node.world.define("a", subnet="10.1.0.0/16", ips=["10.1.0.10-10.1.0.11"], default=True)
    node.world.pod("db-0", stateful())
    node.add("db-0", "kept-before")
    node.delete("kept-before")
    if verb == "delete":
        node.add("db-0")
    node.journal.close()
    child = os.fork()
    if not child:
        try:
            _lay_fuse(limit)
            mine = Node(path, node.world)
            if verb == "add":
                mine.add("db-0")
            elif verb == "delete":
                mine.delete("db-0")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    after = Node(path, node.world)
    assert after.states() in ({"10.1.0.10": "held"}, {"10.1.0.10": "kept"})
    after.delete("db-0")
    assert after.states() == {"10.1.0.10": "kept"}
    assert after.address("db-0", "next") == "10.1.0.10"
    after.journal.close()


def _lay_fuse(limit: int) -> None:
    writing, burnt = Database.writing, 0

    class Fused:
        def __init__(self, db: sqlite3.Connection) -> None:
            self._db = db

        def __getattr__(self, name: str) -> Any:
            return getattr(self._db, name)

        def execute(self, *args: Any) -> Any:
            nonlocal burnt
            done = self._db.execute(*args)
            burnt += 1
            if burnt == limit:
                os.kill(os.getpid(), signal.SIGKILL)
            return done

    @contextlib.contextmanager
    def fused(self: Database) -> Iterator[Any]:
        with writing(self) as db:
            yield Fused(db)

    Database.writing = fused  # type: ignore[method-assign,assignment]


@pytest.mark.parametrize("damage", ["garbage", "half", "header"])
def test_a_damaged_file_is_moved_aside_and_the_daemon_goes_on(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "pools.db"
    node = Node(str(path))
    node.world.define("a", subnet="10.1.0.0/16", ips=["10.1.1.0-10.1.4.255"], default=True)
    for n in range(300):
        node.add(f"p{n}")
    node.journal.close()
    content = path.read_bytes()
    path.write_bytes({
        "garbage": b"this is no database " * 100,
        "half": content[: len(content) // 2],
        "header": b"x" * 100 + content[100:],
    }[damage])  # fmt: skip
    node.start()
    kept = len(node.leases.everything())
    assert kept >= (20 if damage == "half" else 0)
    assert list(tmp_path.glob("pools.db.broken-*"))
    assert any("pool ledger was malformed" in event for _, event, _ in node.lines)
    node.add("new")
    node.journal.close()


def test_leases_that_the_file_lost_are_restored_from_the_attachments(tmp_path: Path) -> None:
    node = Node(str(tmp_path / "pools.db"))
    node.world.define("a", subnet="10.1.0.0/16", ips=["10.1.0.10-10.1.0.12"], default=True)
    node.add("p")
    known = node.leases.everything()
    node.journal.close()
    (tmp_path / "pools.db").unlink()
    node.start()
    node.plugin.restore([lease._replace(pool="") for lease in known])
    assert [(lease.shown, lease.pool, lease.container_id) for lease in node.leases.everything()] == [
        ("10.1.0.10", "a", "p")
    ]
    assert node.address("q") == "10.1.0.11"
    node.restart()
    assert set(node.states()) == {"10.1.0.10", "10.1.0.11"}
    node.journal.close()


def test_what_is_restored_is_not_ended_before_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its end is on the disk before its beginning, and comes back at the next start."""
    node = Node(str(tmp_path / "pools.db"))
    node.world.define("a", subnet="10.1.0.0/16", ips=["10.1.0.10-10.1.0.12"], default=True)
    node.add("p")
    known = node.leases.everything()
    node.delete("p")
    node.journal.forget_rested(1 << 62)
    node.restart()
    put = node.journal.put

    def another_thread_meanwhile(leases: Iterable[Lease]) -> None:
        monkeypatch.setattr(node.journal, "put", put)
        node.leases.drop(node.leases.everything())
        put(leases)

    monkeypatch.setattr(node.journal, "put", another_thread_meanwhile)
    assert node.leases.restore(known) == known
    before = node.states()
    node.restart()
    assert node.states() == before
    node.journal.close()


def test_a_thread_that_is_slow_does_not_go_back_to_the_pools_it_has_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(str(tmp_path / "pools.db"))
    node.world.define("a", subnet="10.1.0.0/16", ips=["10.1.0.10-10.1.0.12"], default=True)
    look, subject = node.world.catalogue, node.world.subject
    seen, go_on = threading.Event(), threading.Event()

    def slowly() -> Any:
        found = look()
        monkeypatch.setattr(node.world, "catalogue", look)
        seen.set()
        assert go_on.wait(30)
        return found

    monkeypatch.setattr(node.world, "catalogue", slowly)
    slow = threading.Thread(target=node.plugin.follow)
    slow.start()
    assert seen.wait(30)
    node.world.define("b", subnet="10.2.0.0/16", ips=["10.2.0.10-10.2.0.12"])

    def overtaken(*asked: Any) -> Any:
        go_on.set()
        slow.join()
        return subject(*asked)

    monkeypatch.setattr(node.world, "subject", overtaken)
    assert node.address("p", default_ipv4_ippool=["b"]) == "10.2.0.10"
    node.journal.close()


def test_threads_that_write_at_once_share_a_transaction(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    commits: list[int] = []
    commit = journal._commit

    def slow(statements: list[Any]) -> str:
        commits.append(len(statements))
        time.sleep(0.02)  # a disk: meanwhile the others gather
        return commit(statements)

    monkeypatch.setattr(journal, "_commit", slow)
    threads = [
        threading.Thread(target=journal.put_cut, args=((f"n{n}", "s", 4, "app", "", 1, True, True),)) for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(commits) == len(journal.cuts()) == 20
    assert len(commits) <= 4


def test_every_one_of_a_shared_write_hears_of_its_failure(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_commit", lambda statements: time.sleep(0.01) or "the disk is full")
    heard: list[str] = []

    def write(n: int) -> None:
        try:
            journal.forget_cut(str(n))
        except StateUnwritable as error:
            heard.append(error.message)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == ["the disk is full"] * 5


def test_what_has_rested_is_forgotten_on_the_disk(tmp_path: Path) -> None:
    node = Node(str(tmp_path / "pools.db"))
    node.world.define("a", subnet="10.1.0.0/16", ips=["10.1.0.10-10.1.0.12"], default=True)
    node.add("p")
    node.delete("p")
    node.plugin.tidy()
    assert len(node.journal.leases()) == 1
    node.clock.wait(31)
    node.plugin.tidy()
    assert node.journal.leases() == []
    node.journal.close()


def test_an_address_that_is_on_its_way_to_a_pod_is_released_by_nobody(tmp_path: Path) -> None:
    node = Node(str(tmp_path / "pools.db"))
    node.world.define("a", subnet="10.1.0.0/16", ips=["10.1.0.10-10.1.0.12"], default=True)
    node.add("other")
    who = Lease(Address(4, 0), "", HELD, "u", "c1", "eth0", "default/p", "", "net")
    pending = node.leases.take([node.world.seen.pools["a"]], who, time.monotonic() + 10)
    found = node.leases.at(pending.address)
    assert found is not None
    assert node.leases.drop([found]) == []
    node.leases.confirm([pending])
    assert (pending.shown, node.address("q")) == ("10.1.0.11", "10.1.0.12")
    with pytest.raises(NoAddressLeft):
        node.add("r")
    node.journal.close()


def test_an_address_that_is_being_given_back_is_given_back_once(tmp_path: Path) -> None:
    node = Node(str(tmp_path / "pools.db"))
    node.world.define("a", subnet="10.1.0.0/16", ips=["10.1.0.10-10.1.0.12"], default=True)
    node.add("p")
    (lease,) = node.leases.everything()
    put, also = node.journal.put, []

    def while_it_is_written(leases: Iterable[Lease]) -> None:
        found = node.leases.at(lease.address)
        node.journal.put = put  # type: ignore[method-assign]
        put(leases)
        also.append(node.leases.drop([found] if found else []))

    node.journal.put = while_it_is_written  # type: ignore[method-assign]
    node.delete("p")
    assert also == [[]]
    assert node.states() == {}
    node.journal.close()
