"""The device information file of one attachment (device-info-spec 1.1.0, section 4.2): made before, removed after."""

from __future__ import annotations

import contextlib
import errno
import os

import msgspec

from underlay.errors import IOFailure

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)  # the last: it was never made
_MODE = 0o644  # plugins that run as root write to it, whoever looks at the node reads it


def write(path: str, info: bytes) -> None:
    """Make the file, and its directory where that is not there yet. Raises IOFailure.

    A file that is there already is of an attachment that nobody took back: it is replaced.
    """
    temporary = f"{path}.new"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
        with open(fd, "wb") as file:
            file.write(info)
        os.rename(temporary, path)
    except OSError as fault:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise IOFailure(f"the device information file {path} cannot be written: {fault.strerror}") from fault


def describe(path: str, **pci: str) -> None:
    """Write what a plugin knows of a PCI device (section 3.2 of the specification), where nobody has written yet.

    ``pci`` are the keys of the object "pci", underscores for hyphens. Raises IOFailure.
    """
    if not os.path.exists(path) or not os.path.getsize(path):
        told = {name.replace("_", "-"): value for name, value in pci.items() if value}
        write(path, msgspec.json.encode({"type": "pci", "version": "1.1.0", "pci": told}))


def remove(path: str) -> None:
    """Remove the file, and what an interrupted :func:`write` left. Nothing there: no fault. Raises IOFailure."""
    for each in (f"{path}.new", path):
        try:
            os.unlink(each)
        except OSError as fault:
            if fault.errno in _ABSENT:
                continue
            raise IOFailure(f"the device information file {each} cannot be removed: {fault.strerror}") from fault
