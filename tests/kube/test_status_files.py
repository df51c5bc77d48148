"""A status is published whole, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from typing import TYPE_CHECKING

import pytest

from underlay.kube.status_files import SUFFIX, StatusFiles

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a disk that is full from there on: what fits is written, the rest is refused (setrlimit(2))."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_status_that_does_not_fit_is_not_published_over_what_a_spare_held(tmp_path: Path) -> None:
    files = StatusFiles(str(tmp_path))
    files.write(str(tmp_path), "default.old", b"o" * 300)
    files.drop([str(tmp_path)], "default.old")
    with files_of_at_most(100), pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        files.write(str(tmp_path), "default.new", b"n" * 200)
    assert os.listdir(tmp_path) == []
    files.write(str(tmp_path), "default.new", b"n" * 200)
    assert (tmp_path / f"default.new{SUFFIX}").read_bytes() == b"n" * 200
