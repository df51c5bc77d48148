"""What GC keeps: what the runtime lists, and what the ledger holds by whichever call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from underlay.delegate.ledger import Ledger


class Held(msgspec.Struct, frozen=True):
    """An :class:`~underlay.ipam.allocator.Keep`. ``valid`` is the runtime's list; the ledger is looked at whenever it
    is asked, as who came since GC began is there before anything is held.
    """

    valid: frozenset[tuple[str, str]]
    ledger: Ledger

    def __contains__(self, nic: object, /) -> bool:
        """Whether a NIC (container id, interface name) is kept; whatever the ledger cannot tell of is."""
        return nic in self.valid or (isinstance(nic, tuple) and self.ledger.holds(*nic))

    def listed(self) -> frozenset[tuple[str, str]]:
        """All that is kept as of now. Raises IOFailure."""
        return self.valid | self.ledger.nics()
