"""What lint has to say: frozen values, the same for the command and for the admission webhook."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from underlay.errors import DecodeFailure, InvalidAnnotation, InvalidConfig

if TYPE_CHECKING:
    from underlay.errors import UnderlayError

# Hints for a pod that has failed; here the field stands beside them.
_GENERAL: Final = (DecodeFailure.hint, InvalidAnnotation.hint, InvalidConfig.hint)
_NAMED: Final = re.compile(r'(?:"(?P<field>[^"\s]+)"|annotation "?(?P<annotation>[^\s:"]+))')


class Severity(StrEnum):
    """``error``: ADD refuses it, or two things given contradict each other. ``warning``: it is taken, and most likely
    not what was meant. ``info``: what could not be looked into, and what has no effect by design.
    """

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Subject:
    """The object that a finding is about: ``kind`` and ``name`` ("namespace/name"), and the ``file`` it is in."""

    file: str
    kind: str = ""
    name: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in (self.kind, self.name) if part)


@dataclass(frozen=True, slots=True)
class Finding:
    """``message`` is one sentence, ``hint`` says what to do, ``field`` is the path in the object, "" for all of it."""

    subject: Subject
    severity: Severity
    field: str
    message: str
    hint: str = ""


def of_error(subject: Subject, error: UnderlayError, *, at: str = "", inside: str = "") -> Finding:
    """An error of the code that ADD runs.

    ``at`` is the path to what that code was given; the field that the sentence begins with is looked up below
    ``inside``, a part of it ("plugins[1]").
    """
    named = _NAMED.match(error.message)
    field = (named["field"] or named["annotation"]) if named else ""
    return Finding(
        subject, Severity.ERROR, joined(at, inside, field), error.message, "" if error.hint in _GENERAL else error.hint
    )


def joined(*parts: str) -> str:
    """Parts of a path, joined by dots, empty ones left out: "spec.config", "plugins[1]", "mtu"."""
    return ".".join(part for part in parts if part)
