"""Kill this process after its n-th act: every netlink message that changes something, ledger write, sysctl write and
change of an IPAM or device information file counts as one. Nothing of the program knows of it.
"""

from __future__ import annotations

import functools
import os
import signal
from typing import TYPE_CHECKING, Any

from underlay.delegate.ledger import Ledger
from underlay.ipam import store
from underlay.ipam.pools.journal import Journal
from underlay.net import sysctl
from underlay.net.rtnl import Rtnl
from underlay.plugins import info_file
from underlay.state.ahead import Ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LEDGER_WRITES = ("begin", "record", "rewrite", "commit", "deleting", "forget", "remember_store", "note_boot")
FILE_ACTS = ("open", "write", "unlink", "makedirs", "ftruncate", "rename", "link")
GET = 2  # the kind of a message is its type's lowest two bits (rtnetlink.c): new, del, get, set


class Fuse:
    """Counts acts while ``armed`` says so, and kills the process after the ``limit``-th."""

    def __init__(self, limit: int, armed: Callable[[], bool] = bool) -> None:
        self.burnt = 0
        self._limit = limit
        self._armed = armed

    def burn(self) -> None:
        """One act is done."""
        if self._armed():
            self.burnt += 1
            if self.burnt == self._limit:
                os.kill(os.getpid(), signal.SIGKILL)

    def after(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, burning when it has returned, or failed."""

        @functools.wraps(function)
        def burning(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            finally:
                self.burn()

        return burning


class _Os:
    """The module ``os``, burning after each act on a file."""

    def __init__(self, fuse: Fuse) -> None:
        for name in FILE_ACTS:
            setattr(self, name, fuse.after(getattr(os, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def lay(fuse: Fuse) -> None:
    """Put the fuse into this process."""
    failures, requests = Rtnl.failures, Rtnl.requests

    def one_by_one(self: Rtnl, batch: Sequence[Any]) -> dict[int, Any]:
        failed = {}
        for position, message in enumerate(batch):
            for error in failures(self, [message]).values():
                failed[position] = error
            fuse.burn()
        return failed

    def each_by_itself(self: Rtnl, gets: Sequence[Any]) -> list[Any]:
        answers = []
        for message in gets:
            answers += requests(self, [message])
            if message.type % 4 != GET:
                fuse.burn()
        return answers

    Rtnl.failures = one_by_one  # type: ignore[method-assign]
    Rtnl.requests = each_by_itself  # type: ignore[method-assign]
    for name in LEDGER_WRITES:
        setattr(Ledger, name, fuse.after(getattr(Ledger, name)))
    Ahead.fold = fuse.after(Ahead.fold)  # type: ignore[method-assign]
    Journal._commit = fuse.after(Journal._commit)  # type: ignore[method-assign]
    store.rename_new = fuse.after(store.rename_new)
    sysctl.os = store.os = info_file.os = _Os(fuse)  # type: ignore[attr-defined]
