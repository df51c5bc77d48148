"""What was written ahead is in the database before anybody reads it, once, whenever the process ends."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from underlay.state import ahead
from underlay.state.ahead import Ahead

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STATEMENTS = {"put": "INSERT INTO seen VALUES (?)", "add": "UPDATE seen SET word = word || ?"}


def database(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path / "base.db", isolation_level=None)
    db.executescript(f"CREATE TABLE IF NOT EXISTS seen (word); {ahead.SCHEMA}")
    return db


def words(db: sqlite3.Connection) -> list[str]:
    return [word for (word,) in db.execute("SELECT word FROM seen ORDER BY rowid")]


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(database(tmp_path)) as opened:
        yield opened


def opened(path: Path, db: sqlite3.Connection) -> Ahead:
    return Ahead(str(path / "ahead"), db, STATEMENTS)


def test_changes_are_folded_in_their_order_and_once(tmp_path: Path, db: sqlite3.Connection) -> None:
    with closing(opened(tmp_path, db)) as file:
        file.append([("put", ("a",)), ("add", ("b",))])
        file.append([("add", ("c",))])
        assert words(db) == []
        file.fold(db)
        assert words(db) == ["abc"]
        assert not file.pending
    with closing(opened(tmp_path, db)) as again:
        assert not again.pending


def test_values_come_back_as_they_were(tmp_path: Path, db: sqlite3.Connection) -> None:
    values = ["ü", b"\0\xff", -(1 << 63), (1 << 63) - 1]
    with closing(opened(tmp_path, db)) as file:
        file.append([("put", (value,)) for value in values])
    with closing(opened(tmp_path, db)) as again:
        again.fold(db)
    assert words(db) == values


def test_a_fold_that_fails_changes_nothing_and_is_tried_again(tmp_path: Path, db: sqlite3.Connection) -> None:
    with closing(opened(tmp_path, db)) as file:
        file.append([("put", ("a",))])
        db.execute("ALTER TABLE ahead RENAME TO elsewhere")
        with pytest.raises(sqlite3.OperationalError):
            file.fold(db)
        assert words(db) == []
        db.execute("ALTER TABLE elsewhere RENAME TO ahead")
        file.append([("put", ("b",))])
        file.fold(db)
        assert words(db) == ["a", "b"]


def test_nothing_is_appended_where_nothing_changes(tmp_path: Path, db: sqlite3.Connection) -> None:
    with closing(opened(tmp_path, db)) as file:
        file.append([])
        assert os.stat(tmp_path / "ahead").st_size == 0


def test_frames_that_follow_another_state_of_the_database_are_passed_over(
    tmp_path: Path, db: sqlite3.Connection
) -> None:
    with closing(opened(tmp_path, db)) as file:
        file.append([("put", ("a",))])
        file.fold(db)
        backup = db.serialize()
        for word in "bc":
            file.append([("put", (word,))])
            file.fold(db)
        file.append([("put", ("d",))])
    db.deserialize(backup)
    with closing(opened(tmp_path, db)) as again:
        assert not again.pending


def test_what_is_shown_in_a_copy_is_still_to_be_folded(tmp_path: Path, db: sqlite3.Connection) -> None:
    with closing(opened(tmp_path, db)) as file, closing(sqlite3.connect(":memory:", isolation_level=None)) as copy:
        file.append([("put", ("a",))])
        db.backup(copy)
        file.show(copy)
        assert (words(copy), words(db), file.pending) == (["a"], [], True)


def test_the_file_is_used_again_from_its_beginning(tmp_path: Path, db: sqlite3.Connection) -> None:
    with closing(opened(tmp_path, db)) as file:
        for n in range(50):
            file.append([("put", ("x" * 1000,))])
            if n % 5 == 4:
                file.fold(db)
    assert os.stat(tmp_path / "ahead").st_size < 6000


def test_it_says_when_it_is_to_be_folded(tmp_path: Path, db: sqlite3.Connection) -> None:
    with closing(opened(tmp_path, db)) as file:
        while not file.full:
            file.append([("put", ("x" * 65536,))])
        file.fold(db)
        assert not file.full


@given(
    steps=st.lists(
        st.one_of(
            st.lists(st.text(max_size=30), min_size=1, max_size=3),  # one append of so many changes
            st.lists(st.just("same"), min_size=1, max_size=1),  # as long as others, so that old frames follow new ones
            st.sampled_from(["fold", "killed", "lost"]),
            st.integers(1, 40),  # killed while it wrote: so many bytes of the last append are not there
        ),
        max_size=25,
    )
)
@example(steps=[["å"], 1])
def test_nothing_that_was_written_is_lost_or_comes_twice(
    tmp_path_factory: pytest.TempPathFactory, steps: list[list[str] | str | int]
) -> None:
    path = tmp_path_factory.mktemp("ahead")
    expected: list[str] = []
    folded = 0  # so many of these
    latest: list[str] = []  # of the last append, while it lies at the end of the file, from here on:
    begin = 0
    db = database(path)
    file = opened(path, db)
    for step in steps:
        if isinstance(step, list):
            begin = file._end
            file.append([("put", (word,)) for word in step])
            expected, latest = expected + step, step
        elif step == "fold":
            file.fold(db)
            folded, latest = len(expected), []
        else:
            end = file._end
            file.close()
            if latest and isinstance(step, int):
                _tear(path, end, min(step, end - begin))
                expected = expected[: -len(latest)]
            latest = []
            if step == "lost":  # the database; what is not in it yet is all that is left
                db.close()
                (path / "base.db").unlink()
                db, expected, folded = database(path), expected[folded:], 0
            file = opened(path, db)
    file.fold(db)
    file.close()
    assert words(db) == expected
    db.close()


def _tear(path: Path, end: int, size: int) -> None:
    """As if the last bytes before ``end`` had not been written: what lay there before is of no worth."""
    with (path / "ahead").open("r+b") as file:
        file.seek(end - size)
        written = file.read(size)
        file.seek(end - size)
        file.write(bytes(byte ^ 0xFF for byte in written))


def test_a_file_of_before_the_fold_is_passed_over(tmp_path: Path, db: sqlite3.Connection) -> None:
    with closing(opened(tmp_path, db)) as file:
        file.append([("put", ("a",))])
        before = (tmp_path / "ahead").read_bytes()
        file.fold(db)
        file.append([("put", ("b",))])
        file.fold(db)
    (tmp_path / "ahead").write_bytes(before)
    with closing(opened(tmp_path, db)) as again:
        assert not again.pending


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"rubbish" * 50, b"\xff" * 16])
def test_what_is_no_such_file_holds_nothing_and_is_written_over(
    tmp_path: Path, db: sqlite3.Connection, content: bytes
) -> None:
    (tmp_path / "ahead").write_bytes(content)
    with closing(opened(tmp_path, db)) as file:
        assert not file.pending
        file.append([("put", ("a",))])
    with closing(opened(tmp_path, db)) as again:
        again.fold(db)
    assert words(db) == ["a"]


def test_another_process_sees_what_is_there(tmp_path: Path, db: sqlite3.Connection) -> None:
    def seen() -> list[str]:
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as copy:
            ahead.look(str(tmp_path / "ahead"), db, copy, STATEMENTS)
            return words(copy)

    assert seen() == []
    with closing(opened(tmp_path, db)) as file:
        file.append([("put", ("a",))])
        assert seen() == ["a"]
        file.fold(db)
        assert seen() == ["a"]
        file.append([("put", ("b",))])
        assert seen() == ["a", "b"]
    assert words(db) == ["a"]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_refuses_a_change_and_keeps_the_former(tiny_disk: Path, db: sqlite3.Connection) -> None:
    with closing(opened(tiny_disk, db)) as file:
        file.append([("put", ("a",))])
        with pytest.raises(OSError, match="No space left"):
            file.append([("put", ("x" * 32768,))])
        file.append([("put", ("b",))])
    with closing(opened(tiny_disk, db)) as again:
        again.fold(db)
    assert words(db) == ["a", "b"]
