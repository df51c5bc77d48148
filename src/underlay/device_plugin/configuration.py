"""The configuration: the file of the SR-IOV network device plugin (k8snetworkplumbingwg), as it is.

    {"resourceList": [{"resourceName": "sriov", "resourcePrefix": "intel.com",
                       "selectors": [{"vendors": ["8086"], "pfNames": ["ens1f0#0-3,5"]}]}]}

What is wrong is found in one go, each fault with the path of its field: ``--check`` shows all, a start is refused over
the first. A virtual function that several selectors take belongs to the first of them, across all resources.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from underlay.cni.decoding import FAULTS, fault, find_strangers
from underlay.device_plugin.selection import Resource, Selector, Share
from underlay.errors import InvalidConfig
from underlay.multus.findings import Finding, Severity, Subject
from underlay.net import pci

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PREFIX: Final = "intel.com"
FILE: Final = "/etc/pcidp/config.json"
_HINT: Final = "docs/sriov.md lists the keys; correct the file."
_TYPES: Final = ("accelerator", "auxNetDevice")
_LINKS: Final = ("ether", "infiniband")
_UNSERVED: Final = ("ddp_profiles", "p_keys", "vdpa_type", "aux_types")
_NAME = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")  # a qualified name without its prefix
_DOMAIN = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*")
_HEX = re.compile(r"[0-9a-f]{4}")
_NIC = re.compile(r"[^\s/#]{1,15}")
_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")


class SelectorKeys(msgspec.Struct, frozen=True, rename="camel"):
    """A selector's keys; those of ``_UNSERVED`` narrow it to nothing."""

    vendors: list[str] | None = None
    devices: list[str] | None = None
    drivers: list[str] | None = None
    pci_addresses: list[str] | None = None
    acpi_indexes: list[str] | None = None
    pf_names: list[str] | None = None
    root_devices: list[str] | None = None
    link_types: list[str] | None = None
    ddp_profiles: list[str] | None = None
    p_keys: list[str] | None = None
    aux_types: list[str] | None = None
    vdpa_type: str | None = None
    is_rdma: bool | None = None
    need_vhost_net: bool | None = None


class ResourceKeys(msgspec.Struct, frozen=True, rename="camel"):
    """A resource's keys."""

    resource_name: str
    resource_prefix: str | None = None
    device_type: str | None = None
    exclude_topology: bool | None = None
    selectors: list[SelectorKeys] | SelectorKeys | None = None
    additional_info: dict[str, dict[str, str]] | None = None


class FileKeys(msgspec.Struct, frozen=True, rename="camel"):
    """The file's one key."""

    resource_list: list[ResourceKeys]


def parse(raw: bytes, path: str, prefix: str = PREFIX) -> tuple[list[Resource], list[Finding]]:
    """The resources of a file's content, those with errors left out, and what there is to say about it.

    ``path`` is the file's name for messages, ``prefix`` is for resources that name none. Raises DecodeFailure for what
    is no JSON object, InvalidConfig for a key of a wrong type.
    """
    try:
        keys = msgspec.json.decode(raw, type=FileKeys)
    except FAULTS as error:
        found = fault(error, what="the file")
        raise type(found)(f"{path}: {found.message}", hint=_HINT) from error
    reader = _Reader(Subject(path))
    reader.strangers(raw)
    return reader.resources(keys.resource_list, prefix), reader.findings


def refuse(findings: Iterable[Finding]) -> None:
    """Raise InvalidConfig for the first error among them."""
    for each in findings:
        if each.severity is Severity.ERROR:
            raise InvalidConfig(f'{each.subject.file}: "{each.field}": {each.message}', hint=each.hint or _HINT)


class _Reader:
    """Reads a file's keys, and keeps what is to be said."""

    def __init__(self, subject: Subject) -> None:
        self.findings: list[Finding] = []
        self._subject = subject

    def _error(self, field: str, message: str, hint: str) -> None:
        self.findings.append(Finding(self._subject, Severity.ERROR, field, message, hint))

    def _warning(self, field: str, message: str, hint: str = "") -> None:
        self.findings.append(Finding(self._subject, Severity.WARNING, field, message, hint))

    def strangers(self, raw: bytes) -> None:
        """Warn of keys that mean nothing where they stand."""
        import difflib

        for each in find_strangers(raw, FileKeys):
            last = each.path.rpartition(".")[2]
            near = next((key for key in each.known if key.lower() == last.lower()), "")
            near = near or next(iter(difflib.get_close_matches(last, each.known, 1, 0.6)), "")
            hint = f'Did you mean "{near}"?' if near else f"The keys here are {', '.join(each.known)}."
            self._warning(each.path, "the key is unknown and has no effect", hint)

    def resources(self, listed: Sequence[ResourceKeys], prefix: str) -> list[Resource]:
        """Those without errors, in order."""
        found: dict[str, Resource] = {}
        for n, keys in enumerate(listed):
            before = sum(each.severity is Severity.ERROR for each in self.findings)
            at = f"resourceList[{n}]"
            resource = self._resource(keys, at, prefix)
            if resource.name in found:
                self._error(f"{at}.resourceName", f"{resource.name} is there already", "Give each resource one entry.")
            if keys.device_type in _TYPES:
                self._warning(f"{at}.deviceType", f"{keys.device_type} is not served: {resource.name} is left out")
            elif before == sum(each.severity is Severity.ERROR for each in self.findings):
                found[resource.name] = resource
        if not listed:
            self._warning("resourceList", "there is no resource: nothing is handed out")
        return list(found.values())

    def _resource(self, keys: ResourceKeys, at: str, prefix: str) -> Resource:
        self._named(keys, at, prefix)
        extra = {address.lower(): told for address, told in (keys.additional_info or {}).items()}
        for address in extra:
            if address != "*":
                self._address(address, f"{at}.additionalInfo")
        given = keys.selectors
        if isinstance(given, list):
            selectors = [self._selector(each, f"{at}.selectors[{n}]") for n, each in enumerate(given)]
        else:
            selectors = [self._selector(given or SelectorKeys(), f"{at}.selectors")]
        short, prefix = keys.resource_name, keys.resource_prefix or prefix
        return Resource(prefix, short, tuple(selectors), extra, not keys.exclude_topology)

    def _named(self, keys: ResourceKeys, at: str, default: str) -> None:
        if not _NAME.fullmatch(keys.resource_name):
            hint = "Letters, digits, _, - and . are allowed, 63 at most, a letter or digit first and last."
            self._error(f"{at}.resourceName", f"{keys.resource_name[:80]!r} is no name of a resource", hint)
        prefix = keys.resource_prefix or default
        if not _DOMAIN.fullmatch(prefix) or len(prefix) > 253 or f".{prefix}".endswith(".kubernetes.io"):
            hint = 'Take a domain of your own in small letters, such as "intel.com"; kubernetes.io is Kubernetes\' own.'
            self._error(f"{at}.resourcePrefix", f"{prefix[:80]!r} is no prefix of a resource", hint)
        if keys.device_type not in (None, "", "netDevice", *_TYPES):
            self._error(f"{at}.deviceType", f"{keys.device_type[:40]!r} is no type of device", 'Write "netDevice".')

    def _selector(self, keys: SelectorKeys, at: str) -> Selector:
        unserved = tuple(key for key in _UNSERVED if getattr(keys, key))
        for key in unserved:
            name = msgspec.structs.fields(SelectorKeys)[SelectorKeys.__struct_fields__.index(key)].encode_name
            hint = "Take the key out, or select by other keys."
            self._warning(f"{at}.{name}", "cannot be looked at here: the selector takes no device", hint)
        selector = Selector(
            vendors=self._each(keys.vendors, f"{at}.vendors", self._hexadecimal),
            models=self._each(keys.devices, f"{at}.devices", self._hexadecimal),
            drivers=frozenset(keys.drivers or ()),
            addresses=self._each(keys.pci_addresses, f"{at}.pciAddresses", self._address),
            acpi_indexes=frozenset(keys.acpi_indexes or ()),
            pf_names=self._shares(keys.pf_names, f"{at}.pfNames", self._nic),
            pf_addresses=self._shares(keys.root_devices, f"{at}.rootDevices", self._address),
            link_types=self._each(keys.link_types, f"{at}.linkTypes", self._link),
            rdma=bool(keys.is_rdma),
            vhost_net=bool(keys.need_vhost_net),
            unserved=unserved,
        )
        if selector.everything:
            self._warning(at, "sets no condition: it takes every virtual function of the node that is left")
        return selector

    def _each(self, values: list[str] | None, at: str, check: Any) -> frozenset[str]:
        for n, value in enumerate(values or ()):
            check(value.lower(), f"{at}[{n}]")
        return frozenset(value.lower() for value in values or ())

    def _shares(self, values: list[str] | None, at: str, check: Any) -> tuple[Share, ...]:
        found = []
        for n, value in enumerate(values or ()):
            parent, mark, listed = value.partition("#")
            check(parent, f"{at}[{n}]")
            found.append(Share(parent, self._ranges(listed, f"{at}[{n}]") if mark else ()))
        return tuple(found)

    def _ranges(self, listed: str, at: str) -> tuple[tuple[int, int], ...]:
        found = []
        for part in listed.split(","):
            match = _RANGE.fullmatch(part)
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
            if first > last:
                hint = 'Behind "#" come numbers of virtual functions and ranges of them, as in "ens1f0#0-3,5".'
                self._error(at, f"{part[:40]!r} is no range of virtual functions", hint)
            found.append((first, last))
        return tuple(found)

    def _hexadecimal(self, value: str, at: str) -> None:
        if not _HEX.fullmatch(value):
            hint = 'Four hexadecimal digits without "0x", as "lspci -n" and "underlay devices --json" show them.'
            self._error(at, f"{value[:40]!r} is no id of a vendor or device", hint)

    def _address(self, value: str, at: str) -> None:
        if not pci.is_address(value):
            short = f' Did you mean "0000:{value}"?' if pci.is_address(f"0000:{value}") else ""
            hint = f'A PCI address is written with its domain, such as "0000:3b:02.1".{short}'
            self._error(at, f"{value[:40]!r} is no PCI address", hint)

    def _nic(self, value: str, at: str) -> None:
        if not _NIC.fullmatch(value):
            self._error(
                at, f"{value[:40]!r} is no name of a NIC", 'Name the physical function\'s NIC, such as "ens1f0".'
            )

    def _link(self, value: str, at: str) -> None:
        if value not in _LINKS:
            self._error(at, f"{value[:40]!r} is no type of link", f"The types are {' and '.join(_LINKS)}.")
