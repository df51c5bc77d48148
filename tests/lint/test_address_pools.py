"""Address pools looked through by the code that hands their addresses out."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from underlay.daemon.builtin import JUDGES
from underlay.errors import UnderlayError
from underlay.ipam.pools.objects import KINDS, parse_object
from underlay.multus.lint import Linter
from underlay.multus.review import review

LINTER = Linter(*JUDGES)
SPEC = {"subnet": "172.18.0.0/16", "ips": ["172.18.40.10-172.18.40.60"], "gateway": "172.18.0.1"}


def document(kind: str = "SpiderIPPool", name: str = "rack-7", **spec: Any) -> dict[str, Any]:
    version = "spiderpool.spidernet.io/v2beta1"
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec}


def look(*files: Any):
    """Each file is a list of objects."""
    return review([(f"{n}.yaml", yaml.safe_dump_all(one).encode()) for n, one in enumerate(files)], LINTER)


def test_pools_that_work_are_clean():
    assert look([
        document(**SPEC, ipVersion="4", default="true", multusName=["kube-system/lan"]),
        document(name="six", subnet="fd00:18::/64", ips=["fd00:18::10-fd00:18::ff"]),
        document("SpiderReservedIP", ips=["172.18.40.20", "fd00:18::20"]),
        document("SpiderSubnet", **SPEC),
    ]) == []  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "change", "field", "words", "hint"),
    [
        ("SpiderIPPool", {"subnet": "172.18.0.0"}, "spec.subnet", "no subnet in CIDR form", "Write it as"),
        ("SpiderSubnet", {"subnet": "172.18.0.0/33"}, "spec.subnet", "no subnet in CIDR form", "Write it as"),
        ("SpiderIPPool", {"ips": ["10.0.0.1"]}, "spec.ips[0]", "not lie in the subnet", "Keep to 172.18.0.0"),
        ("SpiderSubnet", {"excludeIPs": ["10.0.0.1"]}, "spec.excludeIPs[0]", "not lie in the subnet", "Keep to"),
        ("SpiderIPPool", {"ips": ["172.18.40.*"]}, "spec.ips[0]", "neither an address nor a range", "Write"),
        ("SpiderIPPool", {"ips": ["172.18.0.9-172.18.0.2"]}, "spec.ips[0]", "ends before it begins", '172.18.0.2-172.'),
        ("SpiderIPPool", {"gateway": "10.0.0.1"}, "spec.gateway", "no address of the subnet", "inside the subnet"),
        ("SpiderIPPool", {"ipVersion": 6}, "spec.ipVersion", "does not fit", "Write 4"),
        ("SpiderIPPool", {"vlan": 5000}, "spec.vlan", "no VLAN id", "0 (none) to 4094"),
        ("SpiderIPPool", {"vlan": "x"}, "spec.vlan", "expected integer", "Correct the field"),
        ("SpiderIPPool", {"routes": [{"dst": "x", "gw": "172.18.0.2"}]}, "spec.routes[0].dst", "no IPv4 prefix", "as"),
        (
            "SpiderIPPool",
            {"podAffinity": {"matchExpressions": [{"key": "app", "operator": "In"}]}},
            "spec.podAffinity.matchExpressions[0].values",
            "is empty",
            "Give the values",
        ),
    ],
)  # fmt: skip
def test_a_wrong_pool_is_named_with_its_field_and_the_fix(kind, change, field, words, hint):
    (found,) = look([document(kind, **SPEC | change)])
    assert (found.severity, str(found.subject), found.field) == ("error", f"{kind} rack-7", field)
    assert words in found.message
    assert "rack-7" not in found.message  # the subject says it
    assert hint in found.hint


def test_a_wrong_reserved_address_is_named_and_hides_nothing():
    found = look([document("SpiderReservedIP", ips=["printer"]), document(**SPEC, name="b")])
    assert [(str(each.subject), each.field) for each in found] == [("SpiderReservedIP rack-7", "spec.ips[0]")]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"spec": 5}, "spec"),
        ({"spec": None}, "spec"),
        ({"metadata": {}}, "metadata.name"),
        ({"metadata": {"name": "A b"}}, "metadata.name"),
    ],
)
def test_what_is_no_pool_at_all_is_an_error(change, field):
    (found,) = look([document(**SPEC) | change])
    assert (found.severity, found.field) == ("error", field)


def test_a_key_that_nobody_reads_is_a_warning_with_the_one_that_was_meant():
    affinity = {"matchLabel": {"app": "db"}}
    found = look([document(**SPEC, excludeIps=["172.18.40.11"], podAffinity=affinity)])
    assert [(each.severity, each.field, each.hint) for each in found] == [
        ("warning", "spec.excludeIps", 'Did you mean "excludeIPs"?'),
        ("warning", "spec.podAffinity.matchLabel", 'Did you mean "matchLabels"?'),
    ]


def test_what_an_api_server_adds_is_no_key_of_the_author():
    made = document(**SPEC) | {"status": {"totalIPCount": 51}}
    made["metadata"] |= {"uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x"], "generation": 1}
    assert look([made]) == []


@pytest.mark.parametrize(
    ("key", "names", "place"),
    [
        ("namespaceName", ["shop", "team-*"], "spec.namespaceName[1]"),
        ("namespaceName", ["Shop"], "spec.namespaceName[0]"),
        ("namespaceName", ["shop.eu"], "spec.namespaceName[0]"),
        ("nodeName", ["node1.example.com", "node*"], "spec.nodeName[1]"),
        ("nodeName", [""], "spec.nodeName[0]"),
    ],
)
def test_a_pattern_where_names_are_listed_serves_nobody_and_is_a_warning(key, names, place):
    (found,) = look([document(**SPEC, **{key: names})])
    assert (found.severity, found.field) == ("warning", place)
    assert "no patterns" in found.message
    assert key.replace("Name", "Affinity") in found.hint


def test_a_pool_without_an_address_is_a_warning():
    (found,) = look([document(**SPEC | {"ips": ["172.18.0.1"]})])
    assert (found.severity, found.field) == ("warning", "spec.ips")
    assert "leaves no address" in found.message


def test_pools_that_list_the_same_addresses_are_one_warning_each_two():
    other = document(name="b", **SPEC | {"ips": ["172.18.40.5-172.18.40.12", "172.18.40.50"]})
    (found,) = look([document(**SPEC)], [other, document(name="c", **SPEC | {"ips": ["172.18.41.1"]})])
    assert (found.severity, str(found.subject), found.field) == ("warning", "SpiderIPPool b", "spec.ips")
    assert "SpiderIPPool rack-7 (0.yaml), from 172.18.40.10 on" in found.message


def test_a_pool_defined_twice_is_an_error_and_does_not_overlap_itself():
    (found,) = look([document(**SPEC)], [document(**SPEC)])
    assert (found.severity, found.field) == ("error", "metadata.name")
    assert "in 0.yaml already" in found.message


def test_pools_whose_names_are_generated_are_not_the_same():
    made = [document(**SPEC | {"ips": [one]}) | {"metadata": {"generateName": "a-"}} for one in ("172.18.0.5", "x")]
    assert [(each.field, str(each.subject)) for each in look(made)] == [("spec.ips[0]", "SpiderIPPool a-*")]


def test_a_pool_and_a_subnet_may_bear_one_name():
    assert look([document(**SPEC), document("SpiderSubnet", **SPEC)]) == []


def test_objects_of_those_kinds_in_another_group_are_passed_over():
    assert look([document(subnet="x") | {"apiVersion": "other.io/v1"}]) == []


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["172.18.0.0/16", "172.18.0.5", "a-b", "::1", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(["subnet", "ips", "excludeIPs", "gateway", "routes", "vlan", "ipVersion", "podAffinity", "x"])


@given(st.sampled_from(sorted(KINDS)), st.dictionaries(keys, values))
def test_lint_refuses_exactly_what_the_plugin_refuses(kind, spec):
    made = document(kind, **spec)
    try:
        parse_object(made)
        refused = False
    except UnderlayError:
        refused = True
    found = review([("a.json", json.dumps(made).encode())], LINTER)
    assert any(each.severity == "error" for each in found) == refused


def annotated(**annotations: str) -> dict[str, Any]:
    told = {f"ipam.spidernet.io/{key.replace('_', '-')}": value for key, value in annotations.items()}
    template = {"metadata": {"annotations": told}}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"template": template}}


def test_annotations_that_work_are_clean():
    assert look([annotated(
        ippools='[{"interface": "net1", "ipv4": ["a", "b-*"]}, {"interface": "net2", "ipv6": ["c"]}]',
        routes='[{"dst": "10.0.0.0/16", "gw": "192.168.1.1"}]', ippool_ip_number="+2", ippool_reclaim="false",
    )]) == []  # fmt: skip


@pytest.mark.parametrize(("annotations", "field", "words"), [
    ({"ippools": '[{"interface": "net1", "ipv4": ["a"]}, {"interface": "net2"}]'}, "ippools[1]", "names nothing"),
    ({"ippools": '[{"ipv4": ["a"]}, {"ipv4": ["b"]}]'}, "ippools[0].interface", "is missing"),
    ({"ippool": "a"}, "ippool", ""),
    ({"subnet": "{}"}, "subnet", "names nothing"),
    ({"routes": '[{"dst": "10.0.0.0/16", "gw": "x"}]'}, "routes[0].gw", "is no IPv4 address"),
    ({"ippool_ip_number": "0"}, "ippool-ip-number", "is no number of addresses"),
    ({"ippool_reclaim": "perhaps"}, "ippool-reclaim", "is neither true nor false"),
])  # fmt: skip
def test_an_annotation_that_add_would_refuse_is_named_with_its_field_and_the_fix(annotations, field, words):
    (finding,) = look([annotated(**annotations)])
    assert finding.field == f"spec.template.metadata.annotations.ipam.spidernet.io/{field}"
    assert words in finding.message
    assert finding.hint
