"""A pod's network annotations, parsed into what is asked for (multi-network CRD standard, section 4.1).

    k8s.v1.cni.cncf.io/networks: macvlan-a, other/macvlan-b@fast0                  the comma form
    k8s.v1.cni.cncf.io/networks: '[{"name": "macvlan-a", "ips": ["172.18.8.50/16"]}]'   the JSON form
    v1.multus-cni.io/default-network: kube-system/macvlan-a                        either form, one network

Pure. Every fault is an InvalidAnnotation that names the annotation, the element by its index from 0, the key and the
value, and says what would be right.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec

from underlay.cni import address
from underlay.cni.decoding import FAULTS
from underlay.cni.names import interface_fault
from underlay.errors import InvalidAnnotation
from underlay.kube.objects import is_label

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NETWORKS: Final = "k8s.v1.cni.cncf.io/networks"
DEFAULT_NETWORK: Final = "v1.multus-cni.io/default-network"

_LABEL: Final = "must be 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit"
_HEX: Final = re.compile(r"[0-9a-fA-F]+")
_PLACE: Final = re.compile(r"(?P<what>.*?)(?: - at `\$?(?P<path>[^`]*)`.*)?", re.DOTALL)
_PROTOCOLS: Final = ("tcp", "udp", "sctp")


class NetworkSelection(msgspec.Struct, frozen=True):
    """One element: which network, and with what. Empty or None: not asked for.

    ``namespace`` is filled in; ``mac`` is six octets, ``infiniband_guid`` eight, lower case between colons; ``ips``
    are addresses with or without prefix length; ``default_route`` gateways, none twice; ``unknown`` names the keys of
    the element that mean nothing here.
    """

    name: str
    namespace: str
    interface: str = ""
    ips: tuple[str, ...] = ()
    mac: str = ""
    infiniband_guid: str = ""
    default_route: tuple[str, ...] = ()
    port_mappings: tuple[Mapping[str, Any], ...] = ()
    bandwidth: Mapping[str, int] | None = None
    device_id: str = ""
    cni_args: Mapping[str, Any] = msgspec.field(default_factory=dict)
    ipam_claim_reference: str = ""
    unknown: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """The network as people write it: "namespace/name"."""
        return f"{self.namespace}/{self.name}"


class _PortMapping(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    host_port: int
    container_port: int
    protocol: str = "tcp"
    host_ip: str = msgspec.field(name="hostIP", default="")


class _Bandwidth(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    ingress_rate: int | None = None
    ingress_burst: int | None = None
    egress_rate: int | None = None
    egress_burst: int | None = None


class _Element(msgspec.Struct, frozen=True, rename="kebab"):
    name: str | None = None
    namespace: str | None = None
    interface: str | None = None
    ips: tuple[str, ...] | None = None
    mac: str | None = None
    infiniband_guid: str | None = None
    default_route: tuple[str, ...] | None = None
    port_mappings: tuple[_PortMapping, ...] | None = msgspec.field(name="portMappings", default=None)
    bandwidth: _Bandwidth | None = None
    device_id: str | None = msgspec.field(name="deviceID", default=None)
    cni_args: dict[str, Any] | None = None
    ipam_claim_reference: str | None = None


_ELEMENTS: Final = msgspec.json.Decoder(list[_Element])
_KEYS: Final = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_KNOWN: Final = frozenset(_Element.__struct_encode_fields__)


def parse(text: str, namespace: str, annotation: str = NETWORKS) -> tuple[NetworkSelection, ...]:
    """The networks that an annotation's text asks for, in its order; none for a blank one.

    ``namespace`` is where a network is looked for that names none. Raises InvalidAnnotation.
    """
    if not text.strip():
        return ()
    if any(mark in text for mark in '[{"'):
        return _parse_json(text, namespace, annotation)
    return tuple(_parse_short(item.strip(), namespace, f"{annotation}[{n}]") for n, item in enumerate(text.split(",")))


def parse_default(text: str, namespace: str) -> NetworkSelection | None:
    """The network that takes the cluster network's place for a pod. Raises InvalidAnnotation, also for two."""
    found = parse(text, namespace, DEFAULT_NETWORK)
    if len(found) > 1:
        _refuse(DEFAULT_NETWORK, f"names {len(found)} networks; a pod has one default network")
    return found[0] if found else None


def _parse_short(item: str, namespace: str, place: str) -> NetworkSelection:
    """``[namespace/]name[@interface]``."""
    network, at, interface = item.partition("@")
    prefix, slash, name = network.rpartition("/")
    if not network:
        _refuse(place, f"{_shown(item)} names no network; write [namespace/]name[@interface], commas between")
    if at and (not interface or "@" in interface):
        _refuse(place, f"{_shown(item)} must have one interface name after one '@'")
    return NetworkSelection(
        name=_label(name, f"{place} name"),
        namespace=_label(prefix, f"{place} namespace") if slash else namespace,
        interface=_interface(interface, f"{place} interface"),
    )


def _parse_json(text: str, namespace: str, annotation: str) -> tuple[NetworkSelection, ...]:
    try:
        elements = _ELEMENTS.decode(text)
        keys = _KEYS.decode(text)
    except msgspec.ValidationError as fault:
        complaint = _PLACE.fullmatch(str(fault))
        what, path = (complaint["what"], complaint["path"] or "") if complaint else (str(fault), "")
        raise InvalidAnnotation(
            f"annotation {annotation}{path}: {what[:1].lower()}{what[1:].replace('`', '')}"
        ) from fault
    except FAULTS as fault:
        raise InvalidAnnotation(
            f'annotation {annotation} holds one of [ {{ " and so must be a JSON list of objects: {fault}'
        ) from fault
    return tuple(
        _selection(element, namespace, f"{annotation}[{n}]", tuple(key for key in keys[n] if key not in _KNOWN))
        for n, element in enumerate(elements)
    )


def _selection(element: _Element, namespace: str, place: str, unknown: tuple[str, ...]) -> NetworkSelection:
    if not element.name:
        _refuse(place, 'has no "name"')
    return NetworkSelection(
        name=_label(element.name, f"{place}.name"),
        namespace=_label(element.namespace, f"{place}.namespace") if element.namespace else namespace,
        interface=_interface(element.interface or "", f"{place}.interface"),
        ips=tuple(_ip(ip, f"{place}.ips[{n}]") for n, ip in enumerate(element.ips or ())),
        mac=_octets(element.mac, 6, f"{place}.mac") if element.mac else "",
        infiniband_guid=_octets(element.infiniband_guid, 8, f"{place}.infiniband-guid")
        if element.infiniband_guid
        else "",
        default_route=_gateways(element.default_route or (), place),
        port_mappings=_port_mappings(element.port_mappings or (), place),
        bandwidth=_bandwidth(element.bandwidth, place) if element.bandwidth else None,
        device_id=_plain(element.device_id or "", f"{place}.deviceID"),
        cni_args=element.cni_args or {},
        ipam_claim_reference=_claim(element.ipam_claim_reference or "", f"{place}.ipam-claim-reference"),
        unknown=unknown,
    )


def _refuse(place: str, words: str) -> NoReturn:
    raise InvalidAnnotation(f"annotation {place} {words}")


def _shown(value: str) -> str:
    return repr(value if len(value) <= 60 else value[:57] + "...")


def _label(value: str, place: str) -> str:
    if not is_label(value):
        _refuse(place, f"{_shown(value)} {_LABEL}")
    return value


def _interface(value: str, place: str) -> str:
    if value and (wrong := interface_fault(value)):
        _refuse(place, f"{_shown(value)} {wrong}")
    return value


def _ip(value: str, place: str) -> str:
    if address.parse(value) is None and address.parse_prefix(value) is None:
        _refuse(place, f"{_shown(value)} is no IP address, such as 172.18.8.50/16 or fd00:18::50/64")
    return value


def _gateways(values: Sequence[str], place: str) -> tuple[str, ...]:
    """Several of one family make a multipath route, the same one twice makes no sense."""
    given: list[str] = []
    for n, value in enumerate(values):
        parsed = address.parse(value)
        if parsed is None or not parsed.value:
            _refuse(f"{place}.default-route[{n}]", f"{_shown(value)} is no gateway's IP address, such as 172.18.0.1")
        if str(parsed) in given:
            _refuse(f"{place}.default-route[{n}]", f"{_shown(value)} is named twice")
        given.append(str(parsed))
    return tuple(given)


def _octets(value: str, count: int, place: str) -> str:
    """A hardware address in any of the usual spellings (with ':', '-' or, in groups of four, '.'), as one of them."""
    mark = next((mark for mark in ":-." if mark in value), "")
    groups = value.split(mark) if mark else []
    width = 4 if mark == "." else 2
    if len(groups) * width != count * 2 or not all(len(group) == width and _HEX.fullmatch(group) for group in groups):
        example = ":".join(["02", "00", "00", "12", "34", "56", "78", "9a"][:count])
        _refuse(place, f"{_shown(value)} is no hardware address of {count} octets, such as {example}")
    digits = "".join(groups).lower()
    if count == 6 and (int(digits[:2], 16) & 1 or not int(digits, 16)):
        _refuse(place, f"{_shown(value)} is no address of one NIC: it is a group address or zero")
    return ":".join(digits[n : n + 2] for n in range(0, len(digits), 2))


def _port_mappings(mappings: Sequence[_PortMapping], place: str) -> tuple[Mapping[str, Any], ...]:
    for n, mapping in enumerate(mappings):
        at = f"{place}.portMappings[{n}]"
        for key, port in (("hostPort", mapping.host_port), ("containerPort", mapping.container_port)):
            if not 1 <= port <= 65535:
                _refuse(f"{at}.{key}", f"{port} is no port: 1 to 65535")
        if mapping.protocol.lower() not in _PROTOCOLS:
            _refuse(f"{at}.protocol", f"{_shown(mapping.protocol)} is none of {', '.join(_PROTOCOLS)}")
        if mapping.host_ip and address.parse(mapping.host_ip) is None:
            _refuse(f"{at}.hostIP", f"{_shown(mapping.host_ip)} is no IP address")
    return tuple({"protocol": "tcp", **msgspec.to_builtins(mapping)} for mapping in mappings)


def _bandwidth(bandwidth: _Bandwidth, place: str) -> Mapping[str, int] | None:
    given: dict[str, int] = {key: value for key, value in msgspec.to_builtins(bandwidth).items() if value is not None}
    for key, value in given.items():
        if value < 0:
            _refuse(f"{place}.bandwidth.{key}", f"{value} is negative")
    return given or None


def _plain(value: str, place: str) -> str:
    """A device's id: it becomes part of paths below /sys and of file names."""
    if value in (".", "..") or "/" in value or not value.isprintable() or " " in value:
        _refuse(place, f"{_shown(value)} is no device id, such as 0000:3b:02.1")
    return value


def _claim(value: str, place: str) -> str:
    if value and not all(is_label(part) for part in value.split(".")):
        _refuse(place, f"{_shown(value)} is no name of an IPAMClaim")
    return value
