from __future__ import annotations

import contextlib
import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from underlay.errors import InvalidAnnotation
from underlay.multus.annotations import NetworkSelection, parse, parse_default

PLACE = "k8s.v1.cni.cncf.io/networks"
LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
INTERFACES = st.from_regex(r"[a-z][a-z0-9_.-]{0,14}", fullmatch=True)


@pytest.mark.parametrize("text", ["", "  ", "\n", "[]", " [ ] "])
def test_an_annotation_that_names_nothing_asks_for_nothing(text):
    assert parse(text, "default") == ()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a", [("default", "a", "")]),
        ("  a , b ", [("default", "a", ""), ("default", "b", "")]),
        ("a,a", [("default", "a", ""), ("default", "a", "")]),
        ("other/a@mac0", [("other", "a", "mac0")]),
        ("a@fast0,kube-system/b", [("default", "a", "fast0"), ("kube-system", "b", "")]),
    ],
)
def test_the_comma_form_is_namespace_name_and_interface(text, wanted):
    assert [(each.namespace, each.name, each.interface) for each in parse(text, "default")] == wanted


def test_the_json_form_takes_every_key():
    element = {
        "name": "a",
        "namespace": "other",
        "interface": "fast0",
        "ips": ["172.18.8.50/16", "fd00:18::50"],
        "mac": "02-AA-bb-CC-dd-01",
        "infiniband-guid": "c2:11:22:33:44:55:66:77",
        "default-route": ["172.18.0.1", "FD00:18::1"],
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": "10.0.0.1"}],
        "bandwidth": {"ingressRate": 2048, "ingressBurst": 1600, "egressRate": 4096, "egressBurst": 1600},
        "deviceID": "0000:3b:02.1",
        "cni-args": {"foo": {"bar": [1]}},
        "ipam-claim-reference": "claim-a",
    }
    assert parse(json.dumps([element]), "default") == (
        NetworkSelection(
            name="a",
            namespace="other",
            interface="fast0",
            ips=("172.18.8.50/16", "fd00:18::50"),
            mac="02:aa:bb:cc:dd:01",
            infiniband_guid="c2:11:22:33:44:55:66:77",
            default_route=("172.18.0.1", "fd00:18::1"),
            port_mappings=({"hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": "10.0.0.1"},),
            bandwidth={"ingressRate": 2048, "ingressBurst": 1600, "egressRate": 4096, "egressBurst": 1600},
            device_id="0000:3b:02.1",
            cni_args={"foo": {"bar": [1]}},
            ipam_claim_reference="claim-a",
        ),
    )


def test_null_means_not_asked_for_and_an_unknown_key_is_named():
    text = '[{"name": "a", "mac": null, "ips": null, "cni-args": null, "bandwidth": {}, "interfce": "x", "b": 1}]'
    assert parse(text, "default") == (NetworkSelection("a", "default", unknown=("interfce", "b")),)


def test_a_port_mapping_without_protocol_is_tcp():
    text = '[{"name": "a", "portMappings": [{"hostPort": 1, "containerPort": 2}]}]'
    assert parse(text, "default")[0].port_mappings == ({"protocol": "tcp", "hostPort": 1, "containerPort": 2},)


@pytest.mark.parametrize("mac", ["02:aa:bb:cc:dd:01", "02-AA-BB-CC-DD-01", "02aa.bbcc.dd01"])
def test_every_usual_spelling_of_a_mac_is_understood(mac):
    assert parse(json.dumps([{"name": "a", "mac": mac}]), "default")[0].mac == "02:aa:bb:cc:dd:01"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Macvlan_A", f"{PLACE}[0] name 'Macvlan_A' must be"),
        ("a,", f"{PLACE}[1] '' names no network"),
        ("a,,b", f"{PLACE}[1] '' names no network"),
        ("a,@x", f"{PLACE}[1] '@x' names no network"),
        ("a@", f"{PLACE}[0] 'a@' must have one interface name"),
        ("/a", f"{PLACE}[0] namespace '' must be"),
        ("a/", f"{PLACE}[0] name '' must be"),
        ("a/b/c", f"{PLACE}[0] namespace 'a/b' must be"),
        ("../a", f"{PLACE}[0] namespace '..' must be"),
        ("a b", f"{PLACE}[0] name 'a b' must be"),
        ("-a", f"{PLACE}[0] name '-a' must be"),
        ("a" * 64, "must be 1 to 63"),
        ("a@sixteen-letters0", "longer than 15 bytes"),
        ("a@b@c", f"{PLACE}[0] 'a@b@c' must have one"),
        ('[{"name": "a"', "must be a JSON list of objects"),
        ('{"name": "a"}', f"{PLACE}: expected array, got object"),
        ("[1]", f"{PLACE}[0]: expected object, got int"),
        ('"a"', f"{PLACE}: expected array, got str"),
        ("[{}]", f'{PLACE}[0] has no "name"'),
        ('[{"name": "a"}, {"name": 1}]', f"{PLACE}[1].name: expected str"),
        ('[{"name": "a"}, {"name": "A"}]', f"{PLACE}[1].name 'A' must be"),
        ('[{"name": "a", "namespace": "A"}]', f"{PLACE}[0].namespace 'A' must be"),
        ('[{"name": "a", "interface": "a/b"}]', f"{PLACE}[0].interface 'a/b' must hold no"),
        ('[{"name": "a", "ips": "1.2.3.4"}]', f"{PLACE}[0].ips: expected array"),
        ('[{"name": "a", "ips": ["1.2.3.4", "300.1.2.3"]}]', f"{PLACE}[0].ips[1] '300.1.2.3' is no IP address"),
        ('[{"name": "a", "ips": ["1.2.3.4/33"]}]', f"{PLACE}[0].ips[0]"),
        ('[{"name": "a", "mac": "zz:bb"}]', f"{PLACE}[0].mac 'zz:bb' is no hardware address of 6 octets"),
        ('[{"name": "a", "mac": "02:aa:bb:cc:dd:0g"}]', f"{PLACE}[0].mac"),
        ('[{"name": "a", "mac": "02aabbccdd01"}]', f"{PLACE}[0].mac"),
        ('[{"name": "a", "mac": "01:aa:bb:cc:dd:01"}]', "group address"),
        ('[{"name": "a", "mac": "00:00:00:00:00:00"}]', "zero"),
        ('[{"name": "a", "infiniband-guid": "02:aa:bb:cc:dd:01"}]', f"{PLACE}[0].infiniband-guid"),
        ('[{"name": "a", "default-route": ["172.18.0.1/16"]}]', f"{PLACE}[0].default-route[0] '172.18.0.1/16'"),
        (
            '[{"name": "a", "default-route": ["1.2.3.4", "1.2.3.4"]}]',
            f"{PLACE}[0].default-route[1] '1.2.3.4' is named twice",
        ),
        ('[{"name": "a", "default-route": ["::"]}]', f"{PLACE}[0].default-route[0] '::' is no gateway"),
        ('[{"name": "a", "portMappings": [{"hostPort": 1}]}]', f"{PLACE}[0].portMappings[0]: object missing"),
        (
            '[{"name": "a", "portMappings": [{"hostPort": 0, "containerPort": 1}]}]',
            "portMappings[0].hostPort 0 is no port",
        ),
        ('[{"name": "a", "portMappings": [{"hostPort": 1, "containerPort": 1, "protocol": "x"}]}]', "[0].protocol 'x'"),
        ('[{"name": "a", "portMappings": [{"hostPort": 1, "containerPort": 1, "hostIP": "x"}]}]', "[0].hostIP 'x'"),
        ('[{"name": "a", "bandwidth": {"egressRate": -1}}]', f"{PLACE}[0].bandwidth.egressRate -1 is negative"),
        ('[{"name": "a", "bandwidth": {"egressRate": "1M"}}]', f"{PLACE}[0].bandwidth.egressRate: expected int"),
        ('[{"name": "a", "deviceID": "../x"}]', f"{PLACE}[0].deviceID '../x' is no device id"),
        ('[{"name": "a", "cni-args": [1]}]', f"{PLACE}[0].cni-args: expected object"),
        ('[{"name": "a", "ipam-claim-reference": "A b"}]', f"{PLACE}[0].ipam-claim-reference 'A b'"),
        ('[{"name": "a", "cni-args": ' + '{"a":' * 100_000, "must be a JSON list of objects"),
    ],
)
def test_a_fault_is_named_by_element_key_and_value(text, words):
    with pytest.raises(InvalidAnnotation) as caught:
        parse(text, "default")
    assert caught.value.code == 7
    assert caught.value.message.startswith(f"annotation {PLACE}")
    assert words in caught.value.message
    assert len(caught.value.message) < 400


def test_the_default_network_annotation_names_one_network():
    assert parse_default("", "kube-system") is None
    assert parse_default("a", "kube-system").shown == "kube-system/a"
    assert parse_default('[{"name": "a", "namespace": "b"}]', "kube-system").shown == "b/a"
    with pytest.raises(InvalidAnnotation, match=r"v1\.multus-cni\.io/default-network names 2 networks"):
        parse_default("a,b", "kube-system")


@given(st.lists(st.tuples(st.none() | LABELS, LABELS, st.none() | INTERFACES), min_size=1), st.sampled_from(["", " "]))
def test_both_forms_of_the_same_networks_say_the_same(items, blank):
    short = f"{blank},{blank}".join(
        (f"{namespace}/" if namespace else "") + name + (f"@{interface}" if interface else "")
        for namespace, name, interface in items
    )
    long = [{"name": name, "namespace": namespace, "interface": nic} for namespace, name, nic in items]
    assert parse(short, "pods") == parse(json.dumps(long), "pods")


@given(st.text() | st.text(alphabet=string.printable) | st.text(alphabet='[]{}":,@/a1. \\'))
def test_no_text_does_anything_but_parse_or_be_refused(text):
    selections = ()
    with contextlib.suppress(InvalidAnnotation):
        selections = parse(text, "default")
    assert all(each.name and each.namespace for each in selections)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = ["name", "namespace", "interface", "ips", "mac", "infiniband-guid", "default-route", "portMappings", "bandwidth"]
KEYS += ["deviceID", "cni-args", "ipam-claim-reference", "hostPort", "containerPort"]
VALUES = JSON | st.sampled_from(["a", "02:aa:bb:cc:dd:01", ["172.18.8.50/16"], [{"hostPort": 1, "containerPort": 2}]])


@given(st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES), max_size=3))
def test_no_json_does_anything_but_parse_or_be_refused(elements):
    with contextlib.suppress(InvalidAnnotation):
        assert len(parse(json.dumps(elements), "default")) == len(elements)
