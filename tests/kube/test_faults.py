"""What an API server and a cluster do to a node: absence, pods made again, static pods, size. Through shim and daemon.

An absence is one of two: connections are refused, or nobody answers since every packet to the API server is dropped.
"""

from __future__ import annotations

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.kube.api_server import EVENTS, NETWORKS, PODS, ApiServer, network, pod
from tests.kube.cluster_bench import NODE, OWN_PODS, fill, until
from tests.multus.multus_node import ShimAndDaemon

STATUS = "k8s.v1.cni.cncf.io/network-status"
CONF = {"cniVersion": "1.0.0", "name": "multus", "type": "multus", "clusterNetwork": "cluster-net"}
PER_POD = ("get", "create", "patch", "update")
MOST_MIB = 90
HASH = "0123456789abcdef0123456789abcdef"
SLOW = """#!/bin/sh
[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion":"1.0.0"}'
[ "$CNI_COMMAND" = DEL ] && touch %(dir)s/deleting && while [ ! -e %(dir)s/go-on ]; do sleep 0.02; done
exit 0
"""


class KubeNode(ShimAndDaemon):
    """A node whose daemon listens to an API server in the node's own network namespace."""

    def __init__(self, ns, directory, api):
        self.api = api
        super().__init__(ns, directory, "--kubeconfig", api.kubeconfig(directory / "kubeconfig"), "--node-name", NODE)

    def log(self):
        return [json.loads(line) for line in (self.directory / "daemon.log").read_text().splitlines()]

    def said(self, event):
        return [each for each in self.log() if each["event"] == event]

    def listens(self):
        """Both lists are there."""
        assert until(lambda: len(self.said("listed")) >= 2, 30), self.log()

    def go_away(self, how):
        if how == "refused":
            self.api.stop()
            return
        chain = "type filter hook input priority 0"
        rules = (
            "table inet away",
            f"chain inet away in {{ {chain}; }}",
            f"rule inet away in tcp dport {self.api.port} drop",
        )
        self.ns.run("nft", "-f", "-", input="\n".join(f"add {each}" for each in rules))

    def come_back(self, how):
        if how == "refused":
            self.api.start()
        else:
            self.ns.run("nft", "delete table inet away")

    def pod_call(self, verb, name, ns, uid="", container=""):
        args = f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_UID={uid or f'uid-{name}'}"
        return self.call(verb, CONF, netns=ns.path, container=container or name, args=args)

    def status_of(self, name):
        found = (self.api.get(PODS, "default", name) or pod(name, node=NODE))["metadata"]["annotations"].get(STATUS)
        return json.loads(found) if found else None

    def events(self):
        return [(each["involvedObject"]["name"], each["reason"]) for each in self.api.objects.all(EVENTS)]

    def asked(self):
        """What was asked of single objects, in order."""
        return [(each.verb, each.resource, each.name) for each in self.api.asked() if each.verb in PER_POD]

    def told(self):
        """The resources that were written for each pod, in order."""
        found = {}
        for each in self.api.asked():
            if each.verb in ("create", "patch"):
                name = json.loads(each.body)["involvedObject"]["name"] if each.resource == EVENTS else each.name
                found.setdefault(name, []).append(each.resource)
        return found

    def memory(self, field="VmHWM"):
        """MiB."""
        with open(f"/proc/{self.daemon.pid}/status") as file:
            return next(int(line.split()[1]) / 1024 for line in file if line.startswith(f"{field}:"))


@pytest.fixture
def api(uplink):
    def listen(host, port):
        with uplink.entered():
            return socket.create_server((host, port), backlog=256)

    with ApiServer(listen=listen) as server:
        ipam = {"type": "static", "addresses": [{"address": "172.18.8.1/16"}]}
        cluster = {"type": "macvlan", "master": "eth0", "ipam": ipam}
        server.put(NETWORKS, network("cluster-net", cluster, namespace="kube-system"))
        server.put(NETWORKS, network("more", {"type": "macvlan", "master": "eth0"}))
        yield server


@pytest.fixture
def large(api):
    """5,000 pods and 500 networks, there before the daemon starts; each network has an address of its own."""
    fill(api, lambda number: {"type": "static", "addresses": [{"address": f"10.{number // 250}.{number % 250}.5/24"}]})


@pytest.fixture
def node(uplink, api, tmp_path):
    made = KubeNode(uplink, tmp_path, api)
    yield made
    made.close()
    log = (tmp_path / "daemon.log").read_text()
    assert "Traceback" not in log
    assert '"traceback"' not in log


def nics(ns):
    return sorted(each["ifname"] for each in ns.ip("link", "show") if each["ifname"] != "lo")


@pytest.mark.parametrize("how", ["refused", "dropped"])
def test_an_absence_with_a_restart_in_it_stops_no_known_pod_and_afterwards_all_is_told_in_order_once(
    node, api, new_netns, how
):
    names = [f"web-{number}" for number in range(5)]
    for number, name in enumerate(names):
        api.put(PODS, pod(name, node=NODE, uid=f"uid-{name}", networks="more" if number % 2 else ""))
    node.listens()
    assert until(lambda: len(api.asked("watch")) >= 2)
    spaces = {name: new_netns(name) for name in names}
    assert node.pod_call("ADD", "web-0", spaces["web-0"])[0]
    assert until(lambda: node.status_of("web-0") and node.events())
    node.go_away(how)
    for name in names[1:3]:
        ok, printed = node.pod_call("ADD", name, spaces[name])
        assert ok, printed
    assert node.pod_call("DEL", "web-0", spaces["web-0"]) == (True, None)
    node.daemon.kill()
    node.daemon.wait()
    node.start()
    for name in names[3:]:
        ok, printed = node.pod_call("ADD", name, spaces[name])
        assert ok, printed
    assert node.pod_call("DEL", "web-2", spaces["web-2"]) == (True, None)
    assert {name: nics(ns) for name, ns in spaces.items()} == {
        "web-0": [], "web-1": ["eth0", "net1"], "web-2": [], "web-3": ["eth0", "net1"], "web-4": ["eth0"],
    }  # fmt: skip
    ok, printed = node.pod_call("ADD", "unknown", spaces["web-0"])
    assert (ok, printed["code"]) == (False, 11)
    assert "pod default/unknown is not known yet" in printed["msg"]
    assert len(node.events()) == 1
    node.come_back(how)
    assert until(lambda: len(node.events()) == len(names), 40), node.log()
    assert sorted(node.events()) == [(name, "AddedInterface") for name in names]
    shown = {name: [each["interface"] for each in node.status_of(name) or ()] for name in names[1:]}
    assert shown == {"web-1": ["eth0", "net1"], "web-2": [], "web-3": ["eth0", "net1"], "web-4": ["eth0"]}
    both = ["pods/status", EVENTS]  # of one pod in order; the answers of two may cross, and so what is told after them
    assert node.told() == {"web-0": both, "web-1": both, "web-2": [EVENTS], "web-3": both, "web-4": both}


def test_a_pod_made_again_starts_while_its_predecessors_delete_still_runs(node, api, new_netns):
    script = node.bin_dir / "slow"
    script.write_text(SLOW % {"dir": node.directory})
    script.chmod(0o755)
    api.put(NETWORKS, network("sticky", {"cniVersion": "1.0.0", "type": "slow"}))
    api.put(PODS, pod("web-0", node=NODE, uid="u1", networks="more,sticky"))
    node.listens()
    old, new = new_netns("old"), new_netns("new")
    ok, printed = node.pod_call("ADD", "web-0", old, "u1", "old")
    assert ok, printed
    assert until(lambda: node.status_of("web-0"))
    answers = []
    deleting = threading.Thread(target=lambda: answers.append(node.pod_call("DEL", "web-0", old, "u1", "old")))
    deleting.start()
    assert until((node.directory / "deleting").exists)
    api.delete(PODS, "default", "web-0")
    api.put(PODS, pod("web-0", node=NODE, uid="u2", networks="more"))
    ok, printed = node.pod_call("ADD", "web-0", new, "u2", "new")
    assert ok, printed
    assert until(lambda: node.status_of("web-0"))
    shown = node.status_of("web-0")
    late, printed = node.pod_call("ADD", "web-0", new, "u1", "late")  # a sandbox that was made for the old one
    assert (late, "has UID u2" in printed["msg"]) == (False, True)
    assert answers == []
    (node.directory / "go-on").touch()
    deleting.join()
    assert answers == [(True, None)]
    assert (nics(old), nics(new)) == ([], ["eth0", "net1"])
    assert node.status_of("web-0") == shown
    assert [each["interface"] for each in shown] == ["eth0", "net1"]
    assert until(lambda: len(node.events()) == 2)
    assert [each["involvedObject"]["uid"] for each in api.objects.all(EVENTS)] == ["u1", "u2"]
    assert node.pod_call("DEL", "web-0", new, "u2", "new") == (True, None)
    assert nics(new) == []


def test_a_pod_made_again_during_an_absence_gets_its_own_status_alone(node, api, new_netns):
    api.put(PODS, pod("web-0", node=NODE, uid="u1", networks="more"))
    node.listens()
    old, new = new_netns("old"), new_netns("new")
    node.go_away("refused")
    ok, printed = node.pod_call("ADD", "web-0", old, "u1", "old")
    assert ok, printed
    api.delete(PODS, "default", "web-0")
    api.put(PODS, pod("web-0", node=NODE, uid="u2"))
    node.come_back("refused")
    assert until(lambda: node.events() == [("web-0", "AddedInterface")], 30)
    ok, printed = node.pod_call("ADD", "web-0", new, "u2", "new")
    assert ok, printed
    assert node.pod_call("DEL", "web-0", old, "u1", "old") == (True, None)
    assert until(lambda: node.status_of("web-0"))
    assert [each["interface"] for each in node.status_of("web-0")] == ["eth0"]
    seen = [json.loads(each.body)["metadata"]["uid"] for each in api.asked("patch")]
    assert (set(seen[:-1]), seen[-1]) == ({"u1"}, "u2")  # the first's is refused, until the watch tells that it is gone
    assert (nics(old), nics(new)) == ([], ["eth0"])


def test_a_static_pod_is_attached_by_its_mirror_and_waits_for_it(node, api, new_netns):
    node.listens()
    ns = new_netns("pod")
    ok, printed = node.pod_call("ADD", "proxy-n1", ns, HASH)
    assert (ok, printed["code"]) == (False, 11)
    assert "static pod default/proxy-n1 has no mirror" in printed["msg"]
    marks = {"kubernetes.io/config.mirror": HASH, "kubernetes.io/config.source": "file"}
    api.put(PODS, pod("proxy-n1", node=NODE, uid="mirror", networks="more", annotations=marks))
    ok, printed = node.pod_call("ADD", "proxy-n1", ns, HASH)
    assert ok, printed
    assert nics(ns) == ["eth0", "net1"]
    assert until(lambda: node.status_of("proxy-n1") and node.events())
    assert [each["interface"] for each in node.status_of("proxy-n1")] == ["eth0", "net1"]
    (event,) = api.objects.all(EVENTS)
    assert event["involvedObject"]["uid"] == HASH
    assert node.pod_call("DEL", "proxy-n1", ns, HASH) == (True, None)
    assert nics(ns) == []


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, "NoNetworkFound"),
        ({"type": "macvlan", "master": "eth9"}, "ParentMissing"),
        ({"type": "nosuch"}, "PluginMissing"),
        ({"type": "broken"}, "PluginFailed"),
        ('{"type": "macvlan", "master": ', "InvalidNetwork"),
    ],
)
def test_a_requested_network_that_is_not_attached_fails_the_pod(node, api, new_netns, snapshot, config, reason):
    script = node.bin_dir / "broken"
    script.write_text(
        '#!/bin/sh\necho \'{"cniVersion":"1.0.0","code":100,"msg":"as wanted"}\'\n[ "$CNI_COMMAND" = DEL ]\n'
    )
    script.chmod(0o755)
    if config is not None:
        wanted = {"cniVersion": "1.0.0", **config} if isinstance(config, dict) else config
        api.put(NETWORKS, network("last", wanted))
    api.put(PODS, pod("web", node=NODE, uid="uid-web", networks="more,last"))
    node.listens()
    ns = new_netns("pod")
    before = snapshot(ns)
    ok, printed = node.pod_call("ADD", "web", ns)
    assert not ok
    assert "default/last" in printed["msg"]
    assert snapshot(ns) == before
    assert until(node.events)
    assert node.events() == [("web", reason)]
    assert node.status_of("web") is None


@pytest.mark.usefixtures("large")
def test_a_full_node_of_a_large_cluster_has_right_results_bounded_memory_and_two_requests_a_pod(node, api, new_netns):
    node.listens()
    names = [f"web-{number}" for number in range(OWN_PODS)]
    spaces = {name: new_netns(name) for name in names}
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda name: node.pod_call("ADD", name, spaces[name]), names))
    assert [printed for ok, printed in answers if not ok] == []
    assert until(lambda: len(node.events()) == OWN_PODS, 30)
    for number, name in enumerate(names):
        first, second = node.status_of(name)
        assert (first["name"], first["interface"]) == ("kube-system/cluster-net", "eth0")
        assert (second["name"], second["interface"]) == (f"default/net-{number}", "net1")
        assert second["ips"] == [f"10.0.{number}.5"]
        assert nics(spaces[name]) == ["eth0", "net1"]
    asked = node.asked()
    assert len(asked) == 2 * OWN_PODS
    assert {(verb, resource) for verb, resource, _ in asked} == {("patch", "pods/status"), ("create", EVENTS)}
    with ThreadPoolExecutor(20) as pool:
        assert all(ok for ok, _ in pool.map(lambda name: node.pod_call("DEL", name, spaces[name]), names))
    assert node.asked() == asked
    print(f"{OWN_PODS} pods of 5,000, 500 networks: RSS at most {node.memory():.1f} MiB")
    assert node.memory() <= MOST_MIB
