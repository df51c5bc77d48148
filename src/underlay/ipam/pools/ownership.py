"""What this node owns of the blocks, as far as it can be sure, in memory and in its file.

    view     every block as last seen                                  a hint: whom to ask, what to try
    share    of each block, what this node may hand out                never more than the API says, or will say

                     a swap, a read or the watch names the node
    ∅ ───────────────────────────────────────────────────────────▶ owned
    leaving ◀── withheld from everybody and written to the file ──── owned      before the swap that gives it up
    leaving ──▶ ∅                                                    once a newer revision names the node no more

What is leaving is never handed out again, however the swap went: one whose answer was lost may still be carried out.
It is tried until it is known to have gone. A file of an earlier boot is believed once the API says the same.
"""

from __future__ import annotations

import random
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from underlay.cni.address import Address, parse, text
from underlay.errors import StateUnwritable
from underlay.ipam.pools import intervals
from underlay.ipam.pools.block import SIZE, BlockConflict, Key, StoreUnreachable, key_of
from underlay.ipam.pools.lease import HELD, KEPT
from underlay.ipam.pools.view import View

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from types import TracebackType

    from underlay.ipam.pools.block import Block, BlockStore
    from underlay.ipam.pools.intervals import Intervals
    from underlay.ipam.pools.journal import Journal
    from underlay.ipam.pools.leases import Leases

REQUEST_SECONDS: Final = 5.0  # no request to the API lasts longer
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0  # seconds without a request, after one that was not answered
_ENOUGH: Final = 1.0  # seconds in which an API that is there answers
_NOTHING: Final[frozenset[int]] = frozenset()


class Waiting(Protocol):
    """What is used of :class:`threading.Condition`, so that a simulation can put its own time in its place."""

    def __enter__(self) -> bool:
        """Lock, as often as one likes."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Unlock."""

    def wait(self, timeout: float | None = None) -> bool:
        """Unlock until notified, ``timeout`` seconds at most."""

    def notify_all(self) -> None:
        """Wake those who wait."""


@dataclass(frozen=True, slots=True)
class Share:
    """A node's part of one block, as of ``revision``. ``before``: what a file of an earlier boot says to be owned."""

    revision: int = -1
    owned: frozenset[int] = _NOTHING
    leaving: frozenset[int] = _NOTHING
    before: frozenset[int] = _NOTHING


class Ownership:
    """Thread-safe. ``changed`` guards :attr:`view` and :attr:`asked`, and is notified when either or a share changes
    in a way that somebody may wait for. ``log(level, event, **fields)``.
    """

    def __init__(
        self,
        store: BlockStore,
        journal: Journal,
        node: str,
        *,
        log: Callable[..., None],
        boot: str = "",
        monotonic: Callable[[], float] = time.monotonic,
        condition: Callable[[], Waiting] = threading.Condition,
    ) -> None:
        self.store = store
        self.node = node
        self.monotonic = monotonic
        self.changed = condition()
        self.view = View()
        self.asked: set[Key] = set()  # blocks where others want what is ours
        self.growth = 0  # rises whenever something came
        self.watchers = 0  # who waits for news of blocks that are not ours
        self._journal = journal
        self._boot = boot
        self._log = log
        self._leases: Leases | None = None
        self._busy = False
        self._reconciled = False
        self._away_until, self._pause, self._away = 0.0, _FIRST_PAUSE, ""
        self._chance = random.Random(node)  # noqa: S311 - spreads load, guards nothing
        self._shares = dict(_recalled(journal, boot))
        self._ranges: Mapping[int, Intervals] = {}
        self._recount()

    # -- what is owned -------------------------------------------------------------------------------------------------

    def begin(self, leases: Leases, deadline: float) -> bool:
        """Have ``leases`` hand out what is owned, as the API says if it answers before the deadline; whether it did."""
        self._leases = leases
        self.store.follow(self.accept)
        with self.changed:
            while not self.store.ready() and self.monotonic() < deadline:
                self.changed.wait(min(0.05, deadline - self.monotonic()))
        if not self.reconcile():
            leases.refresh()
        return self._reconciled

    def reconcile(self) -> bool:
        """Once the API has answered: what it says counts. Whether it has."""
        if not self._reconciled and self.store.ready():
            with self.changed:
                for block in self.store.known():
                    self.accept(block)
                for key in [key for key in self._shares if not self.view.get(key).version]:
                    self._settle(self.view.get(key))
                self._reconciled = True
                self._refresh({})
        return self._reconciled

    def owned(self, family: int) -> Intervals:
        """What may be handed out. Takes no lock."""
        return self._ranges.get(family, ())

    def shares(self) -> dict[Key, Share]:
        """Every block that this node has a part of."""
        with self.changed:
            return dict(self._shares)

    def accept(self, block: Block) -> None:
        """What the watch, a read or a swap says of a block; one with ``version`` "" does not exist, and what was there
        before one that is known by now is old news.
        """
        with self.changed:
            if not block.version:
                if 0 < block.revision < self.view.get(block.key).revision:
                    return
                self.view.drop(block.key)
            elif not self.view.put(block, self.monotonic()):
                return
            told = self._settle(block)
            if any(want.node != self.node and block.owned.get(at) == self.node for at, want in block.wanted.items()):
                self.asked.add(block.key)
                told = True
            if told or self.watchers:
                self.changed.notify_all()

    def withhold(self, key: Key, values: Collection[int]) -> None:
        """From now on ``values`` are leaving: taken by nobody who has not taken them yet. Before every swap that gives
        them up: of a file that is older than the block, the next process believes the block. Raises StateUnwritable.
        """
        with self.changed:
            share = self._shares.get(key, Share())  # the API may have taken it meanwhile
            leaving = share.owned & frozenset(values)
            revision = max(share.revision, self.view.get(key).revision)
            self._put(key, Share(revision, share.owned - leaving, share.leaving | leaving))
            self._refresh({})

    def restore(self, key: Key, values: Collection[int]) -> None:
        """Undo :meth:`withhold` of addresses that no swap was tried for."""
        with self.changed:
            share = self._shares.get(key, Share())
            back = share.leaving & frozenset(values)
            now = Share(share.revision, share.owned | back, share.leaving - back)
            try:
                self._put(key, now)
            except StateUnwritable as error:  # the file says less than is true: the API will say it
                self._log("warn", "owned addresses are not written", block=key.name, error=error.message)
                self._shares[key] = now
            self.growth += 1
            self._refresh({})
            self.changed.notify_all()

    # -- requests ------------------------------------------------------------------------------------------------------

    @contextmanager
    def turn(self, deadline: float) -> Iterator[None]:
        """One thread at a time reads and swaps, so that what it reads is never older than what another has written.

        Raises StoreUnreachable.
        """
        with self.changed:
            while self._busy:
                left = deadline - self.monotonic()
                if left <= 0:
                    raise StoreUnreachable("an earlier request is not answered yet")
                self.changed.wait(left)
            self._busy = True
        try:
            yield
        finally:
            with self.changed:
                self._busy = False
                self.changed.notify_all()

    def swap(self, before: Block, after: Block, deadline: float) -> bool:
        """Write a block within :meth:`turn`; False where somebody else has written it, and then it was read.

        Raises StoreUnreachable, and then it may have been written.
        """
        self.check_away()
        began = self.monotonic()
        try:
            written = self.store.swap(before, after, self._limit(deadline))
        except BlockConflict:
            self.read(before.key, deadline)
            return False
        except StoreUnreachable as error:
            self._unanswered(error, began, deadline)
            raise
        self._pause = _FIRST_PAUSE
        self.accept(written)
        return True

    def read(self, key: Key, deadline: float) -> None:
        """See a block as it is now, within :meth:`turn`. Raises StoreUnreachable."""
        began = self.monotonic()
        try:
            self.accept(self.store.read(key, self._limit(deadline)))
        except StoreUnreachable as error:
            self._unanswered(error, began, deadline)
            raise
        self._pause, self._away_until = _FIRST_PAUSE, 0.0

    def away(self, error: StoreUnreachable) -> None:
        """A request was not answered: the next ones wait."""
        self._away, self._away_until = str(error), self.monotonic() + self._pause * self._chance.uniform(0.5, 1.0)
        self._pause = min(_LONGEST_PAUSE, self._pause * 2)

    def check_away(self) -> None:
        """Raises StoreUnreachable as long as the API is not to be tried again."""
        if self.monotonic() < self._away_until:
            raise StoreUnreachable(self._away)

    @property
    def away_until(self) -> float:
        """When the API may be tried again, monotonic."""
        return self._away_until

    # -- inside --------------------------------------------------------------------------------------------------------

    def _unanswered(self, error: StoreUnreachable, began: float, deadline: float) -> None:
        """Of the API an ADD says nothing that had next to no time left for it."""
        now = self.monotonic()
        if now < deadline or now - began >= _ENOUGH:
            self.away(error)

    def _limit(self, deadline: float) -> float:
        return min(deadline, self.monotonic() + REQUEST_SECONDS)

    def _settle(self, block: Block) -> bool:
        """Have the share follow what is known of its block; whether it changed."""
        key, named = block.key, block.of(self.node)
        filed = self._shares.get(key)
        share = filed or Share()
        fresh = named - share.owned - share.leaving
        arrived = fresh if block.revision > share.revision else fresh & share.before
        lost = share.owned - named
        now = Share(
            max(block.revision, share.revision),
            (share.owned & named) | arrived,
            (share.leaving & named) | (fresh - arrived),
        )
        if (now.owned, now.leaving, _NOTHING) == (share.owned, share.leaving, share.before):
            return False
        self._restore(block, arrived, lost_file=filed is None)  # first: who dies in between does it again
        try:
            self._put(key, now)
        except StateUnwritable as error:
            self._log("warn", "owned addresses are not written", block=key.name, error=error.message)
            self._shares[key] = now
        if lost:
            shown = [text(key.family, value) for value in sorted(lost)]
            self._log("warn", "addresses are owned by this node no longer", block=key.name, addresses=shown)
        self.growth += bool(arrived)
        self._refresh({Address(key.family, at): when for at, when in block.resting.items() if at in arrived})
        return True

    def _restore(self, block: Block, arrived: frozenset[int], *, lost_file: bool) -> None:
        """What came is kept for whom it is reported to be kept, before anybody else can take it. What this node itself
        has reported to be held is so where its file was lost since; a file that knows the block says that it has ended.
        """
        if self._leases is not None and arrived:
            known = [one for at, one in block.leases.items() if at in arrived]
            kept = [one for one in known if one.state == KEPT]
            held = [one for one in known if one.state == HELD and one.boot == self._boot]
            if not lost_file:
                held = [one._replace(state=KEPT, uid="", container_id="", boot="") for one in held if one.keeper]
            try:
                self._leases.restore([*kept, *held])
            except StateUnwritable as error:
                self._log("warn", "kept addresses are not written", block=block.key.name, error=error.message)

    def _put(self, key: Key, share: Share) -> None:
        first = text(*key)
        if share.owned or share.leaving:
            mask = sum(1 << value - key.first for value in share.owned)
            self._journal.put_share(first, mask, share.revision, self._boot)
            self._shares[key] = share
        else:
            self._shares.pop(key, None)
            self._journal.forget_share(first)

    def _refresh(self, came: Mapping[Address, int]) -> None:
        self._recount()
        if self._leases is not None:
            self._leases.refresh(came)

    def _recount(self) -> None:
        parts: dict[int, list[tuple[int, int]]] = {4: [], 6: []}
        for key, share in self._shares.items():
            parts[key.family] += [(value, value) for value in share.owned]
        self._ranges = {family: intervals.union(several) for family, several in parts.items()}


def _recalled(journal: Journal, boot: str) -> Iterator[tuple[Key, Share]]:
    for block, mask, revision, written in journal.shares():
        address = parse(str(block))
        if address is None or key_of(address).first != address.value or not isinstance(mask, int):
            continue  # a damaged file
        owned = frozenset(address.value + n for n in range(SIZE) if mask >> n & 1)
        same = written == boot
        yield (
            key_of(address),
            Share(int(str(revision)), owned if same else _NOTHING, before=_NOTHING if same else owned),
        )
