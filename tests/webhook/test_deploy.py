"""deploy/webhook.yaml fits the code that it runs and the API that reads it."""

from __future__ import annotations

from pathlib import Path

import cel
import pytest
import yaml

from underlay.cli.main import _parser
from underlay.ipam.pools.wishes import IPPOOL, SUBNETS
from underlay.kube import workloads
from underlay.multus.annotations import DEFAULT_NETWORK, NETWORKS
from underlay.webhook import server

DOCUMENTS = list(yaml.safe_load_all((Path(__file__).parents[2] / "deploy" / "webhook.yaml").read_text()))
BY_KIND = {each["kind"]: each for each in DOCUMENTS}
WEBHOOKS = BY_KIND["ValidatingWebhookConfiguration"]["webhooks"]
POD = BY_KIND["Deployment"]["spec"]["template"]
KINDS = {
    "network-attachment-definitions": "NetworkAttachmentDefinition",
    "spiderippools": "SpiderIPPool",
    "spiderreservedips": "SpiderReservedIP",
    "spidersubnets": "SpiderSubnet",
    "pods": "Pod",
    "deployments": "Deployment",
    "statefulsets": "StatefulSet",
    "daemonsets": "DaemonSet",
    "jobs": "Job",
    "cronjobs": "CronJob",
}


@pytest.mark.parametrize("webhook", WEBHOOKS, ids=[each["name"] for each in WEBHOOKS])
def test_a_cluster_without_the_webhook_works_on(webhook):
    assert webhook["failurePolicy"] == "Ignore"
    assert webhook["sideEffects"] == "None"
    assert webhook["matchPolicy"] == "Equivalent"
    assert webhook["admissionReviewVersions"] == ["v1"]
    assert webhook["timeoutSeconds"] <= 5
    assert webhook["name"].count(".") >= 2


@pytest.mark.parametrize("webhook", WEBHOOKS, ids=[each["name"] for each in WEBHOOKS])
def test_it_is_sent_what_it_judges_at_the_path_it_serves(webhook):
    assert webhook["clientConfig"]["service"]["path"] == server.VALIDATE
    for rule in webhook["rules"]:
        assert rule["operations"] == ["CREATE", "UPDATE"]
        (group,), (version,) = rule["apiGroups"], rule["apiVersions"]
        for resource in rule["resources"]:
            assert workloads.is_read(KINDS[resource], f"{group}/{version}" if group else version)


def test_pods_without_annotations_cost_no_call():
    (pods,) = [each for each in WEBHOOKS if each["name"].startswith("pods.")]
    (condition,) = pods["matchConditions"]

    def sent(*annotations: str) -> bool:
        found = {"metadata": {"annotations": dict.fromkeys(annotations, "x")}}
        return bool(cel.evaluate(condition["expression"], {"object": found}))

    assert [sent(key) for key in (NETWORKS, DEFAULT_NETWORK, IPPOOL, SUBNETS, "other")] == [True] * 4 + [False]
    assert not cel.evaluate(condition["expression"], {"object": {"metadata": {}}})


def test_service_deployment_and_webhooks_are_of_one_piece():
    service = BY_KIND["Service"]
    for webhook in WEBHOOKS:
        called = webhook["clientConfig"]["service"]
        assert (called["namespace"], called["name"]) == (
            service["metadata"]["namespace"],
            service["metadata"]["name"],
        )
        assert called["port"] == service["spec"]["ports"][0]["port"]
    assert service["spec"]["selector"].items() <= POD["metadata"]["labels"].items()
    (container,) = POD["spec"]["containers"]
    assert service["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]


def test_the_container_is_called_as_the_command_is_written():
    (container,) = POD["spec"]["containers"]
    words = [*container["command"], *container["args"]]
    assert words[0] == "underlay"
    options = _parser(words[1:]).parse_args(words[1:])
    assert options.port == container["ports"][0]["containerPort"]
    (mount,) = container["volumeMounts"]
    assert {str(Path(path).parent) for path in (options.tls_cert, options.tls_key)} == {mount["mountPath"]}
    for probe in ("readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] == server.HEALTHZ
        assert container[probe]["httpGet"]["scheme"] == "HTTPS"
