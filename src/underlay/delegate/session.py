"""The work on one sandbox: attach, check, take off. See :mod:`engine` for the picture."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, Self

from underlay.delegate import default_route, entries, wire
from underlay.delegate.attachment import Attachment, Recorded, Timing
from underlay.delegate.entries import Moved, SavedCall
from underlay.delegate.ledger import Row, signed
from underlay.delegate.made import Made
from underlay.delegate.rows import attachment_of, encode, keep_nothing, result_of
from underlay.delegate.undoing import Leftover, Undone, take_back
from underlay.errors import (
    InterfaceExists,
    IOFailure,
    KernelError,
    NamespaceGone,
    StateUnwritable,
    UnderlayError,
    UnknownContainer,
)
from underlay.ipam.undo import Release
from underlay.net.netns import Namespace, ThreadLost
from underlay.net.undo import PutRoute, RestoreVf, UndoLog

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    import msgspec

    from underlay.cni.config import NetworkConfig
    from underlay.cni.result import Result
    from underlay.delegate.attachment import Origin, Sandbox
    from underlay.delegate.chain import Chain
    from underlay.delegate.engine import Engine
    from underlay.delegate.report import Report
    from underlay.plugins.context import Context

_ROLLBACK_SECONDS: Final = 5.0  # for executables' DEL after an ADD that took all of its time


class Session:
    """One call's work on one sandbox, by one thread, holding the origin's lock. Made by ``Engine.session``."""

    def __init__(self, engine: Engine, sandbox: Sandbox, origin: Origin, deadline: float, report: Report) -> None:
        self.report = report
        self._engine = engine
        self._sandbox = sandbox
        self._origin = origin
        self._deadline = deadline
        self._made: list[Made] = []
        self._announcements: dict[int, tuple[str, Sequence[str]]] = {}
        self._whole: set[tuple[str, str]] | None = None
        self._pod: Namespace | None = None
        self._pod_fault: UnderlayError | None = None

    def __enter__(self) -> Self:
        """Raises TryAgain when another call of this origin and container does not end by the deadline."""
        self._engine.lock(self._sandbox.container_id, self._origin, self._deadline)
        try:
            self._host = self._engine.take_host()
            self._open_pod()
        except BaseException:
            self._engine.unlock(self._sandbox.container_id, self._origin)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Without an exception: all attachments of this session become whole at once, or, when the ledger cannot
        take that, are undone (StateUnwritable). With one: they are undone.
        """
        try:
            if kind is None:
                self._commit()
                self._announce()
            elif not issubclass(kind, ThreadLost):  # that thread is in the wrong namespace: the reclaim loop does it
                self.rollback()
        finally:
            if self._pod is not None:
                self._pod.close()
            self._engine.give_host(self._host)
            self._engine.unlock(self._sandbox.container_id, self._origin)

    def add(self, attachment: Attachment) -> Result:
        """Attach one NIC and return its result.

        On a fault this attachment is undone and the fault raised; earlier ones are undone by leaving the session with
        an exception. Raises InterfaceExists where the ledger holds a whole one already, NamespaceGone,
        StateUnwritable before anything is touched, and whatever the plugins raise.
        """
        return self.add_network(attachment, self._engine.parse(attachment))

    def add_network(self, attachment: Attachment, network: NetworkConfig) -> Result:
        """:meth:`add` of a network parsed already."""
        self._require_pod(network)
        self._refuse_whole(attachment)
        self.report.networks.append(attachment.network)
        made = Made(0, attachment, UndoLog(lambda recorded: self._journal(made, recorded)))
        self._made.append(made)
        try:
            made.make_info_file(self._engine.executor.root)
            context = self._context(made.undo)
            made.result = self._chain(network, attachment).add(context, apart=bool(self._origin.conf))
            made.mtu = context.mtus.get(attachment.ifname, 0)
        except ThreadLost:
            raise
        except BaseException:
            self._made.remove(made)
            self._take_back([made])
            raise
        return made.result

    def settle(self) -> list[Result]:
        """To be called once after the last ``add``: NICs with ``default_gateways`` take the default routes over.

        Returns every attachment's result in the order of ``add``, less the default routes that are gone. A fault is
        raised; leaving the session with it undoes everything.
        """
        for mover in self._made:
            gateways = mover.attachment.default_gateways
            if not gateways or self._pod is None:
                continue
            if self._origin.conf:
                mover.undo.record(Moved())
            default_route.move(self._pod, mover.undo, ifname=mover.attachment.ifname, gateways=gateways)
            for made in self._made:
                made.result = default_route.without_default_routes(made.result, gateways)
        return [made.result for made in self._made]

    def mtus(self) -> dict[str, int]:
        """The MTU of each NIC that a built-in plugin has put into the sandbox in this session, by the NIC's name."""
        return {made.attachment.ifname: made.mtu for made in self._made if made.mtu}

    def recorded(self) -> list[Recorded]:
        """The attachments of this origin and container in the ledger, oldest first."""
        return [
            Recorded(row.network, row.ifname, result_of(row), row.created, row.pod_namespace, row.pod_name, row.pod_uid)
            for row in self._engine.ledger.find(self._sandbox.container_id, self._origin)
        ]

    def check(self) -> None:
        """CHECK every recorded attachment against its recorded result; UnknownContainer where there is none."""
        rows = self._engine.ledger.find(self._sandbox.container_id, self._origin)
        if not rows or any(row.state != "added" for row in rows):
            raise UnknownContainer(f"container {self._sandbox.container_id} is not attached by {self._origin.owner}")
        for row in rows:
            attachment = attachment_of(row)
            self.check_network(attachment, self._engine.parse(attachment), result_of(row))

    def check_network(self, attachment: Attachment, network: NetworkConfig, result: Result | None) -> None:
        """CHECK one network against ``result``."""
        self._require_pod(network)
        self.report.networks.append(attachment.network)
        self._chain(network, attachment).check(self._context(UndoLog(keep_nothing)), result)

    def delete(self, given: Sequence[Attachment] = (), *, before: int | None = None) -> list[UnderlayError]:
        """Undo every recorded attachment of this origin, newest first, with one kernel wait for all links.

        ``given`` is what the call's configuration names: used, best effort, only where the ledger has no row.
        ``before`` (realtime ns) leaves rows alone that were created later: a spooled DEL was meant for their
        predecessor. Never raises for what it finds; returns the faults, for the log.
        """
        rows = self._engine.ledger.find(self._sandbox.container_id, self._origin)
        if rows:
            meant = [row for row in rows if before is None or row.created <= before]
            self.report.networks += [row.network for row in meant]
            return self.take_back_rows(meant)
        errors: list[UnderlayError] = []
        for attachment in reversed(given):
            self.report.networks.append(attachment.network)
            try:
                network = self._engine.parse(attachment)
            except UnderlayError as error:
                errors.append(error)
                continue
            errors += self.delete_network(attachment, network)
        return self._told(errors)

    def delete_network(self, attachment: Attachment, network: NetworkConfig) -> list[UnderlayError]:
        """DEL of one network from its configuration alone."""
        return self._chain(network, attachment).delete(self._context(UndoLog(keep_nothing)))

    def take_back_rows(self, rows: Sequence[Row]) -> list[UnderlayError]:
        """Undo rows, given oldest first, each in its own sandbox where that is still there.

        What fails stays in the ledger in state deleting.
        """
        if not rows:
            return []
        if self._pod is None:
            self._find_pod(rows)
        ledger = self._engine.ledger
        ledger.deleting([row.id for row in rows if row.state != "deleting"])
        errors: list[UnderlayError] = []
        mine = [row for row in rows if self._is_here(row)]
        gone = [row for row in rows if not self._is_here(row)]
        for some, pod in ((mine, self._pod), (gone, None)):
            if not some:
                continue
            if pod is None and isinstance(self._pod_fault, KernelError):
                errors.append(self._pod_fault)  # the sandbox may well be there: try again later
                continue
            undone = self._replay([self._leftover(row, errors) for row in some], pod)
            ledger.forget([row.id for row in some if row.id not in undone.failed])
            with suppress(StateUnwritable):  # then all of it is done once more
                self._keep_left(some, undone)
            errors += undone.errors
        return self._told(errors)

    def rollback(self) -> list[UnderlayError]:
        """Undo what this session added, newest first (leaving the session with an exception does it by itself)."""
        made, self._made = self._made, []
        return self._take_back(made)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _open_pod(self) -> None:
        path = self._sandbox.netns
        if not path:
            self._pod_fault = NamespaceGone("the call names no network namespace (CNI_NETNS is empty)")
            return
        try:
            self._pod = Namespace.open(self._engine.executor.root.locate(path), self._host)
        except (NamespaceGone, KernelError) as error:
            self._pod_fault = error

    def _announce(self) -> None:
        """Tell the wire whose the addresses are; the answer does not wait for the frames' way through the kernel."""
        pod, self._pod = self._pod, None
        if pod is not None and self._announcements:
            self.report.after(partial(wire.tell, pod, self._announcements, self._engine.log))
        elif pod is not None:
            pod.close()

    def _journal(self, made: Made, recorded: Sequence[msgspec.Struct]) -> None:
        """The row comes with its first entries: until then nothing has been touched that it would have to tell of."""
        for entry in recorded:
            if (
                type(entry) is Release and entry.data_dir
            ):  # after a reboot the reservations of every directory ever used are stale
                self._engine.ledger.remember_store("directory", os.path.join(entry.data_dir, entry.network))
        if made.row_id:
            self._engine.ledger.record(made.row_id, recorded)
        else:
            made.row_id = self._engine.ledger.begin(self._row(made.attachment), recorded)

    def _require_pod(self, network: NetworkConfig) -> None:
        """IPAM plugins called by their own name work on addresses alone; all others need the namespace."""
        if self._pod_fault is not None and any(conf.type not in self._engine.allocators for conf in network.plugins):
            raise self._pod_fault

    def _find_pod(self, rows: Sequence[Row]) -> None:
        """DEL may come without CNI_NETNS although the sandbox is still where it was."""
        for path, cookie in {(row.netns, row.cookie) for row in rows if row.boot == self._engine.boot_id and row.netns}:
            try:
                pod = Namespace.open(self._engine.executor.root.locate(path), self._host)
            except (NamespaceGone, KernelError) as error:
                self._pod_fault = error
                continue
            if signed(pod.cookie) == cookie:
                self._pod = pod
                return
            pod.close()

    def _commit(self) -> None:
        if not self._made:
            return
        try:
            for made in self._made:
                if not made.row_id:
                    self._journal(made, ())
            self._engine.ledger.commit([made.outcome() for made in self._made])
        except BaseException:
            self.rollback()
            raise

    def _refuse_whole(self, attachment: Attachment) -> None:
        """At the first ``add``: what an earlier call left half-made, or of an earlier sandbox, is undone."""
        if self._whole is None:
            self._whole = set()
            ledger, container_id = self._engine.ledger, self._sandbox.container_id
            rows = ledger.find(container_id, self._origin) if ledger.may_know(container_id) else []
            for row in rows:
                if row.state == "added" and self._is_here(row):
                    self._whole.add((row.ifname, row.network))
            stale = [row for row in rows if (row.ifname, row.network) not in self._whole]
            errors = self.take_back_rows(stale)
            if errors:
                raise errors[0]
        if (attachment.ifname, attachment.network) in self._whole:
            raise InterfaceExists(
                f"{attachment.ifname!r} of network {attachment.network!r} is attached already"
                f" to container {self._sandbox.container_id}"
            )

    def _is_here(self, row: Row) -> bool:
        if row.boot != self._engine.boot_id:
            return False
        cookie = signed(self._pod.cookie) if self._pod is not None else 0
        return row.cookie == cookie

    def _row(self, attachment: Attachment) -> Row:
        sandbox, origin, pod = self._sandbox, self._origin, self._pod
        saved = SavedCall(
            attachment.name, sandbox.args_text, sandbox.path, dict(attachment.runtime), dict(attachment.cni_args),
            attachment.default_gateways, origin.conf, attachment.by,
        )  # fmt: skip
        return Row(
            id=0, owner=origin.owner, container_id=sandbox.container_id, ifname=attachment.ifname,
            network=attachment.network, origin_network=origin.network, origin_ifname=origin.ifname, state="adding",
            netns=sandbox.netns, cookie=signed(pod.cookie) if pod is not None else 0, boot=self._engine.boot_id,
            created=time.time_ns(), conf=attachment.conf, call=encode(saved),
            pod_namespace=sandbox.pod_namespace, pod_name=sandbox.pod_name, pod_uid=sandbox.pod_uid,
        )  # fmt: skip

    def _chain(self, network: NetworkConfig, attachment: Attachment) -> Chain:
        return self._engine.chain(attachment, network, self._sandbox, self.report.times)

    def _context(self, undo: UndoLog) -> Context:
        return self._engine.context(self._sandbox, self._host, self._pod, undo, self._deadline, self._announcements)

    def _leftover(self, row: Row, errors: list[UnderlayError]) -> Leftover:
        known, unknown = entries.decode(row.undo)
        for line in unknown:
            self._engine.log("error", "undo entry not understood", container=row.container_id, entry=line)
        if row.boot != self._engine.boot_id:  # what was taken away or set then is not now
            known = [entry for entry in known if not isinstance(entry, PutRoute | RestoreVf)]
        return Leftover(row.id, known, result_of(row))

    def _replay(self, leftovers: Sequence[Leftover], pod: Namespace | None) -> Undone:
        begun = time.perf_counter()
        engine = self._engine
        undone = take_back(
            leftovers,
            host=self._host,
            pod=pod,
            executor=engine.executor,
            allocators=engine.allocators,
            deadline=self._deadline,
        )
        self.report.times.append(Timing("undo", (time.perf_counter() - begun) * 1000))
        return undone

    def _keep_left(self, rows: Sequence[Row], undone: Undone) -> None:
        """Have the ledger know of rows with something left what that is. Raises StateUnwritable."""
        for row in rows:
            left = undone.left.get(row.id)
            if left is not None:
                _, unknown = entries.decode(row.undo)
                self._engine.ledger.rewrite(row.id, "".join(f"{line}\n" for line in unknown) + entries.encode(left))

    def _take_back(self, made: Sequence[Made]) -> list[UnderlayError]:
        if not made:
            return []
        errors: list[UnderlayError] = []
        for one in reversed(made):
            for hook in one.undo.rollback_hooks():
                try:
                    hook()
                except UnderlayError as error:
                    errors.append(error)
                except OSError as error:
                    errors.append(IOFailure(f"a setting could not be put back: {error}"))
        self._deadline = max(self._deadline, time.monotonic() + _ROLLBACK_SECONDS)
        undone = self._replay([one.leftover() for one in made], self._pod)
        ledger = self._engine.ledger
        ledger.forget([one.row_id for one in made if one.row_id not in undone.failed])
        ledger.deleting(undone.failed)
        with suppress(StateUnwritable):
            for row_id, left in undone.left.items():
                ledger.rewrite(row_id, entries.encode(left))
        return self._told(errors + undone.errors)

    def _told(self, errors: list[UnderlayError]) -> list[UnderlayError]:
        self.report.faults += [error.message for error in errors]
        return errors
