"""The project's two reference networks, as an administrator gives them to containerd, and the pods that ask for them.

Their NIC is the node's ``eth0``; their address pool is ``host-local``, the log of their IPAM as in the reference.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

SERVICES = ["172.96.0.0/18", "2001:4860:fd00::/108"]
PODS = ["10.240.0.0/12", "fd00:10:244::/96"]
LOGS = "/var/log/meta-plugins"
CLUSTER_NETWORK = "cluster-pods"


@dataclass(frozen=True)
class Setup:
    """What containerd's CNI configuration is, what a pod asks for, and what it gets. ``name`` is for the test's name.

    ``conf`` is "chain" (the network itself) or "multus"; ``status`` the prefixes of the addresses in PodSandboxStatus,
    ``lan`` those of the pod's addresses in the LAN; ``log`` the plugin that writes a log of its own.
    """

    name: str
    conf: str
    status: tuple[str, ...]
    log: str
    annotations: dict[str, str] = field(default_factory=dict)
    lan: tuple[str, ...] = ("172.18.7.", "fd00:18::7:")


CHAIN = Setup(name="chain", conf="chain", status=("172.18.7.", "fd00:18::7:"), log="veth")
MULTUS = Setup(
    name="multus",
    conf="multus",
    annotations={"v1.multus-cni.io/default-network": "kube-system/macvlan-standalone"},
    status=("172.18.7.", "fd00:18::7:"),
    log="veth",
)
OVERLAY = Setup(
    name="overlay",
    conf="multus",
    annotations={"k8s.v1.cni.cncf.io/networks": "kube-system/macvlan-vlan0-overlay"},
    status=("10.240.3.", "fd00:10:244::3:"),
    log="router",
)


def _pool(pools: Path, *ranges: dict[str, str]) -> dict[str, Any]:
    """A dual-stack pool."""
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    return {"type": "host-local", "dataDir": str(pools), "ranges": [[each] for each in ranges], "routes": routes}


def _macvlan(pools: Path) -> dict[str, Any]:
    v4 = {"subnet": "172.18.0.0/16", "rangeStart": "172.18.7.10", "rangeEnd": "172.18.7.99", "gateway": "172.18.0.1"}
    v6 = {"subnet": "fd00:18::/64", "rangeStart": "fd00:18::7:10", "rangeEnd": "fd00:18::7:99", "gateway": "fd00:18::1"}
    logged = {
        "log_level": "DEBUG",
        "log_file_path": "/var/log/spidernet/spiderpool.log",
        "log_file_max_size": 100,
        "log_file_max_age": 30,
        "log_file_max_count": 10,
    }
    return {"type": "macvlan", "master": "eth0", "mode": "bridge", "ipam": _pool(pools, v4, v6) | logged}


def _meta(plugin: str) -> dict[str, Any]:
    """The keys that veth and router share."""
    return {
        "type": plugin,
        "service_hijack_subnet": SERVICES,
        "overlay_hijack_subnet": PODS,
        "additional_hijack_subnet": [],
        "rp_filter": {"set_host": True, "value": 0},
        "migrate_route": -1,
        "log_options": {"log_level": "debug", "log_file": f"{LOGS}/{plugin}.log"},
    }


def standalone(pools: Path) -> dict[str, Any]:
    """macvlan + veth."""
    return {"cniVersion": "0.3.1", "name": "macvlan-standalone", "plugins": [_macvlan(pools), _meta("veth")]}


def overlay(pools: Path) -> dict[str, Any]:
    """macvlan + router, for a pod that has an overlay NIC already."""
    router = _meta("router") | {"overlay_interface": "eth0", "skip_call": False}
    return {"cniVersion": "0.3.1", "name": "macvlan-overlay", "plugins": [_macvlan(pools), router]}


def cluster(pools: Path) -> dict[str, Any]:
    """The cluster's own network by another project's plugin, ptp, which execs `host-local` in its turn."""
    v4 = {"subnet": "10.240.3.0/24", "gateway": "10.240.3.1"}
    v6 = {"subnet": "fd00:10:244::3:0/112", "gateway": "fd00:10:244::3:1"}
    return {"cniVersion": "0.3.1", "name": CLUSTER_NETWORK, "plugins": [{"type": "ptp", "ipam": _pool(pools, v4, v6)}]}


def multus(conf_dir: Path) -> dict[str, Any]:
    """What containerd hands to multus."""
    entry = {"type": "multus", "clusterNetwork": CLUSTER_NETWORK, "confDir": str(conf_dir)}
    return {"cniVersion": "0.3.1", "name": "multus-cni-network", "plugins": [entry]}


def definition(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """A NetworkAttachmentDefinition in kube-system."""
    return {
        "apiVersion": "k8s.cni.cncf.io/v1",
        "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": name, "namespace": "kube-system"},
        "spec": {"config": json.dumps(config)},
    }


def pod(name: str, uid: str, annotations: dict[str, str]) -> dict[str, Any]:
    """A Pod in the namespace default."""
    metadata = {"name": name, "namespace": "default", "uid": uid, "annotations": annotations}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
