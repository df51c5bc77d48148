"""One attachment on its way from the first undo entry to the row that says it is whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from underlay.cni.result import Result
from underlay.delegate.entries import RemoveFile
from underlay.delegate.rows import outcome
from underlay.delegate.undoing import Leftover
from underlay.plugins import info_file

if TYPE_CHECKING:
    from underlay.delegate.attachment import Attachment
    from underlay.net.host_root import HostRoot
    from underlay.net.undo import UndoLog

_NOTHING: Final = Result()


class Made:
    """One attachment that this session has made, or is making."""

    __slots__ = ("attachment", "mtu", "result", "row_id", "undo")

    def __init__(self, row_id: int, attachment: Attachment, undo: UndoLog) -> None:
        self.row_id = row_id
        self.attachment = attachment
        self.undo = undo
        self.result = _NOTHING
        self.mtu = 0

    def leftover(self) -> Leftover:
        """What takes it back."""
        return Leftover(self.row_id, self.undo.entries, None if self.result is _NOTHING else self.result)

    def make_info_file(self, root: HostRoot) -> None:
        """The attachment's device information file; recorded in any case, as a plugin may write it."""
        path, info = self.attachment.info_file, self.attachment.info
        if path:
            self.undo.record(RemoveFile(path))
        if info:
            info_file.write(root.locate(path), info)

    def outcome(self) -> tuple[bytes, int]:
        """What became of it as the ledger takes it."""
        return outcome(self.result, self.mtu), self.row_id
