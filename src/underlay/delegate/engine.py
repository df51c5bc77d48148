"""Attach a sandbox to networks, and take it off again; nothing half-made stays.

    with engine.session(sandbox, Origin("multus", "multus-net", "eth0"), deadline, report) as session:
        eth0 = session.add(Attachment(network="overlay", conf=b'{…}', ifname="eth0"))     ledger, then kernel
        net1 = session.add(Attachment(network="kube-system/macvlan", conf=b'{…}', ifname="net1"))
        session.settle()                                                                  default routes
        …                                                                                 an exception: both are undone
    # here both rows of the ledger are "added"

A session belongs to one thread. Sessions of one origin and container exclude each other.
``log(level, event, **fields)`` writes one structured line; level is "debug", "info", "warn" or "error".
"""

from __future__ import annotations

import time
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Final

from underlay.cni.config import parse_network
from underlay.cni.request import parse_args
from underlay.delegate import direct
from underlay.delegate.attachment import Attachment, Origin, Recorded, Sandbox, Timing
from underlay.delegate.chain import Chain
from underlay.delegate.changing import Change
from underlay.delegate.claims import Claims
from underlay.delegate.held import Held
from underlay.delegate.ipam import Dispatch
from underlay.delegate.locks import KeyedLocks
from underlay.delegate.report import Report
from underlay.delegate.rows import attachment_of, keep_nothing, mtu_of, result_of, saved_call
from underlay.delegate.session import Session
from underlay.errors import TryAgain, UnderlayError
from underlay.net.netns import Namespace
from underlay.net.undo import UndoLog
from underlay.plugins.context import Context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from underlay.cni.config import NetworkConfig
    from underlay.cni.request import Request
    from underlay.cni.result import Result
    from underlay.delegate.exec import Executor
    from underlay.delegate.ledger import Ledger, Row
    from underlay.ipam.allocator import Allocator
    from underlay.net.remembered import Memory
    from underlay.plugins.context import Plugin

__all__ = ["Attachment", "Engine", "Origin", "Recorded", "Report", "Sandbox", "Session", "Timing"]

_PARSED: Final = 256  # networks kept parsed; a node has tens
_HOSTS: Final = 64  # idle sockets into the node's namespace


class Engine:
    """Sessions, and the verbs that concern no single sandbox. One for the daemon's whole life; thread-safe.

    ``plugins`` and ``allocators`` are the built-in ones by name; an IPAM plugin is in both. ``blocking`` lends
    the caller's place in its thread pool while it waits for another call of the same sandbox. ``memory`` is of the
    node's namespace, and closed with the engine.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        executor: Executor,
        plugins: Mapping[str, Plugin],
        allocators: Mapping[str, Allocator],
        log: Callable[..., None],
        blocking: Callable[[], AbstractContextManager[None]] = nullcontext,
        memory: Memory | None = None,
    ) -> None:
        self.ledger = ledger
        self.executor = executor
        self.allocators = allocators
        self.plugins = plugins
        self.log = log
        self.boot_id = boot_id()
        self.blocking = blocking
        self._locks = KeyedLocks()
        self._devices = KeyedLocks()
        self._parsed: dict[tuple[bytes, str], NetworkConfig] = {}
        self._hosts: list[Namespace] = []
        self._memory = memory

    def session(self, sandbox: Sandbox, origin: Origin, deadline: float, report: Report | None = None) -> Session:
        """To be entered with ``with``: opens both namespaces and takes the origin's lock (TryAgain when it is not free
        by the deadline). A ``netns`` that cannot be opened is a fault of ``add`` and ``check``, not of ``delete``.
        """
        return Session(self, sandbox, origin, deadline, report or Report())

    def change(self, sandbox: Sandbox, origin: Origin, deadline: float, report: Report | None = None) -> Change:
        """A session that changes what a container is attached to already; to be entered with ``with``."""
        return Change(self, sandbox, origin, deadline, report or Report())

    def changeable(self, owner: str) -> Iterator[tuple[Sandbox, Origin]]:
        """The containers whose attachments by ``owner`` are whole and may be changed (``Origin.conf``)."""
        for rows in by_origin([row for row in self.ledger.rows() if row.owner == owner and row.boot == self.boot_id]):
            first, saved = rows[0], saved_call(rows[0])
            if saved.asked and all(row.state == "added" for row in rows):
                yield (
                    Sandbox(
                        first.container_id, first.netns, saved.args_text, parse_args(saved.args_text, tolerant=True),
                        saved.path, first.pod_namespace, first.pod_name, first.pod_uid,
                    ),
                    Origin(owner, first.origin_network, first.origin_ifname, saved.asked),
                )  # fmt: skip

    def whole(self, container_id: str, origin: Origin) -> list[tuple[Attachment, Result, int]]:
        """What a container is attached to by the ledger, oldest first, with the results, and the MTUs of NICs that
        built-in plugins have put there, else 0.
        """
        rows = [row for row in self.ledger.find(container_id, origin) if row.state == "added"]
        return [(attachment_of(row), result, mtu_of(row)) for row in rows if (result := result_of(row)) is not None]

    def parse(self, attachment: Attachment) -> NetworkConfig:
        """The attachment's configuration, parsed once for as long as it is in use. Raises InvalidConfig and its kin."""
        key = (attachment.conf, attachment.name)
        network = self._parsed.get(key)
        if network is None:
            network = parse_network(attachment.conf, name=attachment.name)
            if len(self._parsed) >= _PARSED:
                with suppress(KeyError, StopIteration, RuntimeError):  # another thread was first
                    del self._parsed[next(iter(self._parsed))]
            self._parsed[key] = network
        return network

    def pod_elsewhere(self, namespace: str, name: str, container_id: str) -> bool:
        """Whether a pod of that name has attachments by multus in another container."""
        return bool(self.ledger.containers("multus", namespace, name) - {container_id})

    def run(self, request: Request, deadline: float, report: Report | None = None) -> Result | None:
        """A direct call of one built-in plugin, any verb but VERSION; ADD returns the result. See :mod:`direct`."""
        return direct.run(self, request, deadline, report or Report())

    def delete_spooled(self, request: Request, spooled_at: int, deadline: float, report: Report | None = None) -> None:
        """A direct DEL that was accepted at ``spooled_at`` (realtime ns): leaves alone what was attached later.

        What cannot be undone now stays in the ledger in state deleting, for the reclaim loop.
        """
        direct.delete(self, request, deadline, report or Report(), before=spooled_at)

    def status(self, networks: Sequence[Attachment], sandbox: Sandbox, deadline: float) -> None:
        """STATUS of every plugin of ``networks``: raises the first NotAvailable or LimitedConnectivity."""
        for attachment in networks:
            self.status_of(attachment, self.parse(attachment), sandbox, deadline)

    def status_of(self, attachment: Attachment, network: NetworkConfig, sandbox: Sandbox, deadline: float) -> None:
        """STATUS of one parsed network."""
        with self.host() as host:
            context = self.context(sandbox, host, None, UndoLog(keep_nothing), deadline)
            self.chain(attachment, network, sandbox, []).status(context)

    def gc(
        self, origin: Origin, keep: frozenset[tuple[str, str]], networks: Sequence[Attachment], sandbox: Sandbox,
        deadline: float, report: Report | None = None,
    ) -> list[UnderlayError]:  # fmt: skip
        """Undo whatever the ledger holds of ``origin``'s owner and network and ``keep`` (container id, CNI_IFNAME)
        does not list, then GC of every plugin of ``networks``. ``sandbox`` gives ``path`` only. Returns the faults.
        """
        report = report or Report()
        errors = self.collect(origin, keep, deadline, report)
        for attachment in networks:
            try:
                network = self.parse(attachment)
            except UnderlayError as error:
                errors.append(error)
                continue
            errors += self.gc_of(attachment, network, keep, sandbox, deadline, report)
        return errors

    def collect(
        self, origin: Origin, keep: frozenset[tuple[str, str]], deadline: float, report: Report
    ) -> list[UnderlayError]:
        """The ledger's part of :meth:`gc`."""
        errors: list[UnderlayError] = []
        rows = [row for row in self.ledger.rows() if row.owner == origin.owner and row.origin_network == origin.network]
        for group in by_origin(rows):
            # adding: a call that is on its way is not on the runtime's list yet
            if (group[0].container_id, group[0].origin_ifname) not in keep and group[-1].state != "adding":
                errors += self.reclaim(group, deadline, report)
        return errors

    def gc_of(
        self, attachment: Attachment, network: NetworkConfig, keep: frozenset[tuple[str, str]], sandbox: Sandbox,
        deadline: float, report: Report,
    ) -> list[UnderlayError]:  # fmt: skip
        """GC of one parsed network's plugins; what the ledger holds is kept besides ``keep``."""
        held = Held(keep, self.ledger)
        with self.host() as host:
            context = self.context(sandbox, host, None, UndoLog(keep_nothing), deadline)
            return self.chain(attachment, network, sandbox, report.times).gc(context, held)

    def reclaim(
        self, rows: Sequence[Row], deadline: float, report: Report | None = None, *, netns: str | None = None,
        wait: bool = True, meant: Callable[[Row], bool] = bool,
    ) -> list[UnderlayError]:  # fmt: skip
        """Undo rows of one origin and container, given oldest first, as far as they are still in the ledger and
        ``meant`` says so when the origin's lock is held. ``wait`` False: nothing, where a call holds the lock.
        """
        first = rows[0]
        origin = Origin(first.owner, first.origin_network, first.origin_ifname)
        sandbox = Sandbox(first.container_id, first.netns if netns is None else netns)
        wanted = {row.id for row in rows}
        report = report or Report()
        if not wait and self._locks.taken((origin.owner, sandbox.container_id, origin.ifname)):
            return []
        try:
            with self.session(sandbox, origin, deadline, report) as session:
                found = self.ledger.find(first.container_id, origin)
                still = [row for row in found if row.id in wanted and meant(row)]
                report.networks += [row.network for row in still]
                return session.take_back_rows(still)
        except UnderlayError as error:
            return [error]

    def in_use(self, origin: Origin) -> tuple[list[Attachment], set[str]]:
        """What the ledger holds of ``origin``'s owner and network: each attached network once, under the NIC name it
        was first seen with, and the containers.
        """
        rows = [row for row in self.ledger.rows() if row.owner == origin.owner and row.origin_network == origin.network]
        networks: dict[tuple[bytes, str], Attachment] = {}
        for row in rows:
            attachment = attachment_of(row)
            networks.setdefault((attachment.conf, attachment.name), attachment)
        return list(networks.values()), {row.container_id for row in rows}

    # -- for sessions ------------------------------------------------------------------------------------------------

    def lock(self, container_id: str, origin: Origin, deadline: float) -> None:
        """Exclude other sessions of the same owner, container and CNI_IFNAME. Raises TryAgain at the deadline."""
        key = (origin.owner, container_id, origin.ifname)
        if self._locks.acquire(key, 0):
            return
        with self.blocking():
            if self._locks.acquire(key, deadline - time.monotonic()):
                return
        raise TryAgain(f"another call for {origin.ifname!r} of container {container_id} has not ended yet")

    def unlock(self, container_id: str, origin: Origin) -> None:
        """The end of :meth:`lock`."""
        self._locks.release((origin.owner, container_id, origin.ifname))

    def take_host(self) -> Namespace:
        """A socket into the node's namespace, for one thread at a time; to be given back by :meth:`give_host`."""
        try:
            return self._hosts.pop()
        except IndexError:
            host = Namespace.current()
            host.memory = self._memory
            return host

    def give_host(self, host: Namespace) -> None:
        """The end of :meth:`take_host`."""
        if len(self._hosts) < _HOSTS:
            self._hosts.append(host)
        else:
            host.close()

    @contextmanager
    def host(self) -> Iterator[Namespace]:
        """:meth:`take_host` and :meth:`give_host` around a block."""
        host = self.take_host()
        try:
            yield host
        finally:
            self.give_host(host)

    def context(
        self, sandbox: Sandbox, host: Namespace, pod: Namespace | None, undo: UndoLog, deadline: float,
        announcements: dict[int, tuple[str, Sequence[str]]] | None = None,
    ) -> Context:  # fmt: skip
        """The world as one attachment's plugins may touch it; ``announcements`` is theirs to fill."""
        dispatch = Dispatch(self.allocators, self.executor, sandbox=sandbox, undo=undo, deadline=deadline)
        claims = Claims(self.ledger, self._devices, self.boot_id, deadline=deadline, blocking=self.blocking)
        return Context(
            host=host, pod=pod, undo=undo, ipam=dispatch, devices=claims, deadline=deadline, log=self.log,
            announcements={} if announcements is None else announcements,
        )  # fmt: skip

    def close(self) -> None:
        """Close the idle sockets and the ledger."""
        while self._hosts:
            self._hosts.pop().close()
        if self._memory is not None:
            self._memory.close()
        self.ledger.close()

    def chain(self, attachment: Attachment, network: NetworkConfig, sandbox: Sandbox, times: list[Timing]) -> Chain:
        """The network's plugins for one NIC of one sandbox."""
        return Chain(network, attachment, sandbox=sandbox, plugins=self.plugins, executor=self.executor, times=times)


def boot_id() -> str:
    """The kernel's identity of this boot (Documentation/admin-guide/sysctl/kernel.rst, "random")."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def by_origin(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows of one owner, container and CNI_IFNAME together, oldest first."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.owner, row.container_id, row.origin_ifname), []).append(row)
    yield from groups.values()
