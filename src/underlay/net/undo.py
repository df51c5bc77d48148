"""The undo log: what takes an act back, written down before the act.

    undo.record(DropRoute(...))      the journal (ledger) has it, then
    host.rtnl.batch([route.add(...)])  the kernel is touched

Entries are plain data, so that a daemon that starts after a crash can replay what it finds in its ledger. Replaying
an entry whose act never happened, or was undone already, changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from underlay.net.vf import Vf  # noqa: TC001 - msgspec reads the annotation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Where = Literal["host", "pod"]


class DropLink(msgspec.Struct, frozen=True, tag="link", omit_defaults=True):
    """Delete a link, if the link of that name has that MAC (or, with no MAC, that kind)."""

    where: Where
    name: str
    mac: str = ""
    kind: str = ""


class DropRoute(msgspec.Struct, frozen=True, tag="route", omit_defaults=True):
    """Delete a route of ours (rtm_protocol PROTOCOL): destination CIDR, table, device name, gateway."""

    where: Where
    dst: str
    table: int
    dev: str = ""
    gw: str = ""


class PutRoute(msgspec.Struct, frozen=True, tag="put-route"):
    """Put back a route that was taken away: the RTM_NEWROUTE body's bytes as dumped, hexadecimal; its device's name."""

    where: Where
    message: str
    dev: str


class DropRule(msgspec.Struct, frozen=True, tag="rule", omit_defaults=True):
    """Delete a policy rule of ours: family 4 or 6, selectors as CIDR, table, priority (None: the kernel chose it)."""

    where: Where
    family: int
    table: int
    src: str = ""
    dst: str = ""
    priority: int | None = None


class DropNeighbour(msgspec.Struct, frozen=True, tag="neigh"):
    """Delete a permanent neighbour entry, if it still has that MAC."""

    where: Where
    dst: str
    dev: str
    mac: str


class DropAddress(msgspec.Struct, frozen=True, tag="addr"):
    """Delete an address (CIDR) from a device that outlives the attachment."""

    where: Where
    dev: str
    address: str


class RestoreMac(msgspec.Struct, frozen=True, tag="mac"):
    """Give a link its hardware address ``old`` back, if it has ``new``. A DropLink by ``old`` still finds the link."""

    where: Where
    name: str
    old: str
    new: str


class DropIdleRule(msgspec.Struct, frozen=True, tag="idle-rule"):
    """Delete a rule of ours that attachments share, "from all lookup table", once its table is empty.

    Whoever shares it makes the table's route first and the rule after it; so a rule that was deleted while another
    attachment was on its way is missed by nobody: after the deletion the table is looked at again.
    """

    where: Where
    family: int
    table: int
    priority: int


class VfNic(msgspec.Struct, frozen=True, omit_defaults=True):
    """A virtual function's NIC as the node had it."""

    name: str
    mac: str
    mtu: int
    up: bool = False
    alias: str = ""


class RestoreVf(msgspec.Struct, frozen=True, tag="vf", omit_defaults=True):
    """Give a virtual function (PCI address ``device``, VF ``number`` of the NIC ``pf`` at ``pf_device``) the settings
    ``old``, and its NIC, if it has one, to the node as it was, wherever it is now.

    Whoever has such an entry in the ledger has the device: nobody else touches it meanwhile.
    """

    where: Where
    device: str
    pf: str
    pf_device: str
    number: int
    old: Vf
    nic: VfNic | None = None


Entry = DropLink | DropRoute | PutRoute | DropRule | DropNeighbour | DropAddress | RestoreMac | DropIdleRule | RestoreVf


class UndoLog:
    """Entries of one attachment in the order of its acts.

    ``journal`` is told of every entry before :meth:`record` returns; it raises StateUnwritable when it cannot keep it,
    and then nothing has been touched. ``on_rollback`` takes what only matters while the request runs (a sysctl's old
    value): it is called when the attachment fails, and forgotten when it succeeds.
    """

    def __init__(self, journal: Callable[[Sequence[msgspec.Struct]], None]) -> None:
        self._journal = journal
        self.entries: list[msgspec.Struct] = []
        self._ahead: tuple[msgspec.Struct, ...] = ()
        self._rollback: list[Callable[[], None]] = []

    def record(self, *entries: msgspec.Struct) -> None:
        """Write down how to take back what comes next. Other layers add entry types of their own."""
        entries += self._ahead
        if entries:
            self._journal(entries)
            self.entries.extend(entries)
            self._ahead = ()

    def ahead(self, *entries: msgspec.Struct) -> None:
        """Have entries for a later act go with the next :meth:`record`, behind what that is given: one write for both.

        Whoever acts calls ``record()`` before, which does nothing where they are down already.
        """
        self._ahead += entries

    def on_rollback(self, undo: Callable[[], None]) -> None:
        """Remember an inverse that is needed only if this request fails."""
        self._rollback.append(undo)

    def rollback_hooks(self) -> list[Callable[[], None]]:
        """The inverses given to :meth:`on_rollback`, newest first."""
        return self._rollback[::-1]
