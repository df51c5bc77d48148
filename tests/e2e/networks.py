"""The project's two reference networks, as an administrator gives them to containerd, and the pods that ask for them.

They are as published (tests/published), but for the NIC, which is the node's ``eth0``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests import published

if TYPE_CHECKING:
    from pathlib import Path

LOGS = "/var/log/meta-plugins"
IPAM_LOG = "/var/log/spidernet/spiderpool.log"
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


def pools() -> dict[str, dict[str, Any]]:
    """The manifests of the reference networks' pools, by name: one of each family, for whoever names none."""
    v4 = {"subnet": "172.18.0.0/16", "ips": ["172.18.7.10-172.18.7.99"], "gateway": "172.18.0.1"}
    v6 = {"subnet": "fd00:18::/64", "ips": ["fd00:18::7:10-fd00:18::7:99"], "gateway": "fd00:18::1"}
    return {name: published.pool(name, **spec, default=True) for name, spec in (("lan-v4", v4), ("lan-v6", v6))}


def cluster(directory: Path) -> dict[str, Any]:
    """The cluster's own network by another project's plugin, ptp, which execs `host-local` in its turn."""
    v4 = {"subnet": "10.240.3.0/24", "gateway": "10.240.3.1"}
    v6 = {"subnet": "fd00:10:244::3:0/112", "gateway": "fd00:10:244::3:1"}
    ranges = {"ranges": [[v4], [v6]], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}
    ipam = {"type": "host-local", "dataDir": str(directory), **ranges}
    return {"cniVersion": "0.3.1", "name": CLUSTER_NETWORK, "plugins": [{"type": "ptp", "ipam": ipam}]}


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
