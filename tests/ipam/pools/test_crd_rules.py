"""The rules of the CustomResourceDefinitions, carried out: each accepts and refuses what it says, as the daemon does.

CEL comes from a library; what Kubernetes adds to it is below, as "Common Expression Language in Kubernetes" describes
it (IP address, CIDR and string libraries).
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

import cel
import pytest
from tests.ipam.pools.test_crds import BY_KIND, CRDS, SPECS, document, nodes

from underlay.errors import UnderlayError
from underlay.ipam.pools.objects import parse_object

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

VERSION = "!has(self.ipVersion) || !isCIDR(self.subnet) || cidr(self.subnet).ip().family() == self.ipVersion"
GATEWAY = (
    "!has(self.gateway) || !isIP(self.gateway) || !isCIDR(self.subnet) || cidr(self.subnet).containsIP(self.gateway)"
)
LISTED = (
    "!has(self.{0}) || !isCIDR(self.subnet) || self.{0}.all(one, one.split('-').all(end, !isIP(end.trim())"
    " || cidr(self.subnet).containsIP(end.trim())))"
)
RANGE = "self.split('-').size() <= 2 && self.split('-').all(one, isIP(one.trim()))"
V4, V6 = "172.18.0.0/16", "fd00:18::/64"


def of(subnet: str, **keys: Any) -> dict[str, Any]:
    return {"subnet": subnet, **keys}


ACCEPTED: dict[str, list[Any]] = {
    VERSION: [of(V4), of(V4, ipVersion=4), of(V6, ipVersion=6), of("no subnet", ipVersion=4)],
    GATEWAY: [of(V4), of(V4, gateway="172.18.0.1"), of(V6, gateway="fd00:18::1"), of(V4, gateway="none")],
    LISTED.format("ips"): [
        of(V4), of(V4, ips=[]), of(V4, ips=["172.18.0.9", "172.18.4.0-172.18.5.255", "172.18.6.1 - 172.18.6.9"]),
        of(V6, ips=["fd00:18::5-fd00:18::ff"]), of("no subnet", ips=["172.18.0.9"]),
    ],
    LISTED.format("excludeIPs"): [of(V4), of(V4, excludeIPs=["172.18.0.9-172.18.0.10"])],
    "self.subnet == oldSelf.subnet": [(of(V4, ips=[]), of(V4, ips=["172.18.0.9"]))],
    "isCIDR(self)": [V4, V6, "0.0.0.0/0", "172.18.0.1/16", "10.0.0.0/32"],
    RANGE: ["172.18.0.9", "172.18.0.9-172.18.0.12", " 172.18.0.9 - 172.18.0.12 ", "fd00::1-fd00::ff"],
    "isIP(self)": ["172.18.0.1", "fd00::1", "::"],
}  # fmt: skip
"""By the rule: what it is true of; of a transition the object after and before."""
REFUSED: dict[str, list[Any]] = {
    VERSION: [of(V4, ipVersion=6), of(V6, ipVersion=4)],
    GATEWAY: [of(V4, gateway="172.19.0.1"), of(V4, gateway="fd00:18::1"), of(V6, gateway="fd00:19::1")],
    LISTED.format("ips"): [
        of(V4, ips=["172.19.0.1"]), of(V4, ips=["172.18.0.1", "172.18.255.250-172.19.0.1"]), of(V4, ips=["fd00:18::1"]),
    ],
    LISTED.format("excludeIPs"): [of(V4, excludeIPs=["10.0.0.1"])],
    "self.subnet == oldSelf.subnet": [(of(V4), of("172.19.0.0/16"))],
    "isCIDR(self)": [
        "172.18.0.0", "172.18.0.0/33", "172.18.0/16", "fd00::/129", "", "x/16", "172.18.0.0/", "172.18.0.0/16/2",
        "172.18.0.0/016", "::ffff:172.18.0.0/112",
    ],
    RANGE: ["172.18.0.9-172.18.0.10-172.18.0.11", "172.18.0.9-", "", "172.18.0.0/24", "172.18.0.9,172.18.0.10", "a-b"],
    "isIP(self)": ["172.18.0.1/16", "172.18.0.256", "172.18.0", "gateway", "", "fe80::1%eth0", "172.18.0.01"],
}  # fmt: skip


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address) and (address.scope_id or address.ipv4_mapped):
        raise ValueError(text)
    return address


def _cidr(text: str) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
    address, slash, length = text.partition("/")
    if not slash or not length.isdecimal() or (length != "0" and length.startswith("0")):
        raise ValueError(text)
    _ip(address)
    return ipaddress.ip_interface(text)


def _is(parse: Callable[[str], object]) -> Callable[[str], bool]:
    def holds(text: str) -> bool:
        try:
            parse(text)
        except ValueError:
            return False
        return True

    return holds


def holds(rule: str, value: Any, old: Any = None) -> bool:
    """Whether a rule is true of a value."""
    context = cel.Context(variables={"self": value, "oldSelf": old})
    context.add_function("isIP", _is(_ip))
    context.add_function("isCIDR", _is(_cidr))
    context.add_function("cidr", lambda text: {"cidr": str(_cidr(text))})
    context.add_function("ip", lambda given: {"ip": str(_cidr(given["cidr"]).ip)})
    context.add_function("family", lambda given: _ip(given["ip"]).version)
    context.add_function("containsIP", lambda given, text: _ip(text) in _cidr(given["cidr"]).network)
    context.add_function("split", lambda text, separator: text.split(separator))
    context.add_function("trim", lambda text: text.strip())
    return bool(cel.evaluate(rule, context))


def rules() -> set[str]:
    every = (crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for crd in CRDS.values())
    return {rule["rule"] for made in every for node in nodes(made) for rule in node.get("x-kubernetes-validations", ())}


def refusals(node: dict[str, Any], value: Any, old: Any = None) -> Iterator[str]:
    """The messages of the rules that are not true of a value and of what is in it."""
    for rule in node.get("x-kubernetes-validations", ()):
        if ("oldSelf" not in rule["rule"] or old is not None) and not holds(rule["rule"], value, old):
            yield rule["message"]
    for name, inner in node.get("properties", {}).items():
        if isinstance(value, dict) and name in value:
            yield from refusals(inner, value[name], (old or {}).get(name))
    if isinstance(value, list) and isinstance(node.get("items"), dict):
        for each in value:  # lists are not maps by key here: the API server knows no old value of an item
            yield from refusals(node["items"], each)


def refused(kind: str, given: dict[str, Any], old: dict[str, Any] | None = None) -> list[str]:
    return list(refusals(BY_KIND[kind]["spec"]["versions"][0]["schema"]["openAPIV3Schema"], given, old))


def test_every_rule_is_tried_here() -> None:
    assert rules() <= ACCEPTED.keys()
    assert rules() <= REFUSED.keys()


@pytest.mark.parametrize(("rule", "value"), [(rule, value) for rule in ACCEPTED for value in ACCEPTED[rule]])
def test_a_rule_accepts(rule: str, value: Any) -> None:
    assert holds(rule, *value) if isinstance(value, tuple) else holds(rule, value)


@pytest.mark.parametrize(("rule", "value"), [(rule, value) for rule in REFUSED for value in REFUSED[rule]])
def test_a_rule_refuses(rule: str, value: Any) -> None:
    assert not (holds(rule, *value) if isinstance(value, tuple) else holds(rule, value))


@pytest.mark.parametrize("kind", sorted(SPECS))
def test_manifests_of_the_field_break_no_rule(kind: str) -> None:
    assert refused(kind, document(kind), document(kind)) == []


@pytest.mark.parametrize("kind", ["SpiderIPPool", "SpiderSubnet"])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ipVersion": 6}, "ipVersion does not fit subnet"),
        ({"gateway": "172.18.0.1"}, "gateway does not lie in subnet"),
        ({"gateway": "172.31.192.1/20"}, "write an address without a prefix length"),
        ({"ips": ["172.18.0.1"]}, "an address of ips does not lie in subnet"),
        ({"ips": ["172.31.199.180-172.31.199.189-172.31.199.190"]}, "write an address, or a range"),
        ({"excludeIPs": ["172.18.0.1-172.18.0.9"]}, "an address of excludeIPs does not lie in subnet"),
        ({"excludeIPs": ["first"]}, "write an address, or a range"),
        ({"subnet": "172.31.192.0"}, "write a subnet in CIDR form"),
        ({"routes": [{"dst": "10.99.0.0", "gw": "172.31.192.2"}]}, "write a prefix in CIDR form"),
        ({"routes": [{"dst": "10.99.0.0/16", "gw": "router"}]}, "write the address of the next hop"),
    ],
)
def test_what_a_rule_refuses_the_daemon_refuses_too(kind: str, changes: dict[str, Any], words: str) -> None:
    given = document(kind, **changes)
    assert any(message.startswith(words) for message in refused(kind, given))
    with pytest.raises(UnderlayError):
        parse_object(given)


@pytest.mark.parametrize("kind", ["SpiderIPPool", "SpiderSubnet"])
def test_a_subnet_is_the_same_for_as_long_as_the_object_lives(kind: str) -> None:
    now = document(kind, subnet="172.31.192.0/19")
    assert refused(kind, now) == []
    assert refused(kind, now, document(kind)) == ["subnet cannot be changed; make another object"]
