"""Change what a running sandbox is attached to: some NICs go, others come, and those that stay keep their addresses.

    ledger      net1 macvlan │ veth          net2 macvlan │ veth           net3 macvlan │ veth
    take_off    net1 ✗                       net2 macvlan │ (lifted)       net3 macvlan │ (lifted)    newest first
                                             net2 macvlan │ veth           net3 macvlan │ veth        oldest first
    add                                                                                   net4 …
    settle      default routes

What a meta-plugin builds on a NIC depends on what it finds of earlier ones (the pod's one veth pair, routes that gave
way). So where an earlier NIC goes, the layers that were built after it are taken back first and laid anew afterwards:
of them the ledger keeps the beginning (:class:`~underlay.delegate.entries.Chained`, ``Moved``). A row that is lifted
says so before the kernel is touched, and until its layers are there again: after a crash the next change lays them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from underlay.delegate import entries
from underlay.delegate.entries import Chained, Laid, Lifted, Moved
from underlay.delegate.made import Made
from underlay.delegate.rows import attachment_of, mtu_of, result_of
from underlay.delegate.session import Session
from underlay.delegate.undoing import Leftover
from underlay.errors import StateUnwritable, TryAgain, UnderlayError
from underlay.net.undo import UndoLog

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from underlay.delegate.attachment import Attachment, Origin, Sandbox
    from underlay.delegate.engine import Engine
    from underlay.delegate.ledger import Row
    from underlay.delegate.report import Report

_NOT_NOW: Final = "is being attached or taken off"


class _Kept(msgspec.Struct):
    """A NIC that stays: its row, its undo entries, where its layers begin in them, and the lines to go back to;
    ``unknown`` are those of another version.
    """

    row: Row
    known: list[msgspec.Struct]
    chained: int | None
    moved: int | None
    lines: str
    unknown: str
    lifted: Lifted | None = None

    @classmethod
    def of(cls, row: Row) -> _Kept:
        known, unknown = entries.decode(row.undo)
        chained = next((n for n, entry in enumerate(known) if isinstance(entry, Chained)), None)
        moved = next((n for n, entry in enumerate(known) if isinstance(entry, Moved)), None)
        return cls(row, known, chained, moved, row.undo, "".join(f"{line}\n" for line in unknown))

    @property
    def pending(self) -> Lifted | None:
        """What an earlier change has lifted and not laid again."""
        last = next((entry for entry in reversed(self.known) if isinstance(entry, (Lifted, Laid))), None)
        return last if isinstance(last, Lifted) else None

    @property
    def begins(self) -> int:
        """The place in ``known`` from where on it is lifted."""
        place = self.chained if self.lifted is not None and self.lifted.chain else self.moved
        return len(self.known) if place is None else place

    @property
    def onto(self) -> Chained | None:
        """What the lifted chain is laid onto; None where it stays as it is."""
        entry = self.known[self.chained] if self.chained is not None else None
        return entry if isinstance(entry, Chained) and self.lifted is not None and self.lifted.chain else None


class Change(Session):
    """A session over a container that is attached; made by ``Engine.change``.

    To be used in the order :meth:`take_off`, ``add`` …, ``settle``. Leaving it with an exception undoes what it has
    added; what it has taken off stays off, and what stays has its layers again, as far as they can be laid.
    """

    def __init__(self, engine: Engine, sandbox: Sandbox, origin: Origin, deadline: float, report: Report) -> None:
        super().__init__(engine, sandbox, origin, deadline, report)
        self._kept: dict[int, _Kept] = {}
        self._since: int | None = None

    def attached(self) -> list[Attachment]:
        """What is attached now, oldest first. Raises TryAgain where a call is at work, or the sandbox is another."""
        return [attachment_of(row) for row in self._whole_rows()]

    @property
    def unfinished(self) -> bool:
        """Whether an earlier change has left something to be laid anew."""
        return any(_Kept.of(row).pending for row in self._whole_rows())

    def take_off(self, keys: Collection[tuple[str, str]]) -> None:
        """Take NICs off, each named by (network, NIC), and lay anew what depended on them.

        Raises, when all is done that can be, the first fault, of taking back or of the plugins.
        """
        rows = self._whole_rows()
        self._since = max((row.created for row in rows), default=None)
        gone = [row for row in rows if (row.network, row.ifname) in keys]
        kept = [_Kept.of(row) for row in rows if row not in gone]
        first = min((row.id for row in gone), default=None)
        for one in kept:
            one.lifted = _lift(one, first)
        errors = self._lift(gone, kept)
        self._kept = {one.row.id: one for one in kept}
        for one in kept:
            try:
                self._lay(one)
            except UnderlayError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    # -- inside ------------------------------------------------------------------------------------------------------

    def _whole_rows(self) -> list[Row]:
        rows = self._engine.ledger.find(self._sandbox.container_id, self._origin)
        if any(row.state != "added" or not self._is_here(row) for row in rows):
            raise TryAgain(f"container {self._sandbox.container_id} {_NOT_NOW}")
        return rows

    def _row(self, attachment: Attachment) -> Row:
        """As old as the container's other NICs: a DEL that was spooled before this change is meant for all of them."""
        row = super()._row(attachment)
        return row if self._since is None else replace(row, created=self._since)

    def _lift(self, gone: Sequence[Row], kept: Sequence[_Kept]) -> list[UnderlayError]:
        """Take back rows whole and the layers of others, newest first, in one go; returns the faults."""
        ledger = self._engine.ledger
        lifted = [one for one in kept if one.lifted is not None]
        for one in lifted:
            if one.lifted is not None and one.pending != one.lifted:
                ledger.record(one.row.id, [one.lifted])
                one.lines += entries.encode([one.lifted])
        ledger.deleting([row.id for row in gone])
        errors: list[UnderlayError] = []
        leftovers = [self._leftover(row, errors) for row in gone]
        leftovers += [Leftover(one.row.id, one.known[one.begins + 1 :], result_of(one.row)) for one in lifted]
        leftovers.sort(key=lambda leftover: leftover.row_id)
        undone = self._replay(leftovers, self._pod) if leftovers else None
        if undone is not None:
            ledger.forget([row.id for row in gone if row.id not in undone.failed])
            errors += undone.errors
            self._keep_left(gone, undone)  # its layers may be others' from here on
        for one in lifted:
            if undone is None or one.row.id not in undone.failed:
                one.lines = _cut(one)
                ledger.rewrite(one.row.id, one.lines)
        return self._told(errors)

    def _lay(self, one: _Kept) -> None:
        """The row again among those of this session; its chain anew where it was lifted."""
        attachment = attachment_of(one.row)
        made = Made(one.row.id, attachment, UndoLog(lambda recorded: self._journal(made, recorded)))
        made.result, made.mtu = result_of(one.row) or made.result, mtu_of(one.row)
        self._made.append(made)
        if one.onto is None:
            return
        try:
            network = self._engine.parse(attachment)
            made.result = self._chain(network, attachment).add(self._context(made.undo), onto=one.onto)
        except UnderlayError:
            self._made.remove(made)
            self._lift_again([made])
            raise

    def rollback(self) -> list[UnderlayError]:
        """Undo what was added; what stays gets its default routes back and is whole again, or lifted."""
        made, self._made = self._made, []
        errors = self._take_back([one for one in made if one.row_id not in self._kept])
        self._made = [one for one in made if one.row_id in self._kept]
        try:
            self.settle()
            self._close(self._made)
            self._engine.ledger.commit([one.outcome() for one in self._made])
        except UnderlayError as error:
            errors += [error, *self._lift_again(self._made)]
        self._made = []
        return errors

    def _commit(self) -> None:
        try:
            self._close(self._made)
        except StateUnwritable:
            self.rollback()
            raise
        super()._commit()

    def _close(self, made: Sequence[Made]) -> None:
        """Say in the ledger that what was lifted is there again."""
        for one in made:
            kept = self._kept.get(one.row_id)
            if kept is not None and kept.lifted is not None:
                self._engine.ledger.record(one.row_id, [Laid()])

    def _lift_again(self, made: Sequence[Made]) -> list[UnderlayError]:
        """Take back what this session has laid on NICs that stay."""
        mine = [one for one in made if one.undo.entries]
        undone = self._replay([one.leftover() for one in mine], self._pod) if mine else None
        if undone is None:
            return []
        for one in mine:
            if one.row_id not in undone.failed:
                self._engine.ledger.rewrite(one.row_id, self._kept[one.row_id].lines)
        return self._told(undone.errors)


def _lift(one: _Kept, first: int | None) -> Lifted | None:
    """What of a NIC that stays has to be laid anew when ``first`` is the oldest row that goes.

    Default routes always: whoever has them gets them back when all is settled, over whatever came meanwhile.
    """
    pending = one.pending
    chain = (pending is not None and pending.chain) or (first is not None and one.row.id > first)
    if chain and one.chained is not None:
        return Lifted(chain=True)
    return Lifted(chain=False) if pending is not None or one.moved is not None else None


def _cut(one: _Kept) -> str:
    """The row's undo lines less what was taken back."""
    left = [entry for entry in one.known[: one.begins] if not isinstance(entry, (Lifted, Laid))]
    if one.onto is not None:
        left.append(one.onto)
    return one.unknown + entries.encode([*left, one.lifted] if one.lifted is not None else left)
