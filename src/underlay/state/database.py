"""One SQLite file in WAL mode, one connection behind a lock: what a kill, a bad disk and a full one leave usable.

No fsync on the path of a pod (synchronous=NORMAL): a killed process loses nothing, a power cut the last moments. A file
that cannot be read is moved aside and what is legible in it taken over; one that cannot be written refuses writes
(StateUnwritable) and is still read, until it can be written again.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from underlay.errors import StateUnwritable
from underlay.state import salvage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_CORRUPT: Final = frozenset({"SQLITE_CORRUPT", "SQLITE_NOTADB"})
_CHECKPOINT_PAGES: Final = 16000  # 64 MiB of WAL: checkpoint() is called long before, away from any request


class Database:
    """The open file. Thread-safe. ``log(level, event, **fields)``.

    ``what`` is its name in messages ("ledger"), ``schema`` makes its tables where they are not there, ``version`` is
    that of the schema, ``tables`` (name: columns) is what is taken over from a damaged file, the main table first.
    """

    def __init__(
        self, path: str, log: Callable[..., None], *, what: str, schema: str, version: int,
        tables: Mapping[str, Sequence[str]],
    ) -> None:  # fmt: skip
        self.path = path
        self._log = log
        self._what = what
        self._schema = schema
        self._version = version
        self._tables = tables
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._readonly = False
        self._fault = ""  # logged once, not with every request
        self.opened = 0  # how often: what somebody knows of an earlier file may not hold for this one
        with self._lock:
            self._reopen()

    def close(self) -> None:
        """Close the file; a later use opens it again."""
        with self._lock:
            self._drop()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """The connection, for statements that commit by themselves or within :func:`transaction`.

        Raises StateUnwritable.
        """
        with self._lock:
            db = self._reopen() if self._db is None or self._readonly else self._db
            if db is None:
                raise self._unwritable(self._fault)
            try:
                yield db
            except sqlite3.DatabaseError as error:
                if _code(error) in _CORRUPT:
                    self._replace(error)
                raise self._unwritable(str(error)) from error

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection | None]:
        """The connection, None where there is none. A fault of reading ends the block as if it had read nothing; a
        malformed file is replaced on the way.
        """
        with self._lock:
            try:
                yield self._db or self._reopen()
            except sqlite3.DatabaseError as error:
                self._log("error", f"{self._what} cannot be read", path=self.path, error=str(error))
                if _code(error) in _CORRUPT:
                    self._replace(error)

    def checkpoint(self) -> None:
        """Copy the write-ahead log into the file (fsync); to be called now and then, on a thread that serves nobody.

        By a connection of its own: those who write meanwhile do not wait for the disk.
        """
        if self._readonly or self._db is None or self.path == ":memory:":
            return
        try:
            with closing(sqlite3.connect(self.path, isolation_level=None)) as db:
                db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.DatabaseError as error:
            event = f"{self._what}'s log cannot be copied into its file"
            self._log("warn", event, path=self.path, error=str(error))

    def _unwritable(self, why: str) -> StateUnwritable:
        return StateUnwritable(f"the {self._what} {self.path} cannot be written: {why}")

    def _drop(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _reopen(self) -> sqlite3.Connection | None:
        self._drop()
        self._readonly = False
        try:
            self._db = self._open()
            self._fault = ""
        except sqlite3.DatabaseError as error:
            if _code(error) in _CORRUPT:
                self._replace(error)
            else:
                self._note(str(error))
                self._db, self._readonly = salvage.copy(self.path, next(iter(self._tables))), True
        except OSError as error:
            self._note(str(error))
        return self._db

    def _note(self, fault: str) -> None:
        if fault != self._fault:
            self._log("error", f"{self._what} cannot be opened for writing", path=self.path, error=fault)
        self._fault = fault

    def _open(self) -> sqlite3.Connection:
        if directory := os.path.dirname(self.path):
            os.makedirs(directory, mode=0o700, exist_ok=True)
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, cached_statements=32)
        try:
            db.execute("PRAGMA journal_mode = WAL").fetchall()
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}").fetchall()
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > self._version:
                raise _malformed(f"it was written by a newer version (schema {version}, known {self._version})")
            verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if verdict != "ok":
                raise _malformed(verdict)
            db.executescript(self._schema)
            db.execute(f"PRAGMA user_version = {self._version}")
        except BaseException:
            db.close()
            raise
        self.opened += 1
        return db

    def _replace(self, error: sqlite3.DatabaseError) -> None:
        """Move the malformed file aside, begin a new one, and take over what is legible."""
        self._drop()
        aside = f"{self.path}.broken-{time.strftime('%Y%m%dT%H%M%S')}-{time.monotonic_ns() % 1_000_000:06}"
        try:
            for suffix in ("", "-wal", "-shm"):
                if os.path.exists(self.path + suffix):
                    os.rename(self.path + suffix, aside + suffix)
            self._db = self._open()
            kept = salvage.take_over(aside, self._db, self._tables)
        except (OSError, sqlite3.DatabaseError) as second:
            event = f"{self._what} is malformed and cannot be replaced"
            self._log("error", event, path=self.path, error=str(second))
            return
        event = f"{self._what} was malformed: moved aside, a new one begun"
        self._log("error", event, path=self.path, aside=aside, error=str(error), rows_taken_over=kept)


def elsewhere(path: str, table: str) -> sqlite3.Connection:
    """Another process's file, to be read; where its disk is read-only, a copy. Raises sqlite3.DatabaseError."""
    db = sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=rw", uri=True)  # makes none
    try:
        db.execute("SELECT 1 FROM sqlite_master").fetchall()
    except sqlite3.DatabaseError:
        db.close()
        if (copied := salvage.copy(path, table)) is None:
            raise
        return copied
    return db


def _code(error: sqlite3.DatabaseError) -> str:
    return getattr(error, "sqlite_errorname", "")  # absent where the module itself, not the library, complains


def _malformed(why: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(why)
    error.sqlite_errorname = "SQLITE_CORRUPT"
    return error


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All of the block's statements or none."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")
