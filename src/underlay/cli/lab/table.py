"""The lab's output: a table of who reaches whom, with colour on a terminal and readable without."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_ESCAPE = re.compile(r"\x1b\[[0-9]*m")
_LABEL_WIDTH = 28
_CELL_WIDTH = 7
_MARGIN = "  "


@dataclass(frozen=True, slots=True)
class Style:
    """How to mark words: with ANSI colour or not, with Unicode signs or ASCII ones."""

    colour: bool
    unicode: bool

    @classmethod
    def of(cls, stream: TextIO) -> Style:
        """Colour on a terminal, unless NO_COLOR or TERM=dumb say no; signs where the encoding has them."""
        plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
        return cls(stream.isatty() and not plain, (stream.encoding or "").lower().replace("-", "") == "utf8")

    def _paint(self, code: int, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour else text

    def bold(self, text: str) -> str:
        """A heading."""
        return self._paint(1, text)

    def dim(self, text: str) -> str:
        """An aside."""
        return self._paint(2, text)

    def good(self, text: str) -> str:
        """Green."""
        return self._paint(32, text)

    def bad(self, text: str) -> str:
        """Red."""
        return self._paint(31, text)

    def mark(self, cell: Cell) -> str:
        """Reached or not; with an exclamation mark where that is not as expected."""
        yes, no = ("✓", "✗") if self.unicode else ("yes", "no")
        text = (yes if cell.reached else no) + ("" if cell.reached == cell.expected else "!")
        return self.good(text) if cell.reached else self.bad(text)

    def plain_signs(self, text: str) -> str:
        """The text with arrows and lines that the stream's encoding has."""
        return text if self.unicode else text.translate(_ASCII)


_ASCII = str.maketrans({"→": ">", "─": "-", "│": "|", "├": "+", "└": "`"})


@dataclass(frozen=True, slots=True)
class Cell:
    """What was seen and what should have been."""

    reached: bool
    expected: bool


@dataclass(frozen=True, slots=True)
class Table:
    """Heads of the columns (lines of words), rows of cells by family, and closing lines of plain text per column."""

    heads: Sequence[Sequence[str]]
    families: Sequence[str]
    rows: Mapping[str, Sequence[Sequence[Cell]]]
    notes: Mapping[str, Sequence[str]]

    def wrong(self) -> int:
        """How many cells are not as expected."""
        return sum(cell.reached != cell.expected for row in self.rows.values() for cells in row for cell in cells)

    def unreached(self) -> int:
        """How many cells were not reached."""
        return sum(not cell.reached for row in self.rows.values() for cells in row for cell in cells)

    def cells(self) -> int:
        """How many cells there are."""
        return sum(len(cells) for row in self.rows.values() for cells in row)


def render(table: Table, style: Style) -> str:
    """The table as lines, none longer than 80 characters with three columns of two families."""
    width = _CELL_WIDTH * len(table.families) + 2
    first, *others = zip(*table.heads, strict=True)
    lines = [_line("", [style.dim(word) for word in first], width)]
    lines += [_line("", [style.bold(word) for word in words], width) for words in others]
    families = "".join(_pad(style.dim(family), _CELL_WIDTH) for family in table.families)
    lines.append(_line("", [families] * len(table.heads), width))
    for label, row in table.rows.items():
        marks = ["".join(_pad(style.mark(cell), _CELL_WIDTH) for cell in cells) for cells in row]
        lines.append(_line(label, marks, width))
    for label, notes in table.notes.items():
        lines.append(_line(style.dim(label), [style.dim(note) for note in notes], width))
    return style.plain_signs("\n".join(lines))


def _line(label: str, columns: Sequence[str], width: int) -> str:
    return (_MARGIN + _pad(label, _LABEL_WIDTH) + "".join(_pad(column, width) for column in columns)).rstrip()


def _pad(text: str, width: int) -> str:
    """Fill up to a width, not counting colour."""
    return text + " " * (width - len(_ESCAPE.sub("", text)))
