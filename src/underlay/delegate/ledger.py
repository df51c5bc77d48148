"""The ledger: every attachment of this node, written down before the kernel is touched.

    begin ── record ── record ── … ── commit          ADD      adding ────────▶ added
    find  ── deleting ── (undo what it says) ── forget  DEL      added ──▶ deleting ──▶ (gone)

One SQLite file in WAL mode, one connection behind a lock, one row per attachment. What an ADD writes goes into a file
beside it first (:mod:`underlay.state.ahead`), and into SQLite before anything is read. No fsync on the path of a pod
(synchronous=NORMAL: a killed daemon loses nothing, and after a power cut the kernel has lost more).
A file that cannot be read is moved aside and what is legible in it taken over; a file that cannot be written refuses
ADD (StateUnwritable) and lets DEL through, until it can be written again.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from underlay.errors import InterfaceExists, IOFailure, StateUnwritable
from underlay.state import ahead
from underlay.state.ahead import Ahead
from underlay.state.database import Database, elsewhere, transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from underlay.delegate.attachment import Origin

State = Literal["adding", "added", "deleting"]
_Key = tuple[str, str, str, str]  # container, owner, NIC, network

SCHEMA_VERSION: Final = 1
COLUMNS: Final = (
    "id", "owner", "container_id", "ifname", "network", "origin_network", "origin_ifname", "state", "netns", "cookie",
    "boot", "created", "conf", "call", "result", "undo", "pod_namespace", "pod_name", "pod_uid",
)  # fmt: skip
_SCHEMA: Final = f"""
CREATE TABLE IF NOT EXISTS attachment (
  id INTEGER PRIMARY KEY, owner TEXT NOT NULL, container_id TEXT NOT NULL, ifname TEXT NOT NULL, network TEXT NOT NULL,
  origin_network TEXT NOT NULL, origin_ifname TEXT NOT NULL, state TEXT NOT NULL, netns TEXT NOT NULL,
  cookie INTEGER NOT NULL, boot TEXT NOT NULL, created INTEGER NOT NULL, conf BLOB NOT NULL, call BLOB NOT NULL,
  result BLOB NOT NULL DEFAULT x'', undo TEXT NOT NULL DEFAULT '', pod_namespace TEXT NOT NULL, pod_name TEXT NOT NULL,
  pod_uid TEXT NOT NULL, UNIQUE (container_id, owner, ifname, network));
CREATE TABLE IF NOT EXISTS store (kind TEXT NOT NULL, place TEXT NOT NULL, PRIMARY KEY (kind, place)) WITHOUT ROWID;
{ahead.SCHEMA}
"""
_SELECT: Final = f"SELECT {', '.join(COLUMNS)} FROM attachment"  # noqa: S608 - constants only
_NAMES: Final = (*COLUMNS[:14], *COLUMNS[16:], "undo")
_INSERT: Final = f"INTO attachment ({', '.join(_NAMES)}) VALUES ({', '.join('?' * len(_NAMES))})"
_BEGIN, _RECORD, _COMMIT = "begin", "record", "commit"
# What may be written ahead. A row that is there already was legible in a malformed file.
_STATEMENTS: Final = {
    _BEGIN: f"INSERT OR IGNORE {_INSERT}",
    _RECORD: "UPDATE attachment SET undo = undo || ? WHERE id = ?",
    _COMMIT: "UPDATE attachment SET state = 'added', result = ? WHERE id = ?",
}


class Row(msgspec.Struct, frozen=True):
    """One attachment. ``cookie`` is the sandbox's SO_NETNS_COOKIE (signed as SQLite stores it), ``created`` realtime
    nanoseconds, ``conf`` the configuration's exact bytes, ``call`` what else a later verb needs (see :mod:`entries`),
    ``undo`` lines of JSON arrays, oldest first.
    """

    id: int
    owner: str
    container_id: str
    ifname: str
    network: str
    origin_network: str
    origin_ifname: str
    state: State
    netns: str
    cookie: int
    boot: str
    created: int
    conf: bytes
    call: bytes
    result: bytes = b""
    undo: str = ""
    pod_namespace: str = ""
    pod_name: str = ""
    pod_uid: str = ""


def signed(cookie: int) -> int:
    """The kernel's u64 cookie as SQLite's signed 64 bits."""
    return cookie - (1 << 64) if cookie >> 63 else cookie


class Ledger:
    """The open ledger. Thread-safe. ``log(level, event, **fields)``."""

    def __init__(self, path: str, log: Callable[..., None]) -> None:
        self.path = path
        self._log = log
        self._lock = threading.RLock()
        self._gone: set[int] = set()  # rows whose removal the disk refused; they count as removed
        self._stores: set[tuple[str, str]] = set()
        self._ahead: Ahead | None = None  # also where its file cannot be made: then SQLite itself is written
        self._keys: dict[int, _Key] = {}  # of each row, in the file that was opened as the number says
        self._numbers: dict[_Key, int] = {}
        self._containers: dict[str, int] = {}  # how many rows each has
        self._last, self._known_of = 0, -1
        self._encode = msgspec.json.Encoder().encode
        tables = {"attachment": COLUMNS, "store": ("kind", "place"), "ahead": ("generation",)}
        self._file = Database(path, log, what="ledger", schema=_SCHEMA, version=SCHEMA_VERSION, tables=tables)

    @classmethod
    def look(cls, path: str) -> Ledger:
        """What another process's ledger holds now, in memory. Raises IOFailure."""
        made = cls(":memory:", lambda *_, **__: None)
        try:
            with closing(elsewhere(path, "attachment")) as source, closing(_in_memory()) as copy:
                ahead.look(f"{path}-ahead", source, copy, _STATEMENTS)
                with made._file.writing() as own:
                    copy.backup(own)
        except (OSError, sqlite3.DatabaseError, StateUnwritable) as error:
            raise IOFailure(f"the ledger {path} cannot be read: {error}") from error
        return made

    def close(self) -> None:
        """Close the file; a later call opens it again."""
        with self._lock:
            self._settle()
            if self._ahead is not None:
                self._ahead.close()
                self._ahead = None
            self._known_of = -1
            self._file.close()

    # -- writing -----------------------------------------------------------------------------------------------------

    def begin(self, row: Row, entries: Sequence[msgspec.Struct] = ()) -> int:
        """Write a new row (its ``id`` is ignored) in state ``row.state``, with its first undo entries; return its id.

        Raises InterfaceExists when there is one of that owner, container, NIC and network, StateUnwritable.
        """
        key = (row.container_id, row.owner, row.ifname, row.network)
        with self._lock:
            if self._gone or not self._load():
                with self._writing():  # or it says why it cannot be
                    pass
                if not self._load():
                    raise StateUnwritable(f"the ledger {self.path} cannot be written: it cannot be read")
            if key in self._numbers:
                what = f"{row.ifname!r} of network {row.network!r} in container {row.container_id}"
                raise InterfaceExists(f"the ledger already holds {what}")
            number = self._last + 1
            values = (
                number, row.owner, row.container_id, row.ifname, row.network, row.origin_network, row.origin_ifname,
                row.state, row.netns, row.cookie, row.boot, row.created, row.conf, row.call,
                row.pod_namespace, row.pod_name, row.pod_uid, self._encode(entries).decode() + "\n" if entries else "",
            )  # fmt: skip
            self._write([(_BEGIN, values)])
            self._last = number
            self._know(number, key)
            return number

    def record(self, row_id: int, entries: Sequence[msgspec.Struct]) -> None:
        """Append undo entries to a row, before the acts that they take back. Raises StateUnwritable."""
        line = self._encode(entries).decode() + "\n"
        with self._lock:
            self._write([(_RECORD, (line, row_id))])

    def commit(self, results: Sequence[tuple[bytes, int]]) -> None:
        """Mark rows as whole, with their results: (result's JSON, row id), all or none. Raises StateUnwritable."""
        with self._lock:
            self._write([(_COMMIT, result) for result in results])

    def rewrite(self, row_id: int, undo: str) -> None:
        """Replace a row's undo lines, after some of them were carried out. Raises StateUnwritable."""
        with self._writing() as db:
            db.execute("UPDATE attachment SET undo = ? WHERE id = ?", (undo, row_id))

    def deleting(self, ids: Iterable[int]) -> None:
        """Mark rows as being deleted, so that a crash in the middle is finished at the next start."""
        self._try_each("UPDATE attachment SET state = 'deleting' WHERE id = ?", list(ids))

    def forget(self, ids: Iterable[int]) -> None:
        """Remove rows. Where the disk refuses, they count as removed and the removal is tried again later."""
        wanted = list(ids)
        with self._lock:
            if not self._try_each("DELETE FROM attachment WHERE id = ?", wanted):
                self._gone.update(wanted)
            for row_id in wanted:
                self._unknow(row_id)

    def remember_store(self, kind: str, place: str) -> None:
        """Note an IPAM store that was used: after a reboot its reservations are stale. Raises StateUnwritable."""
        if (kind, place) in self._stores:
            return
        with self._writing() as db:
            db.execute("INSERT OR IGNORE INTO store VALUES (?, ?)", (kind, place))
            self._stores.add((kind, place))

    def note_boot(self, boot: str) -> None:
        """Remember the boot that the stores were last looked through in. Raises StateUnwritable."""
        with self._writing() as db, transaction(db):
            db.execute("DELETE FROM store WHERE kind = 'boot'")
            db.execute("INSERT INTO store VALUES ('boot', ?)", (boot,))

    # -- reading -----------------------------------------------------------------------------------------------------

    def find(self, container_id: str, origin: Origin) -> list[Row]:
        """The rows of one container that came by calls of that owner and CNI_IFNAME, oldest first."""
        where = f"{_SELECT} WHERE container_id = ? AND owner = ? AND origin_ifname = ? ORDER BY id"
        return self._rows(where, (container_id, origin.owner, origin.ifname))

    def may_know(self, container_id: str) -> bool:
        """False where no row can be of that container; costs a look into memory, for the many that are new."""
        with self._lock:
            return not self._load() or container_id in self._containers

    def rows(self) -> list[Row]:
        """Every row, oldest first."""
        return self._rows(f"{_SELECT} ORDER BY id", ())

    def mentioning(self, device: str) -> list[Row]:
        """The rows with an undo entry of that device, oldest first."""
        return self._rows(f"{_SELECT} WHERE instr(undo, ?) ORDER BY id", (f'"device":"{device}"',))

    def stores(self) -> list[tuple[str, str]]:
        """The IPAM stores ever used, ("directory", path), and the boot last noted, ("boot", id)."""
        with self._reading() as db:
            return [] if db is None else db.execute("SELECT kind, place FROM store").fetchall()

    def writable(self) -> bool:
        """Whether ADD would be accepted: tries a write, which also carries out removals that the disk had refused."""
        try:
            with self._writing() as db, transaction(db):
                db.execute("INSERT OR REPLACE INTO store VALUES ('probe', '')")
                db.execute("DELETE FROM store WHERE kind = 'probe'")
        except StateUnwritable:
            return False
        return True

    def containers(self, owner: str, namespace: str, pod: str) -> set[str]:
        """The ids of the containers in which a pod of that name has attachments."""
        statement = "SELECT container_id FROM attachment WHERE pod_name = ? AND pod_namespace = ? AND owner = ?"
        with self._reading() as db:
            return set() if db is None else {row[0] for row in db.execute(statement, (pod, namespace, owner))}
        return set()

    def holds(self, container_id: str, ifname: str) -> bool:
        """Whether there is a row of that NIC, by whichever call; True where that cannot be read."""
        with self._reading() as db:
            if db is not None:
                statement = "SELECT 1 FROM attachment WHERE container_id = ? AND ifname = ?"
                return db.execute(statement, (container_id, ifname)).fetchone() is not None
        return True

    def nics(self) -> frozenset[tuple[str, str]]:
        """Every NIC that there is a row of, (container id, NIC). Raises IOFailure where that cannot be read."""
        with self._reading() as db:
            if db is not None:
                return frozenset(db.execute("SELECT container_id, ifname FROM attachment").fetchall())
        raise IOFailure(f"the ledger {self.path} cannot be read")

    def checkpoint(self) -> None:
        """Copy the write-ahead log into the file (fsync); to be called now and then, on a thread that serves nobody.

        By a connection of its own: those who write meanwhile do not wait for the disk.
        """
        with self._lock:
            self._settle()
        self._file.checkpoint()

    # -- inside ------------------------------------------------------------------------------------------------------

    def _rows(self, statement: str, values: tuple[object, ...]) -> list[Row]:
        for _ in range(2):  # a malformed file is replaced by its salvage on the first reading
            with self._reading() as db:
                found = [] if db is None else [Row(*values) for values in db.execute(statement, values)]
                return [row for row in found if row.id not in self._gone] if self._gone else found
        return []

    def _try_each(self, statement: str, ids: list[int]) -> bool:
        try:
            with self._writing() as db:
                if len(ids) == 1:
                    db.execute(statement, ids)
                elif ids:
                    with transaction(db):
                        db.executemany(statement, [(row_id,) for row_id in ids])
        except StateUnwritable as error:
            self._log("warn", "ledger cannot be written", path=self.path, error=error.message)
            return False
        return True

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._file.writing() as db:
            self._fold(db)
            if self._gone:
                with transaction(db):
                    db.executemany("DELETE FROM attachment WHERE id = ?", [(row_id,) for row_id in self._gone])
                self._gone.clear()
            yield db

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """Where what was written ahead cannot be folded, a copy of the file with it."""
        with self._lock:
            settled = self._settle()
            shown = False
            with self._file.reading() as db:
                if settled or db is None or self._ahead is None:
                    shown = True
                    yield db
                    return
                with closing(_in_memory()) as copy:
                    db.backup(copy)
                    self._ahead.show(copy)
                    shown = True
                    yield copy
            if not shown:
                yield None

    def _write(self, changes: Sequence[ahead.Change]) -> None:
        """Ahead, or where that cannot be, in SQLite. Raises StateUnwritable."""
        if self._ahead is not None and not self._ahead.full:
            with suppress(OSError):
                self._ahead.append(changes)
                return
        with self._writing() as db, transaction(db):
            for name, values in changes:
                db.execute(_STATEMENTS[name], values)

    def _settle(self) -> bool:
        """Whether all that was written ahead is in SQLite."""
        if (self._ahead is not None and not self._ahead.pending) or self.path == ":memory:":
            return True
        try:
            with self._file.writing() as db:
                self._fold(db)
        except StateUnwritable:
            return False
        return True

    def _fold(self, db: sqlite3.Connection) -> None:
        if self._ahead is None and self.path != ":memory:":
            self._ahead = self._open_ahead(db)
        if self._ahead is not None and self._ahead.pending:
            self._ahead.fold(db)

    def _open_ahead(self, db: sqlite3.Connection) -> Ahead | None:
        """None where there is no such file and none can be made. Raises StateUnwritable, sqlite3.DatabaseError."""
        path = f"{self.path}-ahead"
        try:
            return Ahead(path, db, _STATEMENTS)
        except OSError as error:
            if os.path.lexists(path):  # it may hold rows whose ids would be given again
                raise StateUnwritable(f"the ledger {path} cannot be read: {error.strerror}") from error
        return None

    def _load(self) -> bool:
        """Whether all rows' keys are in memory."""
        if self._known_of == self._file.opened:
            return True
        if not self._settle() and self._ahead is None:
            return False
        with self._reading() as db:
            if db is None:
                return False
            rows = db.execute("SELECT id, container_id, owner, ifname, network FROM attachment").fetchall()
            self._keys, self._numbers, self._containers = {}, {}, {}
            for number, *key in rows:
                self._last = max(self._last, number)
                if number not in self._gone:
                    self._know(number, tuple(key))
            self._known_of = self._file.opened
            return True
        return False

    def _know(self, number: int, key: _Key) -> None:
        self._keys[number] = key
        self._numbers[key] = number
        self._containers[key[0]] = self._containers.get(key[0], 0) + 1

    def _unknow(self, number: int) -> None:
        key = self._keys.pop(number, None)
        if key is None:
            return
        self._numbers.pop(key, None)
        self._containers[key[0]] -= 1
        if not self._containers[key[0]]:
            del self._containers[key[0]]


def _in_memory() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", isolation_level=None)
