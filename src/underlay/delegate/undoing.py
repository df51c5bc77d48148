"""Carry undo entries out, in the order that costs least and leaves nothing dangling.

newest entry first │ kernel acts … │ an executable's DEL │ kernel acts … │ then, last of all: addresses
                   └── one replay ─┘   at its own place   └─ one replay ─┘   given back when no link carries them
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from underlay.cni import versions
from underlay.cni.request import Verb
from underlay.delegate.entries import ExecDelete, RemoveFile
from underlay.delegate.exec import Invocation
from underlay.errors import IncompatibleVersion, PluginMissing, UnderlayError
from underlay.ipam.undo import Release
from underlay.net.replay import replay
from underlay.plugins import info_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from underlay.cni.result import Result
    from underlay.delegate.exec import Executor
    from underlay.ipam.allocator import Allocator
    from underlay.net.netns import Namespace

_FIRST_WITH_RESULT: Final = versions.SUPPORTED.index("0.4.0")


class Leftover(msgspec.Struct, frozen=True):
    """One attachment to take back: its entries, oldest first, and its result, which executables are told at DEL."""

    row_id: int
    entries: Sequence[msgspec.Struct]
    result: Result | None = None


class Undone(msgspec.Struct):
    """What came of it: the faults, and the rows with something left to do. ``left`` says what that is, oldest first:
    doing the rest once more would take what others have made since.
    """

    errors: list[UnderlayError] = msgspec.field(default_factory=list)
    failed: set[int] = msgspec.field(default_factory=set)
    left: dict[int, list[msgspec.Struct]] = msgspec.field(default_factory=dict)


def take_back(
    leftovers: Sequence[Leftover],
    *,
    host: Namespace,
    pod: Namespace | None,
    executor: Executor,
    allocators: Mapping[str, Allocator],
    deadline: float,
) -> Undone:
    """Undo attachments, given oldest first, newest first. One fault stops nothing but what depends on it."""
    work = _Work(host, pod, executor, allocators, deadline)
    for leftover in reversed(leftovers):
        for entry in reversed(leftover.entries):
            work.take(leftover, entry)
    work.kernel()
    work.addresses()
    return work.end()


class _Work:
    def __init__(
        self,
        host: Namespace,
        pod: Namespace | None,
        executor: Executor,
        allocators: Mapping[str, Allocator],
        deadline: float,
    ) -> None:
        self.undone = Undone()
        self._host = host
        self._pod = pod
        self._executor = executor
        self._allocators = allocators
        self._deadline = deadline
        self._acts: list[tuple[Leftover, msgspec.Struct]] = []  # newest first
        self._held: list[tuple[Leftover, Release | ExecDelete | RemoveFile]] = []

    def take(self, leftover: Leftover, entry: msgspec.Struct) -> None:
        if isinstance(entry, (Release, RemoveFile)) or (isinstance(entry, ExecDelete) and entry.ipam):
            self._held.append((leftover, entry))
        elif isinstance(entry, ExecDelete):
            self.kernel()
            self._try(leftover, entry)
        else:
            self._acts.append((leftover, entry))

    def kernel(self) -> None:
        """Replay what has been gathered; what was refused is left to every row that wanted it."""
        if not self._acts:
            return
        acts, self._acts = self._acts, []
        entries = [entry for _, entry in acts]
        try:
            stuck = replay(entries[::-1], host=self._host, pod=self._pod)
            self.undone.errors += [each.error for each in stuck]
            refused = {entry for each in stuck for entry in each.entries}
        except UnderlayError as error:
            self.undone.errors.append(error)
            refused = set(entries)
        for leftover, entry in acts:
            if entry in refused:
                self._fail(leftover, entry)

    def addresses(self) -> None:
        """Give back addresses and remove files, but not of a row whose link may still be there."""
        for leftover, entry in self._held:
            if leftover.row_id not in self.undone.failed:
                self._try(leftover, entry)
            else:
                self._fail(leftover, entry)

    def end(self) -> Undone:
        """The outcome, when all is done."""
        self.undone.left = {row: entries[::-1] for row, entries in self.undone.left.items()}
        return self.undone

    def _fail(self, leftover: Leftover, entry: msgspec.Struct) -> None:
        self.undone.failed.add(leftover.row_id)
        self.undone.left.setdefault(leftover.row_id, []).append(entry)

    def _try(self, leftover: Leftover, entry: Release | ExecDelete | RemoveFile) -> None:
        try:
            if isinstance(entry, Release):
                self._release(entry)
            elif isinstance(entry, RemoveFile):
                info_file.remove(self._executor.root.locate(entry.path))
            else:
                self._executor.run(_delete(entry, leftover.result, in_sandbox=self._pod is not None), self._deadline)
        except UnderlayError as error:
            self.undone.errors.append(error)
            if leftover.result is None and error.code == IncompatibleVersion.code:
                return  # an executable that does not speak the version has made nothing, and never will delete it
            self._fail(leftover, entry)

    def _release(self, entry: Release) -> None:
        allocator = self._allocators.get(entry.kind)
        if allocator is None:
            raise PluginMissing(f"nobody gives back addresses of {entry.kind!r}", hint="It is not built in any more.")
        allocator.release(entry, deadline=self._deadline)


def _delete(entry: ExecDelete, result: Result | None, *, in_sandbox: bool) -> Invocation:
    """DEL of an executable: its configuration as at ADD, with the attachment's result as prevResult, which DEL has
    since version 0.4.0 (specification 0.4.0, section "Parameters", DEL).
    """
    conf = entry.conf.encode()
    if result is not None and versions.SUPPORTED.index(entry.version) >= _FIRST_WITH_RESULT:
        keys: dict[str, object] = dict(msgspec.json.decode(conf, type=dict[str, msgspec.Raw]))
        keys["prevResult"] = msgspec.Raw(versions.encode(result, entry.version))
        conf = msgspec.json.encode(keys)
    return Invocation(
        verb=Verb.DEL,
        type=entry.plugin,
        stdin=conf,
        path=entry.path,
        container_id=entry.container_id,
        netns=entry.netns if in_sandbox else "",
        ifname=entry.ifname,
        args=entry.args,
    )
