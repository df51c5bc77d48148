"""Why a text is no JSON, in words for people who wrote it: comments, and the line that a byte offset lies in."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

# Whole strings first, so that what is inside of one is no comment.
_TOKEN: Final = re.compile(rb'"(?:[^"\\\n]|\\.)*"|(?P<mark>#|//|/\*)')
_BYTE: Final = re.compile(r" \(byte (\d+)\)")


class Explained(NamedTuple):
    """The sentence, and a hint that is "" where there is nothing to add."""

    message: str
    hint: str


def explain(raw: bytes, message: str) -> Explained:
    """The decoder's sentence about ``raw`` with "(byte N)" as a place people can find, and comments pointed at."""
    if "is not JSON" not in message:
        return Explained(message, "")
    offset = _BYTE.search(message)
    if offset:
        line, column = _place(raw, int(offset[1]))
        message = f"{message[: offset.start()]} in line {line}, column {column}{message[offset.end() :]}"
    mark = next((each for each in _TOKEN.finditer(raw) if each["mark"]), None)
    if mark is None:
        return Explained(message, "Correct the JSON at that place, or just before it.")
    line, _ = _place(raw, mark.start())
    return Explained(
        message, f"JSON has no comments: take out {mark['mark'].decode()!r} in line {line} and what follows it."
    )


def _place(raw: bytes, offset: int) -> tuple[int, int]:
    """Line and column of a byte, both from 1."""
    before = raw[:offset]
    return before.count(b"\n") + 1, len(before) - before.rfind(b"\n")
