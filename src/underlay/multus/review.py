"""Many files looked through together: what each holds, what contradicts what, and which references lead nowhere.

FILE.yaml  FILE.json   Kubernetes objects, or CNI JSON in FILE.json
FILE.conf  .conflist   a CNI configuration, that of multus among them
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import msgspec

from underlay.cni.address import text
from underlay.cni.decoding import FAULTS
from underlay.ipam.pools import objects as pools
from underlay.kube import manifest, workloads
from underlay.kube.manifest import ManifestError
from underlay.multus import lint_objects
from underlay.multus.addressing import overlaps
from underlay.multus.findings import Finding, Severity, Subject
from underlay.multus.lint import meant
from underlay.multus.lint_objects import Known
from underlay.multus.parents import conflicts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from underlay.ipam.pools.objects import Pool
    from underlay.kube.objects import NetworkAttachmentDefinition, Pod
    from underlay.kube.workloads import Found
    from underlay.multus.addressing import Claim
    from underlay.multus.config import MultusConfig
    from underlay.multus.lint import Linter, Looked
    from underlay.multus.parents import Upper

ENDINGS: Final = (".yaml", ".yml", ".json", ".conf", ".conflist")
_CNI: Final = (".conf", ".conflist")


class _Sniffed(msgspec.Struct):
    kind: str | None = None
    type: str | None = None
    plugins: msgspec.Raw | None = None
    items: msgspec.Raw | None = None


@dataclass(slots=True)
class _Seen:
    """What the files hold, as it is found."""

    findings: list[Finding] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    uppers: list[Upper] = field(default_factory=list)
    pods: list[tuple[Subject, Pod, str]] = field(default_factory=list)
    networks: dict[tuple[str, str], NetworkAttachmentDefinition | None] = field(default_factory=dict)
    first: dict[tuple[str, str], str] = field(default_factory=dict)
    configs: list[tuple[Subject, MultusConfig]] = field(default_factory=list)
    pools: dict[str, tuple[Subject, Pool]] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)


def review(
    files: Iterable[tuple[str, bytes]], linter: Linter, *, namespace: str = "default", complete: bool = False
) -> list[Finding]:
    """The findings in ``files`` (name, content), in their order; what concerns several of them stands at the end.

    ``namespace`` is that of objects that name none. ``complete``: the files are all there is, so that a reference to
    another network is an error.
    """
    seen = _Seen()
    for name, raw in files:
        if _is_cni(name, raw):
            _configuration(name, raw, linter, seen)
        else:
            _manifest(name, raw, linter, namespace, seen)
    known = Known(seen.networks, complete)
    if len(seen.configs) == 1:
        known = replace(known, config=seen.configs[0][1])
    for subject, pod, at in seen.pods:
        seen.findings += lint_objects.pod(subject, pod, at, known)
    for subject, config in seen.configs:
        seen.findings += _references(subject, config, seen, complete=complete)
    return [*seen.findings, *overlaps(seen.claims), *conflicts(seen.uppers), *_shared(seen.pools)]


def _is_cni(name: str, raw: bytes) -> bool:
    """By its ending; JSON, and what came without a name, by its keys."""
    if name.endswith(_CNI):
        return True
    if name.endswith((".yaml", ".yml")):
        return False
    try:
        sniffed = msgspec.json.decode(raw, type=_Sniffed)
    except FAULTS:
        return raw.lstrip()[:1] == b"{" and b'"kind"' not in raw and b'"cniVersion"' in raw
    return sniffed.kind is None and sniffed.items is None and (sniffed.type is not None or sniffed.plugins is not None)


def _configuration(name: str, raw: bytes, linter: Linter, seen: _Seen) -> None:
    subject = Subject(name, "CNI configuration")
    looked, configs = lint_objects.configuration(linter, subject, raw)
    seen.findings += looked.findings
    seen.claims += looked.claims
    seen.uppers += looked.uppers
    seen.configs += ((subject, config) for config in configs)
    if looked.network:
        seen.names.add(looked.network.name)


def _manifest(name: str, raw: bytes, linter: Linter, namespace: str, seen: _Seen) -> None:
    try:
        documents = manifest.decode(name, raw)
        if all(document is None for document in documents):
            hint = "Give a CNI configuration, or manifests; what is piped in here may have failed before."
            seen.findings.append(Finding(Subject(name), Severity.INFO, "", "there is nothing in it", hint))
        for n, document in enumerate(documents):
            if document is not None and not (isinstance(document, dict) and {"kind", "apiVersion"} & set(document)):
                documents[n] = None  # the values of a chart, another program's settings
                words = f"document {n + 1} is no Kubernetes object and is passed over"
                seen.findings.append(Finding(Subject(name), Severity.INFO, "", words))
            elif document is not None and (fix := _meant_kind(document)):
                words = f"document {n + 1} is of no kind that its apiVersion has, and is passed over"
                seen.findings.append(Finding(Subject(name), Severity.WARNING, "kind", words, fix))
        for found in workloads.of_documents(documents, namespace):
            _object(name, found, linter, seen)
    except ManifestError as error:
        hint = "Correct the manifest; nothing after that place has been looked at."
        seen.findings.append(Finding(Subject(name), Severity.ERROR, "", str(error), hint))


def _meant_kind(document: Mapping[str, Any]) -> str:
    """Which kind a misspelt one was probably meant to be, as a hint."""
    kind = document.get("kind")
    return meant(str(kind), workloads.kinds_beside(kind, document.get("apiVersion")))


def _object(file: str, found: Found, linter: Linter, seen: _Seen) -> None:
    subject = Subject(file, found.kind, found.name)
    if found.fault:
        words = f"{found.where}: {found.fault}"
        seen.findings.append(Finding(subject, Severity.ERROR, found.field, words, "Correct the field in the manifest."))
        if found.kind == workloads.NETWORK:
            namespace, _, name = found.name.partition("/")
            seen.networks.setdefault((namespace, name), None)
    elif found.network is not None:
        _network(subject, found.network, found.strange, linter, seen)
    elif found.pod is not None:
        seen.pods.append((subject, found.pod, found.at))
    elif found.pool is not None and not _is_twice(subject, seen):
        findings, pool = lint_objects.address_pool(subject, found.pool)
        seen.findings += findings
        if isinstance(pool, pools.Pool):
            seen.pools[pool.name] = (subject, pool)


def _is_twice(subject: Subject, seen: _Seen) -> bool:
    """Whether there has been an object of that kind and name, which is an error; of generateName each gets its own."""
    if subject.name.endswith("*"):
        return False
    key = (subject.kind, subject.name)
    if key in seen.first:
        words = f"it is defined twice: in {seen.first[key]} already"
        seen.findings.append(Finding(subject, Severity.ERROR, "metadata.name", words, "Take one of them out."))
        return True
    seen.first[key] = subject.file
    return False


def _shared(found: Mapping[str, tuple[Subject, Pool]]) -> Iterable[Finding]:
    """Pools that list the same addresses, each two of them once."""
    told: set[frozenset[str]] = set()
    for one, other, family, first in pools.overlaps([pool for _, pool in found.values()]):
        names = frozenset((one, other))
        if names in told:
            continue
        told.add(names)
        earlier, later = (name for name in found if name in names)
        words = (
            f"its addresses overlap those of {found[earlier][0]} ({found[earlier][0].file}), from "
            f"{text(family, first)} on: each is handed out once, by whichever pool comes first"
        )
        yield Finding(found[later][0], Severity.WARNING, "spec.ips", words, "Part the ranges of the two pools.")


def _network(
    subject: Subject, network: NetworkAttachmentDefinition, strange: Iterable[str], linter: Linter, seen: _Seen
) -> None:
    if _is_twice(subject, seen):
        return
    key = (network.namespace, network.name)
    looked = lint_objects.definition(linter, subject, network, strange)
    seen.findings += looked.findings
    seen.claims += looked.claims
    seen.uppers += looked.uppers
    seen.networks[key] = None if _is_broken(looked) else network
    seen.names.add(network.name)


def _is_broken(looked: Looked) -> bool:
    return any(each.severity is Severity.ERROR for each in looked.findings)


def _references(subject: Subject, config: MultusConfig, seen: _Seen, *, complete: bool) -> Iterable[Finding]:
    """The networks that a multus configuration names by name; a path is the node's affair."""
    named = [("clusterNetwork", config.cluster_network)] if config.cluster_network else []
    named += [(f"defaultNetworks[{n}]", name) for n, name in enumerate(config.default_networks)]
    for place, name in named:
        known = name in seen.names or (config.multus_namespace, name) in seen.networks
        if not known and not name.startswith("/"):
            words = f"network {name[:80]!r} is in none of the files: neither a definition in {config.multus_namespace}"
            hint = "Give it too, or correct the name."
            severity = Severity.ERROR if complete else Severity.INFO
            yield Finding(subject, severity, place, f'{words} nor the "name" of a CNI configuration', hint)
