"""The objects of a cluster looked through: a NetworkAttachmentDefinition, a pod's annotations, an address pool; and a
multus configuration.

A pod is planned as ADD would plan it, with stand-ins for what the cluster alone knows: its cluster network, and
networks that are not at hand.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import msgspec

from underlay.cni.config import inject, parse_network
from underlay.cni.decoding import Stranger
from underlay.errors import InvalidConfig, UnderlayError
from underlay.ipam.pools import objects as pools
from underlay.ipam.pools import wishes
from underlay.kube.objects import NetworkAttachmentDefinition, is_label, is_subdomain
from underlay.multus import config as multus
from underlay.multus.annotations import DEFAULT_NETWORK, NETWORKS, parse, parse_default
from underlay.multus.findings import Finding, Severity, Subject, joined, of_error
from underlay.multus.lint import MULTUS, Linter, Looked, is_list, meant, unknown_keys
from underlay.multus.networks import ConfigFiles, Networks
from underlay.multus.plan import plan

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from underlay.cni.config import NetworkConfig
    from underlay.delegate.attachment import Attachment
    from underlay.kube.objects import Pod
    from underlay.multus.annotations import NetworkSelection
    from underlay.multus.config import MultusConfig

_CAPABILITIES: Final = ("mac", "ips", "infinibandGUID", "portMappings", "bandwidth", "deviceID", "pciBusID")
_STAND_IN: Final = msgspec.json.encode(
    {"cniVersion": "1.0.0", "name": "cluster", "type": "cluster", "capabilities": dict.fromkeys(_CAPABILITIES, True)}
)
_ALONE: Final = multus.MultusConfig(version="1.0.0", name="lint", delegates=(_STAND_IN,))
_SECONDS: Final = 60.0
_ASKING: Final = {each.rpartition("/")[2]: each for each in (NETWORKS, DEFAULT_NETWORK)}
_TELLING: Final = ("k8s.v1.cni.cncf.io/network-status", "k8s.v1.cni.cncf.io/networks-status")
_DOMAINS: Final = frozenset(each.rpartition("/")[0] for each in _ASKING.values())


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the cluster beside the object that is looked at.

    ``networks`` by (namespace, name); None stands for one that is there and could not be read. ``complete``: there are
    no others, so that a reference to another is an error; None says nothing of references.
    """

    networks: Mapping[tuple[str, str], NetworkAttachmentDefinition | None] = field(default_factory=dict)
    complete: bool | None = None
    config: MultusConfig = _ALONE


def definition(
    linter: Linter, subject: Subject, found: NetworkAttachmentDefinition, strange: Iterable[str] = ()
) -> Looked:
    """A NetworkAttachmentDefinition; ``strange`` are keys of its spec that nobody reads."""
    unread = [Stranger(key, ("config",)) for key in strange]
    noted = unknown_keys(subject, unread, "spec", f"the spec of a {subject.kind}")
    if not is_label(found.name):
        words = f"the name {found.name[:80]!r} cannot be written in a pod's annotation, which takes DNS-1123 labels"
        noted.append(
            Finding(
                subject, Severity.WARNING, "metadata.name", words, "Name it with a-z, 0-9 and '-' only, 63 at most."
            )
        )
    if found.config is None:
        words = f'"spec.config" is empty: the node\'s file with the "name" {found.name!r} inside is used'
        noted.append(Finding(subject, Severity.INFO, "spec.config", words))
        return Looked(tuple(noted))
    looked = linter.network(subject, found.config.encode("utf-8", "surrogatepass"), name=found.name, at="spec.config")
    for plugin in looked.network.plugins if looked.network else ():
        if plugin.type in MULTUS:
            error = InvalidConfig(
                f'"type" {plugin.type!r}: a pod\'s networks cannot nest',
                hint="Name the networks in the pod's annotation.",
            )
            noted.append(of_error(subject, error, at="spec.config"))
    return replace(looked, findings=(*noted, *looked.findings))


def address_pool(
    subject: Subject, document: Mapping[str, Any]
) -> tuple[list[Finding], pools.Pool | pools.Reserved | pools.Subnet | None]:
    """A SpiderIPPool, SpiderReservedIP or SpiderSubnet, as the IPAM plugin reads it; None where it does not."""
    findings = unknown_keys(subject, pools.unknown_keys(document), "", f"a {subject.kind}")
    try:
        found = pools.parse_object(document)
    except UnderlayError as error:
        bare = error.message.removeprefix(f"{subject.kind} {subject.name[:253]!r}: ")
        return [of_error(subject, type(error)(bare, hint=error.hint)), *findings], None
    if isinstance(found, pools.Pool) and not found.ranges:
        words = '"spec.ips" leaves no address that can be handed out'
        hint = "List addresses that are neither excluded, nor the gateway, nor the subnet's own."
        findings.append(Finding(subject, Severity.WARNING, "spec.ips", words, hint))
    if isinstance(found, pools.Pool):
        findings += _names_of_nobody(subject, found)
    return findings, found


def _names_of_nobody(subject: Subject, found: pools.Pool) -> Iterator[Finding]:
    """Names in lists that are compared as they are written, but that no object of that kind can have."""
    for field_name, names, can_be, affinity in (
        ("namespaceName", found.namespace_names, is_label, "namespaceAffinity"),
        ("nodeName", found.node_names, is_subdomain, "nodeAffinity"),
    ):
        for n, name in enumerate(names):
            if not can_be(name):
                kind = field_name.removesuffix("Name")
                words = f"{name[:80]!r} can be the name of no {kind}; the list holds names, no patterns"
                hint = f'List whole names, or select by labels with "{affinity}".'
                yield Finding(subject, Severity.WARNING, f"spec.{field_name}[{n}]", words, hint)


def configuration(linter: Linter, subject: Subject, conf: bytes) -> tuple[Looked, list[MultusConfig]]:
    """A file with a CNI configuration, which may be that of multus; then also what it says."""
    looked = linter.network(subject, conf)
    findings, claims, configs = list(looked.findings), list(looked.claims), []
    for n, plugin in enumerate(looked.network.plugins if looked.network else ()):
        if plugin.type not in MULTUS:
            continue
        inside = f"plugins[{n}]" if is_list(conf) else ""
        try:
            config = multus.parse(inject(plugin))
        except UnderlayError as error:
            findings.append(of_error(subject, error, at=inside))
            continue
        configs.append(config)
        findings += _without_effect(subject, config, inside)
        for at, delegate in enumerate(config.delegates):
            inner = linter.network(subject, delegate, name=config.name, at=joined(inside, f"delegates[{at}]"))
            findings += inner.findings
            claims += inner.claims
    return Looked(tuple(findings), looked.network, tuple(claims), looked.uppers), configs


def _without_effect(subject: Subject, config: MultusConfig, at: str) -> Iterator[Finding]:
    for words in config.warnings:
        key = words.split('"')[1]
        misspelt = "is no key" in words
        severity = Severity.WARNING if misspelt else Severity.INFO
        fix = meant(key, multus.Keys.__struct_encode_fields__) if misspelt else ""
        yield Finding(subject, severity, joined(at, key), words, fix)


def pod(subject: Subject, found: Pod, at: str, known: Known) -> list[Finding]:
    """A pod's annotations, or those of the template that pods are made from; ``at`` is the path to their metadata."""
    prefix = joined(at, "annotations")
    addresses = [of_error(subject, fault, at=prefix) for fault in wishes.faults(found.annotations)]
    return [*_slips(subject, found, prefix), *addresses, *_networks(subject, found, prefix, known)]


def _slips(subject: Subject, found: Pod, prefix: str) -> Iterator[Finding]:
    """Annotations of Multus' domains that nobody reads, and that are spelt much like one that is."""
    for key in found.annotations:
        domain, _, name = key.rpartition("/")
        if domain in _DOMAINS and key not in (*_ASKING.values(), *_TELLING) and (fix := meant(name, _ASKING, _ASKING)):
            words = f'nobody reads the annotation "{key[:120]}"'
            yield Finding(subject, Severity.WARNING, joined(prefix, key), words, fix)


def _networks(subject: Subject, found: Pod, prefix: str, known: Known) -> list[Finding]:
    findings: list[Finding] = []
    selections: list[tuple[str, NetworkSelection]] = []
    try:
        listed = parse(found.annotations.get(NETWORKS, ""), found.namespace)
        selections += ((f"{NETWORKS}[{n}]", one) for n, one in enumerate(listed))
    except UnderlayError as error:
        findings.append(of_error(subject, error, at=prefix))
    try:
        default = parse_default(found.annotations.get(DEFAULT_NETWORK, ""), known.config.multus_namespace)
        selections += [(DEFAULT_NETWORK, default)] if default else []
    except UnderlayError as error:
        findings.append(of_error(subject, error, at=prefix))
    if findings or not selections:
        return findings
    findings += _unknown(subject, selections, prefix, known)
    return findings + _planned(subject, found, prefix, known)


def _unknown(
    subject: Subject, selections: list[tuple[str, NetworkSelection]], prefix: str, known: Known
) -> Iterator[Finding]:
    if known.complete is None:
        return
    for place, one in selections:
        if (one.namespace, one.name) not in known.networks:
            words = f"network {one.shown} is in none of the files"
            by_name = {name: f"{space}/{name}" for space, name in known.networks}
            near = f"There is {by_name[one.name]}." if one.name in by_name else meant(one.name, by_name, by_name)
            severity = Severity.ERROR if known.complete else Severity.WARNING
            hint = near or "Give its NetworkAttachmentDefinition too, or correct the annotation."
            yield Finding(subject, severity, joined(prefix, place), words, hint)


def _planned(subject: Subject, found: Pod, prefix: str, known: Known) -> list[Finding]:
    """What ADD says of the whole plan."""
    stand_ins = (_STAND_IN,) * max(1, len(known.config.delegates), 1 + len(known.config.default_networks))
    config = replace(
        known.config, cluster_network="", default_networks=(), delegates=stand_ins, auxiliary_chain="", runtime={}
    )
    nets = Networks(
        _Definitions(known), ConfigFiles(_no_log), conf_dir="", namespace="", deadline=time.monotonic() + _SECONDS
    )
    try:
        notes = plan(config, found, "eth0", nets, _parsed).notes
    except UnderlayError as error:
        finding = of_error(subject, error, at=prefix)
        return [replace(finding, field=joined(prefix, NETWORKS)) if finding.field == prefix else finding]
    return [Finding(subject, Severity.WARNING, joined(prefix, NETWORKS), words) for words in dict.fromkeys(notes)]


def _parsed(attachment: Attachment) -> NetworkConfig:
    return parse_network(attachment.conf, name=attachment.name)


def _no_log(_level: str, _event: str, /, **_fields: object) -> None:
    """There is no log: what is wrong is a finding."""


class _Definitions:
    """The networks at hand; for any other, and for one that is broken (its own finding), one that takes anything."""

    def __init__(self, known: Known) -> None:
        self._networks = known.networks

    def network(self, namespace: str, name: str, _deadline: float) -> NetworkAttachmentDefinition:
        """Of that name; devices are the kubelet's affair."""
        found = self._networks.get((namespace, name))
        if found is None or found.config is None:
            return NetworkAttachmentDefinition(namespace, name, _STAND_IN.decode())
        return replace(found, resource_name="")
