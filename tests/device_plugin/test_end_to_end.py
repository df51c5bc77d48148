"""From the device plugin's answer to the kubelet to the configuration that a network's plugin is given."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.device_plugin.conftest import DPDK, PF, SRIOV, VF0, VF1
from tests.kube.kubelet import Kubelet as PodResources
from tests.kube.kubelet import container, devices
from tests.kube.kubelet import pod as pod_resources
from tests.multus.test_device_networks import DeviceNode

if TYPE_CHECKING:
    from tests.conftest import Netns
    from tests.device_plugin.conftest import Node
    from tests.device_plugin.kubelet import Kubelet


def test_the_device_that_is_allocated_is_the_networks(node: Node, kubelet: Kubelet, pod: Netns) -> None:
    """Two resources, a network each: what the kubelet had allocated reaches both, with what is known of it."""
    with node.serving(SRIOV, DPDK):
        given = []
        for resource in ("intel.com/sriov", "intel.com/dpdk"):
            endpoint = kubelet.endpoint(resource)
            ids = endpoint.prefer(sorted(endpoint.lists[-1]), [], 1)
            (granted,) = endpoint.allocate(ids)
            given.append(devices(resource, *granted.environment[f"PCIDEVICE_{_upper(resource)}"].split(",")))
        multus = DeviceNode(node.ns, node.directory)
        multus.tied("fast", resource="intel.com/sriov")
        multus.tied("program", resource="intel.com/dpdk")
        with PodResources(multus.kubelet, [pod_resources("web", container(*given))]):
            ok, result = multus.add(pod, "fast,program")
        assert ok, result
        seen = [multus.seen("ADD", each)["deviceID"] for each in ("net1", "net2")]
        informed = json.loads((multus.bin / "info.ADD.net1").read_text())
        status = multus.status("default", "web")
        assert multus.delete(pod) == (True, None)
        multus.close()
    assert seen == [VF0, VF1]
    assert informed["pci"] == {"pci-address": VF0, "pf-pci-address": PF}
    assert [each["device-info"]["pci"]["pci-address"] for each in status[1:]] == [VF0, VF1]


def _upper(resource: str) -> str:
    return resource.replace(".", "_").replace("/", "_").upper()
