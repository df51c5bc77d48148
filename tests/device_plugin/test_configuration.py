"""The configuration: the original's own examples, and what is said of a bad one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.device_plugin.conftest import OTHER_VF, PF, VF0, VF1

from underlay.device_plugin import configuration
from underlay.device_plugin.selection import Selector, Share
from underlay.errors import DecodeFailure, InvalidConfig, UnderlayError
from underlay.net.pci import Pci

if TYPE_CHECKING:
    from tests.device_plugin.conftest import Sysfs

    from underlay.device_plugin.selection import Resource
    from underlay.multus.findings import Finding

# README.md of k8snetworkplumbingwg/sriov-network-device-plugin, "Config parameters", shortened.
ORIGINAL = {
    "resourceList": [
        {
            "resourceName": "intel_sriov_netdevice",
            "selectors": [{"vendors": ["8086"], "devices": ["154c", "10ed"], "drivers": ["i40evf", "ixgbevf"]}],
        },
        {
            "resourceName": "intel_sriov_dpdk",
            "resourcePrefix": "intel.com",
            "selectors": [
                {
                    "vendors": ["8086"], "devices": ["154c"], "drivers": ["vfio-pci"],
                    "pfNames": ["enp0s0f0", "enp2s2f1#0,2-7,9"], "needVhostNet": True,
                }
            ],
        },
        {
            "resourceName": "mlnx_sriov_rdma",
            "resourcePrefix": "mellanox.com",
            "selectors": {"vendors": ["15b3"], "isRdma": True, "rootDevices": ["0000:86:00.0#1-3"]},
            "excludeTopology": True,
            "additionalInfo": {"*": {"token": "a"}},
        },
    ]
}  # fmt: skip


def parse(content: Any) -> tuple[list[Resource], list[Finding]]:
    return configuration.parse(json.dumps(content).encode(), "config.json")


def one(**keys: Any) -> list[Finding]:
    """What is said of a resource with these keys."""
    return parse({"resourceList": [{"resourceName": "sriov", "selectors": [{"drivers": ["iavf"]}]} | keys]})[1]


def selected(**keys: Any) -> list[Finding]:
    return one(selectors=[{"drivers": ["iavf"]}, keys])


def test_the_originals_examples_are_taken_without_a_word() -> None:
    resources, findings = parse(ORIGINAL)
    assert findings == []
    assert [each.name for each in resources] == [
        "intel.com/intel_sriov_netdevice", "intel.com/intel_sriov_dpdk", "mellanox.com/mlnx_sriov_rdma",
    ]  # fmt: skip
    assert [each.numa for each in resources] == [True, True, False]
    (first,), (dpdk,), (rdma,) = (each.selectors for each in resources)
    assert first == Selector(
        vendors=frozenset({"8086"}), models=frozenset({"154c", "10ed"}), drivers=frozenset({"i40evf", "ixgbevf"})
    )
    assert dpdk.pf_names == (Share("enp0s0f0"), Share("enp2s2f1", ((0, 0), (2, 7), (9, 9))))
    assert (dpdk.vhost_net, dpdk.rdma, rdma.rdma) == (True, False, True)
    assert rdma.pf_addresses == (Share("0000:86:00.0", ((1, 3),)),)


ERRORS: list[tuple[dict[str, Any], str, str, str]] = [
    ({"resourceName": "in tel"}, "resourceList[0].resourceName", "'in tel' is no name of a resource", "63"),
    ({"resourceName": ""}, "resourceList[0].resourceName", "'' is no name of a resource", "Letters"),
    ({"resourceName": "x" * 64}, "resourceList[0].resourceName", "is no name of a resource", "63"),
    ({"resourcePrefix": "Intel"}, "resourceList[0].resourcePrefix", "'Intel' is no prefix", "small letters"),
    ({"resourcePrefix": "a/b"}, "resourceList[0].resourcePrefix", "'a/b' is no prefix", "domain"),
    ({"resourcePrefix": "kubernetes.io"}, "resourceList[0].resourcePrefix", "is no prefix", "Kubernetes' own"),
    ({"resourcePrefix": "x.kubernetes.io"}, "resourceList[0].resourcePrefix", "is no prefix", "Kubernetes' own"),
    ({"deviceType": "gpu"}, "resourceList[0].deviceType", "'gpu' is no type of device", "netDevice"),
    ({"additionalInfo": {"eth0": {"a": "b"}}}, "resourceList[0].additionalInfo", "'eth0' is no PCI", "domain"),
]
SELECTOR_ERRORS: list[tuple[dict[str, Any], str, str, str]] = [
    ({"vendors": ["8086", "0x8086"]}, "vendors[1]", "'0x8086' is no id of a vendor or device", 'without "0x"'),
    ({"devices": ["88"]}, "devices[0]", "'88' is no id", "Four hexadecimal digits"),
    ({"pciAddresses": ["3b:02.1"]}, "pciAddresses[0]", "'3b:02.1' is no PCI address", '"0000:3b:02.1"?'),
    ({"pciAddresses": ["0000:3b:02.9"]}, "pciAddresses[0]", "'0000:3b:02.9' is no PCI address", "domain"),
    ({"rootDevices": ["ens1f0#0-3"]}, "rootDevices[0]", "'ens1f0' is no PCI address", "domain"),
    ({"pfNames": ["ens1f0#"]}, "pfNames[0]", "'' is no range of virtual functions", "ens1f0#0-3,5"),
    ({"pfNames": ["ens1f0#3-1"]}, "pfNames[0]", "'3-1' is no range", "ens1f0#0-3,5"),
    ({"pfNames": ["ok", "ens1f0#0,x"]}, "pfNames[1]", "'x' is no range", "ens1f0#0-3,5"),
    ({"pfNames": ["ens1f0#0#1"]}, "pfNames[0]", "'0#1' is no range", "ens1f0#0-3,5"),
    ({"pfNames": ["a/b"]}, "pfNames[0]", "'a/b' is no name of a NIC", "ens1f0"),
    ({"pfNames": ["#1"]}, "pfNames[0]", "'' is no name of a NIC", "ens1f0"),
    ({"linkTypes": ["ethernet"]}, "linkTypes[0]", "'ethernet' is no type of link", "ether and infiniband"),
]


@pytest.mark.parametrize(("keys", "field", "message", "hint"), ERRORS, ids=[str(each[0])[:40] for each in ERRORS])
def test_a_bad_value_of_a_resource_is_named(keys: dict[str, Any], field: str, message: str, hint: str) -> None:
    (found,) = one(**keys)
    assert (found.severity, found.field) == ("error", field)
    assert message in found.message
    assert hint in found.hint
    with pytest.raises(InvalidConfig) as refused:
        configuration.refuse([found])
    assert refused.value.message.startswith(f'config.json: "{field}": ')


@pytest.mark.parametrize(
    ("keys", "field", "message", "hint"), SELECTOR_ERRORS, ids=[str(each[0])[:40] for each in SELECTOR_ERRORS]
)
def test_a_bad_value_of_a_selector_is_named(keys: dict[str, Any], field: str, message: str, hint: str) -> None:
    (found,) = selected(**keys)
    assert (found.severity, found.field) == ("error", f"resourceList[0].selectors[1].{field}")
    assert message in found.message
    assert hint in found.hint


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (b"", DecodeFailure, "config.json: the file is not JSON"),
        (b"[]", DecodeFailure, "config.json: the file is no JSON object"),
        (b"{}", InvalidConfig, 'config.json: "resourceList" is missing'),
        (b'{"resourceList": [{}]}', InvalidConfig, '"resourceList[0].resourceName" is missing'),
        (b'{"resourceList": [{"resourceName": 1}]}', InvalidConfig, '"resourceList[0].resourceName": expected string'),
        (
            b'{"resourceList": [{"resourceName": "a", "selectors": [{"isRdma": "yes"}]}]}',
            InvalidConfig,
            '"resourceList[0].selectors[0].isRdma": expected boolean',
        ),
        (
            b'{"resourceList": [{"resourceName": "a", "selectors": {"vendors": "8086"}}]}',
            InvalidConfig,
            '"resourceList[0].selectors.vendors": expected array',
        ),
        (
            b'{"resourceList": [{"resourceName": "a", "additionalInfo": {"*": {"a": 1}}}]}',
            InvalidConfig,
            "expected string",
        ),
    ],
)
def test_a_file_of_another_form_is_refused(content: bytes, kind: type[UnderlayError], words: str) -> None:
    with pytest.raises(kind) as refused:
        configuration.parse(content, "config.json")
    assert words in refused.value.message


@pytest.mark.parametrize(
    ("keys", "field", "message", "hint"),
    [
        ({"pfnames": ["a"]}, "pfnames", "the key is unknown and has no effect", 'Did you mean "pfNames"?'),
        ({"vendor": ["8086"]}, "vendor", "the key is unknown", 'Did you mean "vendors"?'),
        ({"xyzzy": 1}, "xyzzy", "the key is unknown", "The keys here are vendors, devices"),
        ({"ddpProfiles": ["GTP"]}, "ddpProfiles", "cannot be looked at here: the selector takes no device", "other"),
        ({"pKeys": ["0x1"]}, "pKeys", "the selector takes no device", "other keys"),
        ({"vdpaType": "vhost"}, "vdpaType", "the selector takes no device", "other keys"),
    ],
)
def test_a_key_without_effect_is_warned_of(keys: dict[str, Any], field: str, message: str, hint: str) -> None:
    (found,) = selected(**{"drivers": ["iavf"], **keys})
    assert (found.severity, found.field) == ("warning", f"resourceList[0].selectors[1].{field}")
    assert message in found.message
    assert hint in found.hint


def test_other_types_of_devices_are_left_out_and_the_rest_is_served() -> None:
    (accelerator, sriov) = ({"resourceName": name, "selectors": [{"drivers": ["iavf"]}]} for name in "ab")
    resources, (found,) = parse({"resourceList": [accelerator | {"deviceType": "accelerator"}, sriov]})
    assert (found.severity, found.message) == ("warning", "accelerator is not served: intel.com/a is left out")
    assert [each.name for each in resources] == ["intel.com/b"]


def test_a_resource_is_named_once() -> None:
    entry = {"resourceName": "a", "selectors": [{"drivers": ["iavf"]}]}
    _, (found,) = parse({"resourceList": [entry, entry | {"resourcePrefix": "intel.com"}]})
    assert (found.severity, found.message) == ("error", "intel.com/a is there already")
    assert parse({"resourceList": [entry, entry | {"resourcePrefix": "other.com"}]})[1] == []


@pytest.mark.parametrize("selectors", [None, {}, [{}], {"needVhostNet": True}])
def test_a_selector_without_conditions_is_taken_and_warned_of(selectors: Any) -> None:
    (found,) = one(selectors=selectors)
    assert (found.severity, "takes every virtual function" in found.message) == ("warning", True)


def test_all_faults_are_told_at_once() -> None:
    _, findings = parse({"resourceList": [{"resourceName": "!", "selectors": [{"vendors": ["x", "y"]}]}]})
    assert len(findings) == 3


@given(
    st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)).map(sorted), min_size=1, max_size=5),
    st.integers(0, 256),
)
def test_a_share_holds_what_its_ranges_say(ranges: list[list[int]], number: int) -> None:
    listed = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
    (resource,), _ = parse({"resourceList": [{"resourceName": "a", "selectors": [{"pfNames": [f"ens1f0#{listed}"]}]}]})
    (share,) = resource.selectors[0].pf_names
    inside = any(number in range(a, b + 1) for a, b in ranges)
    assert share.holds(("other", "ens1f0"), number) == inside
    assert not share.holds(("other",), number)


@pytest.mark.parametrize(
    ("keys", "taken"),
    [
        ({}, {VF0, VF1, OTHER_VF}),
        ({"vendors": ["15B3"]}, {OTHER_VF}),
        ({"devices": ["1889"]}, {VF0, VF1}),
        ({"drivers": ["iavf", "mlx5_core"]}, {VF0, OTHER_VF}),
        ({"pciAddresses": [VF1.upper()]}, {VF1}),
        ({"acpiIndexes": ["7"]}, {VF0}),
        ({"pfNames": ["eth0"]}, {VF0, VF1}),
        ({"pfNames": ["eth0#1-3", "eth1#5"]}, {VF1}),
        ({"rootDevices": [f"{PF}#0"]}, {VF0}),
        ({"linkTypes": ["ether"]}, {VF0, VF1, OTHER_VF}),
        ({"linkTypes": ["infiniband"]}, set()),
        ({"isRdma": True}, {OTHER_VF}),
        ({"needVhostNet": True}, {VF0, VF1, OTHER_VF}),
        ({"ddpProfiles": ["GTP"]}, set()),
        ({"vendors": ["8086"], "drivers": ["mlx5_core"]}, set()),
    ],
)
def test_selectors_take_what_they_say(sysfs: Sysfs, keys: dict[str, Any], taken: set[str]) -> None:
    (resource,), _ = parse({"resourceList": [{"resourceName": "a", "selectors": [keys]}]})
    pci = Pci(str(sysfs.root))
    found = {each.address for pf in pci.pfs() for each in pci.functions(pf.address) if resource.selector(each, pf, pci)}
    assert found == taken


def test_infiniband_is_the_physical_functions_kind(sysfs: Sysfs) -> None:
    (sysfs.at(PF) / "net/eth0/type").write_text("32\n")
    pci = Pci(str(sysfs.root))
    pf, vf = pci.function(PF), pci.function(VF1)
    assert pf is not None
    assert vf is not None
    assert Selector(link_types=frozenset({"infiniband"})).takes(vf, pf, pci)
    assert not Selector(link_types=frozenset({"ether"})).takes(vf, pf, pci)


def test_the_first_selector_that_takes_a_device_counts(sysfs: Sysfs) -> None:
    selectors = [{"drivers": ["iavf"]}, {"needVhostNet": True}]
    (resource,), _ = parse({"resourceList": [{"resourceName": "a", "selectors": selectors}]})
    pci = Pci(str(sysfs.root))
    pf, first, second = (pci.function(each) for each in (PF, VF0, VF1))
    assert pf is not None
    assert first is not None
    assert second is not None
    assert resource.selector(first, pf, pci) == resource.selectors[0]
    assert resource.selector(second, pf, pci) == resource.selectors[1]
    assert resource.selector(replace(second, driver="iavf"), pf, pci) == resource.selectors[0]
