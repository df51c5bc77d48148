"""From the API's JSON to trimmed values: only what is used is kept, and nothing that comes breaks the reader."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.kube.api_server import network, pod

from underlay.ipam.pools.surroundings import Owner
from underlay.kube import resources
from underlay.kube.faults import Refused, Unreachable

PODS = resources.pods("n1")
NETWORKS = resources.networks()
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "object", "metadata", "name", "annotations", "spec", "config", "items", "code"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def test_only_annotations_that_are_read_are_kept():
    annotations = {
        "k8s.v1.cni.cncf.io/networks": "a",
        "v1.multus-cni.io/default-network": "b",
        "kubernetes.io/config.mirror": "c",
        "k8s.v1.cni.cncf.io/network-status": "long",
        "kubectl.kubernetes.io/last-applied-configuration": "longer",
    }
    entry = PODS.entry(json.dumps(pod("web", node="n1", annotations=annotations, uid="u1")).encode())
    assert sorted(entry.value.annotations.values()) == ["2026-01-01T00:00:00Z", "a", "b", "c"]
    assert (entry.key, entry.uid, entry.value.static) == (("default", "web"), "u1", True)


def test_a_network_keeps_its_config_to_the_letter_and_its_resource():
    wanted = network("a", '{"x":  1}', annotations={"k8s.v1.cni.cncf.io/resourceName": "intel.com/vf"})
    value = NETWORKS.entry(json.dumps(wanted).encode()).value
    assert (value.config, value.resource_name) == ('{"x":  1}', "intel.com/vf")


@pytest.mark.parametrize(("spec", "config"), [({"config": {"x": 1}}, '{"x":1}'), ({}, None), ({"config": " "}, None)])
def test_a_config_that_is_no_text_is_the_json_that_it_is(spec, config):
    raw = json.dumps({"metadata": {"name": "a", "namespace": "b"}, "spec": spec}).encode()
    assert NETWORKS.entry(raw).value.config == config


OWNERS = [{"kind": "Node", "name": "n1"}, {"kind": "StatefulSet", "name": "db", "uid": "s1", "controller": True}]


def test_a_pod_keeps_its_labels_and_its_controller():
    value = PODS.entry(json.dumps(pod("db-0", node="n1", ownerReferences=OWNERS)).encode()).value
    assert (value.labels, value.owner) == ({"app": "db-0"}, Owner("StatefulSet", "db", "s1"))


def test_what_is_stored_comes_back_the_same():
    owned = pod("db-0", node="n1", uid="u2", ownerReferences=OWNERS)
    for resource, wanted in (
        (PODS, pod("w", node="n1", networks="a", uid="u")), (PODS, owned), (NETWORKS, network("n", {"a": 1})),
    ):  # fmt: skip
        entry = resource.entry(json.dumps(wanted).encode())
        value = entry.value
        body = resources.stored(entry)
        assert resources.restored(resource.kind, value.namespace, value.name, entry.uid, body) == value


@given(ANY | st.binary(max_size=40))
def test_whatever_a_watch_sends_is_an_event_or_a_fault(content):
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    for resource in (PODS, NETWORKS):
        for read in (resource.happening, resource.page, resource.entry):
            try:
                read(raw)
            except (Refused, Unreachable) as fault:
                assert str(fault)  # noqa: PT017 - either is right


def test_the_targets_are_quoted():
    assert PODS.target("a/b", "../c") == "/api/v1/namespaces/a%2Fb/pods/..%2Fc"
    assert "fieldSelector=spec.nodeName%3Dn1" in PODS.watch_target(version="7", seconds=300)
    assert "resourceVersion" not in PODS.list_target(limit=5, version=None, more="")
    assert "resourceVersion" not in PODS.list_target(limit=5, version="0", more="token")
