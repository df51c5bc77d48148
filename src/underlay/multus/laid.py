"""Which file was laid for the container runtime: what `underlay uninstall` may take away, and nothing else.

    STATE_DIR/laid.json   {"path": "/etc/cni/net.d/00-multus.conf", "sha256": ["of the latest", "of the one before"]}

Noted before the file is written, so that a daemon which is killed in between has said too much and never too little;
the file's former content stays noted until the next one. A file that somebody has changed since is somebody's.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from typing import Final

import msgspec

FILE: Final = "laid.json"


class _Note(msgspec.Struct, frozen=True):
    path: str = ""
    sha256: tuple[str, ...] = ()


class Laid:
    """The note in one state directory. Used by one thread."""

    def __init__(self, state_dir: str) -> None:
        self._path = os.path.join(state_dir, FILE)

    def note(self, path: str, content: bytes) -> None:
        """``path`` is about to hold ``content``, or holds it already. Raises OSError."""
        before, digest = self._read(), hashlib.sha256(content).hexdigest()
        former = before.sha256[:1] if before.path == path else ()
        if former == (digest,):
            return
        temporary = f"{self._path}.tmp"
        with open(temporary, "wb") as file:
            file.write(msgspec.json.encode(_Note(path, (digest, *former))))
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, self._path)

    def holds(self, path: str) -> bool:
        """Whether the file at ``path`` is what was laid: of the same name, and as it was written.

        Of the name alone, since a container may have the directory elsewhere. Raises OSError where it cannot be read.
        """
        note = self._read()
        if not note.path or os.path.basename(path) != os.path.basename(note.path):
            return False
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest() in note.sha256

    def _read(self) -> _Note:
        """The note; an empty one where there is none that can be read: then nothing is known to be ours."""
        with contextlib.suppress(OSError, msgspec.MsgspecError), open(self._path, "rb") as file:
            return msgspec.json.decode(file.read(), type=_Note)
        return _Note()
