"""One daemon per directory."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from underlay.daemon.lock import AlreadyRunning, Lock, private_directory
from underlay.errors import IOFailure, StateUnwritable

if TYPE_CHECKING:
    from pathlib import Path


def test_a_second_lock_names_the_holder_and_a_released_one_is_free(tmp_path: Path) -> None:
    lock = Lock(str(tmp_path))
    with pytest.raises(AlreadyRunning, match=f"another daemon, process {os.getpid()}, holds"):
        Lock(str(tmp_path))
    lock.release()
    Lock(str(tmp_path)).release()


def test_a_dead_holders_file_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "underlay.lock").write_text("4194304 and more than the new number")
    Lock(str(tmp_path)).release()
    assert (tmp_path / "underlay.lock").read_text() == str(os.getpid())


def test_a_lock_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "underlay.lock").symlink_to("elsewhere")
    with pytest.raises(StateUnwritable, match=r"cannot open .*underlay\.lock"):
        Lock(str(tmp_path))


def test_the_directory_is_made_private_with_its_parents(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    private_directory(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    path.chmod(0o777)
    private_directory(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_directory_of_somebody_else_or_none_is_refused(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    with pytest.raises(IOFailure, match="belongs to uid 65534"):
        private_directory(str(theirs))
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    with pytest.raises(IOFailure, match="is not a directory"):
        private_directory(str(tmp_path / "link"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StateUnwritable, match="cannot make the directory") as caught:
        private_directory(str(tmp_path / "file" / "below"))
    assert caught.value.hint.startswith("A file stands in its path")
    with pytest.raises(StateUnwritable, match="cannot make the directory") as caught:
        private_directory(str(tmp_path / "file"))
    assert caught.value.hint.startswith("A file is in its place")
