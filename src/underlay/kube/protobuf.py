"""Protocol buffers' wire format, as much as a few small messages take (protobuf.dev, "Encoding").

A field is a varint of (number << 3 | wire type), then its value: 0 a varint, 1 eight bytes, 2 a length and that many
bytes (text, a message), 5 four bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_VARINT: Final = 0
_BYTES: Final = 2
_FIXED: Final = {1: 8, 5: 4}
_LONGEST: Final = 10  # bytes of a varint of 64 bits


class Malformed(ValueError):
    """Bytes that are no message."""


def texts(raw: bytes, number: int) -> list[str]:
    """The field's values as text, in order. Raises Malformed."""
    try:
        return [value.decode() for value in messages(raw, number)]
    except UnicodeDecodeError as fault:
        raise Malformed(f"field {number} holds text that is not UTF-8") from fault


def text(raw: bytes, number: int) -> str:
    """The last of the field's values, as proto3 reads a field that is not repeated; "" for none. Raises Malformed."""
    return (texts(raw, number) or [""])[-1]


def messages(raw: bytes, number: int) -> list[bytes]:
    """The field's length-delimited values, in order. Raises Malformed."""
    return [value for key, value in _fields(raw) if key == number and isinstance(value, bytes)]


def integer(raw: bytes, number: int) -> int:
    """The last of the field's varints, unsigned; 0 for none. Raises Malformed."""
    return ([value for key, value in _fields(raw) if key == number and isinstance(value, int)] or [0])[-1]


def encode(number: int, value: str) -> bytes:
    """One field of text; an empty one is left out, as proto3 has it."""
    raw = value.encode()
    return embed(number, raw) if raw else b""


def encode_integer(number: int, value: int) -> bytes:
    """One field of a number that is not negative; zero is left out, as proto3 has it."""
    return _varint(number << 3 | _VARINT) + _varint(value) if value else b""


def embed(number: int, message: bytes) -> bytes:
    """One field that holds a message, or an element of a repeated field: an empty one is there all the same."""
    return _varint(number << 3 | _BYTES) + _varint(len(message)) + message


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _take(raw: bytes, at: int) -> tuple[int, int]:
    """The varint at ``at``, and where it ends."""
    number = 0
    for place in range(_LONGEST):
        if at + place >= len(raw):
            raise Malformed("the message ends within a number")
        byte = raw[at + place]
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return number, at + place + 1
    raise Malformed("a number is longer than 64 bits")


def _fields(raw: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Number and value of each field that is length-delimited or a varint; those of fixed length are passed over."""
    at = 0
    while at < len(raw):
        key, at = _take(raw, at)
        kind = key & 7
        if not key >> 3 or not (kind in (_VARINT, _BYTES) or kind in _FIXED):
            raise Malformed(f"there is no field {key >> 3} of wire type {kind}")
        if kind == _VARINT:
            value, at = _take(raw, at)
            yield key >> 3, value
            continue
        length = _FIXED.get(kind, 0)
        if kind == _BYTES:
            length, at = _take(raw, at)
        if at + length > len(raw):
            raise Malformed(f"the message ends within field {key >> 3}")
        if kind == _BYTES:
            yield key >> 3, raw[at : at + length]
        at += length
