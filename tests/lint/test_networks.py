"""One configuration: what lint calls wrong, and where."""

from __future__ import annotations

import json
from typing import Any

import pytest

from underlay.daemon.builtin import ALLOCATORS, JUDGES, PLUGINS
from underlay.multus.findings import Finding, Subject
from underlay.multus.lint import Linter

LINTER = Linter(PLUGINS, ALLOCATORS)
SUBJECT = Subject("net.conf", "CNI configuration")
POOL = {"type": "host-local", "subnet": "10.1.0.0/24"}
MACVLAN = {"type": "macvlan", "master": "eth0", "ipam": POOL}
CLUSTER = {"overlay_hijack_subnet": ["10.240.0.0/12"], "service_hijack_subnet": ["172.96.0.0/18"]}
VETH = {"type": "veth", **CLUSTER}
ROUTER = {"type": "router", **CLUSTER}


def look(conf: Any) -> list[Finding]:
    raw = conf if isinstance(conf, bytes) else json.dumps(conf).encode()
    return list(LINTER.network(SUBJECT, raw).findings)


def chain(*plugins: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {"cniVersion": "1.0.0", "name": "lan", "plugins": list(plugins), **keys}


def alone(plugin: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {"cniVersion": "1.0.0", "name": "lan", **plugin, **keys}


def of(severity: str, found: list[Finding]) -> list[tuple[str, str, str]]:
    return [(each.field, each.message, each.hint) for each in found if each.severity == severity]


ERRORS = [
    (b"", "", "not JSON"),
    (b"[]", "", "no JSON object"),
    (b'{"cniVersion": "1.0.0", "name": "a", "type": "macvlan", "mtu": 15,}', "", "line 1, column 67"),
    (b'{"name": "\xff"}', "", "not UTF-8"),
    (chain(), "plugins", "empty list"),
    (chain(MACVLAN, cniVersion="9.9.9"), "cniVersion", "not supported"),
    (chain(MACVLAN, name=""), "name", "missing"),
    (chain(MACVLAN, name="a b"), "name", "must start with"),
    (chain({"master": "eth0"}), "plugins[0].type", "missing"),
    (chain({"type": "../x"}), "plugins[0].type", "plain file name"),
    (alone({"master": "eth0"}), "type", "missing"),
    (chain({**MACVLAN, "master": 5}), "plugins[0].master", "expected string, got int"),
    (chain({**MACVLAN, "mode": "bridg"}), "plugins[0].mode", "none of private"),
    (alone({**MACVLAN, "mode": "bridg"}), "mode", "none of private"),
    (chain({**MACVLAN, "mtu": -1}), "plugins[0].mtu", "negative"),
    (chain({**MACVLAN, "mac": "01:00:00:00:00:01"}), "plugins[0].mac", "no unicast"),
    (chain({**MACVLAN, "ipam": {"type": "host-local"}}), "plugins[0].ipam", "names no range"),
    (chain({**MACVLAN, "ipam": {**POOL, "subnet": "10.1.0.0"}}), "plugins[0].ipam.subnet", "no subnet in CIDR"),
    (chain({**MACVLAN, "ipam": {**POOL, "subnet": "10.1.0.7/24"}}), "plugins[0].ipam.subnet", "host bits"),
    (chain({**MACVLAN, "ipam": {**POOL, "gateway": "fd00::1"}}), "plugins[0].ipam.gateway", "not in the subnet"),
    (chain({**MACVLAN, "ipam": {**POOL, "rangeStart": "10.2.0.1"}}), "plugins[0].ipam.rangeStart", "not in the subnet"),
    (
        chain({**MACVLAN, "ipam": {**POOL, "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.3"}}),
        "plugins[0].ipam.rangeStart",
        "comes after",
    ),
    (
        chain(
            {
                **MACVLAN,
                "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.0/25"}]]},
            }
        ),
        "plugins[0].ipam.ranges[1]",
        'overlaps 10.1.0.1-10.1.0.254 of "ipam.ranges[0]"',
    ),
    (
        chain({**MACVLAN, "ipam": {**POOL, "routes": [{"dst": "0.0.0.0"}]}}),
        "plugins[0].ipam.routes[0].dst",
        "no prefix",
    ),
    (chain({**MACVLAN, "ipam": {**POOL, "dataDir": "x"}}), "plugins[0].ipam.dataDir", "no absolute path"),
    (
        chain({**MACVLAN, "ipam": {"type": "static", "addresses": [{"address": "10.1.0.7"}]}}),
        "plugins[0].ipam.addresses[0].address",
        "CIDR form",
    ),
    (
        chain({**MACVLAN, "ipam": POOL, "args": {"cni": {"ips": ["10.9.0.1"]}}}),
        "plugins[0]",
        "no range set can serve",
    ),
    (alone({"type": "host-local", "ipam": {"type": "host-local"}}), "ipam", "names no range"),
    (alone(VETH), "prevResult", "works on the NIC of the plugin before it"),
    (chain(ROUTER, MACVLAN), "plugins[0].prevResult", "works on the NIC of the plugin before it"),
    (chain(MACVLAN, {"type": "veth"}), "plugins[1].overlay_hijack_subnet", "must name the pod subnets"),
    (chain(MACVLAN, {**ROUTER, "service_hijack_subnet": []}), "plugins[1].service_hijack_subnet", "ClusterIP subnets"),
    (
        chain(MACVLAN, {**VETH, "additional_hijack_subnet": ["10.0.0.0/8", "x"]}),
        "plugins[1].additional_hijack_subnet[1]",
        "no CIDR",
    ),
    (
        chain(MACVLAN, {**VETH, "overlay_hijack_subnet": "10.0.0.0/8"}),
        "plugins[1].overlay_hijack_subnet",
        "expected array",
    ),
    (chain(MACVLAN, {**VETH, "mac_prefix": "0g:00"}), "plugins[1].mac_prefix", "two hexadecimal octets"),
    (chain(MACVLAN, {**VETH, "only_op_mac": True}), "plugins[1].mac_prefix", "must be given"),
    (
        chain(MACVLAN, {**VETH, "log_options": {"log_level": "loud"}}),
        "plugins[1].log_options.log_level",
        "none of debug",
    ),
    (chain(MACVLAN, {**ROUTER, "host_rule_table": 254}), "plugins[1].host_rule_table", "no routing table of its own"),
    (chain({"type": "macvlan"}, VETH), "plugins[0].ipam", "has no address for veth"),
]


@pytest.mark.parametrize(("conf", "field", "words"), ERRORS, ids=[f"{each[1]}-{each[2]}"[:60] for each in ERRORS])
def test_what_add_would_refuse_is_an_error(conf, field, words):
    errors = of("error", look(conf))
    assert [where for where, _, _ in errors] == [field]
    assert words in errors[0][1]


WARNINGS = [
    ({"name": "lan", **MACVLAN}, "cniVersion", "missing: 0.1.0 is taken", "1.0.0"),
    (chain(MACVLAN, disablecheck=True), "disablecheck", "no key of a list", '"disableCheck"'),
    (chain({**MACVLAN, "mastre": "eth1"}), "plugins[0].mastre", "no key of plugin 'macvlan'", '"master"'),
    (chain({**MACVLAN, "Capabilites": {}}), "plugins[0].Capabilites", "no key", '"capabilities"'),
    (chain({**MACVLAN, "zzz": 1}), "plugins[0].zzz", "no key", ""),
    (chain({**MACVLAN, "ipam": {**POOL, "gatway": "x"}}), "plugins[0].ipam.gatway", "no key", '"gateway"'),
    (chain({"type": "bridge", "ipam": {**POOL, "gatway": "x"}}), "plugins[0].ipam.gatway", "no key", '"gateway"'),
    (chain({"type": "bridge", "ipam": {**POOL, "subnet": "x"}}), "plugins[0].ipam.subnet", "no subnet", "Write it as"),
    (
        chain(MACVLAN, {**VETH, "overlay_hijack_subnets": []}),
        "plugins[1].overlay_hijack_subnets",
        "no key",
        '"overlay_hijack_subnet"',
    ),
    (chain(MACVLAN, {**VETH, "rp_filter": {"valu": 0}}), "plugins[1].rp_filter.valu", "no key", '"value"'),
    (chain(MACVLAN, {**VETH, "rp_filter": {"value": 7}}), "plugins[1].rp_filter.value", "counts as 2", "loose"),
    (chain(MACVLAN, {**VETH, "migrate_route": 3}), "plugins[1].migrate_route", "counts as -1", "always"),
    (chain(MACVLAN, {**VETH, "ipam": POOL}), "plugins[1].ipam", "has no effect", "Move"),
    (chain({**MACVLAN, "ipam": {"subnet": "10.1.0.0/24"}}), "plugins[0].ipam.type", "gets no address", "host-local"),
    (chain({**MACVLAN, "ipam": {**POOL, "gateway": "10.9.0.1"}}), "plugins[0].ipam", "outside of the subnet", ""),
    (
        chain({**MACVLAN, "ipam": {**POOL, "rangeStart": "10.1.0.1", "rangeEnd": "10.1.0.1"}}),
        "plugins[0].ipam",
        "nothing but the gateway",
        "",
    ),
    (
        chain({**MACVLAN, "ipam": {**POOL, "routes": [{"dst": "0.0.0.0/0", "gw": "10.9.0.1"}]}}),
        "plugins[0].ipam.routes[0].gw",
        "in no subnet",
        "",
    ),
    (chain({**MACVLAN, "ipam": {"type": "static"}}), "plugins[0].ipam.addresses", "names no address", "capabilities"),
    (
        chain(
            {**MACVLAN, "ipam": {"type": "static", "addresses": [{"address": "10.1.0.7/24", "gateway": "10.2.0.1"}]}}
        ),
        "plugins[0].ipam.addresses[0].gateway",
        "outside of the subnet",
        "",
    ),
]


@pytest.mark.parametrize(
    ("conf", "field", "words", "hint"), WARNINGS, ids=[f"{each[1]}-{each[2]}"[:60] for each in WARNINGS]
)
def test_what_add_takes_and_nobody_means_is_a_warning(conf, field, words, hint):
    found = look(conf)
    warnings = of("warning", found)
    assert of("error", found) == []
    assert [where for where, _, _ in warnings] == [field]
    assert words in warnings[0][1]
    assert hint in warnings[0][2]


CLEAN = [
    chain(MACVLAN),
    alone(MACVLAN),
    chain({"type": "macvlan"}),
    chain(MACVLAN, VETH),
    chain(MACVLAN, ROUTER),
    chain(MACVLAN, {"type": "veth", "skip_call": True}),
    chain({"type": "macvlan", "ipam": {}}, {"type": "veth", "mac_prefix": "0a:1b", "only_op_mac": True}),
    chain({**MACVLAN, "ipam": {"type": "static"}, "capabilities": {"ips": True, "mac": True}}),
    chain({**MACVLAN, "ipam": {**POOL, "routes": [{"dst": "::/0", "gw": "fe80::1"}, {"dst": "10.2.0.0/16"}]}}),
    {"cniVersions": ["0.4.0", "1.0.0"], "name": "lan", "plugins": [MACVLAN], "disableCheck": "true"},
    alone({"type": "host-local", "ipam": POOL}),
]


@pytest.mark.parametrize("conf", CLEAN)
def test_what_works_has_no_findings(conf):
    assert look(conf) == []


def test_plugins_of_others_are_noted_and_their_keys_left_alone():
    found = look(chain({"type": "bridge", "anything": 1, "ipam": {"type": "whereabouts", "range": "x"}}))
    assert [(each.severity, each.field) for each in found] == [
        ("info", "plugins[0].type"),
        ("info", "plugins[0].ipam.type"),
    ]


def test_every_plugin_of_a_list_and_its_ipam_are_told_of_at_once():
    found = look(chain({**MACVLAN, "mode": "x", "ipam": {**POOL, "subnet": "x"}}, {"type": "veth"}))
    assert [field for field, _, _ in of("error", found)] == [
        "plugins[0].mode",
        "plugins[0].ipam.subnet",
        "plugins[1].overlay_hijack_subnet",
    ]


@pytest.mark.parametrize(
    ("text", "mark", "line"),
    [
        (b'{\n "name": "a", # why\n "type": "x"}', "#", 2),
        (b'{\n\n "name": "a" // why\n}', "//", 3),
        (b'/* why */ {"name": "a"}', "/*", 1),
        (b'{"name": "a # \\" // no comment",\n "x": 1, # one\n}', "#", 2),
    ],
)
def test_comments_in_json_are_pointed_at(text, mark, line):
    (finding,) = look(text)
    assert f"take out {mark!r} in line {line}" in finding.hint


def test_a_mark_inside_of_a_string_is_not_taken_for_a_comment():
    (finding,) = look(b'{"name": "http://x#y",}')
    assert "comment" not in finding.hint
    assert "line 1" in finding.message


@pytest.mark.parametrize(
    ("ipam", "field"),
    [
        ({"log_level": "loud"}, "ipam.log_level"),
        ({"default_ipv4_ippool": "a"}, "ipam.default_ipv4_ippool"),
        ({"log_file_max_sise": 7}, "ipam.log_file_max_sise"),
    ],
)
def test_a_section_of_pools_is_judged_as_add_judges_it(ipam, field):
    raw = json.dumps(chain({**MACVLAN, "ipam": {"type": "spiderpool", **ipam}})).encode()
    (finding,) = Linter(*JUDGES).network(SUBJECT, raw).findings
    assert finding.field == f"plugins[0].{field}"
    assert finding.severity in ("error", "warning")
