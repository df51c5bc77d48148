"""Pods by a real containerd and runc: the two reference networks, alone and through multus."""

from __future__ import annotations

import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from tests.conftest import Netns
from tests.e2e import networks, node
from tests.e2e.calls import connects, greets, listening
from tests.e2e.networks import CHAIN, MULTUS, OVERLAY

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.networks import Setup
    from tests.e2e.node import Node, Pod

KUBELET, API_SERVER = 10250, 6443
CLUSTER_IPS = ("172.96.0.10", "2001:4860:fd00::10")
# The service "kubernetes", whose backend runs on the node, as kube-proxy has it.
CLUSTER_IP_RULES = f"""
table ip service {{
  chain in {{
    type nat hook prerouting priority -100
    ip daddr {CLUSTER_IPS[0]} tcp dport 443 dnat to 172.18.0.11:{API_SERVER}
  }}
}}
table ip6 service {{
  chain in {{
    type nat hook prerouting priority -100
    ip6 daddr {CLUSTER_IPS[1]} tcp dport 443 dnat to [fd00:18::11]:{API_SERVER}
  }}
}}
"""
MANY = 20


def is_reached(pod: Pod, here: Node, lan: Netns) -> bool:
    """The kubelet's health check, over what PodSandboxStatus says; and the pod's addresses in the LAN from outside."""
    return all(greets(here.ns, each) for each in pod.addresses) and all(greets(lan, each) for each in pod.lan)


@pytest.mark.parametrize("setup", [CHAIN, MULTUS, OVERLAY])
def test_a_pod_reaches_and_is_reached_and_leaves_nothing(
    node_of: Callable[[Setup], Node], lan: Netns, setup: Setup
) -> None:
    here = node_of(setup)
    before = here.holdings()
    pod = here.run()
    assert len(pod.addresses) == 2
    assert all(each.startswith(setup.status) for each in pod.addresses), pod
    assert len(pod.lan) == 2
    assert is_reached(pod, here, lan)
    assert all(greets(here.ns, each) for each in pod.lan)
    inside = Netns(Path(pod.netns).name)
    with listening(here.ns, KUBELET), listening(lan, KUBELET):
        for address in ("172.18.0.11", "fd00:18::11", "172.18.0.1", "fd00:18::1"):
            assert connects(inside, address, KUBELET), address
    here.ns.run("nft", "-f", "-", input=CLUSTER_IP_RULES)
    with listening(here.ns, API_SERVER):
        assert all(connects(inside, address, 443) for address in CLUSTER_IPS)
    assert Path(f"{networks.LOGS}/{setup.log}.log").read_text()
    assert all(each in Path(networks.IPAM_LOG).read_text() for each in pod.lan)
    here.remove(pod)
    here.comes_to(before)


def test_multus_publishes_what_the_pod_has(node_of: Callable[[Setup], Node]) -> None:
    here = node_of(OVERLAY)
    pod = here.run()
    (path,) = (here.root / "manifests").glob("*.network-status.json")
    status = json.loads(path.read_text())
    assert [(each["name"], each["interface"], each.get("default", False), tuple(each["ips"])) for each in status] == [
        ("cluster-pods", "eth0", True, pod.addresses),
        ("kube-system/macvlan-vlan0-overlay", "net1", False, pod.lan),
    ]
    here.remove(pod)


@pytest.mark.parametrize("setup", [CHAIN, OVERLAY])
def test_twenty_pods_come_and_go_at_once(node_of: Callable[[Setup], Node], lan: Netns, setup: Setup) -> None:
    here = node_of(setup)
    before = here.holdings()
    with ThreadPoolExecutor(MANY) as kubelet:
        pods = list(kubelet.map(here.run, (f"web-{number}" for number in range(MANY))))
        assert len({address for pod in pods for address in pod.addresses}) == 2 * MANY
        assert len({address for pod in pods for address in pod.lan}) == 2 * MANY
        assert all(is_reached(pod, here, lan) for pod in pods)
        list(kubelet.map(here.remove, pods))
    here.comes_to(before)


@pytest.mark.parametrize(("setup", "number"), [(CHAIN, signal.SIGKILL), (OVERLAY, signal.SIGTERM)])
def test_a_pod_outlives_the_daemon_and_its_successor_takes_it_back(
    node_of: Callable[[Setup], Node], lan: Netns, setup: Setup, number: signal.Signals
) -> None:
    here = node_of(setup)
    before = here.holdings()
    pod = here.run()
    held = here.holdings()
    assert here.end_daemon(number) == (0 if number is signal.SIGTERM else -number)
    assert is_reached(pod, here, lan)
    here.start_daemon()
    assert here.holdings() == held
    assert is_reached(pod, here, lan)
    here.remove(pod)
    here.comes_to(before)


@pytest.mark.parametrize(
    ("setup", "number"), [(CHAIN, signal.SIGTERM), (MULTUS, signal.SIGKILL), (OVERLAY, signal.SIGTERM)]
)
def test_a_pod_is_stopped_while_the_daemon_is_down_and_taken_back_at_its_start(
    node_of: Callable[[Setup], Node], setup: Setup, number: signal.Signals
) -> None:
    here = node_of(setup)
    before = here.holdings()
    pod = here.run()
    here.end_daemon(number)
    here.remove(pod)
    assert here.holdings()["spool"]
    assert here.holdings()["pools"]
    here.start_daemon()
    here.comes_to(before)


def test_a_pod_that_comes_while_the_daemon_restarts_waits_for_it(node_of: Callable[[Setup], Node], lan: Netns) -> None:
    here = node_of(MULTUS)
    before = here.holdings()
    here.end_daemon()
    starting = threading.Timer(0.5, here.start_daemon)
    starting.start()
    pod = here.run()
    starting.join()
    assert is_reached(pod, here, lan)
    here.remove(pod)
    here.comes_to(before)


def test_a_pod_whose_network_is_not_there_is_refused_by_name_and_leaves_nothing(
    node_of: Callable[[Setup], Node],
) -> None:
    here = node_of(MULTUS)
    (here.root / "manifests/macvlan-standalone.json").unlink()
    before = here.holdings()
    with pytest.raises(grpc.RpcError) as refused:
        here.run()
    assert "kube-system/macvlan-standalone" in refused.value.details()
    (here.root / "manifests/pod-web.json").unlink()
    here.comes_to(before)


def test_a_test_that_fails_leaves_nothing(uplink: Netns) -> None:
    root = Path("/run/e2e-fails")
    names, mounts = sorted(os.listdir("/run/netns")), Path("/proc/self/mountinfo").read_text()
    nodes = []

    def fails() -> None:
        with node.running(uplink, root, CHAIN) as failing:
            nodes.append(failing)
            failing.run()
            failing.end_daemon(signal.SIGKILL)
            (containerd,) = (pid for pid, name in failing.processes().items() if name == "containerd")
            os.kill(containerd, signal.SIGKILL)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    (failed,) = nodes
    assert set(failed.processes().values()).isdisjoint({"containerd", "containerd-shim", "busybox", "underlay"})
    assert (sorted(os.listdir("/run/netns")), Path("/proc/self/mountinfo").read_text()) == (names, mounts)
    assert failed.cgroups() == []
    assert not root.exists()
