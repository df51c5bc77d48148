"""Changes of a database that are in a file of their own first, and in the database before anybody reads it.

    append ── append ── append          one pwrite each, 13-25 µs within an ADD; a transaction took 80-124 µs
       └────────┴─────────┴──▶ folded   all of them in one transaction, and the file begins anew

    frame: length u32 | generation u64 | CRC-32 of generation and payload u32 | payload (MessagePack), little-endian

Each time the changes are folded the database notes their generation, in the same transaction, and then the first frame
is blotted out. So frames count if their generation is the next one, or if the database has noted none: it is new, or
was begun anew after a fault, and what is not blotted out is in no database. The file is never cut: what an earlier
generation left behind the last frame is passed over, and its space needs no new block. The first generation is a time,
so none comes again. No fsync: a killed process loses nothing, a power cut the last moments.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import time
import zlib
from typing import TYPE_CHECKING, Any, Final

import msgspec

from underlay.state.database import transaction

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence

SCHEMA: Final = "CREATE TABLE IF NOT EXISTS ahead (generation INTEGER NOT NULL);"

_HEAD: Final = struct.Struct("<IQI")
_GENERATION: Final = struct.Struct("<Q")
_ENCODE: Final = msgspec.msgpack.Encoder().encode
_SPACE: Final = 1 << 20  # what is not folded by then is, so a start has little to read

Change = tuple[str, tuple[Any, ...]]
"""The name of a statement, and its values: str, int, bytes."""


class Ahead:
    """The file of a database's owner; what is in another's, :func:`read` tells. The caller keeps threads apart.

    ``statements`` are what changes name; they are executed in the order of the changes. The database needs SCHEMA.
    """

    def __init__(self, path: str, db: sqlite3.Connection, statements: Mapping[str, str]) -> None:
        """Raises OSError, sqlite3.DatabaseError."""
        self._statements = statements
        self._torn = False  # a change that was refused may lie there as if it had not been
        noted = _noted(db)
        self._file = _open(path)
        try:
            self._pending, self._generation, self._end = _read(self._file)
        except BaseException:
            os.close(self._file)
            raise
        if not _follows(self._generation, noted):
            self._pending, self._generation, self._end = [], (noted or time.time_ns()) + 1, 0

    @property
    def pending(self) -> bool:
        """Whether a fold is due: there are changes, or what must not be taken for one."""
        return bool(self._pending) or self._torn

    @property
    def full(self) -> bool:
        """Whether the changes are to be folded before more are added."""
        return self._end >= _SPACE

    def append(self, changes: Sequence[Change]) -> None:
        """Write changes down, all or none. Raises OSError; then they count only if the process is killed before the
        next fold.
        """
        if not changes:
            return
        payload = _ENCODE(changes)
        frame = _HEAD.pack(len(payload), self._generation, _checksum(self._generation, payload)) + payload
        self._torn = True
        if os.pwrite(self._file, frame, self._end) != len(frame):  # with what lay there before it may be whole
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._torn = False
        self._end += len(frame)
        self._pending += changes

    def fold(self, db: sqlite3.Connection) -> None:
        """Carry the changes out in the database. Raises sqlite3.DatabaseError, and then none is."""
        with transaction(db):
            self.show(db)
            db.execute("DELETE FROM ahead")
            db.execute("INSERT INTO ahead VALUES (?)", (self._generation,))
        self._pending, self._torn = [], False
        self._generation += 1
        self._end = 0
        with contextlib.suppress(OSError):
            os.pwrite(self._file, bytes(_HEAD.size), 0)

    def show(self, db: sqlite3.Connection) -> None:
        """The same in a copy of the database, which is not noted."""
        for name, values in self._pending:
            db.execute(self._statements[name], values)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def look(path: str, source: sqlite3.Connection, copy: sqlite3.Connection, statements: Mapping[str, str]) -> None:
    """Copy another process's database, its changes included. Raises OSError, sqlite3.DatabaseError."""
    changes: list[Change] = []
    generation = 0
    with contextlib.suppress(FileNotFoundError):
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            changes, generation, _ = _read(file)
        finally:
            os.close(file)
    source.backup(copy)
    copy.execute(SCHEMA)  # of a version that wrote nothing ahead
    if _follows(generation, _noted(copy)):  # else its owner has folded them, before or after they were read
        for name, values in changes:
            copy.execute(statements[name], values)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # can be shown at least


def _noted(db: sqlite3.Connection) -> int | None:
    found = db.execute("SELECT generation FROM ahead").fetchone()
    return found[0] if found else None


def _follows(generation: int, noted: int | None) -> bool:
    return generation > 0 and noted in (None, generation - 1)


def _read(file: int) -> tuple[list[Change], int, int]:
    """The changes of the first frame and of those behind it that are of its generation, which (0 for none), the end."""
    data = os.pread(file, os.fstat(file).st_size, 0)
    changes: list[Change] = []
    generation, at = 0, 0
    while len(data) - at >= _HEAD.size:
        length, number, checksum = _HEAD.unpack_from(data, at)
        payload = data[at + _HEAD.size : at + _HEAD.size + length]
        if generation not in (0, number):
            break  # left by an earlier generation
        if len(payload) != length or _checksum(number, payload) != checksum:
            break  # blotted out, or what was being written when the process was killed
        changes += msgspec.msgpack.decode(payload, type=list[Change])
        generation, at = number, at + _HEAD.size + length
    return changes, generation, at


def _checksum(generation: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_GENERATION.pack(generation)))
