"""The lab's networks and pods as the files an administrator writes: manifests, and the runtime's one configuration.

``macvlan-standalone`` and ``macvlan-vlan0-overlay`` are the project's two reference networks: their NIC is the lab
node's ``eth0``, and their log lies in the lab. Each network has a pool of each family of its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

LAN_V4, LAN_V6 = "172.18.0.0/16", "fd00:18::/64"
GATEWAY_V4, GATEWAY_V6 = "172.18.0.1", "fd00:18::1"
CLUSTER_NETWORK = "cluster-pods"
STAND_IN = "lab-overlay"

_DEFAULT_NETWORK = "v1.multus-cni.io/default-network"
_MORE_NETWORKS = "k8s.v1.cni.cncf.io/networks"
_HIJACK = {
    "service_hijack_subnet": ["172.96.0.0/18", "2001:4860:fd00::/108"],
    "overlay_hijack_subnet": ["10.240.0.0/12", "fd00:10:244::/96"],
    "additional_hijack_subnet": [],
    "rp_filter": {"set_host": True, "value": 0},
    "migrate_route": -1,
}


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of the lab: what it asks for, and what that shows.

    ``nic`` is the NIC in the LAN, ``overlay`` the addresses the cluster's own network gives it on ``eth0`` (none: the
    NIC in the LAN is its only one), ``title`` the head of its column, ``mended`` whether its network repairs the paths
    that a macvlan lacks.
    """

    name: str
    title: tuple[str, ...]
    annotation: str
    network: str
    nic: str = "eth0"
    overlay: tuple[str, ...] = ()
    mended: bool = True


PODS = (
    Pod("alone", ("before", "macvlan", "alone"), _DEFAULT_NETWORK, "macvlan-alone", mended=False),
    Pod("veth", ("after", "macvlan", "+ veth"), _DEFAULT_NETWORK, "macvlan-standalone"),
    Pod(
        "router",
        ("after", "overlay", "+ macvlan + router"),
        _MORE_NETWORKS,
        "macvlan-vlan0-overlay",
        nic="net1",
        overlay=("10.240.3.5/32", "fd00:10:244::3:5/128"),
    ),
)


def _macvlan(root: Path) -> dict[str, Any]:
    """A macvlan on the node's NIC with addresses of pools."""
    log = {"log_level": "DEBUG", "log_file_path": str(root / "log/spiderpool.log")}
    limits = {"log_file_max_size": 100, "log_file_max_age": 30, "log_file_max_count": 10}
    return {"type": "macvlan", "master": "eth0", "mode": "bridge", "ipam": {"type": "spiderpool", **log, **limits}}


def _pools(network: str, first: int, *, ipv6: bool) -> str:
    """A network's pools as YAML: ten addresses of a family from ``first`` on."""
    families = [("v4", LAN_V4, f"172.18.7.{first}-172.18.7.{first + 9}", GATEWAY_V4)]
    if ipv6:
        families.append(("v6", LAN_V6, f"fd00:18::7:{first}-fd00:18::7:{first + 9}", GATEWAY_V6))
    return "---\n".join(
        "apiVersion: spiderpool.spidernet.io/v2beta1\nkind: SpiderIPPool\n"
        f"metadata:\n  name: {network}-{family}\n"
        f'spec:\n  subnet: {subnet}\n  ips: ["{ips}"]\n  gateway: {gateway}\n'
        f"  default: true\n  multusName: [kube-system/{network}]\n"
        for family, subnet, ips, gateway in families
    )


def _log_options(root: Path, plugin: str) -> dict[str, Any]:
    return {"log_options": {"log_level": "debug", "log_file": str(root / f"log/{plugin}.log")}}


def _networks(root: Path) -> dict[str, dict[str, Any]]:
    """CNI configuration of each NetworkAttachmentDefinition, by its name."""
    veth = {"type": "veth", **_HIJACK, **_log_options(root, "veth")}
    router = {"type": "router", "overlay_interface": "eth0", "skip_call": False, **_HIJACK}
    router |= _log_options(root, "router")
    chains = {
        "macvlan-alone": ("macvlan-alone", [_macvlan(root)]),
        "macvlan-standalone": ("macvlan-standalone", [_macvlan(root), veth]),
        "macvlan-vlan0-overlay": ("macvlan-overlay", [_macvlan(root), router]),
    }
    return {
        name: {"cniVersion": "0.3.1", "name": inner, "plugins": plugins} for name, (inner, plugins) in chains.items()
    }


def _definition(name: str, conf: Mapping[str, Any]) -> str:
    """A NetworkAttachmentDefinition as YAML."""
    body = "\n".join("    " + line for line in json.dumps(conf, indent=2).splitlines())
    return (
        "apiVersion: k8s.cni.cncf.io/v1\nkind: NetworkAttachmentDefinition\n"
        f"metadata:\n  name: {name}\n  namespace: kube-system\nspec:\n  config: |-\n{body}\n"
    )


def _pod(pod: Pod) -> str:
    """A Pod as YAML."""
    return (
        f"apiVersion: v1\nkind: Pod\nmetadata:\n  name: {pod.name}\n  namespace: default\n  uid: {uid(pod)}\n"
        f"  annotations:\n    {pod.annotation}: kube-system/{pod.network}\n"
        "spec:\n  containers:\n    - name: main\n      image: none\n"
    )


def uid(pod: Pod) -> str:
    """The pod's metadata.uid, which the runtime hands over as K8S_POD_UID."""
    return f"00000000-0000-4000-8000-{pod.name.encode().hex():0>12.12}"


def container_id(pod: Pod) -> str:
    """The sandbox id that the runtime would choose: 64 hexadecimal digits."""
    return f"{pod.name.encode().hex():0<64}"


def write(root: Path, *, ipv6: bool) -> None:
    """Lay out below ``root`` what an administrator would.

    manifests/ networks, pools and pods; conf/ and bin/ the cluster's own network and its stand-in; multus.conf what the
    runtime hands to multus; underlay.json the daemon's configuration.
    """
    manifests, conf, bin_dir = root / "manifests", root / "conf", root / "bin"
    for directory in (manifests, conf, bin_dir, root / "overlay", root / "log"):
        directory.mkdir(parents=True, exist_ok=True)
    for first, (name, chain) in zip((10, 20, 30), _networks(root).items(), strict=True):
        (manifests / f"{name}.yaml").write_text(_definition(name, chain))
        (manifests / f"pools-{name}.yaml").write_text(_pools(name, first, ipv6=ipv6))
    for pod in PODS:
        (manifests / f"pod-{pod.name}.yaml").write_text(_pod(pod))
        (root / "overlay" / container_id(pod)).write_text(_stand_in_result(pod, ipv6=ipv6) + "\n")
    _write_json(root / "underlay.json", _daemon(root))
    cluster = {"cniVersion": "0.3.1", "name": CLUSTER_NETWORK, "plugins": [{"type": STAND_IN}]}
    _write_json(conf / f"10-{CLUSTER_NETWORK}.conflist", cluster)
    multus = {"cniVersion": "0.3.1", "name": "lab", "type": "multus", "clusterNetwork": CLUSTER_NETWORK}
    _write_json(root / "multus.conf", multus | {"confDir": str(conf), "binDir": str(bin_dir)})
    stand_in = bin_dir / STAND_IN
    stand_in.write_text(_STAND_IN.format(results=root / "overlay"))
    stand_in.chmod(0o755)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _daemon(root: Path) -> dict[str, Any]:
    """The configuration of the lab's daemon: every directory and log of its own."""
    return {
        "run_dir": str(root / "run"),
        "state_dir": str(root / "state"),
        "conf_dir": str(root / "conf"),
        "bin_dir": [str(root / "bin")],
        "manifest_dir": str(root / "manifests"),
        "log": {"file": str(root / "log/daemon.log"), "plugin_dir": str(root / "log")},
    }


def _stand_in_result(pod: Pod, *, ipv6: bool) -> str:
    """What the stand-in answers to ADD: the overlay NIC that the lab has laid into the pod."""
    ips = [{"version": "6" if ":" in cidr else "4", "address": cidr, "interface": 0} for cidr in pod.overlay]
    ips = [ip for ip in ips if ipv6 or ip["version"] == "4"]
    return json.dumps({"cniVersion": "0.3.1", "interfaces": [{"name": "eth0", "sandbox": "NETNS"}], "ips": ips})


# Shell built-ins only, so that it costs one exec: the lab times ADD, and this is not what it wants to time.
_STAND_IN = """\
#!/bin/sh
# Stand-in for the cluster's own network plugin: the lab has laid each pod's eth0 already, this reports it.
case $CNI_COMMAND in
ADD)
    read -r result <'{results}'/"$CNI_CONTAINERID" || exit 1
    printf '%s%s%s\\n' "${{result%%NETNS*}}" "$CNI_NETNS" "${{result#*NETNS}}" ;;
VERSION)
    echo '{{"cniVersion":"1.0.0","supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0"]}}' ;;
esac
"""
