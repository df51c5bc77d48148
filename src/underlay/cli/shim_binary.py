"""The shim's binary: where it lies, and the run directory written into a copy of it.

The binary holds one 256-byte slot, "UNDERLAY-RUN-DIR=" and the directory, padded with NUL (shim/underlay-shim.c).
"""

from __future__ import annotations

import os
from pathlib import Path

from underlay.errors import InvalidConfig, IOFailure

MARK = b"UNDERLAY-RUN-DIR="
SLOT = 256
SOCKET_NAME = "underlay.sock"
# What the daemon takes (underlay.daemon.config, not imported for that): a unix socket's path has 107 bytes, unix(7).
RUN_DIR_LIMIT = 80
# Our shim is far smaller; what is larger is somebody else's plugin and need not be read.
SIZE_LIMIT = 4 << 20


def candidates() -> tuple[Path, ...]:
    """Where the binary for this machine may lie: in the installed package, or in a source checkout's build folder."""
    package = Path(__file__).resolve().parent.parent
    packaged = package / "_shim" / f"underlay-shim-{os.uname().machine}"
    return packaged, package.parent.parent / "build" / "shim" / "underlay-shim"


def load() -> bytes:
    """The bytes of the shim for this machine; IOFailure when it was not built, or is not the shim."""
    for path in candidates():
        try:
            image = path.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as fault:
            raise IOFailure(f"cannot read the shim {path}: {fault.strerror}") from fault
        if run_dir(image) is None:
            raise IOFailure(f"{path} is not the shim", hint="Build it again: make build/shim/underlay-shim")
        return image
    places = " nor ".join(str(path) for path in candidates())
    raise IOFailure(
        f"the shim for {os.uname().machine} is neither {places}",
        hint="In a source checkout: make build/shim/underlay-shim. Wheels carry it for x86_64 and aarch64.",
    )


def run_dir(image: bytes) -> str | None:
    """The run directory that a binary was laid for; None when it is not the shim."""
    start = image.find(MARK)
    if start < 0 or len(image) < start + SLOT or image.find(MARK, start + 1) >= 0:
        return None
    return os.fsdecode(image[start + len(MARK) : start + SLOT].split(b"\0", 1)[0])


def run_dir_of(path: Path) -> str | None:
    """``run_dir`` of a file; None for what is no regular file, not there, or too large to be the shim."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > SIZE_LIMIT:
            return None
        return run_dir(path.read_bytes())
    except OSError as fault:
        raise IOFailure(f"cannot read {path}: {fault.strerror}") from fault


def with_run_dir(image: bytes, directory: str) -> bytes:
    """A copy of the binary that looks for its daemon in ``directory``; InvalidConfig when no socket fits there."""
    raw = os.fsencode(directory)
    if not directory.startswith("/") or "\0" in directory:
        raise InvalidConfig(f'the run directory "{directory}" is not an absolute path', hint="Begin it with a slash.")
    if len(raw) > RUN_DIR_LIMIT:
        raise InvalidConfig(
            f"the run directory {directory} has {len(raw)} bytes, and a socket's path leaves room for {RUN_DIR_LIMIT}",
            hint="Choose a shorter path.",
        )
    start = image.index(MARK)
    slot = (MARK + (raw.rstrip(b"/") or b"/")).ljust(SLOT, b"\0")
    return image[:start] + slot + image[start + SLOT :]
