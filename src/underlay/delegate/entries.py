"""Undo entries that are more than kernel acts, and how a row's entries are read back from the ledger."""

from __future__ import annotations

from typing import Any

import msgspec

from underlay.ipam.undo import Release
from underlay.net import undo


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


class SavedCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """What CHECK needs besides the configuration: the rest of the attachment as it was asked for."""

    name: str = ""
    args_text: str = ""
    path: tuple[str, ...] = ()
    runtime: dict[str, Any] = {}
    cni_args: dict[str, Any] = {}
    default_gateways: tuple[str, ...] = ()


Entry = undo.Entry | ExecDelete | RemoveFile | Release
_LINE = msgspec.json.Decoder(list[Entry])


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
