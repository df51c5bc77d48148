"""A status is published whole, or not at all."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from tests.full_disk import file_size_limit

from underlay.kube.status_files import SUFFIX, StatusFiles

if TYPE_CHECKING:
    from pathlib import Path


def test_a_status_that_does_not_fit_is_not_published_over_what_a_spare_held(tmp_path: Path) -> None:
    files = StatusFiles(str(tmp_path))
    files.write(str(tmp_path), "default.old", b"o" * 300)
    files.drop([str(tmp_path)], "default.old")
    with file_size_limit(100), pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        files.write(str(tmp_path), "default.new", b"n" * 200)
    assert os.listdir(tmp_path) == []
    files.write(str(tmp_path), "default.new", b"n" * 200)
    assert (tmp_path / f"default.new{SUFFIX}").read_bytes() == b"n" * 200
