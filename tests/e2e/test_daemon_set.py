"""deploy/daemonset.yaml to the letter, by a real containerd and runc: installed, upgraded, killed, taken away again.

The test plays the kubelet and the API server; the image is as deploy/Containerfile makes it, of this machine's Python.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import shutil
import subprocess
import threading
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import yaml
from tests import published
from tests.conftest import Netns, read_state
from tests.e2e import containerd, networks, node_tree, underlay_image
from tests.e2e.calls import greets
from tests.e2e.cri import Sandbox
from tests.e2e.kubelet import Kubelet
from tests.e2e.leftovers import Leftovers
from tests.e2e.networks import MULTUS, OVERLAY, Setup
from tests.e2e.node import GO_PLUGINS
from tests.kube.api_objects import BLOCKS, POOLS
from tests.kube.api_server import NETWORKS, PODS, ApiServer
from tests.kube.api_server import network as a_network
from tests.kube.api_server import pod as a_pod
from tests.kube.authority import Authority

from underlay import __version__
from underlay.delegate.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.cri import Runtime
    from tests.e2e.kubelet import ManifestPod

DEPLOY = Path(__file__).parents[2] / "deploy"
CONFIG_MAP, DAEMON_SET = yaml.safe_load_all((DEPLOY / "daemonset.yaml").read_text())
(UNINSTALL,) = yaml.safe_load_all((DEPLOY / "uninstall" / "daemonset.yaml").read_text())
(ROLE,) = (each for each in yaml.safe_load_all((DEPLOY / "rbac.yaml").read_text()) if each["kind"] == "ClusterRole")
GRANTED = {
    (group, resource, verb)
    for rule in ROLE["rules"]
    for group in rule["apiGroups"]
    for resource in rule["resources"]
    for verb in rule["verbs"]
}
USER, TOKEN = "system:serviceaccount:kube-system:underlay", "of-this-nodes-pod"
PLAIN = Setup(name="plain", conf="multus", status=("10.240.3.", "fd00:10:244::3:"), log="", lan=())
OTHERS = ("loopback", "ptp", "host-local")
STATUS = "k8s.v1.cni.cncf.io/network-status"
_PATIENCE = 20.0

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True)
class Pod:
    """A sandbox that runs, the addresses of PodSandboxStatus and those in the LAN."""

    name: str
    id: str
    addresses: tuple[str, ...]
    lan: tuple[str, ...]


class Node:
    """``tree`` is its root directory, ``directory`` what the runtime and the test write, below /run."""

    def __init__(self, ns: Netns, tree: Path, directory: Path, server: ApiServer, authority: Authority) -> None:
        self.ns = ns
        self.tree = tree
        self.directory = directory
        self.server = server
        self.runtime: Runtime
        self.cgroup = f"underlay-e2e-{uuid.uuid4().hex[:12]}"
        self.leftovers = Leftovers(self.cgroup)
        self._account = {"token": TOKEN, "ca.crt": Path(authority.ca_file).read_text(), "namespace": "kube-system"}
        for place in ("opt/cni/bin", "etc/cni/net.d"):
            (tree / place).mkdir(parents=True)
        for name in OTHERS:
            (tree / "opt/cni/bin" / name).symlink_to(GO_PLUGINS / name)
        cluster = json.dumps(networks.cluster(Path("/var/lib/cni/networks")))
        (tree / f"etc/cni/net.d/10-{networks.CLUSTER_NETWORK}.conflist").write_text(cluster)

    @property
    def kubelet(self) -> Kubelet:
        """The kubelet of this node."""
        return Kubelet(
            self.ns, self.tree, self.directory, self.runtime, "n1", self.cgroup,
            config_maps={CONFIG_MAP["metadata"]["name"]: CONFIG_MAP["data"]}, account=self._account,
            services={"KUBERNETES_SERVICE_HOST": self.server.host, "KUBERNETES_SERVICE_PORT": str(self.server.port)},
        )  # fmt: skip

    def daemon(self) -> ManifestPod:
        """The DaemonSet's pod, ready, its file read by the runtime."""
        pod = self.kubelet.pod(DAEMON_SET)
        pod.start()
        until(lambda: self.runtime.reads_network("multus-cni-network"), pod)
        return pod

    def run(self, setup: Setup, name: str) -> Pod:
        """Make a pod at the API server and run its sandbox."""
        uid = str(uuid.uuid4())
        self.server.put(PODS, a_pod(name, node="n1", uid=uid, annotations=setup.annotations))
        sandbox_id = self.runtime.run(Sandbox(name, uid, cgroup_parent=f"/{self.cgroup}/{uid}"))
        listed = subprocess.run(
            ["nsenter", f"--net={self.runtime.netns(sandbox_id)}", "ip", "-j", "addr", "show", "scope", "global"],
            check=True, capture_output=True,
        )  # fmt: skip
        held = [info.get("local", "") for each in json.loads(listed.stdout) for info in each.get("addr_info", ())]
        lan = tuple(each for each in held if each.startswith(setup.lan))
        return Pod(name, sandbox_id, tuple(self.runtime.addresses(sandbox_id)), lan)

    def remove(self, pod: Pod) -> None:
        """As the kubelet does with a deleted pod."""
        self.runtime.stop(pod.id)
        self.runtime.remove(pod.id)
        self.server.delete(PODS, "default", pod.name)

    def reaches(self, pod: Pod, lan: Netns) -> bool:
        """Whether the node reaches it, and the LAN its addresses there."""
        assert len(pod.addresses) == len(pod.lan) == 2, pod
        return all(greets(self.ns, each) for each in pod.addresses) and all(greets(lan, each) for each in pod.lan)

    def holds(self) -> dict[str, Any]:
        """What pods may leave on the node and at the API server."""
        reserved = (self.tree / "var/lib/cni/networks").glob("*/[0-9]*")
        leases = [
            lease for block in self.server.objects.all(BLOCKS) for lease in block["spec"].get("leases", {}).values()
        ]
        return {
            "node": replace(read_state(self.ns), sysctls=()),
            "ledger": self._ledger(),
            "host-local": sorted(path.name for path in reserved),
            "leases": sorted(each["pod"] for each in leases if each["state"] == "held"),
            "spool": sorted(path.name for path in Path("/run/underlay/spool").glob("*")),
            "netns": sorted(os.listdir("/run/netns")),
        }

    def comes_to(self, expected: dict[str, Any]) -> None:
        """Assert that it holds that, soon."""
        deadline = time.monotonic() + _PATIENCE
        while (seen := self.holds()) != expected and time.monotonic() < deadline:
            time.sleep(0.02)
        assert seen == expected

    def _ledger(self) -> list[tuple[str, ...]]:
        file = self.tree / "var/lib/underlay/ledger.db"
        if not file.exists():
            return []
        return sorted((row.pod_name, row.ifname, row.network, row.state) for row in Ledger.look(str(file)).rows())

    def laid(self) -> tuple[set[str], set[str]]:
        """Names in the runtime's two directories."""
        return set(os.listdir(self.tree / "opt/cni/bin")), set(os.listdir(self.tree / "etc/cni/net.d"))


def shown() -> str:
    """What docs/install.md shows of `underlay doctor` in the daemon's container."""
    page = (DEPLOY.parent / "docs" / "install.md").read_text()
    return next(each for each in re.findall(r"(?ms)^```console\n(.*?)^```", page) if "-- underlay doctor" in each)


def shapes(words: str) -> set[str]:
    """The lines that say "ok", without numbers, and without the clock, which may be nobody's here."""
    lines = [line for line in words.splitlines() if line.startswith("ok ") and " clock: " not in line]
    return {re.sub(r"https://\S+", "URL", re.sub(r"\d+", "N", line)) for line in lines}


def until(holds: Any, pod: ManifestPod | None = None) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not holds():
        assert time.monotonic() < deadline, pod.log("daemon") if pod else ""
        time.sleep(0.02)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    archive = tmp_path_factory.mktemp("image") / "underlay.tar"
    underlay_image.write(archive, f"docker.io/library/multus-underlay:{__version__}")
    return archive


@pytest.fixture
def server(uplink: Netns, tmp_path: Path) -> Iterator[ApiServer]:
    """On the node's network, as kube-proxy makes it look; who has the pod's token is the service account."""
    import socket

    (tmp_path / "authority").mkdir()

    def listen(host: str, port: int) -> socket.socket:
        with uplink.entered():
            return socket.create_server((host, port), backlog=64)

    authority = Authority(tmp_path / "authority")
    with ApiServer(listen=listen, authority=authority, tokens={TOKEN: USER}) as made:
        for name in ("default", "kube-system"):
            made.put("namespaces", {"metadata": {"name": name}})
        made.put("nodes", {"metadata": {"name": "n1"}})
        for pool in networks.pools().values():
            made.put(POOLS, pool)
        for name in published.NAMES:
            made.put(NETWORKS, a_network(name, published.network(name), namespace="kube-system"))
        yield made


@pytest.fixture
def node(uplink: Netns, server: ApiServer, image: Path, tmp_path: Path) -> Iterator[Node]:
    directory = Path("/run/e2e-set")
    directory.mkdir()
    assert server.authority is not None
    with contextlib.ExitStack() as undo:
        for each in (directory, Path("/run/underlay")):
            undo.callback(shutil.rmtree, each, ignore_errors=True)
        tree = undo.enter_context(node_tree.laid(tmp_path / "node", directory / "layers"))
        made = Node(uplink, tree, directory, server, server.authority)
        undo.callback(made.leftovers.force_away)
        made.runtime = undo.enter_context(
            containerd.running(
                directory / "containerd", Path(uplink.path), bin_dir=Path("/opt/cni/bin"),
                conf_dir=Path("/etc/cni/net.d"), node_root=tree,
            )
        )  # fmt: skip
        made.leftovers.mounts.add(made.runtime.mounts)
        containerd.import_image(directory / "containerd", image)
        undo.callback(_remove_sandboxes, made)
        yield made


def _remove_sandboxes(made: Node) -> None:
    """Best effort: force_away has the last word."""
    with contextlib.suppress(grpc.RpcError):
        for sandbox_id in made.runtime.sandboxes():
            made.runtime.stop(sandbox_id, seconds=10)
            made.runtime.remove(sandbox_id)


def told(node: Node, name: str) -> Any:
    """The network-status of a pod, as far as it is there."""
    found = node.server.get(PODS, "default", name) or {"metadata": {}}
    return json.loads(found["metadata"].get("annotations", {}).get(STATUS, "[]"))


def purging() -> Any:
    """The uninstall with the argument that its manifest proposes."""
    changed = copy.deepcopy(UNINSTALL)
    (container,) = changed["spec"]["template"]["spec"]["initContainers"]
    container["args"] = ["--purge"]
    return changed


def test_the_daemon_set_serves_pods_over_an_upgrade_and_a_kill_and_leaves_as_it_came(node: Node, lan: Netns) -> None:
    bare, empty = node.laid(), node.holds()
    earlier = node.run(PLAIN, "earlier")  # by the cluster network alone
    daemon = node.daemon()
    assert node.laid() == (bare[0] | {"multus", "veth", "router"}, bare[1] | {"00-multus.conf"})
    assert all(daemon.asks(each["livenessProbe"]) for each in daemon.spec["containers"])
    status, words = node.runtime.execute(daemon.running[0], "underlay", "doctor")
    assert (status, "fail " in words) == (0, False), words
    assert shapes(words) >= shapes(shown())

    assert all(greets(node.ns, each) for each in earlier.addresses)
    node.remove(earlier)
    node.comes_to(empty)
    first, second = node.run(MULTUS, "first"), node.run(OVERLAY, "second")
    assert all(node.reaches(each, lan) for each in (first, second))
    until(lambda: [each["interface"] for each in told(node, "second")] == ["eth0", "net1"], daemon)
    node.remove(first)

    # The upgrade: a DEL and an ADD while there is no daemon.
    third = node.run(OVERLAY, "third")
    assert daemon.stop() == [0]
    assert node.reaches(second, lan)
    node.remove(third)
    assert node.holds()["spool"]
    starting = threading.Timer(0.5, daemon.start)
    starting.start()
    fourth = node.run(MULTUS, "fourth")
    starting.join()
    assert all(node.reaches(each, lan) for each in (second, fourth))
    assert {each[0] for each in node.holds()["ledger"]} == {"second", "fourth"}

    assert daemon.stop(grace=0) == [137]
    daemon.start()
    assert all(node.reaches(each, lan) for each in (second, fourth))

    # The directory of the socket is removed on the node: from the container it cannot be made anew; the probes say so.
    shutil.rmtree("/run/underlay")
    (container,) = daemon.spec["containers"]
    until(lambda: not daemon.asks(container["readinessProbe"]) and not daemon.asks(container["livenessProbe"]), daemon)
    daemon.stop()
    daemon.start()
    node.remove(fourth)

    # The way back: not while a pod has what only the daemon takes back. One of the cluster network alone may stay.
    plain = node.run(PLAIN, "plain")
    asked = ("underlay", "uninstall", "--dry-run", "--bin-dir", "/host/opt/cni/bin")
    status, words = node.runtime.execute(daemon.running[0], *asked)
    assert (status, "default/second" in words, "default/plain" in words) == (1, True, False), words
    assert words.count("would go") == 4
    assert daemon.stop() == [0]
    assert '"clean":false' not in (words := daemon.log("daemon"))
    assert "Traceback" not in words
    daemon.remove()
    refused = node.kubelet.pod(UNINSTALL)
    assert refused.initialize() == [1]
    assert "default/second" in (words := refused.log("uninstall"))
    assert "default/plain" not in words
    refused.remove()
    assert node.laid()[1] == bare[1] | {"00-multus.conf"}
    daemon = node.daemon()
    node.remove(second)
    until(lambda: {each[0] for each in node.holds()["ledger"]} == {"plain"}, daemon)
    until(lambda: not node.holds()["leases"], daemon)  # other nodes hear of it a second or two later
    daemon.remove()
    done = node.kubelet.pod(purging())
    assert done.initialize() == [0], done.log("uninstall")
    done.remove()
    assert node.laid() == bare
    assert [os.listdir(each) for each in (node.tree / "var/lib/underlay", "/run/underlay")] == [[], []]
    until(lambda: node.runtime.reads_network(networks.CLUSTER_NETWORK))
    assert all(greets(node.ns, each) for each in plain.addresses)
    node.remove(plain)
    node.comes_to(empty)

    used = {(each.group, each.resource, each.verb) for each in node.server.requests}
    assert used <= GRANTED
    assert {each.user for each in node.server.requests} == {USER}


def without(*taken: str) -> Any:
    """The DaemonSet with these pieces of its text left out, each of which is there."""
    text = (DEPLOY / "daemonset.yaml").read_text()
    for each in taken:
        assert each in text
        text = text.replace(each, "")
    return list(yaml.safe_load_all(text))[1]


def test_what_the_manifest_gives_the_daemon_is_needed(node: Node) -> None:
    """Each for the reason that stands beside it there: pods that do without it fail."""
    missed = {
        "hostPID: true": (PLAIN, "plugin 'ptp': failed to open current netns"),
        ", mountPropagation: HostToContainer": (MULTUS, "is no network namespace"),
        "privileged: true": (MULTUS, "enter network namespace"),
    }
    for number, (piece, (setup, words)) in enumerate(missed.items()):
        daemon = node.kubelet.pod(without(piece))
        daemon.start()
        until(lambda: node.runtime.reads_network("multus-cni-network"))
        with pytest.raises(grpc.RpcError) as refused:
            node.run(setup, f"pod-{number}")
        assert words in refused.value.details(), piece
        daemon.remove()
