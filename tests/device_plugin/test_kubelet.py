"""The device plugin and a kubelet: register, listen, allocate, and what either survives of the other."""

from __future__ import annotations

import json
import shutil
import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from tests.device_plugin.conftest import DPDK, OTHER_PF, OTHER_VF, PF, SRIOV, VF0, VF1
from tests.device_plugin.kubelet import Kubelet, Told, mode

from underlay.device_plugin.registrar import Registrar
from underlay.errors import IOFailure

if TYPE_CHECKING:
    from tests.device_plugin.conftest import Node

HEALTHY, UNHEALTHY = "Healthy", "Unhealthy"
NIC, PROGRAM = "intel.com/sriov", "intel.com/dpdk"


def test_two_resources_register_and_tell_their_devices(node: Node, kubelet: Kubelet) -> None:
    with node.serving(SRIOV, DPDK):
        assert kubelet.endpoint(NIC).lists == [{VF0: Told(HEALTHY, 0)}]
        assert kubelet.endpoint(PROGRAM).lists == [{VF1: Told(HEALTHY, 0)}]
        assert sorted(kubelet.registrations) == [PROGRAM, NIC]
        assert mode(node.plugins / "intel.com_sriov.sock") == 0o600
        assert kubelet.endpoint(NIC).preferred
    assert sorted(path.name for path in node.plugins.iterdir()) == ["kubelet.sock"]
    kubelet.wait(lambda: kubelet.endpoints[NIC].ended)
    assert kubelet.endpoints[NIC].ended == grpc.StatusCode.UNAVAILABLE


def test_options_say_what_registration_said(node: Node, kubelet: Kubelet) -> None:
    with node.serving(SRIOV):
        endpoint = kubelet.endpoint(NIC)
        assert endpoint.call("GetDevicePluginOptions") == b"\x10\x01"
        assert endpoint.call("PreStartContainer", b"\x0a\x01x") == b""
        with pytest.raises(grpc.RpcError) as refused:
            endpoint.call("NoSuchMethod")
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]


def test_a_container_is_told_its_devices_as_the_original_tells_them(node: Node, kubelet: Kubelet) -> None:
    extra = {"*": {"token": "a", "zone": "1"}, VF0: {"token": "b"}}
    with node.serving(SRIOV | {"additionalInfo": extra}):
        (container,) = kubelet.endpoint(NIC).allocate([VF0])
    assert container.devices == []
    assert container.cdi == []
    assert container.environment["PCIDEVICE_INTEL_COM_SRIOV"] == VF0
    info = json.loads(container.environment["PCIDEVICE_INTEL_COM_SRIOV_INFO"])
    assert info == {VF0: {"generic": {"deviceID": VF0}, "extraInfo": {"token": "b", "zone": "1"}}}


def test_a_vfio_device_comes_with_its_nodes(node: Node, kubelet: Kubelet) -> None:
    with node.serving(DPDK):
        (container,) = kubelet.endpoint(PROGRAM).allocate([VF1])
    assert container.devices == [
        ("/dev/vfio/vfio", "/dev/vfio/vfio", "rw"),
        ("/dev/vfio/42", "/dev/vfio/42", "rw"),
    ]
    info = json.loads(container.environment["PCIDEVICE_INTEL_COM_DPDK_INFO"])
    assert info[VF1]["vfio"] == {"mount": "/dev/vfio/vfio", "dev-mount": "/dev/vfio/42"}


def test_without_an_iommu_the_group_has_another_name_on_the_node(node: Node, kubelet: Kubelet) -> None:
    group = node.sysfs.root / "kernel/iommu_groups/42"
    group.mkdir(parents=True)
    (group / "name").write_text("vfio-noiommu\n")
    with node.serving(DPDK):
        (container,) = kubelet.endpoint(PROGRAM).allocate([VF1])
    assert container.devices[1] == ("/dev/vfio/42", "/dev/vfio/noiommu-42", "rw")


def test_rdma_and_vhost_net_bring_theirs(node: Node, kubelet: Kubelet) -> None:
    fast = {"resourceName": "rdma", "selectors": [{"isRdma": True, "needVhostNet": True}]}
    with node.serving(fast):
        endpoint = kubelet.endpoint("intel.com/rdma")
        assert endpoint.lists[-1] == {OTHER_VF: Told(HEALTHY, 1)}
        (container,) = endpoint.allocate([OTHER_VF])
    assert [inside for inside, _, _ in container.devices] == [
        "/dev/infiniband/uverbs2", "/dev/infiniband/issm2", "/dev/infiniband/umad2", "/dev/infiniband/rdma_cm",
        "/dev/vhost-net", "/dev/net/tun",
    ]  # fmt: skip
    told = json.loads(container.environment["PCIDEVICE_INTEL_COM_RDMA_INFO"])[OTHER_VF]
    assert told["rdma"]["uverbs"] == "/dev/infiniband/uverbs2"
    assert told["vhost"] == {"net-mount": "/dev/vhost-net", "tun-mount": "/dev/net/tun"}


def test_every_container_of_a_request_gets_its_own(node: Node, kubelet: Kubelet) -> None:
    both = {"resourceName": "both", "selectors": [{"pfNames": ["eth0#0-1"]}]}
    with node.serving(both):
        answers = kubelet.endpoint("intel.com/both").allocate([VF0], [VF1], [VF0, VF1])
    ids = [each.environment["PCIDEVICE_INTEL_COM_BOTH"] for each in answers]
    assert ids == [VF0, VF1, f"{VF0},{VF1}"]
    assert [len(each.devices) for each in answers] == [0, 2, 2]


def test_with_cdi_the_runtime_finds_the_nodes_in_a_specification(node: Node, kubelet: Kubelet) -> None:
    node.cdi.mkdir()
    (node.cdi / "underlay-intel.com_former.json").write_text("{}")
    (node.cdi / "other.json").write_text("{}")
    with node.serving(SRIOV, DPDK, cdi=True):
        (container,) = kubelet.endpoint(PROGRAM).allocate([VF1])
        (plain,) = kubelet.endpoint(NIC).allocate([VF0])
    assert (container.devices, container.cdi) == ([], [f"{PROGRAM}={VF1}"])
    assert plain.cdi == [], "it needs nothing of the runtime"
    assert sorted(path.name for path in node.cdi.iterdir()) == ["other.json", "underlay-intel.com_dpdk.json"]
    written = json.loads((node.cdi / "underlay-intel.com_dpdk.json").read_text())
    assert written["kind"] == PROGRAM
    (only,) = written["devices"]
    assert only["name"] == VF1
    assert [each["hostPath"] for each in only["containerEdits"]["deviceNodes"]] == ["/dev/vfio/vfio", "/dev/vfio/42"]


@pytest.mark.parametrize(
    ("ids", "status", "words"),
    [
        (["0000:ff:00.0"], grpc.StatusCode.NOT_FOUND, "intel.com/dpdk has no device 0000:ff:00.0"),
        ([VF0], grpc.StatusCode.NOT_FOUND, f"intel.com/dpdk has no device {VF0}"),
        ([VF1], grpc.StatusCode.FAILED_PRECONDITION, "has no IOMMU group. Switch the IOMMU on"),
    ],
)
def test_what_cannot_be_given_is_refused_with_a_reason(
    node: Node, kubelet: Kubelet, ids: list[str], status: grpc.StatusCode, words: str
) -> None:
    (node.sysfs.at(VF1) / "iommu_group").unlink()
    with node.serving(DPDK):
        endpoint = kubelet.endpoint(PROGRAM)
        with pytest.raises(grpc.RpcError) as refused:
            endpoint.allocate(ids)
    assert refused.value.code() == status  # type: ignore[attr-defined]
    assert words in refused.value.details()  # type: ignore[attr-defined]


def test_a_malformed_request_is_refused_and_the_plugin_goes_on(node: Node, kubelet: Kubelet) -> None:
    with node.serving(SRIOV):
        endpoint = kubelet.endpoint(NIC)
        with pytest.raises(grpc.RpcError) as refused:
            endpoint.call("Allocate", b"\x0a\xff")
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
        assert endpoint.allocate([VF0])


def test_a_physical_function_that_loses_its_link_takes_its_devices_out(node: Node, kubelet: Kubelet) -> None:
    all_of_them = {"resourceName": "sriov", "selectors": [{}]}
    with node.serving(all_of_them):
        kubelet.until(NIC, vf0=HEALTHY, vf1=HEALTHY, other=HEALTHY)
        node.ns.batch("link set eth1 down")
        told = kubelet.until(NIC, vf0=HEALTHY, vf1=HEALTHY, other=UNHEALTHY)
        assert told[OTHER_VF].health == UNHEALTHY
        with pytest.raises(grpc.RpcError) as refused:
            kubelet.endpoint(NIC).allocate([OTHER_VF])
        assert "its physical function eth1 is down" in refused.value.details()  # type: ignore[attr-defined]
        node.ns.batch("link set eth1 up")
        kubelet.until(NIC, vf0=HEALTHY, vf1=HEALTHY, other=HEALTHY)
    causes = [line["cause"] for line in node.log if line["event"] == "device" and line["state"] == "unhealthy"]
    assert causes[0] == "its physical function eth1 is down"


def test_a_wire_that_is_pulled_is_a_link_that_is_lost(node: Node, kubelet: Kubelet, lan: Any) -> None:
    with node.serving(SRIOV):
        kubelet.until(NIC, vf0=HEALTHY)
        lan.batch("link set lan0 down")
        kubelet.until(NIC, vf0=UNHEALTHY)
        lan.batch("link set lan0 up")
        kubelet.until(NIC, vf0=HEALTHY)
    assert "its physical function eth0 has no link" in [line.get("cause") for line in node.log]


def test_a_device_without_its_driver_is_unhealthy_until_it_is_back(node: Node, kubelet: Kubelet) -> None:
    with node.serving(SRIOV, DPDK):
        kubelet.until(NIC, vf0=HEALTHY)
        node.sysfs.bind(VF0, "")
        kubelet.until(NIC, vf0=UNHEALTHY)
        node.sysfs.bind(VF0, "iavf")
        kubelet.until(NIC, vf0=HEALTHY)


def test_what_has_changed_since_the_last_look_is_not_given(node: Node, kubelet: Kubelet) -> None:
    with node.serving(SRIOV, interval=3600.0):
        endpoint = kubelet.endpoint(NIC)
        node.sysfs.bind(VF0, "")
        with pytest.raises(grpc.RpcError) as refused:
            endpoint.allocate([VF0])
        assert "cannot be used: no driver is bound to it" in refused.value.details()  # type: ignore[attr-defined]
        kubelet.until(NIC, vf0=UNHEALTHY)
        node.sysfs.bind(VF0, "iavf")
        assert endpoint.allocate([VF0])
        kubelet.until(NIC, vf0=HEALTHY)


def test_a_uio_device_comes_with_its_node(node: Node, kubelet: Kubelet) -> None:
    node.sysfs.bind(VF1, "uio_pci_generic")
    uio = {"resourceName": "uio", "selectors": [{"drivers": ["uio_pci_generic"]}]}
    with node.serving(uio):
        endpoint = kubelet.endpoint("intel.com/uio")
        with pytest.raises(grpc.RpcError, match="has no uio device"):
            endpoint.allocate([VF1])
        (node.sysfs.at(VF1) / "uio/uio3").mkdir(parents=True)
        (container,) = endpoint.allocate([VF1])
    assert container.devices == [("/dev/uio3", "/dev/uio3", "rw")]
    assert json.loads(container.environment["PCIDEVICE_INTEL_COM_UIO_INFO"])[VF1]["uio"] == {"mount": "/dev/uio3"}


def test_a_device_that_goes_to_another_driver_goes_to_its_resource(node: Node, kubelet: Kubelet) -> None:
    with node.serving(SRIOV, DPDK):
        kubelet.until(PROGRAM, vf1=HEALTHY)
        node.sysfs.bind(VF0, "vfio-pci")
        assert set(kubelet.until(PROGRAM, vf0=HEALTHY, vf1=HEALTHY)) == {VF0, VF1}
        kubelet.until(NIC)


def test_a_device_that_is_gone_is_unhealthy(node: Node, kubelet: Kubelet) -> None:
    with node.serving(SRIOV):
        kubelet.until(NIC, vf0=HEALTHY)
        (node.sysfs.at(PF) / "virtfn0").unlink()
        kubelet.until(NIC, vf0=UNHEALTHY)
    assert [line["cause"] for line in node.log if line.get("state") == "unhealthy"] == ["it is gone"]


def test_a_device_that_comes_later_is_told(node: Node, kubelet: Kubelet) -> None:
    with node.serving(SRIOV):
        kubelet.until(NIC, vf0=HEALTHY)
        node.sysfs.vf(PF, 2, "0000:3b:02.2", "iavf")
        kubelet.until(NIC, vf0=HEALTHY, vf2=HEALTHY)


@pytest.mark.parametrize(
    ("change", "back", "words"),
    [
        (["link add br9 type bridge", "link set vf0 master br9"], "link set vf0 nomaster", "part of a bond or bridge"),
        (["addr add 10.9.9.9/24 dev vf0"], "addr flush dev vf0", "vf0 has the address 10.9.9.9"),
    ],
)
def test_a_device_that_the_node_uses_is_not_given(
    node: Node, kubelet: Kubelet, change: list[str], back: str, words: str
) -> None:
    node.ns.batch(*change)
    with node.serving(SRIOV):
        kubelet.until(NIC, vf0=UNHEALTHY)
        node.ns.batch(back)
        kubelet.until(NIC, vf0=HEALTHY)
    assert any(words in line.get("cause", "") for line in node.log)


def test_a_device_whose_nic_a_pod_has_stays_healthy(node: Node, kubelet: Kubelet, pod: Any) -> None:
    with node.serving(SRIOV):
        kubelet.until(NIC, vf0=HEALTHY)
        node.ns.batch(f"link set vf0 netns {pod.name}")
        (node.sysfs.at(VF0) / "net/vf0/type").unlink()
        (node.sysfs.at(VF0) / "net/vf0").rmdir()
        node.ns.batch("link set eth0 down")  # so that it has surely looked since
        kubelet.until(NIC, vf0=UNHEALTHY)
        node.ns.batch("link set eth0 up")
        kubelet.until(NIC, vf0=HEALTHY)


def test_a_kubelet_that_starts_anew_is_registered_with_again(node: Node, kubelet: Kubelet) -> None:
    with node.serving(SRIOV, DPDK):
        kubelet.endpoint(NIC)
        kubelet.endpoint(PROGRAM)
        kubelet.stop()
        kubelet.start()
        assert kubelet.endpoint(NIC).lists[-1] == {VF0: Told(HEALTHY, 0)}
        assert kubelet.endpoint(PROGRAM).allocate([VF1])
        assert sorted(kubelet.registrations[:2]) == [PROGRAM, NIC]
        assert set(kubelet.registrations[2:]) == {PROGRAM, NIC}  # at least once: its socket may be seen twice


def test_a_plugin_that_is_there_first_waits_for_the_kubelet(node: Node) -> None:
    late = Kubelet(node.plugins)
    with node.serving(SRIOV):
        late.start()
        assert late.endpoint(NIC).allocate([VF0])
        late.stop()


def test_a_registration_that_is_refused_is_tried_again(node: Node, kubelet: Kubelet) -> None:
    kubelet.refusals = 1
    with node.serving(SRIOV):
        kubelet.endpoint(NIC)
    (line,) = [each for each in node.log if "did not take" in each["event"]]
    assert line["cause"] == "version v1beta1: refused"


def test_a_socket_that_is_removed_comes_back(node: Node, kubelet: Kubelet) -> None:
    with node.serving(SRIOV):
        kubelet.endpoint(NIC)
        (node.plugins / "intel.com_sriov.sock").unlink()
        kubelet.wait(lambda: len(kubelet.registrations) == 2)
        assert kubelet.endpoint(NIC).allocate([VF0])


def test_a_directory_that_is_made_anew_is_served_again(node: Node, kubelet: Kubelet) -> None:
    with node.serving(SRIOV, DPDK):
        kubelet.endpoint(NIC)
        kubelet.stop()
        former = node.plugins.rename(f"{node.plugins}.former")  # at once: no socket comes back between
        node.plugins.mkdir()
        shutil.rmtree(former)
        kubelet.start()
        assert kubelet.endpoint(NIC).allocate([VF0])
        assert kubelet.endpoint(PROGRAM).allocate([VF1])


def test_a_second_plugin_of_the_same_directory_is_refused(node: Node, kubelet: Kubelet) -> None:
    with node.serving(SRIOV):
        kubelet.endpoint(NIC)
        with pytest.raises(IOFailure, match="another device plugin"), node.serving(DPDK):
            pass
        assert kubelet.endpoint(NIC).allocate([VF0])


def test_the_kubelet_is_told_nothing_of_numa_where_it_is_not_to_count(node: Node, kubelet: Kubelet) -> None:
    with node.serving(SRIOV | {"excludeTopology": True}):
        assert kubelet.endpoint(NIC).lists[-1] == {VF0: Told(HEALTHY)}


def test_a_resource_without_a_device_is_there_and_empty(node: Node, kubelet: Kubelet) -> None:
    with node.serving({"resourceName": "none", "selectors": [{"drivers": ["ixgbevf"]}]}):
        assert kubelet.endpoint("intel.com/none").lists == [{}]


def test_devices_of_two_cables_and_one_numa_node_are_preferred(node: Node, kubelet: Kubelet) -> None:
    third, fourth = "0000:3c:00.0", "0000:3c:02.0"
    node.sysfs.pf(third, "ice", "eth0")
    node.sysfs.vf(third, 0, fourth, "iavf", numa_node="0")
    everything = {"resourceName": "sriov", "selectors": [{}]}
    with node.serving(everything):
        endpoint = kubelet.endpoint(NIC)
        free = [VF0, VF1, fourth, OTHER_VF]
        assert endpoint.prefer(free, [], 1) == [VF0]
        assert endpoint.prefer(free, [], 2) == [VF0, fourth]
        assert endpoint.prefer(free, [fourth], 2) == [fourth, VF0]
        assert endpoint.prefer(free, [OTHER_VF], 1) == [OTHER_VF]
        assert sorted(endpoint.prefer(free, [], 4)) == sorted(free)
        assert endpoint.prefer(["0000:ff:00.0"], [], 1) == []


def test_information_files_are_there_for_as_long_as_the_resource_has_the_device(node: Node, kubelet: Kubelet) -> None:
    files = node.info / "dp"
    files.mkdir(parents=True)
    for name in (f"intel.com-sriov-{VF1}-device.json", "intel.com-sriov-x-device.json", "other.com-a-device.json"):
        (files / name).write_text("{}")
    mine = f"intel.com-sriov-{VF0}-device.json"
    with node.serving(SRIOV):
        kubelet.endpoint(NIC).allocate([VF0])
        assert json.loads((files / mine).read_text()) == {
            "type": "pci", "version": "1.1.0", "pci": {"pci-address": VF0, "pf-pci-address": PF},
        }  # fmt: skip
        (files / mine).unlink()
        kubelet.endpoint(NIC).allocate([VF0])
        assert (files / mine).exists()
        left = sorted(path.name for path in files.iterdir())
    assert left == [mine, "intel.com-sriov-x-device.json", "other.com-a-device.json"]
    assert sorted(path.name for path in files.iterdir()) == left, "a pod's network may be made while none serves"
    rdma = {"resourceName": "rdma", "selectors": [{"rootDevices": [OTHER_PF], "isRdma": True}]}
    with node.serving(rdma):
        kubelet.endpoint("intel.com/rdma")
        told = json.loads((files / f"intel.com-rdma-{OTHER_VF}-device.json").read_text())
    assert told["pci"]["rdma-device"] == "mlx5_2"


def test_files_that_cannot_be_written_are_told_and_containers_get_their_nodes(node: Node, kubelet: Kubelet) -> None:
    node.info.write_text("a file where the directory is to be")
    with node.serving(DPDK):
        (container,) = kubelet.endpoint(PROGRAM).allocate([VF1])
    assert len(container.devices) == 2
    assert "device files are not up to date" in [line["event"] for line in node.log]


def test_a_specification_that_cannot_be_written_refuses_what_would_need_it(node: Node, kubelet: Kubelet) -> None:
    node.cdi.mkdir()
    with node.serving(SRIOV, DPDK, cdi=True):
        assert kubelet.endpoint(PROGRAM).allocate([VF1])
        shutil.rmtree(node.cdi)
        node.cdi.write_text("a file where the directory is to be")
        with pytest.raises(grpc.RpcError) as refused:
            kubelet.endpoint(PROGRAM).allocate([VF1])
        assert "underlay-intel.com_dpdk.json cannot be" in refused.value.details()  # type: ignore[attr-defined]
        assert kubelet.endpoint(NIC).allocate([VF0])


class Tended:
    """A registrar with the test's clock; the calls are real. ``calls`` counts those to the kubelet."""

    def __init__(self, node: Node, kubelet: Kubelet) -> None:
        self._kubelet = kubelet
        self._begun = time.monotonic()
        self._registrar = Registrar(str(node.plugins), node.log, lambda: None)

    def at(self, after: float, listeners: int = 0) -> int:
        """How often the kubelet has heard of the resource, ``after`` seconds from the beginning."""
        self._registrar.tend("intel.com/second", "intel.com_sriov.sock", listeners, self._begun + after)
        self._registrar.close(20)
        return self._kubelet.registrations.count("intel.com/second")


def test_a_resource_that_nobody_listens_to_is_registered_again(node: Node, kubelet: Kubelet) -> None:
    with node.serving(SRIOV):
        kubelet.endpoint(NIC)
        tended = Tended(node, kubelet)
        assert [tended.at(*each) for each in ((0, 0), (1, 1), (9, 0), (12, 1))] == [1, 1, 1, 1]
        assert [tended.at(after) for after in (20, 29, 31)] == [1, 1, 2]


def test_the_pause_after_a_kubelet_that_failed_is_not_for_its_successor(node: Node, kubelet: Kubelet) -> None:
    with node.serving(SRIOV):
        kubelet.endpoint(NIC)
        tended = Tended(node, kubelet)
        kubelet.refusals = 1
        assert [tended.at(after) for after in (0, 0.1, 0.1)] == [1, 1, 1], "it waits"
        kubelet.stop()
        kubelet.start()
        kubelet.endpoint(NIC)
        assert tended.at(0.2) == 2
