"""deploy/controller.yaml fits the code that it runs, and grants what is asked of the API server and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import cel
import pytest
import yaml
from tests.controller.at_the_server import a_pool, put_blocks
from tests.controller.pictures import lease
from tests.kube.api_objects import BLOCKS, ENDPOINTS, PODS, POOLS, RESERVED, SUBNETS
from tests.kube.api_server import pod as a_pod
from tests.kube.cluster_bench import until

from underlay.cli.main import _parser
from underlay.controller import asking
from underlay.controller.app import LEASE
from underlay.daemon.config import split_address
from underlay.ipam.pools.lease import KEPT
from underlay.kube import workloads
from underlay.webhook import server as webhook_server

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCUMENTS = list(yaml.safe_load_all((Path(__file__).parents[2] / "deploy" / "controller.yaml").read_text()))
BY_KIND = {each["kind"]: each for each in DOCUMENTS}
(WEBHOOK,) = BY_KIND["ValidatingWebhookConfiguration"]["webhooks"]
POD = BY_KIND["Deployment"]["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]
KINDS = {"spiderippools": "SpiderIPPool", "spiderreservedips": "SpiderReservedIP", "spidersubnets": "SpiderSubnet"}
# Asked about only where something of that kind is found; each is asked about by a test of its own below.
OTHERS = {
    ("", "replicationcontrollers"), ("apps", "replicasets"), ("apps", "daemonsets"), ("batch", "jobs"),
    ("batch", "cronjobs"), ("kubevirt.io", "virtualmachines"), ("kubevirt.io", "virtualmachineinstances"),
    ("k8s.cni.cncf.io", "ipamclaims"),
}  # fmt: skip


def granted(kind: str) -> Iterator[tuple[str, str, str]]:
    for rule in BY_KIND[kind]["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    yield group, resource, verb


def test_the_roles_grant_exactly_what_is_asked(server, controller):
    asks = {"ipam.spidernet.io/subnet": '{"ipv4": ["s"]}'}
    owner = [{"kind": "ReplicaSet", "name": "web-5d9f", "uid": "u", "controller": True}]
    a_pool(server, ips=["10.0.0.100-10.0.0.109"])
    server.put(RESERVED, {"metadata": {"name": "r"}, "spec": {"ips": ["10.0.0.250"]}})
    server.put(SUBNETS, {"metadata": {"name": "s"}, "spec": {"subnet": "10.0.0.0/24", "ips": ["10.0.0.10-10.0.0.99"]}})
    server.put("nodes", {"metadata": {"name": "n1"}})
    server.put(PODS, a_pod("web", node="n1", annotations=asks, ownerReferences=owner,
                           labels={"pod-template-hash": "5d9f"}))  # fmt: skip
    server.put(PODS, a_pod("bare", node="n1", uid="uid-bare", annotations=asks))
    kept = lease("10.0.0.103", pod="", node="", state=KEPT, keeper="StatefulSet/shop/db-0")
    put_blocks(server, lease("10.0.0.100", pod="default/bare"), lease("10.0.0.101", node="gone"), kept)
    server.put(BLOCKS, {"metadata": {"name": "v4-10.1.0.0"}, "spec": {"revision": 9}})
    running = controller(empty=0.2)
    try:
        assert until(lambda: len(list(server.objects.all(POOLS))) == 3)
        assert until(lambda: server.get(BLOCKS, "", "v4-10.1.0.0") is None)
        assert until(lambda: server.get(ENDPOINTS, "default", "bare"))
        put_blocks(server, lease("10.0.0.102", pod="default/bare"))
        assert until(lambda: server.asked("patch", ENDPOINTS))
        for name in ("web", "bare"):
            server.delete(PODS, "default", name)
        put_blocks(server, lease("10.0.0.102").__class__("10.0.0.102", "n1"))
        assert until(lambda: len(server.objects.all(POOLS)) == 1 and not server.objects.all(ENDPOINTS))
        assert until(lambda: {"statefulsets", "deployments"} <= {each.resource for each in server.asked("get")})
    finally:
        running.stop()
    used = {(each.group, each.resource, each.verb) for each in server.requests}
    named = set(granted("ClusterRole"))
    assert {each for each in named if each[:2] in OTHERS} == {(*each, "get") for each in OTHERS}
    assert used - set(granted("Role")) == {each for each in named if each[:2] not in OTHERS}
    assert {each for each in used if each[1] == "leases"} == set(granted("Role"))


@pytest.mark.parametrize("kind", sorted(asking._PATHS))
def test_whatever_kind_is_asked_about_is_granted(kind, server, client):
    import time

    server.faults.clear()
    assert asking.application_is_gone(client(), kind, "shop", "web", time.monotonic() + 5)
    (request,) = server.requests
    assert (request.group, request.resource, "get") in set(granted("ClusterRole"))
    assert (request.verb, request.namespace, request.name) == ("get", "shop", "web")


def test_the_documents_speak_of_one_another():
    account = BY_KIND["ServiceAccount"]["metadata"]
    for kind in ("ClusterRole", "Role"):
        binding = BY_KIND[f"{kind}Binding"]
        assert binding["subjects"] == [{"kind": "ServiceAccount", **account}]
        assert binding["roleRef"]["name"] == BY_KIND[kind]["metadata"]["name"]
    assert POD["spec"]["serviceAccountName"] == account["name"]
    assert BY_KIND["Role"]["rules"][0]["resourceNames"] == [LEASE]
    service = BY_KIND["Service"]
    called = WEBHOOK["clientConfig"]["service"]
    named = {key: called[key] for key in ("namespace", "name")}
    assert named == {key: service["metadata"][key] for key in named}
    assert called["port"] == service["spec"]["ports"][0]["port"]
    assert service["spec"]["selector"].items() <= POD["metadata"]["labels"].items()
    assert service["spec"]["ports"][0]["targetPort"] == CONTAINER["ports"][0]["name"]


def test_a_cluster_without_it_works_on():
    assert (WEBHOOK["failurePolicy"], WEBHOOK["sideEffects"]) == ("Ignore", "None")
    assert WEBHOOK["timeoutSeconds"] <= 5
    assert BY_KIND["Deployment"]["spec"]["replicas"] == 2


def test_the_webhook_is_sent_what_it_judges_and_not_what_the_controller_writes():
    assert WEBHOOK["clientConfig"]["service"]["path"] == webhook_server.VALIDATE
    (rule,) = WEBHOOK["rules"]
    (group,), (version,) = rule["apiGroups"], rule["apiVersions"]
    assert all(workloads.is_read(KINDS[resource], f"{group}/{version}") for resource in rule["resources"])
    assert rule["operations"] == ["CREATE", "UPDATE", "DELETE"]
    (condition,) = WEBHOOK["matchConditions"]
    account = BY_KIND["ServiceAccount"]["metadata"]

    def sent(user: str) -> Any:
        return cel.evaluate(condition["expression"], {"request": {"userInfo": {"username": user}}})

    assert sent("kubernetes-admin")
    assert not sent(f"system:serviceaccount:{account['namespace']}:{account['name']}")


def test_the_container_is_called_as_the_command_is_written():
    words = [each.replace("$(POD_IP)", "10.1.2.3") for each in (*CONTAINER["command"], *CONTAINER["args"])]
    assert words[0] == "underlay"
    options = _parser(words[1:]).parse_args(words[1:])
    ports = {each["name"]: each["containerPort"] for each in CONTAINER["ports"]}
    assert options.port == ports["https"]
    assert split_address(options.health_address) == ("10.1.2.3", ports["health"])
    (mount,) = CONTAINER["volumeMounts"]
    assert {str(Path(path).parent) for path in (options.tls_cert, options.tls_key)} == {mount["mountPath"]}
    assert {each["name"] for each in CONTAINER["env"]} == {"POD_NAME", "POD_NAMESPACE", "POD_IP"}
    for probe, path in (("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")):
        assert CONTAINER[probe]["httpGet"] == {"path": path, "port": "health"}
