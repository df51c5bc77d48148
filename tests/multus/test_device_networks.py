"""Networks tied to device plugins' resources, with a kubelet, a device plugin's files and a plugin that takes notes."""

from __future__ import annotations

import json
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from tests.kube.kubelet import Kubelet, claim, claimed, container, devices
from tests.kube.kubelet import pod as pod_resources
from tests.multus.multus_node import InProcess
from tests.multus.test_handler import CLUSTER, NETWORKS, args, conf, nics, second

from underlay.delegate.reclaim import Reclaimer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VF = "intel.com/sriov"
ONE, TWO = "0000:3b:02.1", "0000:3b:02.2"
INFO = {"type": "pci", "version": "1.1.0", "pci": {"pci-address": ONE, "pf-pci-address": "0000:3b:00.0"}}
# Keeps its standard input, and whether the information file was there; WRITES tells it to write one of its own.
RECORDER = r"""#!/bin/sh
d=$(dirname "$0")
cat > "$d/$CNI_COMMAND.$CNI_IFNAME"
file=$(sed -n 's/.*"CNIDeviceInfoFile": *"\([^"]*\)".*/\1/p' "$d/$CNI_COMMAND.$CNI_IFNAME")
[ -n "$file" ] && [ -e "$file" ] && cp "$file" "$d/info.$CNI_COMMAND.$CNI_IFNAME"
[ "$CNI_COMMAND" = ADD ] || exit 0
[ -e "$d/FAILS" ] && echo '{"code": 7, "msg": "no such device"}' && exit 1
if [ -e "$d/WRITES" ]; then mkdir -p "$(dirname "$file")"; cat "$d/WRITES" > "$file"; fi
echo '{"cniVersion": "1.0.0", "interfaces": [{"name": "'$CNI_IFNAME'", "mtu": 9000, "sandbox": "'$CNI_NETNS'"}]}'
"""
CAPABLE = {"deviceID": True, "pciBusID": True, "CNIDeviceInfoFile": True}


class DeviceNode(InProcess):
    """The node, with a plugin "recorder"."""

    def __init__(self, ns: Any, directory: Path) -> None:
        super().__init__(ns, directory)
        self.bin = self.write("bin/recorder", RECORDER).parent
        (self.bin / "recorder").chmod(0o755)
        self.write("net.d/10-cluster.conf", CLUSTER)

    def tied(self, name: str, config: Any = None, resource: str = VF) -> None:
        """Define a network that is tied to a resource."""
        config = {"cniVersion": "1.0.0", "type": "recorder", "capabilities": CAPABLE} if config is None else config
        annotations = {"k8s.v1.cni.cncf.io/resourceName": resource}
        self.write(f"manifests/networks/{name}.json", {
            "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
            "metadata": {"namespace": "default", "name": name, "annotations": annotations},
            "spec": {"config": json.dumps(config)},
        })  # fmt: skip

    def seen(self, verb: str, ifname: str) -> Any:
        """What the recorder was told on its standard input."""
        return json.loads((self.bin / f"{verb}.{ifname}").read_text())

    def add(self, pod: Any, networks: object, **keys: Any) -> tuple[bool, Any]:
        self.pod("default", "web", {NETWORKS: networks if isinstance(networks, str) else json.dumps(networks)})
        return self.call("ADD", conf(binDir=str(self.bin), **keys), netns=pod.path, args=args("web"))

    def delete(self, pod: Any) -> tuple[bool, Any]:
        return self.call("DEL", conf(binDir=str(self.bin)), netns=pod.path, args=args("web"))

    def published(self, device: str = ONE, info: object = INFO, resource: str = "intel.com-sriov") -> None:
        """What the device plugin wrote."""
        self.write(f"devinfo/dp/{resource}-{device}-device.json", info)

    def info_files(self) -> list[str]:
        return sorted(path.name for path in self.device_info.glob("cni/*"))


@pytest.fixture
def node(uplink, tmp_path) -> Iterator[DeviceNode]:
    made = DeviceNode(uplink, tmp_path)
    yield made
    made.close()


@pytest.fixture
def kubelet(node) -> Iterator[Kubelet]:
    with Kubelet(node.kubelet, [pod_resources("web", container(devices(VF, ONE, TWO)))]) as serving:
        yield serving


def test_two_networks_of_a_resource_get_a_device_each_and_delete_leaves_nothing(node, pod, kubelet, snapshot):
    before = snapshot(pod)
    node.tied("a")
    node.published()
    ok, error = node.add(pod, "a,a@fast0")
    assert ok, error
    first, other = node.seen("ADD", "net1"), node.seen("ADD", "fast0")
    path = f"{node.device_info}/cni/default-a-c1_net1"
    assert (first["deviceID"], first["pciBusID"]) == (ONE, ONE)
    assert first["runtimeConfig"] == {"deviceID": ONE, "pciBusID": ONE, "CNIDeviceInfoFile": path}
    assert other["deviceID"] == other["runtimeConfig"]["deviceID"] == TWO
    assert json.loads((node.bin / "info.ADD.net1").read_text()) == INFO
    status = node.status("default", "web")
    assert [each.get("device-info") for each in status] == [None, INFO, None]
    assert status[1]["mtu"] == 9000
    assert node.info_files() == ["default-a-c1_net1"]
    assert kubelet.calls == ["Get"]

    assert node.delete(pod) == (True, None)
    assert node.seen("DEL", "net1") | {"prevResult": None} == first | {"prevResult": None}
    assert (node.bin / "info.DEL.net1").exists()
    assert node.info_files() == []
    assert snapshot(pod) == before
    assert node.ledger.rows() == []


def test_check_and_delete_need_no_kubelet(node, pod):
    node.tied("a")
    with Kubelet(node.kubelet, [pod_resources("web", container(devices(VF, ONE)))]):
        ok, result = node.add(pod, "a")
        assert ok, result
    check = conf(binDir=str(node.bin), prevResult=result)
    assert node.call("CHECK", check, netns=pod.path, args=args("web")) == (True, None)
    assert node.seen("CHECK", "net1")["deviceID"] == ONE
    assert node.delete(pod) == (True, None)
    assert node.seen("DEL", "net1")["deviceID"] == ONE


def test_the_annotations_device_wins_and_the_kubelet_is_not_asked(node, pod):
    node.tied("a")
    ok, error = node.add(pod, [{"name": "a", "deviceID": "0000:5e:00.7"}])
    assert ok, error
    assert node.seen("ADD", "net1")["deviceID"] == "0000:5e:00.7"
    assert node.delete(pod) == (True, None)


def test_every_plugin_of_a_list_gets_the_device(node, pod, kubelet):
    plugins = [{"type": "recorder"}, {"type": "recorder", "capabilities": {"deviceID": True}}]
    node.tied("a", {"cniVersion": "1.0.0", "plugins": plugins})
    ok, error = node.add(pod, "a")
    assert ok, error
    last = node.seen("ADD", "net1")
    assert (last["deviceID"], last["pciBusID"], last["runtimeConfig"]) == (ONE, ONE, {"deviceID": ONE})


def test_default_networks_and_the_pods_default_network_get_devices_in_the_order_of_add(node, pod, kubelet):
    node.tied("a")
    node.write("manifests/networks/extra.json", {
        "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
        "metadata": {"namespace": "kube-system", "name": "extra",
                     "annotations": {"k8s.v1.cni.cncf.io/resourceName": VF}},
        "spec": {"config": json.dumps({"cniVersion": "1.0.0", "type": "recorder"})},
    })  # fmt: skip
    ok, error = node.add(pod, "a", defaultNetworks=["extra"])
    assert ok, error
    assert [node.seen("ADD", nic)["deviceID"] for nic in ("net1", "net2")] == [ONE, TWO]


def test_too_few_devices_fail_the_pod_before_any_nic_is_made(node, pod, kubelet, snapshot):
    before = snapshot(pod)
    node.tied("a")
    ok, error = node.add(pod, "a,a,a")
    assert (ok, error["code"]) == (False, 111)
    assert error["msg"].startswith(f"pod default/web: network default/a needs a device of {VF}: 3 of the pod's")
    assert error["msg"].endswith("the kubelet gave the pod 2")
    assert f'"{VF}": 3' in error["details"]
    assert snapshot(pod) == before
    assert node.ledger.rows() == []


def test_a_node_without_a_kubelet_says_what_it_looked_for(node, pod):
    node.tied("a")
    ok, error = node.add(pod, "a")
    assert (ok, error["code"]) == (False, 11)
    assert str(node.kubelet) in error["msg"]
    assert str(node.checkpoint) in error["msg"]
    assert nics(pod) == []


def test_the_checkpoint_serves_where_the_api_does_not(node, pod):
    node.tied("a")
    entry = {"PodUID": "uid-1", "ContainerName": "c", "ResourceName": VF, "DeviceIDs": {"0": [TWO]}}
    node.write("checkpoint", {"Data": {"PodDeviceEntries": [entry]}, "Checksum": 0})
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(node.kubelet))
    ok, error = node.add(pod, "a")
    assert ok, error
    assert node.seen("ADD", "net1")["deviceID"] == TWO


def test_a_claims_device_is_handed_out_by_the_claims_name(node, pod):
    node.tied("a", resource="slow")
    node.tied("b", resource="sriov.example.com")
    claims = [claim(f"web-{name}-x7k2p", claimed("sriov.example.com", f"0000-3b-02-{n}"))
              for n, name in enumerate(("fast", "slow"), 1)]  # fmt: skip
    with Kubelet(node.kubelet, [pod_resources("web", container(*claims))]):
        ok, error = node.add(pod, "a,b")
    assert ok, error
    assert [node.seen("ADD", nic)["deviceID"] for nic in ("net1", "net2")] == [TWO, ONE]


def test_what_a_plugin_writes_about_its_device_is_in_the_status_without_any_resource(node, pod):
    own = {"type": "vhost-user", "version": "1.1.0", "vhost-user": {"mode": "client", "path": "/run/vhost.sock"}}
    node.write("bin/WRITES", own)
    node.network("default", "user", {"cniVersion": "1.0.0", "type": "recorder", "capabilities": CAPABLE})
    ok, error = node.add(pod, "user")
    assert ok, error
    assert node.status("default", "web")[1]["device-info"] == own
    assert node.delete(pod) == (True, None)
    assert node.info_files() == []


def test_a_malformed_information_file_is_logged_and_does_not_fail_the_pod(node, pod, kubelet):
    node.tied("a")
    node.published(info="{")
    ok, error = node.add(pod, "a")
    assert ok, error
    assert "device-info" not in node.status("default", "web")[1]
    (line,) = [line for line in node.log if "device information" in line["event"]]
    assert line["path"].endswith("intel.com-sriov-0000:3b:02.1-device.json")


def test_a_failing_plugin_leaves_no_information_file(node, pod, kubelet):
    node.tied("a")
    node.published()
    node.write("bin/FAILS", "")
    ok, error = node.add(pod, "a")
    assert (ok, error["msg"]) == (
        False,
        "pod default/web: network default/a on net1: plugin 'recorder': no such device",
    )
    assert (node.bin / "info.ADD.net1").exists()
    assert node.info_files() == []
    assert node.ledger.rows() == []


def test_an_information_file_that_cannot_be_written_fails_the_pod_and_names_it(node, pod, kubelet):
    node.tied("a")
    node.published()
    node.write("devinfo/cni", "a file where the directory is to be")
    ok, error = node.add(pod, "a")
    assert (ok, error["code"]) == (False, 5)
    assert "devinfo/cni/default-a-c1_net1 cannot be written" in error["msg"]
    assert node.ledger.rows() == []
    assert nics(pod) == []


def test_the_information_file_goes_with_a_sandbox_that_dies_without_delete(node, new_netns, kubelet):
    sandbox = new_netns("mortal")
    node.tied("a")
    node.published()
    ok, error = node.add(sandbox, "a")
    assert ok, error
    assert node.info_files() == ["default-a-c1_net1"]
    with node.ns.entered():
        reclaimer = Reclaimer(node.engine)
        reclaimer.sweep()
        assert node.info_files() == ["default-a-c1_net1"]
        subprocess.run(["ip", "netns", "del", sandbox.name], check=True)
        subprocess.run(["ip", "netns", "add", sandbox.name], check=True)
        reclaimer.sweep()
        reclaimer.sweep()
    assert node.info_files() == []
    assert node.ledger.rows() == []


def test_a_pod_without_such_networks_asks_nobody(node, pod, kubelet):
    node.network("default", "plain", second())
    ok, error = node.add(pod, "plain")
    assert ok, error
    assert kubelet.calls == []
    assert node.info_files() == []
