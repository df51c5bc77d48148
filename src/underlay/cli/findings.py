"""How findings are shown: lines for people, JSON for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from underlay.multus.findings import Finding


def as_text(found: Sequence[Finding], files: int) -> str:
    """FILE: SEVERITY: KIND NAMESPACE/NAME: FIELD: MESSAGE (HINT), a line each, and the sum."""
    lines = []
    for each in found:
        place = [each.subject.file, str(each.severity), str(each.subject), each.field]
        hint = f" ({each.hint})" if each.hint else ""
        lines.append(printable(": ".join(part for part in place if part) + f": {each.message}{hint}"))
    counts = [sum(each.severity == severity for each in found) for severity in ("error", "warning")]
    lines.append(f"{_counted(files, 'file')}: {_counted(counts[0], 'error')}, {_counted(counts[1], 'warning')}")
    return "\n".join(lines)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def as_json(found: Sequence[Finding]) -> str:
    """An array of objects, for programs."""
    import json

    listed = [
        {
            "file": each.subject.file,
            "kind": each.subject.kind,
            "object": each.subject.name,
            "field": each.field,
            "severity": str(each.severity),
            "message": each.message,
            "hint": each.hint,
        }
        for each in found
    ]
    return json.dumps(listed, indent=2)


def printable(text: str) -> str:
    """On one line, and nothing in it that a terminal would obey: what is shown was written by somebody else."""
    plain = text.encode("utf-8", "backslashreplace").decode()
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in plain)
