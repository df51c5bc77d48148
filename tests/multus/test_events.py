"""What the pod's owner is told, here by the log lines that stand for Events where pods come from files."""

from __future__ import annotations

import re

import pytest
from tests.multus.multus_node import InProcess
from tests.multus.test_handler import CLUSTER, NETWORKS, args, conf, second

from underlay import errors
from underlay.multus import events

PRINTS = 'echo \'{"cniVersion": "1.0.0"}\''


@pytest.fixture
def node(uplink, tmp_path):
    made = InProcess(uplink, tmp_path)
    made.write("net.d/10-cluster.conf", CLUSTER)
    made.network("default", "a", second())
    yield made
    made.close()


def told(node) -> list[tuple[str, str]]:
    return [(line["reason"], line["message"]) for line in node.log if line["event"] == "event"]


def kinds(base: type[errors.UnderlayError]) -> list[type[errors.UnderlayError]]:
    return [base, *(kind for child in base.__subclasses__() for kind in kinds(child))]


def test_one_event_names_every_nic_of_an_add(node, pod):
    node.pod("default", "web", {NETWORKS: "a@wan0"})
    assert node.call("ADD", conf(), netns=pod.path, args=args("web"))[0]
    words = "Add eth0 [172.18.7.9/16] from cluster-net, wan0 [172.18.8.1/16] from default/a"
    assert told(node) == [("AddedInterface", words)]
    assert node.call("DEL", conf(), netns=pod.path, args=args("web")) == (True, None)
    assert len(told(node)) == 1


def test_a_network_that_is_not_defined_is_told_with_what_to_do(node, pod):
    node.pod("default", "web", {NETWORKS: "nosuch"})
    assert not node.call("ADD", conf(), netns=pod.path, args=args("web"))[0]
    ((reason, words),) = told(node)
    assert reason == "NoNetworkFound"
    assert words.startswith("network default/nosuch: there is no NetworkAttachmentDefinition of that name. ")
    assert words.endswith("Create the NetworkAttachmentDefinition, or correct the pod's annotation.")


@pytest.mark.parametrize(
    ("annotation", "network", "reason"),
    [
        ("[", {}, "InvalidAnnotation"),
        ("b", {"master": "nosuch0"}, "ParentMissing"),
        ("b", {"mode": "nosuch"}, "InvalidNetwork"),
        ("b", {"type": "nosuch"}, "PluginMissing"),
        ("b", {"type": "failing"}, "PluginFailed"),
    ],
)
def test_each_kind_of_fault_has_its_reason(node, pod, annotation, network, reason):
    node.write("bin/failing", "#!/bin/sh\nexit 1\n").chmod(0o755)
    node.network("default", "b", second(**network))
    node.pod("default", "web", {NETWORKS: annotation})
    given = conf(binDir=str(node.directory / "bin"))
    ok, error = node.call("ADD", given, netns=pod.path, args=args("web"))
    assert not ok
    ((found, words),) = told(node)
    assert found == reason
    assert words.startswith(error["msg"].removeprefix("pod default/web: "))
    assert error["details"] in words


def test_every_error_has_a_reason_in_camel_case():
    for kind in kinds(errors.UnderlayError):
        assert re.fullmatch(r"(?:[A-Z][a-z]+){2,}", events.reason(kind.__new__(kind))), kind


def test_nobody_is_told_of_another_pods_sandbox_or_of_no_pod(node, pod):
    node.pod("default", "web", {}, uid="new")
    assert not node.call("ADD", conf(), netns=pod.path, args=args("web", uid="old"))[0]
    assert node.call("ADD", conf(), netns=pod.path, args=args("gone"))[0]
    assert node.call("ADD", conf(), netns=pod.path)[0]
    assert told(node) == []


def test_a_delete_that_leaves_something_is_told_and_one_that_leaves_nothing_is_not(node, pod):
    script = f'#!/bin/sh\n[ "$CNI_COMMAND" = ADD ] && {PRINTS} && exit 0\n[ -e {node.directory}/mended ]\n'
    node.write("bin/sticky", script).chmod(0o755)
    node.network("default", "b", second(type="sticky"))
    node.pod("default", "web", {NETWORKS: "a,b"})
    given = conf(binDir=str(node.directory / "bin"))
    assert node.call("ADD", given, netns=pod.path, args=args("web"))[0]
    assert node.call("DEL", given, netns=pod.path, args=args("web")) == (True, None)
    _, (reason, words) = told(node)
    assert reason == "DetachIncomplete"
    assert words.startswith("Not everything of default/b could be taken back: plugin 'sticky'")
    assert words.endswith("The daemon tries again by itself until it is.")
    node.write("mended", "")
    assert node.call("DEL", given, netns=pod.path, args=args("web")) == (True, None)
    assert len(told(node)) == 2
    assert node.ledger.rows() == []


def test_a_cluster_network_that_is_not_ready_is_told(node, pod, monkeypatch):
    monkeypatch.setattr("underlay.multus.handler._READY_WAIT", 0.05)
    node.pod("default", "web", {})
    given = conf(readinessindicatorfile=str(node.directory / "nosuch"))
    assert not node.call("ADD", given, netns=pod.path, args=args("web"))[0]
    ((reason, words),) = told(node)
    assert reason == "NotReady"
    assert "(readinessindicatorfile) does not exist" in words
