"""Take what can still be read out of a SQLite file that is malformed, or lies where nothing can be written."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import struct
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# The disk that has become read-only is most often the one of /tmp too, and in a container its root is.
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - a directory of one's own is made there


def take_over(source: str, target: sqlite3.Connection, tables: Mapping[str, Sequence[str]]) -> int:
    """Copy every legible row of ``tables`` (name: columns) from the file ``source`` into ``target``; return how many.

    A table is read from both ends, because a bad page in its middle stops a reader; rows that break a constraint of
    ``target`` are left out.
    """
    _complete(source)
    kept = 0
    for table, columns in tables.items():
        places = ", ".join("?" * len(columns))
        statement = f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({places})"  # noqa: S608 - own names
        for row in _legible(source, table, columns):
            with contextlib.suppress(sqlite3.IntegrityError, sqlite3.InterfaceError):
                kept += target.execute(statement, row).rowcount
    return kept


def copy(source: str, table: str) -> sqlite3.Connection | None:
    """The file's content, its write-ahead log included, in memory, read only; None where ``table`` cannot be read.

    SQLite itself needs to write beside a file in WAL mode even for reading it (wal.html, "Read-Only Databases").
    """
    memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    try:
        try:
            _load(source, memory, _SHARED_MEMORY)
        except OSError:  # it is not there, or too small
            _load(source, memory, None)
        memory.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchall()  # noqa: S608 - own name
        memory.execute("PRAGMA query_only = ON")
    except (OSError, sqlite3.DatabaseError):
        memory.close()
        return None
    return memory


def _load(source: str, memory: sqlite3.Connection, place: str | None) -> None:
    """By way of a copy in a directory below ``place``, None where files of a moment belong. Raises OSError,
    sqlite3.DatabaseError.
    """
    directory = tempfile.mkdtemp(prefix="underlay-", dir=place)
    beside = os.path.join(directory, "copy.db")
    try:
        shutil.copyfile(source, beside)
        if os.path.exists(f"{source}-wal"):
            shutil.copyfile(f"{source}-wal", f"{beside}-wal")
        with contextlib.closing(sqlite3.connect(beside)) as db:
            db.backup(memory)
    finally:  # by name: to look into a directory takes a descriptor, and there may be none left
        for name in (beside, f"{beside}-wal", f"{beside}-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
        os.rmdir(directory)


def _complete(source: str) -> None:
    """SQLite reads nothing of a file that is shorter than its header says: fill it up with empty pages.

    https://www.sqlite.org/fileformat2.html, section 1.3: page size at 16, pages at 28, big-endian.
    """
    with contextlib.suppress(OSError, struct.error), open(source, "r+b") as file:
        header = file.read(32)
        page_size, pages = *struct.unpack_from(">H", header, 16), *struct.unpack_from(">I", header, 28)
        size = page_size * pages
        if header.startswith(b"SQLite format 3\0") and file.seek(0, os.SEEK_END) < size < 1 << 30:
            file.truncate(size)


def _legible(source: str, table: str, columns: Sequence[str]) -> Iterator[tuple[object, ...]]:
    for order in ("ASC", "DESC"):
        try:
            db = sqlite3.connect(source, isolation_level=None)
        except sqlite3.DatabaseError:
            return
        try:
            statement = f"SELECT {', '.join(columns)} FROM {table} ORDER BY {columns[0]} {order}"  # noqa: S608
            yield from db.execute(statement)
            return
        except sqlite3.DatabaseError:
            continue
        finally:
            db.close()
