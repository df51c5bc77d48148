"""How addresses are given back: plain data for the undo log, and its replay."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import msgspec

from underlay.ipam import store
from underlay.ipam.allocator import Holder, as_written

if TYPE_CHECKING:
    from collections.abc import Callable

_PATIENCE = 10.0  # seconds for the lock where the caller has no deadline: a peer holds it for microseconds


class Release(msgspec.Struct, frozen=True, tag="release", omit_defaults=True):
    """Give back the addresses of one NIC. ``kind`` is the IPAM plugin that carries it out (:meth:`Allocator.release`).

    host-local: the reservations in the directory ``data_dir``/``network``; others keep no directory and leave both
    empty. ``addresses`` are the ones to give back, so that a failed second ADD of a NIC takes nothing from the first;
    empty means whichever the NIC holds. An address that somebody else holds by now stays.
    """

    kind: str
    data_dir: str
    network: str
    container_id: str
    ifname: str
    addresses: tuple[str, ...] = ()


def release(entry: Release, *, deadline: float | None = None, locate: Callable[[str], str] = as_written) -> None:
    """Carry out an entry of host-local; once more, or without anything to give back, changes nothing. ``locate``: see
    HostLocal.

    Raises StateUnwritable, DeadlineExceeded.
    """
    directory = locate(os.path.join(entry.data_dir, entry.network))
    until = time.monotonic() + _PATIENCE if deadline is None else deadline
    store.release(directory, Holder(entry.container_id, entry.ifname), entry.addresses, deadline=until)
