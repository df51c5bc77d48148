"""Kubernetes label selectors (meta/v1 LabelSelector): parsed, matched, counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from underlay.errors import InvalidConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

Operator = Literal["In", "NotIn", "Exists", "DoesNotExist"]
_WITH_VALUES: Final = ("In", "NotIn")


class Expression(msgspec.Struct, frozen=True):
    """One of matchExpressions."""

    key: str
    operator: Operator
    values: tuple[str, ...] | None = None


class SelectorSection(msgspec.Struct, frozen=True, rename="camel"):
    """As written."""

    match_labels: dict[str, str] | None = None
    match_expressions: tuple[Expression, ...] | None = None


@dataclass(frozen=True, slots=True)
class Selector:
    """A checked selector: every expression must hold; matchLabels are expressions ``In`` with one value."""

    expressions: tuple[Expression, ...]

    @property
    def specific(self) -> int:
        """How many demands it makes: of two that match, the one with more is the more specific."""
        return len(self.expressions)

    def unmet(self, labels: Mapping[str, str]) -> str:
        """The first demand that ``labels`` do not meet, in kubectl's words; "" where they meet all."""
        return next((_words(one) for one in self.expressions if not _met(one, labels)), "")


def parse(section: SelectorSection | None, at: str) -> Selector | None:
    """A selector, or None where it is absent or demands nothing. Raises InvalidConfig naming the field below ``at``."""
    if section is None:
        return None
    found = [Expression(key, "In", (value,)) for key, value in sorted((section.match_labels or {}).items())]
    for n, one in enumerate(section.match_expressions or ()):
        field = f"{at}.matchExpressions[{n}].values"
        if one.operator in _WITH_VALUES and not one.values:
            raise InvalidConfig(
                f'"{field}" is empty', hint=f'Give the values for "{one.operator}", or use Exists or DoesNotExist.'
            )
        if one.operator not in _WITH_VALUES and one.values:
            raise InvalidConfig(f'"{field}" must be empty for "{one.operator}"', hint="Remove the values.")
        found.append(one)
    return Selector(tuple(found)) if found else None


def _met(one: Expression, labels: Mapping[str, str]) -> bool:
    if one.operator == "In":
        return labels.get(one.key) in (one.values or ())
    if one.operator == "NotIn":
        return labels.get(one.key) not in (one.values or ())
    return (one.key in labels) == (one.operator == "Exists")


def _words(one: Expression) -> str:
    values = one.values or ()
    if one.operator == "In" and len(values) == 1:
        return f"{one.key}={values[0]}"
    if one.operator in _WITH_VALUES:
        return f"{one.key} {one.operator.lower()} ({', '.join(values)})"
    return one.key if one.operator == "Exists" else f"!{one.key}"
