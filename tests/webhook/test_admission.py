"""Reviews in, answers out, without a server."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from underlay.daemon.builtin import ALLOCATORS, PLUGINS
from underlay.multus.annotations import NETWORKS
from underlay.multus.lint import Linter
from underlay.webhook.admission import NoReview, answer

LINTER = Linter(PLUGINS, ALLOCATORS)
GOOD = {"cniVersion": "1.0.0", "name": "lan", "type": "macvlan", "master": "eth0"}
BAD = {**GOOD, "mode": "x", "ipam": {"type": "host-local"}}
WARNED = {**GOOD, "mastre": "x"}
GROUPS = {
    "NetworkAttachmentDefinition": "k8s.cni.cncf.io",
    "SpiderIPPool": "spiderpool.spidernet.io",
    "Pod": "",
    "Deployment": "apps",
}


def nad(config: Any, **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": "lan", **metadata}, "spec": {"config": json.dumps(config)}}


def pod(networks: str, **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"generateName": "web-", "annotations": {NETWORKS: networks}, **metadata}}


def review(found: Any, kind: str = "NetworkAttachmentDefinition", **keys: Any) -> bytes:
    group = GROUPS.get(kind, "x.io")
    request = {
        "uid": "u-1",
        "kind": {"group": group, "version": "v1", "kind": kind},
        "operation": "CREATE",
        "namespace": "net",
        "object": found,
        **keys,
    }
    return json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).encode()


def judge(found: Any, kind: str = "NetworkAttachmentDefinition", **keys: Any) -> dict[str, Any]:
    answered = json.loads(answer(review(found, kind, **keys), LINTER).body)
    assert (answered["apiVersion"], answered["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    assert answered["response"].pop("uid") == "u-1"
    return answered["response"]


def test_errors_deny_with_every_message():
    response = judge(nad(BAD))
    assert not response["allowed"]
    assert response["status"]["code"] == 403
    assert "spec.config.mode: \"mode\" 'x' is none of" in response["status"]["message"]
    assert "spec.config.ipam:" in response["status"]["message"]


def test_an_address_pool_is_judged_as_the_plugin_reads_it():
    pool = {"metadata": {"name": "rack-7"}, "spec": {"subnet": "172.18.0.0/16", "ips": ["10.0.0.1"]}}
    response = judge(pool, "SpiderIPPool", namespace="")
    assert not response["allowed"]
    assert "spec.ips[0]: \"spec.ips[0]\" '10.0.0.1' does not lie in" in response["status"]["message"]
    good = {**pool, "spec": {"subnet": "172.18.0.0/16", "ips": ["172.18.0.5"], "gatewya": "172.18.0.1"}}
    response = judge(good, "SpiderIPPool", namespace="")
    assert response["allowed"]
    assert 'Did you mean "gateway"?' in response["warnings"][0]


def test_warnings_come_with_the_permission():
    response = judge(nad(WARNED))
    assert response["allowed"]
    assert ['Did you mean "master"?' in each for each in response["warnings"]] == [True]


def test_infos_are_not_worth_a_warning():
    assert judge(nad({**GOOD, "type": "bridge"})) == {"allowed": True}


def test_a_pod_is_judged_by_its_annotation_and_networks_that_are_elsewhere_are_no_fault():
    assert judge(pod("lan,other/net@fast0"), "Pod") == {"allowed": True}
    assert not judge(pod("lan b"), "Pod")["allowed"]
    assert judge({"metadata": {"generateName": "web-"}}, "Pod") == {"allowed": True}


def test_pod_templates_are_judged_too():
    template = {"metadata": {"name": "web"}, "spec": {"template": pod("lan b")}}
    message = judge(template, "Deployment")["status"]["message"]
    assert message.startswith(f"spec.template.metadata.annotations.{NETWORKS}[0]: ")


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("NetworkAttachmentDefinition", {"operation": "DELETE", "object": None, "oldObject": nad(BAD)}),
        ("NetworkAttachmentDefinition", {"operation": "CONNECT"}),
        ("NetworkAttachmentDefinition", {"subResource": "status"}),
        ("NetworkAttachmentDefinition", {"operation": "UPDATE", "object": nad(BAD, deletionTimestamp="2024-05-01")}),
        ("ConfigMap", {}),
        ("", {}),
    ],
)
def test_what_is_not_ours_to_judge_is_allowed(kind, keys):
    assert judge(nad(BAD), kind, **keys) == {"allowed": True}


def test_a_fault_from_before_does_not_keep_an_object_from_being_changed():
    response = judge(nad(BAD, labels={"a": "b"}), operation="UPDATE", oldObject=nad(BAD))
    assert response["allowed"]
    assert any("spec.config.mode" in each for each in response["warnings"])


def test_a_fault_that_a_change_brings_is_denied():
    assert not judge(nad(BAD), operation="UPDATE", oldObject=nad(GOOD))["allowed"]
    worse = {**BAD, "mac": "x", "mode": "bridge"}
    message = judge(nad(worse), operation="UPDATE", oldObject=nad(BAD))["status"]["message"]
    assert "spec.config.mac" in message
    assert "spec.config.ipam" not in message
    assert judge(nad(GOOD), operation="UPDATE", oldObject=nad(BAD)) == {"allowed": True}


def test_an_object_of_the_wrong_form_is_denied_with_its_field():
    assert "spec.config" in judge({"metadata": {"name": "a"}, "spec": {"config": 5}})["status"]["message"]


def test_what_goes_back_is_bounded():
    keys = {f"key{n}": n for n in range(500)}
    response = judge(nad({**GOOD, **keys, "k" * 5000: 1}))
    assert len(response["warnings"]) <= 16
    assert max(map(len, response["warnings"])) <= 256
    plugins = [{"type": "macvlan", "mode": "x"}] * 500
    message = judge(nad({"cniVersion": "1.0.0", "plugins": plugins}))["status"]["message"]
    assert message.endswith("and 480 more")


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[]", b"\xff", b'{"apiVersion":"v1","kind":"List","request":{}}',
     review(nad(GOOD)).replace(b"admission.k8s.io/v1", b"admission.k8s.io/v1beta1"),
     review(nad(GOOD)).replace(b"AdmissionReview", b"Pod"), review("text"), b"[" * 100000],
)  # fmt: skip
def test_what_is_no_review_is_refused(body):
    with pytest.raises(NoReview):
        answer(body, LINTER)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.binary(max_size=80) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_answered_or_refused(body):
    with contextlib.suppress(NoReview):
        answer(body, LINTER)


@given(
    st.sampled_from(["Pod", "Deployment", "NetworkAttachmentDefinition"]),
    st.dictionaries(st.sampled_from(["metadata", "spec"]), JSON),
    st.dictionaries(st.sampled_from(["metadata", "spec"]), JSON) | st.none(),
)
def test_any_object_is_answered(kind, found, old):
    judge(found, kind, operation="UPDATE", oldObject=old)


@given(JSON, st.text(max_size=30))
def test_any_configuration_and_annotation_is_answered(config, networks):
    judge(nad(config))
    judge(pod(networks), "Pod")
