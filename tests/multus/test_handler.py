"""The verbs of multus on a real kernel, in this process."""

from __future__ import annotations

import json
import os
import threading

import pytest
from tests.multus.multus_node import InProcess

CLUSTER = {
    "cniVersion": "1.0.0",
    "name": "cluster-net",
    "type": "macvlan",
    "master": "eth0",
    "ipam": {
        "type": "static",
        "addresses": [{"address": "172.18.7.9/16", "gateway": "172.18.0.1"}],
        "routes": [{"dst": "0.0.0.0/0"}],
    },
}
NETWORKS = "k8s.v1.cni.cncf.io/networks"


def second(address: str = "172.18.8.1/16", **keys: object) -> dict[str, object]:
    ipam = {"type": "static", "addresses": [{"address": address}]}
    return {"cniVersion": "1.0.0", "type": "macvlan", "master": "eth0", "ipam": ipam, **keys}


@pytest.fixture
def node(uplink, tmp_path):
    made = InProcess(uplink, tmp_path)
    made.write("net.d/10-cluster.conf", CLUSTER)
    made.network("default", "a", second())
    yield made
    made.close()


def conf(**keys: object) -> dict[str, object]:
    return {"cniVersion": "1.1.0", "name": "m", "type": "multus", "clusterNetwork": "cluster-net", **keys}


def args(name: str, uid: str = "uid-1") -> str:
    return f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_UID={uid}"


def nics(ns) -> list[str]:
    return sorted(each["ifname"] for each in ns.ip("link", "show") if each["ifname"] != "lo")


def test_add_check_and_delete_of_a_pod_with_two_nics(node, pod, snapshot):
    before = snapshot(node.ns), snapshot(pod)
    node.pod("default", "web", {NETWORKS: "a"})
    ok, result = node.call("ADD", conf(), netns=pod.path, args=args("web"))
    assert ok, result
    assert result["cniVersion"] == "1.1.0"
    assert [ip["address"] for ip in result["ips"]] == ["172.18.7.9/16"]
    assert [(each["name"], each["ips"]) for each in node.status("default", "web")] == [
        ("cluster-net", ["172.18.7.9"]),
        ("default/a", ["172.18.8.1"]),
    ]
    check = conf(prevResult=result)
    assert node.call("CHECK", check, netns=pod.path, args=args("web")) == (True, None)
    pod.batch("addr del 172.18.8.1/16 dev net1")
    ok, error = node.call("CHECK", check, netns=pod.path, args=args("web"))
    assert not ok
    assert error["code"] == 108
    assert "172.18.8.1" in error["msg"]
    assert node.call("DEL", conf(), netns=pod.path, args=args("web")) == (True, None)
    assert (snapshot(node.ns), snapshot(pod)) == before
    ok, error = node.call("CHECK", check, netns=pod.path, args=args("web"))
    assert (ok, error["code"]) == (False, 3)


def test_check_holds_after_the_default_route_was_moved(node, pod):
    selection = {"name": "a", "default-route": ["172.18.0.1"]}
    node.pod("default", "web", {NETWORKS: json.dumps([selection])})
    ok, result = node.call("ADD", conf(), netns=pod.path, args=args("web"))
    assert ok, result
    (route,) = pod.ip("route", "show", "default")
    assert (route["dev"], route["gateway"]) == ("net1", "172.18.0.1")
    assert "routes" not in result
    assert [each.get("gateway") for each in node.status("default", "web")] == [None, ["172.18.0.1"]]
    assert node.call("CHECK", conf(prevResult=result), netns=pod.path, args=args("web")) == (True, None)


def test_a_default_route_that_cannot_be_set_undoes_the_whole_pod(node, pod, snapshot):
    before = snapshot(node.ns), snapshot(pod)
    node.pod("default", "web", {NETWORKS: '[{"name": "a", "default-route": ["192.0.2.1"]}]'})
    ok, error = node.call("ADD", conf(), netns=pod.path, args=args("web"))
    assert not ok
    assert "pod default/web" in error["msg"]
    assert "via 192.0.2.1" in error["msg"]
    assert (snapshot(node.ns), snapshot(pod)) == before
    assert node.ledger.rows() == []


def test_a_runtime_that_is_none_of_kubernetes_gets_the_configured_networks(node, pod):
    node.network("kube-system", "extra", second("172.18.8.9/16"))
    given = conf(defaultNetworks=["extra"])
    ok, result = node.call("ADD", given, netns=pod.path)
    assert ok, result
    assert nics(pod) == ["eth0", "net1"]
    assert list(node.manifests.glob("**/*.network-status.json")) == []
    assert node.call("DEL", given, netns=pod.path) == (True, None)
    assert nics(pod) == []


def test_a_static_pods_uid_is_not_compared(node, pod):
    node.pod("default", "web", {"kubernetes.io/config.mirror": "hash"}, uid="mirror")
    ok, result = node.call("ADD", conf(), netns=pod.path, args=args("web", uid="hash"))
    assert ok, result


def test_another_uid_is_a_reason_to_come_again(node, pod):
    node.pod("default", "web", {}, uid="new")
    ok, error = node.call("ADD", conf(), netns=pod.path, args=args("web", uid="old"))
    assert (ok, error["code"]) == (False, 11)
    assert "pod default/web has UID new" in error["msg"]


def test_a_pod_in_a_broken_manifest_is_not_taken_for_gone(node, pod):
    node.write("manifests/pods/web.json", "{")
    ok, error = node.call("ADD", conf(), netns=pod.path, args=args("web"))
    assert (ok, error["code"]) == (False, 11)
    assert "pods/web.json" in error["msg"]
    assert nics(pod) == []


@pytest.mark.parametrize("broken", [conf(clusterNetwork=None), conf(clusterNetwork="gone"), conf(cniVersion="9.9"), 1])
def test_delete_succeeds_with_everything_gone_but_the_ledger(node, pod, snapshot, broken):
    before = snapshot(node.ns), snapshot(pod)
    node.pod("default", "web", {NETWORKS: "a"})
    assert node.call("ADD", conf(), netns=pod.path, args=args("web"))[0]
    for path in (*node.manifests.glob("*/*.json"), *node.conf_dir.glob("*")):
        if not path.name.endswith("network-status.json"):
            path.unlink()
    assert node.call("DEL", broken, netns=pod.path, args="rubbish") == (True, None)
    assert (snapshot(node.ns), snapshot(pod)) == before
    assert node.status("default", "web") is None
    assert node.ledger.rows() == []


def test_delete_of_what_was_never_added_succeeds(node, pod):
    node.pod("default", "web", {NETWORKS: "a,nosuch"})
    assert node.call("DEL", conf(), netns=pod.path, args=args("web")) == (True, None)
    assert node.call("DEL", conf(), netns="/run/netns/nosuch", args=args("gone")) == (True, None)
    assert node.call("DEL", conf()) == (True, None)


def test_an_old_sandboxs_delete_leaves_the_new_ones_status(node, new_netns):
    old, new = new_netns("old"), new_netns("new")
    node.pod("default", "web-0", {NETWORKS: "a"}, uid="one")
    assert node.call("ADD", conf(), netns=old.path, container="c1", args=args("web-0", "one"))[0]
    node.pod("default", "web-0", {}, uid="two")
    assert node.call("ADD", conf(), netns=new.path, container="c2", args=args("web-0", "two"))[0]
    assert node.call("DEL", conf(), netns=old.path, container="c1", args=args("web-0", "one")) == (True, None)
    assert (nics(old), nics(new)) == ([], ["eth0"])
    assert [each["name"] for each in node.status("default", "web-0")] == ["cluster-net"]
    assert node.call("DEL", conf(), netns=new.path, container="c2", args=args("web-0", "two")) == (True, None)
    assert node.status("default", "web-0") is None


def test_a_delete_while_the_status_is_written_leaves_none(node, pod, monkeypatch):
    """Of a runtime that has not waited for the answer to its ADD."""
    node.pod("default", "web", {NETWORKS: "a"})
    write = node.source.write_status

    def a_delete_comes_first(*status):
        assert node.call("DEL", conf(), netns=pod.path, args=args("web")) == (True, None)
        write(*status)

    monkeypatch.setattr(node.source, "write_status", a_delete_comes_first)
    assert node.call("ADD", conf(), netns=pod.path, args=args("web"))[0]
    assert (nics(pod), node.status("default", "web")) == ([], None)


def test_a_second_add_is_refused_and_leaves_the_first_in_place(node, pod):
    node.pod("default", "web", {NETWORKS: "a"})
    assert node.call("ADD", conf(), netns=pod.path, args=args("web"))[0]
    ok, error = node.call("ADD", conf(), netns=pod.path, args=args("web"))
    assert (ok, error["code"]) == (False, 103)
    assert nics(pod) == ["eth0", "net1"]
    assert node.call("DEL", conf(), netns=pod.path, args=args("web")) == (True, None)
    assert nics(pod) == []


def test_add_waits_for_the_readiness_file(node, pod, tmp_path):
    ready = tmp_path / "run" / "ready"
    node.pod("default", "web", {})
    given = conf(readinessindicatorfile=str(ready))
    ok, error = node.call("STATUS", given)
    assert (ok, error["code"]) == (False, 50)
    assert str(ready) in error["msg"]
    timer = threading.Timer(0.1, lambda: (ready.parent.mkdir(), ready.touch()))
    timer.start()
    ok, result = node.call("ADD", given, netns=pod.path, args=args("web"))
    assert ok, result
    timer.join()
    assert node.call("STATUS", given) == (True, None)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"clusterNetwork": "gone"}, "'gone'"),
        ({"defaultNetworks": ["gone"]}, "'gone'"),
        ({"clusterNetwork": None, "delegates": [{"name": "x", "cniVersion": "1.1.0", "type": "nosuch"}]}, "nosuch"),
        ({"clusterNetwork": None, "delegates": [{"name": "x", "type": "macvlan", "master": "nosuch0"}]}, "nosuch0"),
        ({"clusterNetwork": None, "delegates": [{"name": "x", "type": "../x"}]}, "../x"),
    ],
)
def test_status_names_the_network_that_cannot_serve(node, keys, words):
    ok, error = node.call("STATUS", conf(**keys))
    assert (ok, error["code"]) == (False, 50)
    assert words in error["msg"]


def test_status_names_a_broken_manifest(node):
    node.write("manifests/x.json", "{")
    ok, error = node.call("STATUS", conf())
    assert (ok, error["code"]) == (False, 50)
    assert "x.json" in error["msg"]


def test_status_and_gc_are_not_in_older_versions(node):
    for verb in ("STATUS", "GC"):
        ok, error = node.call(verb, conf(cniVersion="1.0.0"))
        assert (ok, error["code"]) == (False, 1)


def test_gc_undoes_every_nic_of_what_the_runtime_does_not_list(node, new_netns):
    node.network("kube-system", "extra", {**second(), "ipam": host_local(node)})
    alive, dead = new_netns("alive"), new_netns("dead")
    given = conf(defaultNetworks=["extra"])
    for name, ns in (("alive", alive), ("dead", dead)):
        node.pod("default", name, {})
        assert node.call("ADD", given, netns=ns.path, container=name, args=args(name))[0]
    listed = [{"containerID": "alive", "ifname": "eth0"}]
    assert node.call("GC", {**given, "cni.dev/valid-attachments": listed}) == (True, None)
    assert (nics(alive), nics(dead)) == (["eth0", "net1"], [])
    assert (bool(node.status("default", "alive")), node.status("default", "dead")) == (True, None)
    held = [name for name in os.listdir(node.directory / "ipam" / "extra") if name.startswith("172")]
    assert len(held) == 1


def test_tidying_withdraws_the_status_of_pods_that_the_ledger_does_not_know(node, pod):
    node.pod("default", "web.example", {})
    assert node.call("ADD", conf(), netns=pod.path, args=args("web.example"))[0]
    stale = node.write("manifests/pods/kube-system.gone.network-status.json", [])
    node.multus.tidy()
    assert not stale.exists()
    assert node.status("default", "web.example")


def host_local(node) -> dict[str, object]:
    ranges = [[{"subnet": "172.18.0.0/16", "rangeStart": "172.18.9.1", "rangeEnd": "172.18.9.9"}]]
    return {"type": "host-local", "ranges": ranges, "dataDir": str(node.directory / "ipam")}


def test_a_status_that_cannot_be_written_does_not_fail_the_pod(node, pod):
    node.pod("default", "web", {NETWORKS: "a"})
    (node.manifests / "pods" / "default.web.network-status.json").mkdir()
    ok, result = node.call("ADD", conf(), netns=pod.path, args=args("web"))
    assert ok, result
    (line,) = [line for line in node.log if line["level"] == "error"]
    assert line["pod"] == "default/web"


def test_a_key_without_effect_is_warned_of_once(node, new_netns):
    node.pod("default", "web", {})
    for container in ("c1", "c2"):
        ns = new_netns(container)
        assert node.call("ADD", conf(logLevel="debug"), netns=ns.path, container=container, args=args("web"))[0]
    assert len([line for line in node.log if "logLevel" in line["event"]]) == 1


def test_a_chain_of_the_nodes_owner_runs_for_every_pod(node, pod):
    script = node.write("bin/marker", '#!/bin/sh\nd=$(dirname "$0")\ncat > "$d/$CNI_COMMAND.$CNI_IFNAME"\n' + PRINTS)
    script.chmod(0o755)
    node.write("net.d/vendor/10-marker.conf", {"type": "marker"})
    node.pod("default", "web", {NETWORKS: "a"})
    given = conf(auxiliaryCNIChainName="vendor", binDir=str(script.parent))
    ok, result = node.call("ADD", given, netns=pod.path, args=args("web"))
    assert ok, result
    seen = json.loads((script.parent / "ADD.net2").read_text())
    assert (seen["name"], seen["type"]) == ("vendor", "marker")
    assert seen["prevResult"]["cniVersion"] == seen["cniVersion"]
    assert node.call("DEL", given, netns=pod.path, args=args("web")) == (True, None)
    assert (script.parent / "DEL.net2").exists()


PRINTS = '[ "$CNI_COMMAND" = ADD ] && echo \'{"cniVersion": "0.4.0"}\' || true\n'
