"""JSON into typed values, and the decoder's complaints as errors that name the field."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import msgspec
from msgspec import inspect

from underlay.errors import DecodeFailure, InvalidConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from underlay.errors import UnderlayError

T = TypeVar("T")

FAULTS: Final = (ValueError, RecursionError)
"""Everything that msgspec raises for bytes it cannot decode: its own errors and UnicodeDecodeError are ValueErrors."""

_PLACE = re.compile(r"(?P<what>.*?)(?: - at `(?:key in `?)?\$(?P<path>[^`]*)`.*)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<field>[^`]*)`")
_TYPES: Final = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}


def decode(raw: bytes, kind: type[T], *, at: str = "") -> T:
    """A plugin's own keys out of its configuration; keys that ``kind`` does not name are skipped.

    ``kind`` is a msgspec.Struct; ``at`` is the name of the object that ``raw`` holds, where it is not the whole
    configuration. Raises InvalidConfig naming the field of a wrong type, DecodeFailure for no JSON object.
    """
    try:
        return msgspec.json.decode(raw, type=kind)
    except FAULTS as error:
        raise fault(error, at=at) from error


@lru_cache(maxsize=256)
def decode_again(raw: bytes, kind: type[T]) -> T:
    """:func:`decode` of a configuration that pods come with again and again. What it returns is shared: frozen."""
    return decode(raw, kind)


def fault(error: Exception, *, at: str = "", what: str = "the configuration") -> UnderlayError:
    """The error to raise for one of FAULTS. It repeats nothing of the input but field names."""
    if isinstance(error, UnicodeDecodeError):
        return DecodeFailure(f"{what} holds text that is not UTF-8 ({error.reason})")
    if isinstance(error, RecursionError):
        return DecodeFailure(f"{what} is nested too deeply")
    if not isinstance(error, msgspec.ValidationError):
        return DecodeFailure(f"{what} is not JSON: {error}")
    return _wrong_field(str(error), at, what)


def _wrong_field(words: str, at: str, what: str) -> UnderlayError:
    match = _PLACE.fullmatch(words)
    complaint, path = (match["what"], match["path"] or "") if match else (words, "")
    path = path.removeprefix(".") if not at else at + path
    missing = _MISSING.fullmatch(complaint)
    if missing:
        return InvalidConfig(f'"{f"{path}." if path else ""}{missing["field"]}" is missing')
    if not path:
        return DecodeFailure(f"{what} is no JSON object: {_plain(complaint)}")
    return InvalidConfig(f'"{path}": {_plain(complaint)}')


def _plain(complaint: str) -> str:
    """``Expected `str`, got `int` `` in the words of JSON."""
    words = re.sub(r"`(\w+)( \| null)?`", lambda m: _TYPES.get(m[1], m[1]), complaint)
    return words[:1].lower() + words[1:]


class Stranger(NamedTuple):
    """The path of a key that means nothing where it stands, and the keys that would."""

    path: str
    known: tuple[str, ...]


def strangers(raw: bytes, kind: type[msgspec.Struct]) -> list[str]:
    """Paths of the keys in ``raw`` that ``kind`` and the types inside it do not name, in the order of the text."""
    return [each.path for each in find_strangers(raw, kind)]


def find_strangers(raw: bytes, kind: type[msgspec.Struct]) -> list[Stranger]:
    """The same, each with the keys that its place has. Raises as :func:`decode`."""
    return strangers_in(decode(raw, dict[str, Any]), kind)


def strangers_in(value: Mapping[str, Any], kind: type[msgspec.Struct]) -> list[Stranger]:
    """The same of an object that is decoded already, from YAML for example."""
    return list(_strangers(value, _type_info(kind), ""))


_type_info = lru_cache(maxsize=64)(inspect.type_info)


def _strangers(value: Any, kind: inspect.Type, path: str) -> Iterator[Stranger]:
    if isinstance(kind, inspect.UnionType):
        for one in kind.types:
            if isinstance(one, (inspect.StructType, inspect.ListType, inspect.VarTupleType)):
                yield from _strangers(value, one, path)
    elif isinstance(kind, inspect.StructType) and isinstance(value, dict):
        known = {one.encode_name: one.type for one in kind.fields}
        for key, inner in value.items():
            where = f"{path}.{key}" if path else key
            if key not in known:
                yield Stranger(where, tuple(known))
            else:
                yield from _strangers(inner, known[key], where)
    elif isinstance(kind, (inspect.ListType, inspect.VarTupleType)) and isinstance(value, list):
        for n, inner in enumerate(value):
            yield from _strangers(inner, kind.item_type, f"{path}[{n}]")
