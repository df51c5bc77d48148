"""The device plugin on real virtual functions: from registration to the pod's NIC, and what becomes of health."""

from __future__ import annotations

import json
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.device_plugin.kubelet import Kubelet
from tests.kube.kubelet import Kubelet as PodResources
from tests.kube.kubelet import container, devices
from tests.kube.kubelet import pod as pod_resources
from tests.multus.multus_node import InProcess, Lines
from tests.multus.test_handler import args
from tests.plugins.conftest import addresses
from tests.vm.guest.conftest import DEVICES, OTHER_PF, Pf, Vf, nic_of, wait_for
from tests.vm.guest.test_sriov import rebind

from underlay.device_plugin import plugin
from underlay.device_plugin.followed import Followed
from underlay.net.netns import Namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Netns

VF, LATE = "example.com/vf", "example.com/late"


@contextmanager
def serving(directory: Path, *resources: Any) -> Iterator[Kubelet]:
    """A kubelet that the device plugin has been started for."""
    (directory / "config.json").write_text(json.dumps({"resourceList": list(resources)}))
    log = Lines()
    with tempfile.TemporaryDirectory(dir="/run", prefix="dp-") as plugins, Namespace.current() as host:
        kubelet = Kubelet(Path(plugins))
        kubelet.start()
        settings = plugin.Settings(plugins, str(directory / "devinfo"), interval=0.5)
        followed = Followed(str(directory / "config.json"), "example.com", log)
        made = plugin.Plugin(followed, settings, host=host, log=log)
        thread = threading.Thread(target=made.serve)
        thread.start()
        try:
            yield kubelet
        finally:
            made.stop()
            thread.join(30)
            made.close()
            kubelet.stop()


def test_an_allocated_function_becomes_the_pods_nic_and_stays_healthy(pf: Pf, pod: Netns, tmp_path: Path) -> None:
    named = {"resourceName": "vf", "selectors": [{"pfNames": [f"{pf.name}#1-2"], "drivers": ["igbvf"]}]}
    with serving(tmp_path, named) as kubelet:
        endpoint = kubelet.endpoint(VF)
        assert list(endpoint.lists[-1]) == [pf.vfs[1].address, pf.vfs[2].address]
        kubelet.until(VF, first="Healthy", second="Healthy")
        (granted,) = endpoint.allocate([pf.vfs[2].address])
        assert granted.environment["PCIDEVICE_EXAMPLE_COM_VF"] == pf.vfs[2].address
        node = InProcess(pf.ns, tmp_path)
        conf = {"cniVersion": "1.0.0", "type": "sriov", "ipam": addresses("172.18.7.5/16")}
        node.write("net.d/10-cluster.conf", {"cniVersion": "1.0.0", "name": "none", "type": "veth"})
        node.write("manifests/networks/fast.json", {
            "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
            "metadata": {"namespace": "default", "name": "fast", "annotations": {
                "k8s.v1.cni.cncf.io/resourceName": VF}},
            "spec": {"config": json.dumps(conf)},
        })  # fmt: skip
        node.pod("default", "web", {"v1.multus-cni.io/default-network": "default/fast"})
        multus = {"cniVersion": "1.1.0", "name": "m", "type": "multus", "clusterNetwork": "none"}
        told = pod_resources("web", container(devices(VF, granted.environment["PCIDEVICE_EXAMPLE_COM_VF"])))
        with PodResources(node.kubelet, [told]):
            ok, result = node.call("ADD", multus, netns=pod.path, args=args("web"))
        assert ok, result
        assert pod.pings("172.18.0.1")
        info = node.status("default", "web")[0]["device-info"]
        assert info["pci"] == {"pci-address": pf.vfs[2].address, "pf-pci-address": "0000:00:04.0"}
        unbound(pf, pf.vfs[1], kubelet)  # so that it has surely looked since
        kubelet.until(VF, first="Healthy", second="Healthy")
        assert node.call("DEL", multus, netns=pod.path, args=args("web")) == (True, None)
        node.close()


def unbound(pf: Pf, vf: Vf, kubelet: Kubelet) -> None:
    """Take a function's driver away until the kubelet has heard of it."""
    mac = pf.ns.link(vf.name)["address"]
    rebind(vf.address, "uio_pci_generic")
    kubelet.until(VF, first="Unhealthy", second="Healthy")
    rebind(vf.address, "igbvf")
    wait_for(lambda: any((DEVICES / vf.address).glob("net/*")))
    pf.ns.batch(f"link set {nic_of(vf.address)} address {mac}", f"link set {nic_of(vf.address)} name {vf.name}")


def test_functions_that_are_made_later_are_told_as_they_come_to_life(
    made_pf: Pf, node_ns: Netns, tmp_path: Path
) -> None:
    late = {"resourceName": "late", "selectors": [{"rootDevices": [OTHER_PF]}]}
    nic = nic_of(OTHER_PF)
    (DEVICES / OTHER_PF / "sriov_drivers_autoprobe").write_text("0")
    with serving(tmp_path, late) as kubelet:
        assert kubelet.endpoint(LATE).lists == [{}]
        (DEVICES / OTHER_PF / "sriov_numvfs").write_text("2")
        kubelet.until(LATE, first="Unhealthy", second="Unhealthy")
        node_ns.batch(f"link set {nic} up")
        (DEVICES / OTHER_PF / "sriov_drivers_autoprobe").write_text("1")
        first, second = sorted(kubelet.endpoints[LATE].lists[-1])
        Path("/sys/bus/pci/drivers/igbvf/bind").write_text(second)
        kubelet.until(LATE, first="Unhealthy", second="Healthy")
        rebind(first, "uio_pci_generic")
        kubelet.until(LATE, first="Healthy", second="Healthy")
        (granted,) = kubelet.endpoint(LATE).allocate([first])
        ((inside, outside, rights),) = granted.devices
        assert (inside, rights) == (outside, "rw")
        assert Path(outside).is_char_device()
        node_ns.batch(f"link set {nic} down")
        kubelet.until(LATE, first="Unhealthy", second="Unhealthy")
        (DEVICES / OTHER_PF / "sriov_numvfs").write_text("0")
