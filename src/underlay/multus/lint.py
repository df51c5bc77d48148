"""One CNI configuration looked through before any pod asks for it, by the code that ADD runs.

    parse_network ─▶ each plugin's parse ─▶ its IPAM plugin's parse      what they refuse is an error
                  ─▶ keys that mean nothing, values that are replaced    warnings
    in the end, what was understood of the addresses (Claim) and of the NIC below (Upper), to compare networks

Pure, but for ``node``, which asks this node whether ADD could work on it.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import msgspec

from underlay.cni import config
from underlay.cni.decoding import FAULTS
from underlay.errors import InvalidConfig, LimitedConnectivity, UnderlayError
from underlay.ipam import allocator
from underlay.ipam.host_local import Pool
from underlay.multus import comments
from underlay.multus.addressing import Claim, look_at_pool, look_at_static
from underlay.multus.findings import Finding, Severity, Subject, joined, of_error
from underlay.multus.parents import Upper
from underlay.plugins import chained, hijack, ipvlan
from underlay.plugins.context import Call
from underlay.plugins.hijack import Hijack
from underlay.plugins.parsed import Parsed
from underlay.plugins.sub_interface import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from underlay.cni.config import NetworkConfig, PluginConfig
    from underlay.cni.decoding import Stranger

_UNKNOWN_KEYS: Final = 20  # of one plugin; whoever has more has not written a configuration of it
MULTUS: Final = ("multus", "multus-shim")


class _Written(msgspec.Struct):
    """What tells a key that was left out from one that is empty."""

    cni_version: str | None = msgspec.field(name="cniVersion", default=None)
    cni_versions: list[str] | None = msgspec.field(name="cniVersions", default=None)
    plugins: list[msgspec.Raw] | None = None


class _Section(msgspec.Struct):
    ipam: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Looked:
    """What was found; ``network`` is None where nothing could be read of it."""

    findings: tuple[Finding, ...]
    network: NetworkConfig | None = None
    claims: tuple[Claim, ...] = ()
    uppers: tuple[Upper, ...] = ()


@dataclass(frozen=True, slots=True)
class Linter:
    """Looks configurations through. ``plugins`` and ``allocators`` are what runs in process, by type: asked whether
    they are Parsed, and nothing else.

    ``node`` raises what ADD of a plugin would raise on this node, and is None where another node will run it.
    """

    plugins: Mapping[str, object]
    allocators: Mapping[str, object]
    node: Callable[[Call], None] | None = None

    def network(self, subject: Subject, conf: bytes, *, name: str = "", at: str = "") -> Looked:
        """A CNI configuration, one plugin's or a list; ``name`` stands in for a missing one, ``at`` is its place."""
        try:
            network = config.parse_network(conf, name=name)
        except UnderlayError as error:
            return Looked((self._unreadable(subject, error, conf, at),))
        findings = list(_look_at_list(subject, conf, at))
        claims: list[Claim] = []
        uppers: list[Upper] = []
        settings: list[object] = []
        listed = is_list(conf)
        for n, plugin in enumerate(network.plugins):
            inside = f"plugins[{n}]" if listed else ""
            look = _PluginLook(self, subject, plugin, joined(at, inside), first=n == 0)
            findings += look.findings
            settings.append(look.settings)
            claims += look.claims
            uppers += look.uppers
        findings += _without_addresses(subject, network, settings, at)
        return Looked(tuple(findings), network, tuple(claims), tuple(uppers))

    def _unreadable(self, subject: Subject, error: UnderlayError, conf: bytes, at: str) -> Finding:
        """The finding for a text that cannot be read, with what people do wrong most."""
        found = of_error(subject, error, at=at)
        told = comments.explain(conf, error.message)
        return replace(found, message=told.message, hint=told.hint or found.hint)


class _PluginLook:
    """One plugin of a network: its findings, its settings where it is built in, and its claims on addresses."""

    def __init__(self, linter: Linter, subject: Subject, conf: PluginConfig, at: str, *, first: bool) -> None:
        self.findings: list[Finding] = []
        self.claims: tuple[Claim, ...] = ()
        self.uppers: tuple[Upper, ...] = ()
        self.settings: object = None
        self._linter = linter
        self._subject = subject
        self._at = at
        self._call = Call(conf, container_id="lint", netns="", ifname="net1", args={})
        self._plugin = linter.plugins.get(conf.type)
        self._ipam_type = conf.type if conf.type in linter.allocators else conf.ipam_type
        self._allocator = linter.allocators.get(self._ipam_type)
        refused = self._parse(first=first)
        refused = self._allocate() or refused
        if not refused and conf.type and conf.type not in MULTUS:
            self._ask_node()
        self._keys()

    def _parse(self, *, first: bool) -> bool:
        """What the plugin's own parsing says; whether it refuses."""
        conf = self._call.conf
        try:
            if not conf.type:
                raise InvalidConfig('"type" is missing', hint='Every plugin needs "type".')
            if isinstance(self._plugin, Parsed):
                self.settings = self._plugin.parse(self._call)
                if self._plugin.chained and first:
                    chained.find(conf.prev, conf.type)
        except UnderlayError as error:
            self._refuse(error)
            return True
        if self._plugin is None and conf.type not in MULTUS:
            words = f'"type" {conf.type!r} is not built in: it is executed, and its keys are not looked at'
            self._note(Severity.INFO, "type", words)
        if isinstance(self.settings, Hijack):
            self._replaced()
        if isinstance(self.settings, Settings) and conf.type in ("macvlan", "ipvlan") and not self.settings.in_pod:
            mode = self.settings.mode if isinstance(self.settings, ipvlan.Settings) else ""
            at = joined(self._at, "master")
            self.uppers = (Upper(self._subject, at, self.settings.master, conf.type, mode),)
        return False

    def _replaced(self) -> None:
        """Numbers that the meta-plugins take for their default without a word."""
        keys = config.decode(self._call.conf.raw, hijack.Keys)
        if keys.migrate_route is not None and keys.migrate_route not in (-1, 0, 1):
            words = f'"migrate_route" {keys.migrate_route} is none of -1, 0, 1 and counts as -1'
            self._note(Severity.WARNING, "migrate_route", words, "Write -1 (by name), 0 (never) or 1 (always).")
        value = keys.rp_filter.value if keys.rp_filter else None
        if value is not None and value not in (0, 1, 2):
            words = f'"rp_filter.value" {value} is none of 0, 1, 2 and counts as 2'
            self._note(Severity.WARNING, "rp_filter.value", words, "Write 0 (off), 1 (strict) or 2 (loose).")

    def _allocate(self) -> bool:
        """What the IPAM plugin's parsing says; whether it refuses."""
        conf = self._call.conf
        if isinstance(self._plugin, Parsed) and self._plugin.chained:
            if _section(conf.raw):
                words = f'"ipam" has no effect: {conf.type} works on the addresses of the plugin before it'
                self._note(Severity.WARNING, "ipam", words, "Move the section to that plugin.")
            return False
        if not self._ipam_type:
            if _section(conf.raw):
                words = '"ipam.type" is missing: without it the section has no effect and the NIC gets no address'
                self._note(Severity.WARNING, "ipam.type", words, 'Name an IPAM plugin, for example "host-local".')
            return False
        if self._allocator is None:
            words = f'"ipam.type" {self._ipam_type!r} is not built in: it is executed, and its keys are not looked at'
            self._note(Severity.INFO, "ipam.type", words)
        if not isinstance(self._allocator, allocator.Parsed):
            return False
        try:
            section = self._allocator.parse(conf, {})
        except UnderlayError as error:
            if self._plugin is None:  # it calls whichever executable of that name there is, perhaps another's
                self.findings.append(replace(of_error(self._subject, error, at=self._at), severity=Severity.WARNING))
                return False
            self._refuse(error)
            return True
        if isinstance(section, Pool):
            master = self.settings.master if isinstance(self.settings, Settings) else None
            self.claims = (Claim(self._subject, joined(self._at, "ipam"), master, section),)
            self.findings += look_at_pool(self._subject, section, self._at)
        else:
            self.findings += look_at_static(self._subject, section, conf, self._at)
        return False

    def _ask_node(self) -> None:
        if self._linter.node is None:
            return
        try:
            self._linter.node(self._call)
        except LimitedConnectivity as error:
            self.findings.append(replace(of_error(self._subject, error, at=self._at), severity=Severity.WARNING))
        except UnderlayError as error:
            self._refuse(error)

    def _keys(self) -> None:
        conf = self._call.conf
        section = self._allocator.keys if isinstance(self._allocator, allocator.Parsed) else None
        kind = self._plugin.keys if isinstance(self._plugin, Parsed) else None
        try:
            strangers = config.unknown_to(conf.raw, kind or _Section, section)
        except UnderlayError as error:  # in what nobody reads: ADD does not mind
            found = of_error(self._subject, error, at=self._at)
            self.findings.append(replace(found, severity=Severity.WARNING))
            return
        wanted = [each for each in strangers if kind is not None or each.path.startswith("ipam.")]
        self.findings += unknown_keys(self._subject, wanted, self._at, f"plugin {conf.type!r}")

    def _refuse(self, error: UnderlayError) -> None:
        self.findings.append(of_error(self._subject, error, at=self._at))

    def _note(self, severity: Severity, field: str, message: str, hint: str = "") -> None:
        self.findings.append(Finding(self._subject, severity, joined(self._at, field), message, hint))


def unknown_keys(subject: Subject, strangers: Iterable[Stranger], at: str, owner: str) -> list[Finding]:
    """A warning for each key that means nothing, with the one that was probably meant."""
    return [
        Finding(
            subject,
            Severity.WARNING,
            joined(at, each.path),
            f'"{each.path[:120]}" is no key of {owner} and has no effect',
            meant(each.path.rpartition(".")[2], each.known),
        )
        for each in list(strangers)[:_UNKNOWN_KEYS]
    ]


def meant(key: str, known: Iterable[str], shown: Mapping[str, str] | None = None) -> str:
    """The hint that names the known key most like a wrong one, or "". Letters' case counts for nothing there.

    ``shown`` is what each known one is shown as, where that is not the key itself.
    """
    lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(key[:120].lower(), lower, 1, 0.6)
    return f'Did you mean "{(shown or lower).get(lower[near[0]], lower[near[0]])}"?' if near else ""


def is_list(conf: bytes) -> bool:
    """Whether a configuration that parse_network takes is a list of plugins."""
    return msgspec.json.decode(conf, type=_Written).plugins is not None


def _look_at_list(subject: Subject, conf: bytes, at: str) -> Iterable[Finding]:
    """The network's own keys, where parse_network has taken them."""
    written = msgspec.json.decode(conf, type=_Written)
    if not written.cni_version and not written.cni_versions:
        words = '"cniVersion" is missing: 0.1.0 is taken, which has one address of each family and no chains'
        yield Finding(
            subject, Severity.WARNING, joined(at, "cniVersion"), words, 'Set "cniVersion", for example to "1.0.0".'
        )
    if written.plugins is not None:
        yield from unknown_keys(subject, config.unknown_to_list(conf), at, "a list of plugins")


def _without_addresses(subject: Subject, network: NetworkConfig, settings: list[object], at: str) -> Iterable[Finding]:
    """A macvlan, ipvlan or VLAN without IPAM gives no address, and then the meta-plugins refuse to make paths."""
    if not isinstance(settings[0], Settings) or network.plugins[0].ipam_type:
        return
    for n, each in enumerate(settings[1:], 1):
        if isinstance(each, Hijack) and not (each.skip or each.only_mac):
            kind = network.plugins[n].type
            yield Finding(
                subject,
                Severity.ERROR,
                joined(at, "plugins[0].ipam"),
                f'"plugins[0].ipam" names no IPAM plugin, so the NIC has no address for {kind} to make reachable',
                'Give the plugin before it an "ipam" section.',
            )


def _section(raw: bytes) -> Mapping[str, Any]:
    try:
        return msgspec.json.decode(raw, type=_Section).ipam or {}
    except FAULTS:
        return {}
