"""The leases of this node on disk: one SQLite file, one row per address, written before an address is used.

Threads that write at the same time share one transaction: whoever comes first writes what has gathered meanwhile.
Budget: 25 µs alone; 20 at once cost little more than one.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from underlay.errors import StateUnwritable
from underlay.ipam.pools.lease import ASIDE, REST, Lease, of_row, row
from underlay.state.database import Database, transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

SCHEMA_VERSION: Final = 2  # 1 had no shares
COLUMNS: Final = (
    "address", "pool", "state", "uid", "container_id", "ifname", "pod", "keeper", "network", "boot", "since",
)  # fmt: skip
CUT_COLUMNS: Final = ("name", "subnet", "family", "application", "ips", "count", "flexible", "reclaim")
SHARE_COLUMNS: Final = ("block", "mask", "revision", "boot")
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS lease (
  address TEXT PRIMARY KEY, pool TEXT NOT NULL, state TEXT NOT NULL, uid TEXT NOT NULL, container_id TEXT NOT NULL,
  ifname TEXT NOT NULL, pod TEXT NOT NULL, keeper TEXT NOT NULL, network TEXT NOT NULL, boot TEXT NOT NULL,
  since INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cut (
  name TEXT PRIMARY KEY, subnet TEXT NOT NULL, family INTEGER NOT NULL, application TEXT NOT NULL, ips TEXT NOT NULL,
  count INTEGER NOT NULL, flexible INTEGER NOT NULL, reclaim INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS share (
  block TEXT PRIMARY KEY, mask INTEGER NOT NULL, revision INTEGER NOT NULL, boot TEXT NOT NULL) WITHOUT ROWID;
"""
_PUT: Final = f"INSERT OR REPLACE INTO lease VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608 - constants only
_PUT_CUT: Final = f"INSERT OR REPLACE INTO cut VALUES ({', '.join('?' * len(CUT_COLUMNS))})"  # noqa: S608 - constants only
_PUT_SHARE: Final = "INSERT OR REPLACE INTO share VALUES (?, ?, ?, ?)"

Statement = tuple[str, tuple[object, ...]]


class _Batch:
    """What goes to the disk together."""

    __slots__ = ("fault", "statements", "written")

    def __init__(self) -> None:
        self.statements: list[Statement] = []
        self.written = False
        self.fault = ""


class Journal:
    """The open file. Thread-safe; every write is durable when it returns, or raises StateUnwritable."""

    def __init__(self, path: str, log: Callable[..., None]) -> None:
        self.path = path
        tables = {"lease": COLUMNS, "cut": CUT_COLUMNS, "share": SHARE_COLUMNS}
        self._file = Database(path, log, what="pool ledger", schema=_SCHEMA, version=SCHEMA_VERSION, tables=tables)
        self._gathering = threading.Lock()
        self._turn = threading.Lock()
        self._batch = _Batch()

    def put(self, leases: Iterable[Lease]) -> None:
        """Write leases, each in the place of whatever was known of its address."""
        self._write([(_PUT, row(lease)) for lease in leases])

    def forget(self, leases: Iterable[Lease]) -> None:
        """Remove rows that are still exactly as given."""
        statement = "DELETE FROM lease WHERE address = ? AND state = ? AND container_id = ? AND since = ?"
        self._write([(statement, (one.shown, one.state, one.container_id, one.since)) for one in leases])

    def forget_rested(self, before: int) -> None:
        """Remove addresses that have rested since ``before``, and those set aside until then (realtime ns)."""
        statement = f"DELETE FROM lease WHERE state IN ('{REST}', '{ASIDE}') AND since <= ?"  # noqa: S608 - constants
        self._write([(statement, (before,))])

    def leases(self) -> list[Lease]:
        """Every row, those that changed last at the end."""
        return [found for columns in self._rows("lease", COLUMNS, "since") if (found := of_row(columns)) is not None]

    def put_cut(self, columns: Sequence[object]) -> None:
        """Write a pool that was cut from a subnet, in the order of CUT_COLUMNS."""
        self._write([(_PUT_CUT, tuple(columns))])

    def forget_cut(self, name: str) -> None:
        """Remove one."""
        self._write([("DELETE FROM cut WHERE name = ?", (name,))])

    def cuts(self) -> list[tuple[object, ...]]:
        """Every pool that was cut."""
        return self._rows("cut", CUT_COLUMNS, "name")

    def put_share(self, block: str, mask: int, revision: int, boot: str) -> None:
        """Write what this node owns of a block: bit n of ``mask`` is its n-th address, ``block`` the first as text."""
        self._write([(_PUT_SHARE, (block, mask, revision, boot))])

    def forget_share(self, block: str) -> None:
        """Remove one."""
        self._write([("DELETE FROM share WHERE block = ?", (block,))])

    def shares(self) -> list[tuple[object, ...]]:
        """Every share, in the order of SHARE_COLUMNS."""
        return self._rows("share", SHARE_COLUMNS, "block")

    def checkpoint(self) -> None:
        """Copy the write-ahead log into the file; for a thread that serves nobody."""
        self._file.checkpoint()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _rows(self, table: str, columns: Sequence[str], order: str) -> list[tuple[object, ...]]:
        for _ in range(2):  # a malformed file is replaced by its salvage on the first reading
            with self._file.reading() as db:
                statement = f"SELECT {', '.join(columns)} FROM {table} ORDER BY {order}"  # noqa: S608 - own names
                return [] if db is None else db.execute(statement).fetchall()
        return []

    def _write(self, statements: list[Statement]) -> None:
        if not statements:
            return
        with self._gathering:
            batch = self._batch
            batch.statements += statements
        with self._turn:
            if not batch.written:
                with self._gathering:
                    self._batch = _Batch()
                batch.fault = self._commit(batch.statements)
                batch.written = True
        if batch.fault:
            raise StateUnwritable(batch.fault)

    def _commit(self, statements: list[Statement]) -> str:
        """Write a batch; what stood in the way, or ""."""
        try:
            with self._file.writing() as db:
                if len(statements) == 1:
                    db.execute(*statements[0])
                    return ""
                with transaction(db):
                    for statement in statements:
                        db.execute(*statement)
        except StateUnwritable as error:
            return error.message
        return ""
