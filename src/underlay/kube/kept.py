"""What outlives the daemon: the caches as last told, and what has yet to be written to the API server.

One SQLite file in WAL mode without fsync (a killed daemon loses nothing; a power cut takes the pods along, too). It is
a copy: a malformed file is moved aside and a new one begun, one that cannot be written is said once and done without.
Budget: 20 us a write.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from underlay.kube import resources
from underlay.kube.resources import Entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from underlay.kube.resources import Key
    from underlay.kube.source import Log

SCHEMA_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS object (kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, uid TEXT NOT NULL,
  version TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (kind, namespace, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS absent (kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
  PRIMARY KEY (kind, namespace, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS synchronised (kind TEXT PRIMARY KEY, scope TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outbox (id INTEGER PRIMARY KEY, body BLOB NOT NULL);
"""
_PUT: Final = "INSERT OR REPLACE INTO object VALUES (?, ?, ?, ?, ?, ?)"
_Statement = tuple[str, tuple[object, ...]]
Restored = Callable[[str, str, str, str, bytes], Any]
"""Kind, namespace, name, UID and what :func:`~underlay.kube.resources.stored` made of a value, to that value."""


class Nowhere:
    """In the place of :class:`Kept` for what is worth nothing after a restart."""

    def objects(self, kind: str, restored: Restored = resources.restored) -> list[Entry[Any]]:
        """None."""
        return []

    def absent(self, kind: str) -> set[Key]:
        """None."""
        return set()

    def synchronised(self, kind: str) -> bool:
        """Never."""
        return False

    def replace(self, kind: str, entries: Iterable[Entry[Any]]) -> None:
        """Nothing happens."""

    def put(self, kind: str, entry: Entry[Any]) -> None:
        """Nothing happens."""

    def remove(self, kind: str, key: Key) -> None:
        """Nothing happens."""

    def note_absent(self, kind: str, key: Key) -> None:
        """Nothing happens."""


class Kept:
    """The open file. Thread-safe. ``scope`` says whose objects these are (the node): another's are forgotten."""

    def __init__(self, path: str, log: Log, scope: str) -> None:
        self._path = path
        self._log = log
        self._scope = scope
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._fault = ""
        with self._lock:
            self._begin()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._drop()

    # -- objects -----------------------------------------------------------------------------------------------------

    def objects(self, kind: str, restored: Restored = resources.restored) -> list[Entry[Any]]:
        """Every object of a kind as last kept; what is illegible is left out."""
        found: list[Entry[Any]] = []
        statement = "SELECT namespace, name, uid, version, body FROM object WHERE kind = ?"
        for namespace, name, uid, version, body in self._rows(statement, kind):
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                found.append(Entry(uid, version, restored(kind, namespace, name, uid, body)))
        return found

    def absent(self, kind: str) -> set[Key]:
        """The keys that the API server has said do not exist."""
        return set(self._rows("SELECT namespace, name FROM absent WHERE kind = ?", kind))

    def synchronised(self, kind: str) -> bool:
        """Whether a whole list of that kind was ever kept."""
        return bool(self._rows("SELECT 1 FROM synchronised WHERE kind = ?", kind))

    def replace(self, kind: str, entries: Iterable[Entry[Any]]) -> None:
        """Every object of a kind, in place of those before."""
        rows = [(_PUT, _row(kind, entry)) for entry in entries]
        unheard = "DELETE FROM absent WHERE kind = ?1 AND EXISTS (SELECT 1 FROM object WHERE kind = ?1 AND "
        self._write(
            ("DELETE FROM object WHERE kind = ?", (kind,)),
            *rows,
            (unheard + "namespace = absent.namespace AND name = absent.name)", (kind,)),
            ("INSERT OR REPLACE INTO synchronised VALUES (?, ?)", (kind, self._scope)),
        )

    def put(self, kind: str, entry: Entry[Any]) -> None:
        """An object that is new or has changed."""
        gone = ("DELETE FROM absent WHERE kind = ? AND namespace = ? AND name = ?", (kind, *entry.key))
        self._write((_PUT, _row(kind, entry)), gone)

    def remove(self, kind: str, key: Key) -> None:
        """An object that exists no more."""
        self._write(("DELETE FROM object WHERE kind = ? AND namespace = ? AND name = ?", (kind, *key)))

    def note_absent(self, kind: str, key: Key) -> None:
        """An object that does not exist."""
        self._write(("INSERT OR REPLACE INTO absent VALUES (?, ?, ?)", (kind, *key)))

    # -- outbox ------------------------------------------------------------------------------------------------------

    def outbox(self) -> list[tuple[int, bytes]]:
        """What has yet to be written to the API server, oldest first."""
        return self._rows("SELECT id, body FROM outbox ORDER BY id")

    def post(self, number: int, body: bytes) -> None:
        """Keep an entry of the outbox, new or changed."""
        self._write(("INSERT OR REPLACE INTO outbox VALUES (?, ?)", (number, body)))

    def posted(self, numbers: Sequence[int]) -> None:
        """Forget entries of the outbox."""
        self._write(*(("DELETE FROM outbox WHERE id = ?", (number,)) for number in numbers))

    # -- inside ------------------------------------------------------------------------------------------------------

    def _rows(self, statement: str, *values: object) -> list[Any]:
        with self._lock:
            try:
                return [] if self._db is None else self._db.execute(statement, values).fetchall()
            except sqlite3.DatabaseError as error:
                self._broken(error)
                return []

    def _write(self, *statements: _Statement) -> None:
        with self._lock:
            if self._db is None:
                self._begin()
            if self._db is None or not statements:
                return
            try:
                if len(statements) == 1:
                    self._db.execute(*statements[0])
                else:
                    self._transaction(self._db, statements)
                self._fault = ""
            except sqlite3.DatabaseError as error:
                self._broken(error)

    def _transaction(self, db: sqlite3.Connection, statements: Sequence[_Statement]) -> None:
        db.execute("BEGIN IMMEDIATE")
        try:
            for statement, values in statements:
                db.execute(statement, values)
            db.execute("COMMIT")
        except sqlite3.DatabaseError:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def _begin(self) -> None:
        try:
            self._db = self._open()
        except sqlite3.DatabaseError as error:
            self._broken(error)
        except OSError as error:
            self._say(str(error))

    def _open(self) -> sqlite3.Connection:
        os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, cached_statements=16)
        try:
            db.execute("PRAGMA journal_mode = WAL").fetchall()
            db.execute("PRAGMA synchronous = OFF")
            db.execute("PRAGMA journal_size_limit = 1048576").fetchall()
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION or db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise _malformed(f"schema {version}, known {SCHEMA_VERSION}, or a bad page")
            db.executescript(_SCHEMA)
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            if db.execute("SELECT 1 FROM synchronised WHERE scope <> ?", (self._scope,)).fetchone():
                db.executescript("DELETE FROM object; DELETE FROM absent; DELETE FROM synchronised;")
        except BaseException:
            db.close()
            raise
        return db

    def _broken(self, error: sqlite3.DatabaseError) -> None:
        if getattr(error, "sqlite_errorname", "") not in ("SQLITE_CORRUPT", "SQLITE_NOTADB"):
            self._say(str(error))
            return
        self._drop()
        aside = f"{self._path}.broken-{time.strftime('%Y%m%dT%H%M%S')}"
        try:
            for suffix in ("", "-wal", "-shm"):
                if os.path.exists(self._path + suffix):
                    os.replace(self._path + suffix, aside + suffix)
            self._db = self._open()
        except (OSError, sqlite3.DatabaseError) as second:
            self._say(str(second))
            return
        self._log("error", "kept objects were malformed: moved aside, begun anew", path=self._path, aside=aside,
                  error=str(error))  # fmt: skip

    def _say(self, fault: str) -> None:
        if fault != self._fault:
            self._log("error", "objects are not kept for a restart", path=self._path, error=fault)
        self._fault = fault

    def _drop(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None


def _row(kind: str, entry: Entry[Any]) -> tuple[object, ...]:
    return (kind, *entry.key, entry.uid, entry.version, resources.stored(entry))


def _malformed(why: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(why)
    error.sqlite_errorname = "SQLITE_CORRUPT"
    return error
