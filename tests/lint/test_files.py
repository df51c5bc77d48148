"""Manifests and configurations together: what each holds, what contradicts what, which references lead nowhere."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from underlay.daemon.builtin import ALLOCATORS, PLUGINS
from underlay.multus.annotations import DEFAULT_NETWORK, NETWORKS
from underlay.multus.lint import Linter
from underlay.multus.review import review

LINTER = Linter(PLUGINS, ALLOCATORS)
CONFIG = {
    "cniVersion": "1.0.0",
    "type": "macvlan",
    "master": "eth0",
    "ipam": {"type": "host-local", "subnet": "10.1.0.0/24"},
}
MULTUS = {
    "cniVersion": "1.0.0",
    "name": "multus",
    "type": "multus",
    "clusterNetwork": "/etc/cni/net.d/10-calico.conflist",
}


def nad(name: str = "a", namespace: str | None = "net", config: Any = CONFIG, **annotations: str) -> dict[str, Any]:
    text = config if isinstance(config, str) or config is None else json.dumps(config)
    metadata = {"name": name, "annotations": annotations} | ({"namespace": namespace} if namespace else {})
    spec = {} if text is None else {"spec": {"config": text}}
    return {"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition", "metadata": metadata, **spec}


def pod(networks: str, namespace: str = "net", **annotations: str) -> dict[str, Any]:
    metadata = {"name": "p", "namespace": namespace, "annotations": {NETWORKS: networks, **annotations}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}


def look(*files: Any, complete: bool = False, namespace: str = "default"):
    """Each file is a list of objects, or (name, text)."""
    named = [
        one if isinstance(one, tuple) else (f"{n}.yaml", yaml.safe_dump_all(one).encode())
        for n, one in enumerate(files)
    ]
    return review(named, LINTER, complete=complete, namespace=namespace)


def shown(found) -> list[tuple[str, str, str]]:
    return [(each.severity.value, str(each.subject), each.field) for each in found]


def test_an_example_that_works_is_clean():
    assert look([nad(), nad("b", config={**CONFIG, "master": "eth1"}), pod("a,net/b@fast0")], complete=True) == []


def test_objects_of_other_kinds_and_groups_are_passed_over():
    deployment = {"apiVersion": "extensions/v9", "kind": "Deployment", "metadata": {"name": "UPPER"}}
    assert look([{"apiVersion": "v1", "kind": "ConfigMap"}, {**deployment, "apiVersion": "other.io/v1"}, None]) == []


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"spec": {"config": {"type": "macvlan"}}}, "spec.config", "must be text that holds JSON"),
        ({"spec": {"config": 5}}, "spec.config", "expected str"),
        ({"spec": "x"}, "spec", "expected object"),
        ({"metadata": {"name": "a", "namespace": "N"}}, "metadata.namespace", "no namespace"),
        ({"metadata": {"name": "A"}}, "metadata.name", "no object's name"),
        ({"metadata": {}}, "metadata.name", "no object's name"),
        ({"metadata": {"name": "a", "annotations": {"x": 1}}}, "metadata.annotations[...]", "expected str"),
        ({"spec": {"config": "{"}}, "spec.config", "not JSON"),
        ({"spec": {"config": json.dumps({**CONFIG, "mode": "x"})}}, "spec.config.mode", "none of"),
        ({"spec": {"config": json.dumps(MULTUS)}}, "spec.config.type", "cannot nest"),
    ],
)
def test_a_wrong_definition_is_named_with_its_field(change, field, words):
    (finding,) = look([nad() | change])
    assert (finding.severity, finding.field) == ("error", field)
    assert words in finding.message


def test_a_misspelt_key_of_the_spec_is_named_with_the_one_that_was_meant():
    strange, empty = look([{**nad(), "spec": {"confg": json.dumps(CONFIG)}}])
    assert (strange.severity, strange.field, strange.hint) == ("warning", "spec.confg", 'Did you mean "config"?')
    assert (empty.severity, empty.field) == ("info", "spec.config")


@pytest.mark.parametrize(
    ("version", "kind", "fix"),
    [
        ("k8s.cni.cncf.io/v1", "NetworkAttachmentDefintion", "NetworkAttachmentDefinition"),
        ("k8s.cni.cncf.io/v1", "networkattachmentdefinition", "NetworkAttachmentDefinition"),
        ("spiderpool.spidernet.io/v2beta1", "SpiderIpPol", "SpiderIPPool"),
    ],
)
def test_a_misspelt_kind_is_not_passed_over_in_silence(version, kind, fix):
    (finding,) = look([{"apiVersion": version, "kind": kind, "metadata": {"name": "a"}}])
    assert (finding.severity, finding.field, finding.hint) == ("warning", "kind", f'Did you mean "{fix}"?')


def test_kinds_of_these_groups_that_others_read_are_passed_over():
    others = [("k8s.cni.cncf.io/v1beta1", "MultiNetworkPolicy"), ("k8s.cni.cncf.io/v1", "Something")]
    others += [("spiderpool.spidernet.io/v2beta1", kind) for kind in ("SpiderMultusConfig", "SpiderEndpointList")]
    assert look([{"apiVersion": version, "kind": kind, "metadata": {"name": "a"}} for version, kind in others]) == []


@pytest.mark.parametrize(
    ("key", "fix"),
    [
        ("k8s.v1.cni.cncf.io/network", NETWORKS),
        ("v1.multus-cni.io/networks", NETWORKS),
        ("v1.multus-cni.io/default-networks", DEFAULT_NETWORK),
        ("k8s.v1.cni.cncf.io/default-network", DEFAULT_NETWORK),
    ],
)
def test_an_annotation_that_nobody_reads_is_named_with_the_one_that_was_meant(key, fix):
    metadata = {"name": "p", "namespace": "net", "annotations": {key: "a"}}
    (finding,) = look([{"apiVersion": "v1", "kind": "Pod", "metadata": metadata}])
    assert (finding.severity, finding.field) == ("warning", f"metadata.annotations.{key}")
    assert finding.hint == f'Did you mean "{fix}"?'


def test_annotations_that_only_tell_are_no_slips():
    told = {"k8s.v1.cni.cncf.io/network-status": "[]", "k8s.v1.cni.cncf.io/networks-status": "[]", "x/network": "a"}
    assert look([nad(), pod("a", **told)]) == []


def test_one_wrong_object_does_not_hide_the_next():
    found = look([{**nad(), "spec": 5}, nad("b", config="{"), pod("a b")])
    assert shown(found) == [
        ("error", "NetworkAttachmentDefinition net/a", "spec"),
        ("error", "NetworkAttachmentDefinition net/b", "spec.config"),
        ("error", "Pod net/p", f"metadata.annotations.{NETWORKS}[0]"),
    ]


def test_a_name_that_no_annotation_can_hold_is_a_warning_and_a_definition_without_config_a_note():
    assert shown(look([nad("a.b")])) == [("warning", "NetworkAttachmentDefinition net/a.b", "metadata.name")]
    assert shown(look([nad(config=None)])) == [("info", "NetworkAttachmentDefinition net/a", "spec.config")]


def test_a_definition_given_twice_is_an_error_and_names_the_first_file():
    (finding,) = look([nad()], [nad()])
    assert shown([finding]) == [("error", "NetworkAttachmentDefinition net/a", "metadata.name")]
    assert (finding.subject.file, "0.yaml" in finding.message) == ("1.yaml", True)


def test_the_namespace_of_objects_without_one_can_be_given():
    files = ([nad(namespace=None)], [pod("a", namespace="shop")])
    assert [each.severity for each in look(*files)] == ["warning"]
    assert look(*files, namespace="shop") == []


ANNOTATIONS = [
    ("a b", f"{NETWORKS}[0]", "must be 1 to 63"),
    ("a@", f"{NETWORKS}[0]", "one interface name"),
    ("a,", f"{NETWORKS}[1]", "names no network"),
    ('[{"name": "a"', NETWORKS, "must be a JSON list"),
    ('{"name": "a"}', NETWORKS, "expected array"),
    ('[{"nam": "a"}]', f"{NETWORKS}[0]", 'has no "name"'),
    ('[{"name": "a", "ips": "10.1.0.1"}]', f"{NETWORKS}[0].ips", "expected array"),
    ('[{"name": "a", "ips": ["10.1.0"]}]', f"{NETWORKS}[0].ips[0]", "no IP address"),
    ('[{"name": "a", "mac": "x"}]', f"{NETWORKS}[0].mac", "no hardware address"),
    ('[{"name": "a", "interface": "longer-than-fifteen"}]', f"{NETWORKS}[0].interface", "longer than 15"),
    ('[{"name": "a", "default-route": ["x"]}]', f"{NETWORKS}[0].default-route[0]", "no gateway"),
    ("a@net1,a@net1", NETWORKS, "both ask for the interface name 'net1'"),
    ("a@net2,a", NETWORKS, "both ask for the interface name 'net2'"),
    (
        '[{"name":"a","default-route":["10.1.0.1"]},{"name":"a","default-route":["10.1.0.2"]}]',
        NETWORKS,
        "IPv4 default route",
    ),
]


@pytest.mark.parametrize(("text", "field", "words"), ANNOTATIONS)
def test_a_wrong_annotation_is_an_error(text, field, words):
    (finding,) = look([nad(), pod(text)], complete=True)
    assert (finding.severity, finding.field) == ("error", f"metadata.annotations.{field}")
    assert words in finding.message


def test_both_annotations_are_told_of_at_once():
    found = look([pod("a b", **{DEFAULT_NETWORK: "a,b"})])
    assert [each.field.removeprefix("metadata.annotations.") for each in found] == [f"{NETWORKS}[0]", DEFAULT_NETWORK]


def test_the_default_networks_interface_name_is_the_runtimes():
    (finding,) = look([nad(), pod("a", **{DEFAULT_NETWORK: "net/a@eth7"})], complete=True)
    assert finding.field == f"metadata.annotations.{DEFAULT_NETWORK}"


def test_what_an_element_asks_for_in_vain_is_a_warning():
    found = look([nad(), pod('[{"name": "a", "mac": "0a:00:00:00:00:01", "namspace": "x"}]')], complete=True)
    assert [each.severity for each in found] == ["warning", "warning"]
    assert any("no plugin declares the capability mac" in each.message for each in found)
    assert any("'namspace' is no key" in each.message for each in found)


@pytest.mark.parametrize(("complete", "severity"), [(False, "warning"), (True, "error")])
def test_a_network_in_none_of_the_files_is_named_with_where_there_is_one(complete, severity):
    found = look([nad("macvlan"), pod("macvlna,shop/macvlan")], complete=complete)
    assert [each.severity for each in found] == [severity, severity]
    assert 'Did you mean "net/macvlan"?' in found[0].hint
    assert "There is net/macvlan." in found[1].hint


def test_a_network_that_is_broken_is_told_of_once():
    assert len(look([nad(config="{"), pod("a")], complete=True)) == 1
    assert len(look([{**nad(), "spec": 5}, pod("a")], complete=True)) == 1


@pytest.mark.parametrize(
    ("kind", "version", "way"),
    [
        ("Deployment", "apps/v1", "spec.template"),
        ("StatefulSet", "apps/v1", "spec.template"),
        ("DaemonSet", "apps/v1", "spec.template"),
        ("ReplicaSet", "apps/v1", "spec.template"),
        ("Job", "batch/v1", "spec.template"),
        ("CronJob", "batch/v1", "spec.jobTemplate.spec.template"),
        ("PodTemplate", "v1", "template"),
    ],
)
def test_pod_templates_are_looked_at_where_each_kind_keeps_them(kind, version, way):
    inner: dict[str, Any] = {"metadata": {"annotations": {NETWORKS: "a b"}}}
    for key in reversed(way.split(".")):
        inner = {key: inner}
    document = {"apiVersion": version, "kind": kind, "metadata": {"name": "web", "namespace": "net"}, **inner}
    assert shown(look([document])) == [("error", f"{kind} net/web", f"{way}.metadata.annotations.{NETWORKS}[0]")]
    broken = {**document, way.split(".")[0]: 5}
    assert shown(look([broken])) == [("error", f"{kind} net/web", way.split(".")[0])]


def test_items_of_lists_are_looked_at():
    listed = {"apiVersion": "v1", "kind": "List", "items": [nad(config="{"), pod("a b")]}
    assert [each.severity for each in look([listed])] == ["error", "error"]


def pool(subnet: str, **keys: Any) -> dict[str, Any]:
    return {**CONFIG, "ipam": {"type": "host-local", "subnet": subnet}, **keys}


def upper(kind: str, **keys: Any) -> dict[str, Any]:
    return {"cniVersion": "1.0.0", "name": "lan", "type": kind, "master": "eth0", **keys}


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (
            upper("ipvlan"),
            upper("ipvlan", mode="l3"),
            "ipvlan l3 on NIC eth0, where {} has ipvlan l2: the mode",
        ),
        (upper("macvlan"), upper("ipvlan"), "ipvlan l2 on NIC eth0, where {} has macvlan: the kernel refuses"),
        (upper("ipvlan", master=""), upper("macvlan", master=""), "macvlan on the NIC of the default route"),
    ],
)
def test_kinds_that_one_nic_cannot_have_are_a_warning_of_the_later(one, other, words):
    (finding,) = look([nad("a", config=one)], [nad("b", config=other)])
    assert shown([finding]) == [("warning", "NetworkAttachmentDefinition net/b", "spec.config.master")]
    first = finding.message.partition("where ")[2].partition(" has")[0]
    assert words.format(first) in finding.message
    assert finding.hint


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (upper("ipvlan"), upper("ipvlan", mode="l2")),
        (upper("macvlan"), upper("macvlan", mode="vepa")),
        (upper("macvlan"), upper("ipvlan", master="eth1")),
        (upper("macvlan"), upper("vlan", vlanId=7)),
        (upper("macvlan"), upper("ipvlan", linkInContainer=True)),
    ],
)
def test_kinds_that_one_nic_can_have_are_no_warning(one, other):
    assert look([nad("a", config=one)], [nad("b", config=other)]) == []


def test_ranges_that_meet_on_one_wire_are_a_warning_of_the_later():
    (finding,) = look([nad("a", config=pool("10.1.0.0/16"))], [nad("b", config=pool("10.1.2.0/24"))])
    assert shown([finding]) == [("warning", "NetworkAttachmentDefinition net/b", "spec.config.ipam")]
    assert "10.1.2.1-10.1.2.254 overlaps 10.1.0.1-10.1.255.254 of NetworkAttachmentDefinition net/a" in finding.message


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pool("10.1.0.0/24"), pool("10.1.1.0/24")),
        (pool("10.1.0.0/24"), pool("10.1.0.0/24", master="eth1")),
        (pool("10.1.0.0/24", name="lan"), pool("10.1.0.0/24", name="lan")),
        (pool("10.1.0.0/24", type="bridge"), pool("10.1.0.0/24", type="bridge")),
    ],
    ids=["apart", "other wire", "one store", "wire unknown"],
)
def test_ranges_that_cannot_give_one_address_twice_are_no_fault(one, other):
    assert [each for each in look([nad("a", config=one), nad("b", config=other)]) if each.severity != "info"] == []


def test_cni_files_are_told_from_manifests_by_ending_and_by_content():
    wrong = json.dumps({**CONFIG, "name": "a", "mode": "x"}).encode()
    for name in ("x.conf", "x.conflist", "x.json", "<stdin>"):
        assert shown(look((name, wrong))) == [("error", "CNI configuration", "mode")]
    manifest = json.dumps(nad(config={**CONFIG, "mode": "x"})).encode()
    for name in ("x.json", "<stdin>"):
        assert [each.field for each in look((name, manifest))] == ["spec.config.mode"]
    (finding,) = look(("<stdin>", b'{"cniVersion": "1.0.0", # why\n "type": "macvlan"}'))
    assert "comments" in finding.hint


@pytest.mark.parametrize(
    ("keys", "severity", "field", "words"),
    [
        ({"clusterNetwork": ""}, "error", "", "neither"),
        ({"confDir": "x"}, "error", "confDir", "no absolute path"),
        ({"defaultNetworks": "a"}, "error", "defaultNetworks", "expected array"),
        ({"delegates": [{"type": "x"}]}, "error", "delegates", "exclude each other"),
        ({"clusterNetwork": "", "delegates": [{**CONFIG, "mode": "x"}]}, "error", "delegates[0].mode", "none of"),
        ({"clusterNetwrk": "a"}, "warning", "clusterNetwrk", "no key of a multus configuration"),
        ({"logFile": "/x"}, "info", "logFile", "has no effect"),
        ({"clusterNetwork": "calico"}, "info", "clusterNetwork", "in none of the files"),
        ({"defaultNetworks": ["lan"]}, "info", "defaultNetworks[0]", "in none of the files"),
    ],
)
def test_a_multus_configuration_is_looked_at(keys, severity, field, words):
    (finding,) = look(("00-multus.conf", json.dumps({**MULTUS, **keys}).encode()))
    assert (finding.severity, finding.field) == (severity, field)
    assert words in finding.message


def test_multus_in_a_list_is_looked_at_too():
    listed = {
        "cniVersion": "1.0.0",
        "name": "m",
        "plugins": [{"type": "multus", "clusterNetwork": "/x", "confDir": "x"}],
    }
    assert shown(look(("00-multus.conflist", json.dumps(listed).encode()))) == [
        ("error", "CNI configuration", "plugins[0].confDir")
    ]


def test_networks_of_a_multus_configuration_are_found_among_the_files():
    conf = json.dumps({**MULTUS, "clusterNetwork": "calico", "defaultNetworks": ["a"]}).encode()
    calico = json.dumps({"cniVersion": "1.0.0", "name": "calico", "type": "macvlan"}).encode()
    definition = nad(namespace="kube-system")
    assert look(("00-multus.conf", conf), ("10.conf", calico), [definition], complete=True) == []


def test_isolation_that_a_multus_configuration_among_the_files_asks_for_is_seen():
    conf = ("00-multus.conf", json.dumps({**MULTUS, "namespaceIsolation": True}).encode())
    (finding,) = look(conf, [nad(), pod("net/a", namespace="shop")])
    assert "namespaceIsolation" in finding.message


def test_default_networks_of_a_multus_configuration_count_for_interface_names():
    conf = json.dumps({**MULTUS, "defaultNetworks": ["/etc/cni/x.conf"]}).encode()
    (finding,) = look(("00-multus.conf", conf), [nad(), pod("a@net1")])
    assert "both ask for the interface name 'net1'" in finding.message


@pytest.mark.parametrize("text", [b"a: [", b"a: !!bool x", b"kind: 5", b"apiVersion: v1", b"\xff\xfe\x00"])
def test_a_file_that_is_no_manifest_is_an_error(text):
    (finding,) = look(("x.yaml", text))
    assert (finding.severity, finding.subject.file) == ("error", "x.yaml")


@pytest.mark.parametrize("text", [b"image: {tag: x}", b"- 1", b"text"])
def test_a_document_of_another_program_is_noted_and_the_next_looked_at(text):
    found = look(("x.yaml", text + b"\n---\n" + yaml.safe_dump(nad(config="{")).encode()))
    assert [(each.severity, each.subject.kind) for each in found] == [
        ("info", ""),
        ("error", "NetworkAttachmentDefinition"),
    ]


@pytest.mark.parametrize("content", [b"", b"# later\n", b"---\n---\n"])
def test_of_a_file_with_nothing_in_it_that_is_said(content: bytes):
    (found,) = look(("a.yaml", content))
    assert (found.severity, found.subject.file, found.message) == ("info", "a.yaml", "there is nothing in it")


SEED_IPAM = {"type": "spiderpool", "log_level": "DEBUG", "log_file_max_size": 100}
SEED = {
    "veth": {
        "rp_filter": {"set_host": True, "value": 0},
        "log_options": {"log_level": "debug", "log_file": "/var/log/meta-plugins/veth.log"},
    },
    "router": {"overlay_interface": "eth0", "skip_call": False, "rp_filter": {"set_host": True, "value": 0}},
}


@pytest.mark.parametrize("kind", ["veth", "router"])
def test_the_networks_of_the_documentation_are_clean_without_their_comments(kind):
    meta = {
        "type": kind,
        "service_hijack_subnet": ["172.96.0.0/18", "2001:4860:fd00::/108"],
        "overlay_hijack_subnet": ["10.240.0.0/12", "fd00:10:244::/96"],
        "additional_hijack_subnet": [],
        "migrate_route": -1,
        **SEED[kind],
    }
    macvlan = {"type": "macvlan", "master": "enp4s0f0np0", "mode": "bridge", "ipam": SEED_IPAM}
    conf = {"cniVersion": "0.3.1", "name": "macvlan-standalone", "plugins": [macvlan, meta]}
    found = look([nad(config=conf)])
    assert [each.severity for each in found if each.severity != "info"] == []
    commented = json.dumps(conf, indent=2).replace('"mode"', '# the mode\n"mode"')
    (finding,) = look([nad(config=commented)])
    assert "JSON has no comments" in finding.hint
