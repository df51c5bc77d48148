"""The reference's cases again, as a node has them: pods and networks at an API server, the installed shim, a daemon.

One daemon and one API server serve all cases. The pod of every case has the name of the one before and another UID, as
a StatefulSet's has, so the daemon's cache is behind whenever the runtime is quicker than the watch.
"""

from __future__ import annotations

import json
import socket
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from tests.kube import api_server
from tests.kube.api_server import EVENTS, NETWORKS, PODS, ApiServer
from tests.kube.cluster_bench import NODE, until
from tests.multus import test_cases
from tests.multus.multus_node import Node, ShimAndDaemon
from tests.multus.test_cases import CASES, POD, addresses, links, routes, statuses, unordered

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

STATUS = "k8s.v1.cni.cncf.io/network-status"
REASONS = {
    "missing-nad": "NoNetworkFound",
    "bad-annotation-json": "InvalidAnnotation",
    "bad-name": "InvalidAnnotation",
    "bad-mac": "InvalidAnnotation",
    "bad-ip": "InvalidAnnotation",
    "second-fails": "ParentMissing",
    "no-such-plugin": "PluginMissing",
    "nad-bad-json": "InvalidNetwork",
    "same-interface-twice": "InvalidAnnotation",
    "isolation-refuses": "InvalidAnnotation",
    "pod-not-found": None,  # nobody to tell
    "uid-mismatch": None,  # it is another pod's failure
}
"""Of the Event on the pod; AddedInterface in the other cases."""


class OverHttp(Node):
    """One case's view of the node: its objects go to the API server, its calls to the daemon that all cases share."""

    def __init__(self, shared: ShimAndDaemon, api: ApiServer, directory: Path, container: str) -> None:
        super().__init__(shared.ns, directory)
        self.shared = shared
        self.api = api
        self.container = container

    def network(self, namespace: str, name: str, config: object = None) -> None:
        """Define a network at the API server."""
        made = api_server.network(name, "" if config is None else config, namespace=namespace)
        if config is None:
            made["spec"] = {}
        self.api.put(NETWORKS, made)

    def pod(self, namespace: str, name: str, annotations: Mapping[str, str], uid: str = "uid-1") -> None:
        """Bind a pod to the node at the API server."""
        self.api.put(PODS, api_server.pod(name, node=NODE, namespace=namespace, annotations=dict(annotations), uid=uid))

    def status(self, namespace: str, name: str) -> Any:
        """The network-status on the pod at the API server, or None."""
        pod = self.api.get(PODS, namespace, name)
        text = pod["metadata"]["annotations"].get(STATUS) if pod else None
        return json.loads(text) if text else None

    def events(self, uid: str) -> list[tuple[str, str, str]]:
        """Type, reason and message of the Events on a pod of that UID."""
        told = [each for each in self.api.objects.all(EVENTS) if each["involvedObject"]["uid"] == uid]
        return [(each["type"], each["reason"], each["message"]) for each in told for _ in range(each["count"])]

    def path(self) -> str:
        return self.shared.path()

    def _call(self, env: dict[str, str], stdin: bytes) -> tuple[bool, bytes]:
        return self.shared._call({**env, "CNI_CONTAINERID": self.container}, stdin)


@pytest.fixture(scope="module")
def api(shared_uplink):
    def listen(host: str, port: int) -> socket.socket:
        with shared_uplink.entered():
            return socket.create_server((host, port))

    with ApiServer(listen=listen) as server:
        yield server


@pytest.fixture(scope="module")
def daemon(shared_uplink, api, tmp_path_factory):
    directory = tmp_path_factory.mktemp("node")
    config = api.kubeconfig(directory / "kubeconfig")
    made = ShimAndDaemon(shared_uplink, directory, "--kubeconfig", config, "--node-name", NODE)
    yield made
    made.close()


@pytest.fixture
def node(daemon, api, tmp_path, request):
    yield OverHttp(daemon, api, tmp_path, request.node.callspec.id)
    for each in api.objects.all(PODS):
        api.delete(PODS, each["metadata"]["namespace"], each["metadata"]["name"])


@pytest.mark.parametrize("case", CASES["cases"], ids=lambda case: case["name"])
def test_a_pod_is_attached_told_of_and_detached_as_from_files(case, node, pod, snapshot):
    expect, uid, namespace = case["expect"], str(uuid.uuid4()), case["namespace"]
    conf = test_cases.prepare(node, case, uid)
    sandbox = "other" if case.get("wrong_uid") else uid
    args = f"IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={POD};K8S_POD_UID={sandbox}"
    before = snapshot(node.ns), snapshot(pod)

    ok, printed = node.call("ADD", conf, netns=pod.path, args=args)
    assert ok == expect["ok"], printed
    if ok:
        assert [ip["address"] for ip in printed.get("ips", [])] == expect["result_ips"]
    else:
        assert f"{namespace}/{POD}" in printed["msg"]
        assert (snapshot(node.ns), snapshot(pod)) == before
    assert unordered(links(pod, expect["links"])) == unordered(expect["links"])
    assert unordered(addresses(pod)) == unordered(expect["addrs"])
    assert unordered(routes(pod)) == unordered(expect["routes"])

    reason = REASONS.get(case["name"], "AddedInterface")
    if reason is not None:
        assert until(lambda: node.events(uid))
    if expect["network_status"] is not None:
        assert until(lambda: node.status(namespace, POD))
    macs = {each["ifname"]: each["address"] for each in pod.ip("link", "show")}
    written, wanted = statuses(node.status(namespace, POD), expect["network_status"], macs)
    assert written == wanted

    for _ in range(2):
        assert node.call("DEL", conf, netns=pod.path, args=args) == (True, None)
        assert (snapshot(node.ns), snapshot(pod)) == before
    asked = [each.resource for each in node.api.asked() if uid.encode() in each.body]
    assert asked == ["pods/status"] * (expect["network_status"] is not None) + [EVENTS] * (reason is not None)
    told = node.events(uid)
    assert [each for _, each, _ in told] == ([] if reason is None else [reason])
    for kind, _, message in told:
        assert kind == ("Normal" if ok else "Warning")
        assert message.startswith("Add eth0 [" if ok else printed["msg"].removeprefix(f"pod {namespace}/{POD}: "))
    assert node.events("other") == []


def test_every_failure_among_the_cases_has_a_reason_here():
    silent = {"pod-not-found"}
    assert set(REASONS) == {each["name"] for each in CASES["cases"] if not each["expect"]["ok"]} | silent
