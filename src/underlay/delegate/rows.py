"""What a row of the ledger says of its attachment: what was asked for, and what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from underlay.cni.result import Result
from underlay.delegate.attachment import Attachment
from underlay.delegate.entries import SavedCall

if TYPE_CHECKING:
    from collections.abc import Sequence

    from underlay.delegate.ledger import Row


class _Outcome(Result, frozen=True, omit_defaults=True):
    """A result, and beside it what no version of CNI has our main plugins print: the MTU of the NIC."""

    mtu: int = 0


encode: Final = msgspec.json.Encoder().encode
"""A saved call as a row keeps it."""

_decode_result: Final = msgspec.json.Decoder(Result).decode
_decode_outcome: Final = msgspec.json.Decoder(_Outcome).decode
_decode_call: Final = msgspec.json.Decoder(SavedCall).decode


def saved_call(row: Row) -> SavedCall:
    """What else was asked for when the row was written."""
    return _decode_call(row.call)


def attachment_of(row: Row) -> Attachment:
    """What was asked for when the row was written."""
    saved = saved_call(row)
    return Attachment(
        row.network, row.conf, row.ifname, saved.name, saved.runtime, saved.cni_args, saved.default_gateways,
        by=saved.by,
    )  # fmt: skip


def outcome(result: Result, mtu: int) -> bytes:
    """A result as a row keeps it; ``mtu`` that of a NIC which a built-in plugin has put into the sandbox, or 0."""
    return encode(_Outcome(result.interfaces, result.ips, result.routes, result.dns, mtu))


def mtu_of(row: Row) -> int:
    """The MTU that a built-in plugin gave the row's NIC, 0 where none did or nobody can read it."""
    try:
        return _decode_outcome(row.result).mtu if row.result else 0
    except msgspec.MsgspecError:
        return 0


def result_of(row: Row) -> Result | None:
    """The result of the row's ADD; None where it has not come to its end, or nobody can read it."""
    try:
        return _decode_result(row.result) if row.result else None
    except msgspec.MsgspecError:
        return None


def keep_nothing(_: Sequence[msgspec.Struct]) -> None:
    """The journal of verbs that change nothing worth undoing."""
