"""Nodes with the real allocator against an API that is slow, refuses, loses answers and goes away, in virtual time."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tests.ipam.pools.block_memory import Truth
from tests.ipam.pools.virtual_time import VirtualTime

from underlay.cni.address import Address, text
from underlay.ipam.pools.block import Block, StoreRefuses, StoreUnreachable
from underlay.ipam.pools.journal import Journal
from underlay.ipam.pools.lease import HELD, KEPT, Lease
from underlay.ipam.pools.leases import Leases
from underlay.ipam.pools.objects import Pool, parse_object
from underlay.ipam.pools.owned import OwnedBlocks
from underlay.ipam.pools.ownership import Ownership
from underlay.ipam.pools.surroundings import Catalogue
from underlay.ipam.pools.upkeep import Upkeep

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from tests.ipam.pools.virtual_time import Task

    from underlay.ipam.pools.block import Key


class Killed(BaseException):
    """The process has ended: whatever its threads wait for, they do not go on."""


@dataclass
class Weather:
    """What befalls requests: seconds and probabilities."""

    latency: float = 0.010
    watch: float = 0.005
    lost: float = 0.0  # it is carried out, and no answer comes
    dropped: float = 0.0  # it never arrives
    late: float = 0.0  # no answer comes, and it is carried out a second later
    away: bool = False
    refuses: bool = False  # to write; it answers, and may be read


class Api:
    """The one that all nodes share."""

    def __init__(self, time: VirtualTime, seed: int) -> None:
        self.time = time
        self.truth = Truth()
        self.weather = Weather()
        self.cut_off: set[str] = set()  # nodes that cannot reach it
        self.chance = random.Random(seed)


class SlowStore:
    """One process's way to it; ``alive`` until the process is killed."""

    def __init__(self, api: Api, node: str) -> None:
        self._api = api
        self._node = node
        self._known: dict[Key, Block] = {}
        self._told: list[Callable[[Block], None]] = []
        self._watching = False
        self.alive = True
        self._watch()

    def ready(self) -> bool:
        return self._watching

    def known(self) -> Iterable[Block]:
        return list(self._known.values())

    def follow(self, changed: Callable[[Block], None]) -> None:
        self._told.append(changed)

    def read(self, key: Key, deadline: float) -> Block:
        return self._request(lambda: self._api.truth.get(key))

    def swap(self, before: Block, after: Block, deadline: float) -> Block:
        if self._api.weather.refuses:
            raise StoreRefuses("forbidden")
        return self._request(lambda: self._api.truth.swap(before, after))

    def report(self, key: Key, leases: Mapping[int, Lease | None], deadline: float) -> None:
        self._request(lambda: self._api.truth.report(key, leases))

    def _request(self, act: Callable[[], Any]) -> Any:
        time, weather, chance = self._api.time, self._api.weather, self._api.chance
        if self._is_away():
            self._sleep(0.001)
            raise StoreUnreachable("connection refused")
        self._sleep(weather.latency / 2)
        fate = chance.random()
        if fate < weather.dropped:
            self._sleep(weather.latency)
            raise StoreUnreachable("no answer")
        if fate < weather.dropped + weather.late:
            time.at(time.now + 1.0, lambda: _anyway(act))
            self._sleep(weather.latency)
            raise StoreUnreachable("no answer")
        error: Exception | None = None
        answer = None
        try:
            answer = act()
        except Exception as refused:
            error = refused
        self._sleep(weather.latency / 2)
        if fate < weather.dropped + weather.late + weather.lost:
            raise StoreUnreachable("the answer was lost")
        if error is not None:
            raise error
        return answer

    def _is_away(self) -> bool:
        return self._api.weather.away or self._node in self._api.cut_off

    def _sleep(self, seconds: float) -> None:
        self._api.time.sleep(seconds)
        if not self.alive:
            raise Killed

    def _watch(self) -> None:
        """List, and be told of everything since; while the API is away it comes later, and in its order."""
        time = self._api.time
        queue: list[Block] = []

        def deliver() -> None:
            if not self.alive:
                return
            if self._is_away():
                time.at(time.now + 0.1, deliver)
                return
            if not self._watching:
                self._known = dict(self._api.truth.blocks)
                listed = list(self._known.values())
                queue.clear()
                self._watching = True
            else:
                listed = queue[:]
                queue.clear()
            for block in listed:
                if block.version:
                    self._known[block.key] = block
                else:
                    self._known.pop(block.key, None)
                for tell in self._told:
                    tell(block)

        def changed(block: Block) -> None:
            if not queue:
                time.at(time.now + self._api.weather.watch, deliver)
            queue.append(block)

        self._api.truth.watches.append(changed)
        time.at(time.now + self._api.weather.watch, deliver)


def _anyway(act: Callable[[], Any]) -> None:
    with contextlib.suppress(Exception):  # nobody hears of it
        act()


class SimNode:
    """One node: a file that outlives its processes, and a process."""

    def __init__(self, name: str, world: World, catalogue: Catalogue) -> None:
        self.name = name
        self.world = world
        self.lines: list[tuple[str, str, dict[str, Any]]] = []
        self.told: list[tuple[str, str]] = []  # pods and reasons
        self.journal = Journal(":memory:", self.log)
        self.boot = 1
        self.lent = 0
        self._catalogue = catalogue
        self.start()

    def log(self, level: str, event: str, **fields: Any) -> None:
        self.lines.append((level, event, fields))

    def tell(self, pod: str, _uid: str, reason: str, _message: str, /) -> None:
        self.told.append((pod, reason))

    def start(self, patience: float = 1.0) -> None:
        """The next process. It goes on with what the file says where the API does not answer within ``patience``."""
        time = self.world.time
        self.store = store = SlowStore(self.world.api, self.name)
        self.ownership = Ownership(
            store, self.journal, self.name, log=self.log, boot=f"boot-{self.boot}", monotonic=time.monotonic,
            condition=lambda: _Mortal(time, store),
        )  # fmt: skip
        self.blocks = OwnedBlocks(self.ownership, realtime_ns=time.realtime_ns, blocking=self.lend)
        self.leases = Leases(self.journal, self.blocks, monotonic=time.monotonic, realtime_ns=time.realtime_ns)
        self.leases.follow(self._catalogue)
        self.ownership.begin(self.leases, time.now + patience)
        self.upkeep = Upkeep(
            self.ownership, self.blocks, self.leases, log=self.log, tell=self.tell, realtime_ns=time.realtime_ns
        )  # fmt: skip
        self.background: Task = time.start(lambda: _mortal(lambda: self.upkeep.run(lambda: not store.alive)))

    @contextlib.contextmanager
    def lend(self) -> Iterator[None]:
        """An ADD lends its place while it waits."""
        self.lent += 1
        try:
            yield
        finally:
            self.lent -= 1

    def kill(self) -> None:
        """As kill -9 does."""
        self.store.alive = False
        self.ownership.changed.notify_all()
        self.world.time.sleep(0.0)

    def follow(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self.leases.follow(catalogue)

    def add(self, container: str, pools: Sequence[str] = ("a",), keeper: str = "", seconds: float = 30.0) -> Lease:
        """One NIC's address."""
        time = self.world.time
        who = Lease(Address(0, 0), "", HELD, container, container, "eth0", f"default/{container}", keeper, "net",
                    f"boot-{self.boot}", time.realtime_ns())  # fmt: skip
        among = [self._catalogue.pools[name] for name in pools]
        lease = self.leases.take(among, who, time.now + seconds)
        self.leases.confirm([lease])
        self.world.live(self, lease)
        return lease

    def delete(self, container: str) -> list[Lease]:
        self.world.dead(self, container)
        return self.leases.release(container, "eth0")


class World:
    """Nodes on one API, and who may use which address: the judge."""

    def __init__(self, seed: int = 1, **pools: Sequence[str]) -> None:
        self.time = VirtualTime()
        self.api = Api(self.time, seed)
        self.users: dict[Address, tuple[str, str]] = {}
        self._held: dict[tuple[str, str], set[Address]] = {}
        self.nodes: dict[str, SimNode] = {}
        self.catalogue = Catalogue({name: pool(name, ips) for name, ips in pools.items()})

    def node(self, name: str) -> SimNode:
        if name not in self.nodes:
            self.nodes[name] = SimNode(name, self, self.catalogue)
        return self.nodes[name]

    def define(self, name: str, ips: Sequence[str] | None) -> None:
        """Every node sees the pool as it is now; None: it has gone."""
        pools = {key: one for key, one in self.catalogue.pools.items() if key != name}
        self.catalogue = Catalogue(pools if ips is None else {**pools, name: pool(name, ips)})
        for node in self.nodes.values():
            node.follow(self.catalogue)

    def live(self, node: SimNode, lease: Lease) -> None:
        user = self.users.setdefault(lease.address, (node.name, lease.container_id))
        assert user == (node.name, lease.container_id), f"{lease.shown}: {user} has it, and {node.name} gave it away"
        self._held.setdefault(user, set()).add(lease.address)

    def dead(self, node: SimNode, container: str) -> None:
        for address in self._held.pop((node.name, container), ()):
            del self.users[address]

    def on_all(self, parallel: int, work: Mapping[str, Sequence[Callable[[], object]]]) -> float:
        """Do each node's work, ``parallel`` at a time on each; returns the seconds it took."""
        began = self.time.now
        tasks = []
        for jobs in work.values():
            queue = list(reversed(jobs))

            def drain(queue: list[Callable[[], object]] = queue) -> None:
                while queue:
                    queue.pop()()

            tasks += [self.time.start(drain) for _ in range(min(parallel, len(jobs)))]
        self.time.join(*tasks)
        return self.time.now - began

    def owners(self) -> dict[Address, str]:
        """What the API says."""
        blocks = self.api.truth.blocks.values()
        return {Address(block.key.family, at): owner for block in blocks for at, owner in block.owned.items()}

    def evict(self, name: str) -> None:
        """What the controller does once a node is down: its addresses are nobody's, what was kept is kept."""
        for block in list(self.api.truth.blocks.values()):
            gone = block.of(name)
            if gone:
                owned = {at: owner for at, owner in block.owned.items() if at not in gone}
                wanted = {at: want for at, want in block.wanted.items() if at not in gone}
                resting = {**block.resting, **dict.fromkeys(gone, self.time.realtime_ns())}
                leases = {
                    at: one._replace(state=KEPT, uid="", container_id="", boot="") if at in gone else one
                    for at, one in block.leases.items() if at not in gone or one.keeper
                }  # fmt: skip
                after = replace(block, revision=block.revision + 1, owned=owned, wanted=wanted, resting=resting,
                                leases=leases)  # fmt: skip
                self.api.truth.swap(block, after)

    def sweep(self) -> None:
        """What the controller does with blocks that nothing is in."""
        for block in list(self.api.truth.blocks.values()):
            if not (block.owned or block.wanted or block.leases):
                self.api.truth.remove(block.key)

    def check(self, but: Collection[str] = ()) -> None:
        """Each address that a node would hand out or has handed out is owned by it alone, as the API says; ``but`` for
        nodes that cannot know.
        """
        owners = self.owners()
        for node in (one for one in self.nodes.values() if one.store.alive and one.name not in but):
            for key, share in node.ownership.shares().items():
                for value in share.owned:
                    address = Address(key.family, value)
                    assert owners.get(address) == node.name, f"{text(*address)}: {node.name}, API {owners.get(address)}"

    def drained(self) -> bool:
        """Nobody holds anything, nobody owns anything."""
        held = [lease for node in self.nodes.values() for lease in node.leases.taken()]
        return not held and not self.users and not self.owners()

    def stop(self) -> None:
        for node in self.nodes.values():
            node.kill()
            node.journal.close()


class _Mortal:
    """A condition whose waiters end with the process."""

    def __init__(self, time: VirtualTime, store: SlowStore) -> None:
        self._inner = time.condition()
        self._store = store

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *_: Any) -> None:
        pass

    def wait(self, timeout: float | None = None) -> bool:
        woken = self._inner.wait(timeout)
        if not self._store.alive:
            raise Killed
        return woken

    def notify_all(self) -> None:
        self._inner.notify_all()


def _mortal(run: Callable[[], None]) -> None:
    with contextlib.suppress(Killed):
        run()


def pool(name: str, ips: Sequence[str]) -> Pool:
    subnet = "10.0.0.0/8" if ":" not in ips[0] else "fd00::/32"
    made = parse_object({"kind": "SpiderIPPool", "metadata": {"name": name}, "spec": {"subnet": subnet, "ips": [*ips]}})
    assert isinstance(made, Pool)
    return made


@contextlib.contextmanager
def world(seed: int = 1, **pools: Sequence[str]) -> Iterator[World]:
    made = World(seed, **pools)
    try:
        yield made
    finally:
        made.stop()
