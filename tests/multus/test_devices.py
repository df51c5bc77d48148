"""Devices to networks: which id goes to whom, and what of it a plugin is told."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from underlay.cni.config import inject, parse_network, with_runtime
from underlay.delegate.attachment import Attachment
from underlay.errors import DeviceMissing
from underlay.kube.device_info import DeviceInfo
from underlay.kube.devices import Device
from underlay.kube.objects import Pod
from underlay.multus.devices import PodDevices, Wanted, with_device

VF = "intel.com/sriov"
POD = Pod("default", "web", "uid-1")
ONE = {"cniVersion": "1.0.0", "name": "n", "type": "sriov", "vlan": 7}


class Kubelet:
    """Devices in memory; counts the questions."""

    def __init__(self, *ids: str, resources: tuple[str, ...] = (VF,)) -> None:
        self.devices = tuple(Device(each, resources) for each in ids)
        self.asked: list[tuple[str, str, str]] = []

    def of(self, namespace: str, name: str, uid: str, deadline: float) -> tuple[Device, ...]:
        self.asked.append((namespace, name, uid))
        return self.devices


def pod_devices(kubelet: Kubelet, directory: Any = "/nowhere", uid: str = "") -> PodDevices:
    info = DeviceInfo(lambda *_, **__: None, str(directory))
    return PodDevices(kubelet, info, POD, uid=uid, container_id="c1", deadline=0)


def wanted(n: int, resource: str = VF, device: str = "", conf: Any = ONE) -> Wanted:
    raw = conf if isinstance(conf, bytes) else json.dumps(conf).encode()
    return Wanted(Attachment(f"default/n{n}", raw, f"net{n}", name="n"), resource, device)


def handed(kubelet: Kubelet, *asking: Wanted) -> list[str]:
    return [each.device for each in pod_devices(kubelet).hand_out(asking)]


def test_devices_are_handed_out_in_order_one_a_network():
    kubelet = Kubelet("a", "b", "c")
    assert handed(kubelet, wanted(0, ""), wanted(1), wanted(2)) == ["", "a", "b"]
    assert kubelet.asked == [("default", "web", "uid-1")]


def test_the_kubelet_is_not_asked_where_no_network_needs_it():
    kubelet = Kubelet()
    assert handed(kubelet, wanted(0, ""), wanted(1, device="x")) == ["", "x"]
    assert kubelet.asked == []


def test_the_annotations_own_id_wins_and_goes_to_nobody_else():
    assert handed(Kubelet("a", "b"), wanted(1), wanted(2, device="a")) == ["b", "a"]
    assert handed(Kubelet("a"), wanted(1), wanted(2, device="elsewhere")) == ["a", "elsewhere"]


def test_the_uid_that_the_runtime_named_counts_before_the_objects():
    kubelet = Kubelet("a")
    pod_devices(kubelet, uid="static").hand_out([wanted(1)])
    assert kubelet.asked == [("default", "web", "static")]


def test_a_device_with_several_names_is_handed_out_once():
    kubelet = Kubelet("a", "b", resources=("driver.example.com", "fast"))
    assert handed(kubelet, wanted(1, "fast"), wanted(2, "driver.example.com")) == ["a", "b"]


@pytest.mark.parametrize(
    ("kubelet", "asking", "words"),
    [
        (
            Kubelet("a"),
            (wanted(1), wanted(2)),
            f"network default/n2 needs a device of {VF}: 2 of the pod's networks are to be given one "
            "(default/n1, default/n2), and the kubelet gave the pod 1",
        ),
        (Kubelet(), (wanted(1),), "and the kubelet gave the pod none"),
        (
            Kubelet("a", resources=("other.com/x",)),
            (wanted(1),),
            "and the kubelet gave the pod none, only of other.com/x",
        ),
        (Kubelet("a"), (wanted(1), wanted(2, device="a")), "gave the pod 1, some of them for other networks"),
    ],
)
def test_too_few_devices_are_counted_and_named(kubelet, asking, words):
    with pytest.raises(DeviceMissing, match=re.escape(words) + "$") as caught:
        handed(kubelet, *asking)
    assert caught.value.code == 111
    assert f'"{VF}"' in caught.value.hint


@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=8))
def test_no_device_goes_to_two_networks_and_none_to_a_wrong_one(given_of, asked_of):
    kubelet = Kubelet()
    kubelet.devices = tuple(Device(f"{name}{n}", (name,)) for n, name in enumerate(given_of))
    asking = [wanted(n, name) for n, name in enumerate(asked_of)]
    try:
        ids = handed(kubelet, *asking)
    except DeviceMissing:
        assert any(asked_of.count(name) > given_of.count(name) for name in asked_of)
        return
    assert len(set(ids)) == len(ids)
    for name in "abc":
        mine = [each for each in ids if each.startswith(name)]
        assert mine == [device.id for device in kubelet.devices if device.resources == (name,)][: len(mine)]
        assert len(mine) == asked_of.count(name)


def test_a_single_plugin_gets_the_device_over_what_is_written():
    made = with_device(wanted(1, conf={**ONE, "deviceID": "old"}).attachment, "0000:3b:02.1")
    assert json.loads(made.conf) == {**ONE, "deviceID": "0000:3b:02.1", "pciBusID": "0000:3b:02.1"}
    assert made.runtime == {"deviceID": "0000:3b:02.1", "pciBusID": "0000:3b:02.1"}


def test_every_plugin_of_a_list_gets_the_device_and_the_declared_argument():
    plugins = [{"type": "sriov", "capabilities": {"deviceID": True}}, {"type": "tuning", "big": 12345678901234567890}]
    conf = {"cniVersion": "1.0.0", "name": "n", "plugins": plugins}
    made = with_device(wanted(1, conf=conf).attachment, "x")
    network = parse_network(made.conf)
    seen = [json.loads(inject(with_runtime(plugin, made.runtime))) for plugin in network.plugins]
    assert [each["deviceID"] for each in seen] == [each["pciBusID"] for each in seen] == ["x", "x"]
    assert [each.get("runtimeConfig") for each in seen] == [{"deviceID": "x"}, None]
    assert seen[1]["big"] == 12345678901234567890


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b'{"plugins": 1}', b'{"plugins": [1]}', b"\xff"])
def test_a_broken_configuration_is_left_to_the_parser(broken):
    assert with_device(wanted(1, conf=broken).attachment, "x").conf == broken


def test_the_information_file_is_on_offer_with_what_the_device_plugin_wrote(tmp_path):
    (tmp_path / "dp").mkdir()
    (tmp_path / "dp" / "intel.com-sriov-0000:3b:02.1-device.json").write_text('{"type": "pci"}')
    devices = pod_devices(Kubelet(), tmp_path)
    each = wanted(1, device="0000:3b:02.1")
    made = devices.with_info(each.attachment, each, declared=False)
    assert made.info == b'{"type": "pci"}'
    assert made.info_file == made.runtime["CNIDeviceInfoFile"] == f"{tmp_path}/cni/default-n1-c1_net1"


def test_a_plugin_that_declares_the_file_may_write_it_without_any_device(tmp_path):
    each = wanted(1, "")
    made = pod_devices(Kubelet(), tmp_path).with_info(each.attachment, each, declared=True)
    assert (made.info_file, made.info) == (f"{tmp_path}/cni/default-n1-c1_net1", b"")
    assert pod_devices(Kubelet(), tmp_path).with_info(each.attachment, each, declared=False) == each.attachment


@pytest.mark.parametrize("text", ["", "{", "[]", "x" * 70000, '"\udc80"'])
def test_a_malformed_information_file_is_logged_and_left_out(tmp_path, text):
    lines: list[dict[str, Any]] = []
    info = DeviceInfo(lambda level, event, **fields: lines.append({"level": level, **fields}), str(tmp_path))
    path = tmp_path / "x"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert info.read(str(path)) is None
    assert (lines[0]["level"], lines[0]["path"]) == ("warn", str(path))


def test_a_resource_name_cannot_lead_out_of_the_directory(tmp_path):
    (tmp_path / "dp").mkdir()
    (tmp_path / "secret-a-device.json").write_text("{}")
    info = DeviceInfo(lambda *_, **__: None, str(tmp_path))
    assert info.published("../secret", "a") == b""
    assert info.published("nul\0", "a\0") == b""
    assert info.path("../a", "../b", "c") == f"{tmp_path}/cni/..-a-..-b_c"
    assert len(info.path("x" * 300, "b" * 64, "net1").rpartition("/")[2]) == 128 + 1 + 64 + 5
