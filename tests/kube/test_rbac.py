"""deploy/rbac.yaml: no verb that is not used, none missing, and a policy that tells one node's token from another's.

The policy's expressions are evaluated by an implementation of the Common Expression Language of others' making, with
the variables that the API server gives them (Kubernetes: "Validating Admission Policy").
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import cel
import pytest
import yaml
from tests.kube.api_server import EVENTS, NETWORKS, PODS, Fault, network, pod
from tests.kube.cluster_bench import QUICK, Lines, soon, until

from underlay.ipam.pools.block import Key
from underlay.kube.block_store import ApiBlocks
from underlay.kube.client import Client
from underlay.kube.kubeconfig import Kubeconfig
from underlay.kube.objects import Pod
from underlay.kube.pool_cluster import PoolCluster

DOCUMENTS = list(yaml.safe_load_all((Path(__file__).parents[2] / "deploy" / "rbac.yaml").read_text()))
BY_KIND = {each["kind"]: each for each in DOCUMENTS}
USER = "system:serviceaccount:kube-system:underlay"
STATUS = "k8s.v1.cni.cncf.io/network-status"


def granted() -> set[tuple[str, str, str]]:
    return {
        (group, resource, verb)
        for rule in BY_KIND["ClusterRole"]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_role_grants_exactly_what_is_used(server, benches, tmp_path):
    server.put(PODS, pod("web", node="n1", uid="u1"))
    server.put(PODS, pod("unheard", node="n2", uid="u2"))
    server.put(NETWORKS, network("a", {}))
    server.faults.append(Fault(path="/network", watch=True, error=410))
    cluster = benches.make(server)
    assert until(lambda: not cluster.fault())
    cluster.pod("default", "unheard", soon(), "u2")
    cluster.network("default", "none", soon())
    web = cluster.pod("default", "web", soon(), "u1")
    cluster.write_status(web, b"[]")
    for _ in range(2):
        cluster.event(web, "Normal", "R", "words")
        assert until(lambda: cluster.waiting() == 0)
    assert until(lambda: server.asked("watch", PODS) and server.asked("watch", NETWORKS))
    with_pools(server, cluster, tmp_path)
    assert {(each.group, each.resource, each.verb) for each in server.requests} == granted()


def with_pools(server: Any, pods: Any, directory: Path) -> None:
    """Everything that address pools do at the API server."""
    client = Client(Kubeconfig(server.kubeconfig(directory / "kubeconfig"), Lines()), "tests")
    server.put("nodes", {"metadata": {"name": "n1"}})
    around = PoolCluster(client, "n1", str(directory / "pools.db"), Lines(), pods, timing=QUICK)
    blocks = ApiBlocks(client, Lines(), QUICK)
    for each in (around, blocks):
        each.start()
    assert until(lambda: not around.fault() and blocks.ready())
    around.subject("new", "unheard", "u", soon())
    for kind in ("StatefulSet", "VirtualMachine", "IPAMClaim"):
        assert until(lambda kind=kind: around.wanted(f"{kind}/a/b-0") is False)
    first = blocks.read(Key(4, 16), soon())
    blocks.swap(blocks.swap(first, first, soon()), first, soon())
    blocks.report(Key(4, 16), {}, soon())
    watched = ("spiderippools", "spiderreservedips", "spidersubnets", "nodes", "namespaces", "underlayipblocks")
    assert until(lambda: all(server.asked("watch", each) for each in watched))
    for each in (around, blocks):
        each.stop()
    client.close()
    blocks.join()
    around.close()


def test_the_documents_speak_of_one_another():
    account = BY_KIND["ServiceAccount"]["metadata"]
    assert f"system:serviceaccount:{account['namespace']}:{account['name']}" == USER
    assert BY_KIND["ClusterRoleBinding"]["subjects"] == [{"kind": "ServiceAccount", **account}]
    assert BY_KIND["ClusterRoleBinding"]["roleRef"]["name"] == BY_KIND["ClusterRole"]["metadata"]["name"]
    binding = BY_KIND["ValidatingAdmissionPolicyBinding"]["spec"]
    assert binding["policyName"] == BY_KIND["ValidatingAdmissionPolicy"]["metadata"]["name"]


def judged(old: Any, new: Any, *, resource: str = "pods", user: str = USER, node: str | None = "n1") -> str:
    """The message of the first validation that fails, "" where the request is let through."""
    policy = BY_KIND["ValidatingAdmissionPolicy"]["spec"]
    info: dict[str, Any] = {"username": user}
    if node is not None:
        info["extra"] = {"authentication.kubernetes.io/node-name": [node]}
    given = {"request": {"userInfo": info, "resource": {"resource": resource}}, "object": new, "oldObject": old}
    if not all(cel.evaluate(each["expression"], given) for each in policy["matchConditions"]):
        return ""
    given["variables"] = {}
    for each in policy["variables"]:
        given["variables"] = {**given["variables"], each["name"]: cel.evaluate(each["expression"], given)}
    for each in policy["validations"]:
        if not cel.evaluate(each["expression"], given):
            return str(each["message"])
    return ""


def web(**metadata: Any) -> Any:
    made = pod("web", node="n1", **metadata)
    made["metadata"].pop("managedFields")
    return made


def changed(old: Any, **metadata: Any) -> Any:
    new = copy.deepcopy(old)
    new["metadata"].update(metadata)
    return new


def annotated(old: Any, **annotations: str) -> Any:
    return changed(old, annotations={**old["metadata"]["annotations"], **annotations})


def test_the_policy_lets_a_nodes_own_status_through():
    assert judged(web(), annotated(web(), **{STATUS: "[]"})) == ""
    before = annotated(web(), **{STATUS: "[]"})
    assert judged(before, web()) == ""
    bare = web()
    bare["metadata"].pop("annotations")
    assert judged(bare, changed(bare, annotations={STATUS: "[]"})) == ""


@pytest.mark.parametrize(
    ("new", "node", "words"),
    [
        (annotated(web(), **{STATUS: "[]"}), "n2", "the pod is on another node"),
        (annotated(web(), **{STATUS: "[]"}), None, "not bound to a pod on a node"),
        (annotated(web(), other="x"), "n1", "no annotation but"),
        (changed(web(), annotations={}), "n1", "no annotation but"),
        (changed(web(), labels={"app": "other"}), "n1", "neither status, labels nor finalizers"),
        (changed(web(), finalizers=["x/y"]), "n1", "neither status, labels nor finalizers"),
        ({**web(), "status": {"phase": "Failed"}}, "n1", "neither status, labels nor finalizers"),
    ],
)
def test_the_policy_refuses_everything_else_of_a_pod(new, node, words):
    assert words in judged(web(), new, node=node)


def test_the_policy_binds_events_to_the_node(server, benches):
    cluster = benches.make(server)
    cluster.event(Pod("default", "web", "u1"), "Normal", "R", "words")
    assert until(lambda: server.objects.all(EVENTS))
    (event,) = server.objects.all(EVENTS)
    assert judged(None, event, resource="events") == ""
    assert "name this node" in judged(None, event, resource="events", node="n2")
    event["involvedObject"]["kind"] = "Namespace"
    assert "about a pod or this node" in judged(None, event, resource="events")


def test_the_policy_lets_a_node_have_events_on_itself_alone(server, benches):
    cluster = benches.make(server)
    cluster.node_event("Warning", "R", "words")
    assert until(lambda: server.objects.all(EVENTS))
    (event,) = server.objects.all(EVENTS)
    assert judged(None, event, resource="events") == ""
    event["involvedObject"]["name"] = "n2"
    assert "about a pod or this node" in judged(None, event, resource="events")


def test_the_policy_is_about_nobody_else():
    assert judged(web(), changed(web(), labels={}), user="system:node:n2", node=None) == ""
