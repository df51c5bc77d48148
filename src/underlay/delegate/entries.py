"""Undo entries that are more than kernel acts, and how a row's entries are read back from the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from underlay.cni.result import Result  # noqa: TC001 - msgspec reads the annotation
from underlay.ipam.undo import Release
from underlay.net import undo

if TYPE_CHECKING:
    from collections.abc import Sequence


class ExecDelete(msgspec.Struct, frozen=True, tag="exec", omit_defaults=True):
    """Call an executable plugin with DEL: ``conf`` is its standard input as at ADD, ``version`` that of the
    configuration. ``ipam``: it gives addresses back, so it waits until the links that carry them are gone.
    """

    plugin: str
    conf: str
    version: str
    container_id: str
    netns: str
    ifname: str
    args: str = ""
    path: tuple[str, ...] = ()
    ipam: bool = False


class RemoveFile(msgspec.Struct, frozen=True, tag="file"):
    """Remove a file that plugins were told of, after the last of them was called."""

    path: str


class Chained(msgspec.Struct, frozen=True, tag="chained"):
    """No act. What follows was laid by the chain from its plugin number ``plugin`` (from 0) on, onto ``prev``: it can
    be taken back, and laid anew, while the NIC stays.
    """

    plugin: int
    prev: Result


class Moved(msgspec.Struct, frozen=True, tag="moved"):
    """No act. What follows gave the pod's default routes to this NIC."""


class Lifted(msgspec.Struct, frozen=True, tag="lifted"):
    """No act. What followed :class:`Moved`, or with ``chain`` :class:`Chained`, is being taken back to be laid anew."""

    chain: bool


class Laid(msgspec.Struct, frozen=True, tag="laid"):
    """No act. What was :class:`Lifted` is there again, whole."""


class SavedCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """What CHECK needs besides the configuration: the rest of the attachment as it was asked for; ``asked`` is the
    origin's own configuration, where the attachments may be changed.
    """

    name: str = ""
    args_text: str = ""
    path: tuple[str, ...] = ()
    runtime: dict[str, Any] = {}
    cni_args: dict[str, Any] = {}
    default_gateways: tuple[str, ...] = ()
    asked: bytes = b""
    by: str = ""


Entry = undo.Entry | ExecDelete | RemoveFile | Release | Chained | Moved | Lifted | Laid
_ENCODER = msgspec.json.Encoder()
_LINE = msgspec.json.Decoder(list[Entry])


def encode(known: Sequence[msgspec.Struct]) -> str:
    """A row's lines, of entries oldest first."""
    return _ENCODER.encode(known).decode() + "\n" if known else ""


def decode(lines: str) -> tuple[list[msgspec.Struct], list[str]]:
    """A row's entries, oldest first, and the lines that nobody understands (of a newer version, or torn)."""
    known: list[msgspec.Struct] = []
    unknown: list[str] = []
    for line in lines.splitlines():
        try:
            known += _LINE.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            unknown.append(line)
    return known, unknown
