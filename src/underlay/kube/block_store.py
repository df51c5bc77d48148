"""The blocks of address pools at the API server: one UnderlayIPBlock each, written by compare-and-swap.

    read, swap, report ──▶ one request, with the caller's deadline
    known, follow      ◀── list + watch, a thread

A swap is a merge patch that names the resourceVersion, so the API server refuses it (409) where anybody has written the
object since, and does not try it again by itself; a block that is new is created, which only one can do.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from underlay.ipam.pools.block import Block, BlockConflict, StoreRefuses, StoreUnreachable
from underlay.kube import block_objects
from underlay.kube.client import MERGE_PATCH
from underlay.kube.faults import Refused, Unreachable
from underlay.kube.reflector import Reflector, Timing
from underlay.kube.resources import JSON, Resource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from underlay.ipam.pools.block import Key
    from underlay.ipam.pools.lease import Lease
    from underlay.kube import resources
    from underlay.kube.cache import State
    from underlay.kube.client import Client
    from underlay.kube.resources import Entry
    from underlay.kube.source import Log

_PATH: Final = f"/apis/{block_objects.API_VERSION}"
_COLLECTION: Final = f"{_PATH}/{block_objects.PLURAL}"


@dataclass(frozen=True, slots=True)
class Stored:
    """An object as it came; ``block`` is None for one whose name is no block's."""

    name: str
    block: Block | None
    namespace: str = ""


def _stored(shape: block_objects.Shape) -> Stored:
    return Stored(shape.metadata.name, block_objects.decode(shape))


BLOCKS: Final[Resource[Stored]] = Resource("block", block_objects.PLURAL, _PATH, _stored, shape=block_objects.Shape)


class ApiBlocks:
    """A :class:`~underlay.ipam.pools.block.BlockStore`. ``client`` is the caller's to close, after :meth:`stop`."""

    def __init__(self, client: Client, log: Log, timing: Timing | None = None) -> None:
        self._client = client
        self._seen = _Seen()
        self._thread = Reflector(client, BLOCKS, self._seen, log, timing or Timing(), newest=True)

    def start(self) -> None:
        """Begin to listen; after :meth:`follow`, which would miss what came before."""
        self._thread.start()

    def stop(self) -> None:
        """Begin nothing new."""
        self._thread.stop()

    def join(self) -> None:
        """Wait for the thread's end; after :meth:`stop`, and after the client is closed."""
        self._thread.join()

    def wait_listed(self, deadline: float) -> None:
        """Return when the first list has come, or has failed, or at the deadline."""
        self._seen.listed.wait(max(0.0, deadline - time.monotonic()))

    def fault(self) -> str:
        """Why the blocks are not being told now; "" where they are."""
        return "" if self._seen.state == "watching" else self._seen.cause

    def known(self) -> Iterable[Block]:
        """What the watch has shown."""
        return self._seen.known()

    def ready(self) -> bool:
        """Whether every block has been seen once."""
        return self._seen.ever

    def follow(self, changed: Callable[[Block], None]) -> None:
        """Tell ``changed`` of every block; of one whose object has been deleted as one that does not exist."""
        self._seen.follow(changed)

    def read(self, key: Key, deadline: float) -> Block:
        """The block as it is at the API server. Raises StoreUnreachable; StoreRefuses, as the others do."""
        try:
            return self._asked("GET", _target(key), deadline)
        except Refused as fault:
            if _is_missing(fault, key):
                return Block(key)
            raise _says_nothing(fault) from fault

    def swap(self, before: Block, after: Block, deadline: float) -> Block:
        """Create the block, or patch it where it is still ``before``. Raises BlockConflict, StoreUnreachable.

        A connection that was cut in between is asked again, so a conflict may be with one's own write: who meets one
        reads the block to know whose it is.
        """
        try:
            if not before.version:
                return self._asked("POST", _COLLECTION, deadline, block_objects.encode(after), JSON)
            patch = block_objects.change(before, after)
            return self._asked("PATCH", _target(before.key), deadline, patch, MERGE_PATCH)
        except Refused as fault:
            if fault.status == 409 or _is_missing(fault, before.key):
                raise BlockConflict(f"block {before.key.name}: {fault.message}") from fault
            raise _says_nothing(fault) from fault

    def report(self, key: Key, leases: Mapping[int, Lease | None], deadline: float) -> None:
        """Patch what is reported. Raises StoreUnreachable."""
        try:
            self._asked("PATCH", _target(key), deadline, block_objects.report(key, leases), MERGE_PATCH)
        except Refused as fault:
            if not _is_missing(fault, key):
                raise _says_nothing(fault) from fault

    def _asked(
        self, method: str, target: str, deadline: float, body: block_objects.Document | None = None, kind: str = ""
    ) -> Block:
        raw = None if body is None else msgspec.json.encode(body)
        try:
            answer = self._client.call(method, target, deadline, accept=JSON, body=raw, kind=kind)
            block = BLOCKS.entry(answer).value.block
        except Unreachable as fault:
            raise StoreUnreachable(str(fault)) from fault
        if block is None:
            raise StoreUnreachable(f"the API server answered {method} {target} with another object")
        return block


class _Seen:
    """The blocks as the watch tells them; written to by one thread."""

    def __init__(self) -> None:
        self.cause = "the first list is not there yet"
        self.state: State = "listing"
        self.ever = False
        self.listed = threading.Event()
        self._lock = threading.Lock()
        self._blocks: dict[resources.Key, Block] = {}
        self._followers: list[Callable[[Block], None]] = []

    def follow(self, changed: Callable[[Block], None]) -> None:
        self._followers.append(changed)

    def known(self) -> list[Block]:
        with self._lock:
            return list(self._blocks.values())

    def replace(self, entries: Sequence[Entry[Stored]]) -> None:
        now = {entry.key: block for entry in entries if (block := entry.value.block) is not None}
        with self._lock:
            before, self._blocks, self.ever = self._blocks, now, True
        changed = [block for key, block in now.items() if before.get(key) != block]
        self._tell([*changed, *(_gone(block) for key, block in before.items() if key not in now)])

    def put(self, entry: Entry[Stored]) -> None:
        block = entry.value.block
        if block is None:
            return
        with self._lock:
            self._blocks[entry.key] = block
        self._tell([block])

    def remove(self, key: resources.Key) -> None:
        with self._lock:
            gone = self._blocks.pop(key, None)
        if gone is not None:
            self._tell([_gone(gone)])

    def becomes(self, state: State, cause: str = "") -> None:
        self.state, self.cause = state, cause
        (self.listed.clear if state == "listing" else self.listed.set)()

    def _tell(self, blocks: Iterable[Block]) -> None:
        for block in blocks:
            for changed in self._followers:
                changed(block)


def _gone(block: Block) -> Block:
    return Block(block.key, block.revision)


def _target(key: Key) -> str:
    return BLOCKS.target("", key.name)


def _is_missing(fault: Refused, key: Key) -> bool:
    """Whether it is the object that is not found. Of a definition that is missing the API server names no object."""
    return fault.status == 404 and key.name in fault.message


def _says_nothing(fault: Refused) -> StoreUnreachable:
    if fault.status == 404:
        return StoreRefuses("the API server has no UnderlayIPBlocks: apply deploy/crds")
    kind = StoreUnreachable if fault.status == 429 or fault.status >= 500 else StoreRefuses
    return kind(f"the API server refuses the block: {fault}")
