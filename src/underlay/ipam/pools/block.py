"""Blocks: which node may hand out which address, as the objects that every node of a cluster shares.

A block is sixteen neighbouring addresses, whatever pools list them; each of its addresses has one owner node or none.
Because a block belongs to addresses and not to a pool, pools that overlap cannot give one address two owners.

    own        free ─▶ node              compare-and-swap by that node
    give back  node ─▶ free, resting     compare-and-swap by that node
    hand over  node ─▶ another node      compare-and-swap by the owner, where ``wanted`` names the other
    evict      node ─▶ free, resting     compare-and-swap by the controller, once the node is down
    remove     all of it                 delete by the controller, once there has long been nothing in it

Every swap raises ``revision`` by one, be it for ``owned`` or for ``wanted``, so what a watch shows late is known to be
old; a block that is made again goes on above all that there were before. ``leases`` is what owners report, seconds
late: of what is owned nothing is decided by it but whom to ask. What has a lease and no owner is kept for somebody, or
is a pod's from another IPAM; nobody else owns it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from underlay.cni.address import Address, text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from underlay.ipam.pools.lease import Lease

BITS: Final = 4
SIZE: Final = 1 << BITS
_SWAPS: Final = 31  # bits of a revision that count an object's swaps; in those above is when it was made


class Key(NamedTuple):
    """A block's identity: its family and its lowest address, as a number divisible by SIZE."""

    family: int
    first: int

    @property
    def name(self) -> str:
        """The object's name: "v4-10.6.168.16", "v6-fd00-0-0-0-0-0-0-10" (a DNS subdomain, RFC 1123)."""
        if self.family == 4:
            return f"v4-{text(4, self.first)}"
        return "v6-" + "-".join(f"{self.first >> shift & 0xFFFF:x}" for shift in range(112, -1, -16))


def key_of(address: Address) -> Key:
    """The block that holds an address."""
    return Key(address.family, address.value >> BITS << BITS)


def revision_of(made: int, swaps: int) -> int:
    """The revision of an object that was made at ``made`` (seconds of the store's clock) and swapped so often. Of two
    that had one name the later one's is above, so long as that clock is set back by less than an object lies idle.
    """
    return (made << _SWAPS) + swaps


def swaps_of(revision: int) -> int:
    """How often the object was swapped, which is what it holds itself."""
    return revision & (1 << _SWAPS) - 1


class Want(NamedTuple):
    """A node asks an address's owner for it. ``keeper``: on behalf of whom it is kept for, "" where any is welcome."""

    node: str
    keeper: str = ""


@dataclass(frozen=True, slots=True)
class Block:
    """One block as it was read. Addresses are numbers. ``resting``: free, or handed over, and last used then
    (realtime ns). ``leases``: held and kept ones, as owners last reported, and those of addresses that have no owner.
    ``revision``: see :func:`revision_of`. ``version`` is the store's own (resourceVersion); "" where no object exists:
    not yet, or no more, and then ``revision`` is the last that was seen of it.
    """

    key: Key
    revision: int = 0
    owned: Mapping[int, str] = field(default_factory=dict)
    wanted: Mapping[int, Want] = field(default_factory=dict)
    resting: Mapping[int, int] = field(default_factory=dict)
    leases: Mapping[int, Lease] = field(default_factory=dict)
    version: str = ""

    def of(self, node: str) -> frozenset[int]:
        """What the node owns of it."""
        return frozenset(value for value, owner in self.owned.items() if owner == node)


class BlockConflict(Exception):
    """Somebody else wrote the block meanwhile: nothing was written."""


class StoreUnreachable(Exception):
    """No answer, or one that says nothing: the write may have happened or not. ``str()`` says what stood in the way."""


class StoreRefuses(StoreUnreachable):
    """The store's answer is that it will not (a right or a definition is missing): nothing was written, and asking
    again at once is of no use.
    """


class BlockStore(Protocol):
    """Where blocks are. Thread-safe; ``deadline`` is on the ``time.monotonic`` clock of whoever calls.

    ``known`` never waits. The others are one request, and raise StoreUnreachable.
    """

    def known(self) -> Iterable[Block]:
        """What the watch has shown, each block as of its last event. Empty until :meth:`ready`. The list that the watch
        begins with is a consistent one: not older than the process.
        """

    def ready(self) -> bool:
        """Whether every block has been seen once."""

    def follow(self, changed: Callable[[Block], None]) -> None:
        """Have every block that comes or changes from now on told to ``changed``, in order for each block, from one
        thread. One that was deleted is told as a block with ``version`` "", and the last ``revision`` that was told.
        """

    def read(self, key: Key, deadline: float) -> Block:
        """The block as it is now; with ``version`` "" where it does not exist."""

    def swap(self, before: Block, after: Block, deadline: float) -> Block:
        """Write ``after`` in the place of ``before``, whose ``version`` must be the current one; "" creates the block,
        with a revision above all that its name ever had.
        Leases that ``after`` adds, changes or lacks go with it. Returns the block as written. Raises BlockConflict.
        """

    def report(self, key: Key, leases: Mapping[int, Lease | None], deadline: float) -> None:
        """Replace what is reported of these addresses, None for nothing, without regard to versions. A block that does
        not exist is not made.
        """
