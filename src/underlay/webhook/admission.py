"""One AdmissionReview answered: bytes in, bytes out (Kubernetes API reference, admission.k8s.io/v1).

errors      denied, all of them in status.message        what was wrong before already: a warning only, so that an
warnings    allowed, each in "warnings"                   object from before the webhook can still be changed

Where the cluster is known (the controller), an address pool is looked at among the others as well, and may not be taken
away while it is in use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from underlay.cni.decoding import FAULTS
from underlay.kube import workloads
from underlay.multus import lint_objects, lint_pools
from underlay.multus.findings import Finding, Severity, Subject
from underlay.multus.lint_objects import Known

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from underlay.ipam.pools.objects import Pool, Reserved, Subnet
    from underlay.kube.workloads import Found
    from underlay.multus.lint import Linter
    from underlay.multus.lint_pools import Around

    Look = Callable[[], Around | None]

_VERSION: Final = "admission.k8s.io/v1"
_KIND: Final = "AdmissionReview"
_FORBIDDEN: Final = 403
# The API server cuts a warning after 256 characters and all of them after 4096; a Status is no place for more, either.
WARNING_LENGTH: Final = 256
WARNINGS: Final = 16
_ERRORS: Final = 20


class NoReview(Exception):
    """What was sent is no AdmissionReview, in words."""


class _Kind(msgspec.Struct):
    group: str = ""
    version: str = ""
    kind: str = ""


class _Request(msgspec.Struct, rename="camel"):
    uid: str
    kind: _Kind
    operation: str
    sub_resource: str | None = None
    name: str | None = None
    namespace: str | None = None
    object: dict[str, Any] | None = None
    old_object: dict[str, Any] | None = None


class _Review(msgspec.Struct, rename="camel"):
    api_version: str
    kind: str
    request: _Request


class _Status(msgspec.Struct):
    code: int
    message: str
    reason: str = "Forbidden"


class _Response(msgspec.Struct, omit_defaults=True):
    uid: str
    allowed: bool
    status: _Status | None = None
    warnings: list[str] = []


class _Answer(msgspec.Struct, rename="camel"):
    api_version: str
    kind: str
    response: _Response


class Decision(msgspec.Struct, frozen=True):
    """The answer's bytes, and what the log says of it."""

    body: bytes
    subject: str
    allowed: bool
    errors: int
    warnings: int


_DECODER: Final = msgspec.json.Decoder(_Review)


def _unknown() -> None:
    """Nothing is known of the cluster."""


def answer(raw: bytes, linter: Linter, around: Look = _unknown) -> Decision:
    """What is answered to a body; ``around`` says what is known of the cluster, None for nothing. Raises NoReview."""
    try:
        review = _DECODER.decode(raw)
    except FAULTS as fault:
        raise NoReview(f"the body is no {_KIND}: {fault}") from fault
    if (review.api_version, review.kind) != (_VERSION, _KIND):
        raise NoReview(
            f"the body is a {review.kind[:60]!r} of {review.api_version[:60]!r}, not a {_KIND} of {_VERSION}"
        )
    request = review.request
    errors, warnings = _judge(request, linter, around())
    response = _Response(
        uid=request.uid,
        allowed=not errors,
        status=_Status(_FORBIDDEN, _message(errors)) if errors else None,
        warnings=[_shown(each)[:WARNING_LENGTH] for each in warnings[:WARNINGS]],
    )
    subject = f"{request.kind.kind} {request.namespace or ''}/{request.name or ''}"
    body = msgspec.json.encode(_Answer(_VERSION, _KIND, response))
    return Decision(body, subject, not errors, len(errors), len(warnings))


def _judge(request: _Request, linter: Linter, around: Around | None) -> tuple[list[Finding], list[Finding]]:
    """Errors, and what else is to be said."""
    kind = request.kind
    version = f"{kind.group}/{kind.version}" if kind.group else kind.version
    if request.sub_resource or not workloads.is_read(kind.kind, version):
        return [], []
    if request.operation == "DELETE":
        return _taken_away(request, around), []
    if request.operation not in ("CREATE", "UPDATE") or request.object is None or _is_going(request.object):
        return [], []
    found, new = _findings(_of(request, request.object), linter, around)
    before: set[tuple[str, str]] = set()
    if request.operation == "UPDATE" and request.old_object is not None:
        old_findings, old = _findings(_of(request, request.old_object), linter, around)
        before = {(each.field, each.message) for each in old_findings}
        if around is not None and old is not None:
            found = [*found, *lint_pools.instead_of(Subject("", kind.kind, old.name), old, new, around)]
    refused = [each for each in found if each.severity is Severity.ERROR and (each.field, each.message) not in before]
    told = [each for each in found if each.severity is not Severity.INFO and each not in refused]
    return refused, told


def _taken_away(request: _Request, around: Around | None) -> list[Finding]:
    """One that is going already may be asked to go again."""
    if around is None or request.old_object is None or _is_going(request.old_object):
        return []
    found = _of(request, request.old_object)
    if found.pool is None:
        return []
    subject = Subject("", found.kind, found.name)
    old = lint_objects.address_pool(subject, found.pool)[1]
    return [] if old is None else lint_pools.without(subject, old, around)


def _of(request: _Request, found: dict[str, Any]) -> Found:
    return workloads.of_object(request.kind.kind, found, request.namespace or "default")


def _is_going(found: dict[str, Any]) -> bool:
    """Whether the object is being deleted: nothing may keep its finalizers from being taken off."""
    metadata = found.get("metadata")
    return isinstance(metadata, dict) and bool(metadata.get("deletionTimestamp"))


def _findings(
    found: Found, linter: Linter, around: Around | None
) -> tuple[Sequence[Finding], Pool | Reserved | Subnet | None]:
    """The findings; of an address pool that can be read, it as well."""
    subject = Subject("", found.kind, found.name)
    if found.network is not None:
        return lint_objects.definition(linter, subject, found.network, found.strange).findings, None
    if found.pod is not None:
        return lint_objects.pod(subject, found.pod, found.at, Known()), None
    if found.pool is not None:
        findings, pool = lint_objects.address_pool(subject, found.pool)
        if around is not None and pool is not None:
            findings += lint_pools.beside(subject, pool, around)
        return findings, pool
    return [Finding(subject, Severity.ERROR, found.field, found.fault)], None


def _message(errors: Sequence[Finding]) -> str:
    more = [f"and {len(errors) - _ERRORS} more"] if len(errors) > _ERRORS else []
    return "; ".join([*map(_shown, errors[:_ERRORS]), *more])


def _shown(finding: Finding) -> str:
    field = f"{finding.field}: " if finding.field else ""
    hint = f" ({finding.hint})" if finding.hint else ""
    return f"{field}{finding.message}{hint}"
