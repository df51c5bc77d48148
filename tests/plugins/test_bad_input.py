"""What users get wrong: each a CNI error that names the field and what to do, with node and pod as they were."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.plugins.conftest import Conf, Node, macvlan, meta

from underlay.errors import InvalidConfig, UnderlayError

if TYPE_CHECKING:
    from tests.conftest import Netns

V4 = "172.18.7.5/16"
LONG = "x" * 300
GENERIC = "This is a bug in underlay"

# what is wrong: (keys of the plugin, field that the sentence names)
GATEWAY_OF_THE_OTHER_FAMILY = [{"dst": "10.0.0.0/8", "gw": "fd00::1"}]
MACVLAN: list[tuple[Conf, str]] = [
    ({"master": 7}, '"master"'),
    ({"master": ["eth0"]}, '"master"'),
    ({"master": "eth7"}, '"master"'),
    ({"master": LONG}, '"master"'),
    ({"master": "../eth0"}, '"master"'),
    ({"master": "eth0\0"}, '"master"'),
    ({"master": "étho\ud800"}, ""),
    ({"mode": "brigde"}, '"mode"'),
    ({"mode": 4}, '"mode"'),
    ({"mode": LONG}, '"mode"'),
    ({"mtu": "1500"}, '"mtu"'),
    ({"mtu": -1}, '"mtu"'),
    ({"mtu": 1501}, '"mtu"'),
    ({"mtu": 67}, '"mtu"'),
    ({"mtu": 1e30}, '"mtu"'),
    ({"mtu": 1 << 70}, '"mtu"'),
    ({"mtu": 1400.5}, '"mtu"'),
    ({"mac": 5}, '"mac"'),
    ({"mac": "nonsense"}, '"mac"'),
    ({"mac": "01:00:00:00:00:01"}, '"mac"'),
    ({"mac": "00:00:00:00:00:00"}, '"mac"'),
    ({"mac": "02:00:00:00:00:01:02:03"}, '"mac"'),
    ({"mac": LONG}, '"mac"'),
    ({"linkInContainer": "yes"}, '"linkInContainer"'),
    ({"bcqueuelen": -1}, '"bcqueuelen"'),
    ({"bcqueuelen": 1 << 32}, '"bcqueuelen"'),
    ({"bcqueuelen": "1"}, '"bcqueuelen"'),
    ({"acceptRA": 1}, '"acceptRA"'),
    ({"ipam": "static"}, "ipam"),
    ({"ipam": {"type": 5}}, "ipam.type"),
    ({"ipam": {"type": "../static"}}, "ipam.type"),
    ({"ipam": {"type": LONG}}, "ipam.type"),
    ({"ipam": {"type": "static", "addresses": [{"address": "172.18.7.5"}]}}, "address"),
    ({"ipam": {"type": "static", "addresses": [{"address": "172.18.7.5/99"}]}}, "address"),
    ({"ipam": {"type": "static", "addresses": [{"address": V4, "gateway": "x"}]}}, "gateway"),
    ({"ipam": {"type": "static", "addresses": [{"address": V4}], "routes": [{"dst": "x"}]}}, "dst"),
    ({"ipam": {"type": "static", "addresses": [{"address": V4}], "routes": [{"dst": "10.0.0.0/8", "gw": "x"}]}}, "gw"),
    ({"ipam": {"type": "static", "addresses": [{"address": V4}], "routes": GATEWAY_OF_THE_OTHER_FAMILY}}, "gw"),
    ({"ipam": {"type": "static"}}, "ipam"),
    ({"ipam": {"type": "host-local", "subnet": "172.18.0.0/40"}}, "subnet"),
    ({"ipam": {"type": "host-local", "subnet": 5}}, "subnet"),
    ({"ipam": {"type": "host-local"}}, "ipam"),
    ({"ipam": {"type": "host-local", "subnet": "172.18.0.0/16", "rangeStart": "10.0.0.1"}}, "rangeStart"),
    ({"ipam": {"type": "host-local", "subnet": "172.18.0.0/16", "gateway": "x"}}, "gateway"),
    ({"args": {"cni": {"mac": 5}}}, "args.cni.mac"),
    ({"args": {"cni": {"mac": "x"}}}, "args.cni.mac"),
    ({"args": []}, "args"),
    ({"capabilities": {"mac": "x"}}, "capabilities"),
    ({"dns": {"nameservers": "x"}}, "dns.nameservers"),
]  # fmt: skip

IPVLAN: list[tuple[Conf, str]] = [
    ({"master": 7}, '"master"'),
    ({"master": "eth7"}, '"master"'),
    ({"master": LONG}, '"master"'),
    ({"master": "../eth0"}, '"master"'),
    ({"mode": "bridge"}, '"mode"'),
    ({"mode": "L2"}, '"mode"'),
    ({"mode": 2}, '"mode"'),
    ({"mode": LONG}, '"mode"'),
    ({"mtu": "1500"}, '"mtu"'),
    ({"mtu": -1}, '"mtu"'),
    ({"mtu": 67}, '"mtu"'),
    ({"mtu": 1501}, '"mtu"'),
    ({"mtu": 1 << 70}, '"mtu"'),
    ({"linkInContainer": "yes"}, '"linkInContainer"'),
    ({"linkInContainer": True, "master": "eth7"}, '"master" \'eth7\' does not exist in the pod'),
    ({"acceptRA": 1}, '"acceptRA"'),
    ({"ipam": {"type": "static", "addresses": [{"address": "fd00:18::7:5/64"}]}, "mtu": 1279}, '"mtu"'),
    ({"ipam": {"type": "static"}}, "ipam"),
    ({"ipam": {"type": "../static"}}, "ipam.type"),
]  # fmt: skip

VLAN: list[tuple[Conf, str]] = [
    ({"master": None}, '"master" is missing'),
    ({"master": ""}, '"master" is missing'),
    ({"master": ["eth0"]}, '"master"'),
    ({"master": "eth7"}, '"master"'),
    ({"vlanId": None}, '"vlanId" is missing'),
    ({"vlanId": -1}, '"vlanId" -1 is not in the range 0 to 4094'),
    ({"vlanId": 4095}, '"vlanId" 4095 is not in the range 0 to 4094'),
    ({"vlanId": 1 << 70}, '"vlanId"'),
    ({"vlanId": "100"}, '"vlanId"'),
    ({"vlanId": 1.5}, '"vlanId"'),
    ({"mtu": "1500"}, '"mtu"'),
    ({"mtu": -1}, '"mtu"'),
    ({"mtu": 67}, '"mtu"'),
    ({"mtu": 1501}, '"mtu" 1501 is larger than the 1500 of eth0'),
    ({"linkInContainer": 1}, '"linkInContainer"'),
    ({"linkInContainer": True, "master": "eth7"}, '"master" \'eth7\' does not exist in the pod'),
    ({"acceptRA": "x"}, '"acceptRA"'),
    ({"ipam": {"type": "static"}}, "ipam"),
]  # fmt: skip

SRIOV: list[tuple[Conf, str]] = [
    ({"deviceID": None}, '"deviceID"'),
    ({"deviceID": 5}, '"deviceID"'),
    ({"deviceID": "eth0"}, '"deviceID"'),
    ({"deviceID": "../0000:00:00.0"}, '"deviceID"'),
    ({"deviceID": LONG}, '"deviceID"'),
    ({"deviceID": "0000:ff:1f.7"}, '"deviceID" 0000:ff:1f.7 is no PCI device'),
    ({"vlan": -1}, '"vlan"'),
    ({"vlan": 4095}, '"vlan"'),
    ({"vlan": "100"}, '"vlan"'),
    ({"vlan": 1 << 70}, '"vlan"'),
    ({"vlanQoS": 5}, '"vlanQoS"'),
    ({"vlan": 0, "vlanQoS": 5}, '"vlanQoS"'),
    ({"vlan": 100, "vlanQoS": 8}, '"vlanQoS"'),
    ({"vlanProto": "802.1ad"}, '"vlanProto"'),
    ({"vlan": 100, "vlanProto": "802.1x"}, '"vlanProto"'),
    ({"spoofchk": "yes"}, '"spoofchk"'),
    ({"spoofchk": True}, '"spoofchk"'),
    ({"trust": "of"}, '"trust"'),
    ({"link_state": "up"}, '"link_state"'),
    ({"min_tx_rate": 200, "max_tx_rate": 100}, '"min_tx_rate" 200 is larger than "max_tx_rate" 100'),
    ({"max_tx_rate": -1}, '"max_tx_rate"'),
    ({"max_tx_rate": 1 << 32}, '"max_tx_rate"'),
    ({"mac": "nonsense"}, '"mac"'),
    ({"mac": "01:00:00:00:00:01"}, '"mac"'),
    ({"mtu": 67}, '"mtu"'),
    ({"mtu": -1}, '"mtu"'),
    ({"runtimeConfig": {"CNIDeviceInfoFile": "x"}}, ""),
    ({"logLevel": "loud"}, '"logLevel"'),
    ({"acceptRA": 1}, '"acceptRA"'),
]  # fmt: skip

META: list[tuple[Conf, str]] = [
    ({"overlay_hijack_subnet": None}, '"overlay_hijack_subnet"'),
    ({"overlay_hijack_subnet": []}, '"overlay_hijack_subnet"'),
    ({"overlay_hijack_subnet": "10.0.0.0/8"}, '"overlay_hijack_subnet"'),
    ({"overlay_hijack_subnet": ["10.240.0.0/12", "10.0.0.0/33"]}, '"overlay_hijack_subnet[1]"'),
    ({"overlay_hijack_subnet": [LONG]}, '"overlay_hijack_subnet[0]"'),
    ({"overlay_hijack_subnet": ["10.240.0.0/12", 5]}, "overlay_hijack_subnet"),
    ({"service_hijack_subnet": []}, '"service_hijack_subnet"'),
    ({"service_hijack_subnet": ["10.96.0.1"]}, '"service_hijack_subnet[0]"'),
    ({"service_hijack_subnet": ["::ffff:10.96.0.0/112"]}, '"service_hijack_subnet[0]"'),
    ({"additional_hijack_subnet": [""]}, '"additional_hijack_subnet[0]"'),
    ({"additional_hijack_subnet": {}}, '"additional_hijack_subnet"'),
    ({"migrate_route": "1"}, '"migrate_route"'),
    ({"migrate_route": True}, '"migrate_route"'),
    ({"rp_filter": 2}, '"rp_filter"'),
    ({"rp_filter": {"value": "2"}}, '"rp_filter.value"'),
    ({"rp_filter": {"set_host": 1}}, '"rp_filter.set_host"'),
    ({"skip_call": "no"}, '"skip_call"'),
    ({"mac_prefix": "0a"}, '"mac_prefix"'),
    ({"mac_prefix": "0b:1b"}, '"mac_prefix"'),
    ({"mac_prefix": "0a:1b:2c"}, '"mac_prefix"'),
    ({"mac_prefix": 10}, '"mac_prefix"'),
    ({"mac_prefix": LONG}, '"mac_prefix"'),
    ({"only_op_mac": True}, '"mac_prefix"'),
    ({"only_op_mac": "x"}, '"only_op_mac"'),
    ({"ip_conflict": True}, '"ip_conflict"'),
    ({"ip_conflict": {"enabled": "x"}}, '"ip_conflict.enabled"'),
    ({"ip_conflict": {"enabled": True, "interval": "1"}}, '"ip_conflict.interval"'),
    ({"ip_conflict": {"enabled": True, "interval": "0s"}}, '"ip_conflict.interval"'),
    ({"ip_conflict": {"enabled": True, "interval": "-1s"}}, '"ip_conflict.interval"'),
    ({"ip_conflict": {"enabled": True, "interval": LONG}}, '"ip_conflict.interval"'),
    ({"ip_conflict": {"enabled": True, "interval": "9" * 400 + "h"}}, '"ip_conflict.interval"'),
    ({"ip_conflict": {"enabled": True, "interval": 1}}, '"ip_conflict.interval"'),
    ({"ip_conflict": {"enabled": True, "retries": -1}}, '"ip_conflict.retries"'),
    ({"log_options": {"log_level": "loud"}}, '"log_options.log_level"'),
    ({"log_options": {"log_level": LONG}}, '"log_options.log_level"'),
    ({"log_options": {"log_file": "veth.log"}}, '"log_options.log_file"'),
    ({"log_options": {"log_file": LONG}}, '"log_options.log_file"'),
    ({"log_options": {"log_max_size": -1}}, '"log_options.log_max_size"'),
    ({"log_options": {"log_max_age": "5"}}, '"log_options.log_max_age"'),
    ({"log_options": {"log_max_count": 1.5}}, '"log_options.log_max_count"'),
    ({"log_options": []}, '"log_options"'),
]  # fmt: skip

ROUTER: list[tuple[Conf, str]] = [
    ({"overlay_interface": "eth7"}, '"overlay_interface"'),
    ({"overlay_interface": LONG}, '"overlay_interface"'),
    ({"overlay_interface": 5}, '"overlay_interface"'),
    ({"overlay_interface": "net1"}, '"overlay_interface"'),
    ({"overlay_interface": "lo"}, '"overlay_interface"'),
    ({"host_rule_table": "500"}, '"host_rule_table"'),
    ({"host_rule_table": 254}, '"host_rule_table"'),
    ({"host_rule_table": 1 << 33}, '"host_rule_table"'),
    ({"sriov": "x"}, '"sriov"'),
]

TABLE = [("macvlan", *each) for each in MACVLAN]
TABLE += [("ipvlan", *each) for each in IPVLAN]
TABLE += [("vlan", *each) for each in VLAN]
TABLE += [("sriov", *each) for each in SRIOV]
TABLE += [(kind, *each) for kind in ("veth", "router") for each in META]
TABLE += [("router", *each) for each in ROUTER]


def refused(node: Node, pod: Netns, *chain: Conf, **how: Any) -> UnderlayError:
    error = node.refused(pod, "net1", *chain, **how)
    assert len(error.message) < 400, error.message
    assert error.code in (6, 7), error.message
    assert error.hint, "it says what to do"
    assert not error.hint.startswith(GENERIC)
    return error


def test_every_wrong_value_is_named_and_leaves_nothing(node: Node, overlay: Netns) -> None:
    """One node for all: refusals change nothing, and the table is long."""
    before = node.state(overlay)
    wrong = [
        f"{kind} {keys}: {fault}"
        for kind, keys, field in TABLE
        if (fault := fault_of(node, overlay, kind, keys, field))
    ]
    assert not wrong, "\n".join(wrong)
    assert node.state(overlay) == before
    assert node.ledger.rows() == []


def fault_of(node: Node, pod: Netns, kind: str, keys: Conf, field: str) -> str:
    """What is wrong with the refusal, "" for nothing."""
    error = attempt(node, pod, kind, keys)
    if error is None:
        return "accepted"
    if error.code not in (6, 7) or field not in error.message or len(error.message) > 400:
        return f"{error.code}: {error.message}"
    if not error.hint or error.hint.startswith(GENERIC):
        return f"no hint: {error.message}"
    return "the NIC stays" if pod.link("net1") else ""


def attempt(node: Node, pod: Netns, kind: str, keys: Conf) -> UnderlayError | None:
    alone = {
        "macvlan": macvlan(V4),
        "ipvlan": macvlan(V4, type="ipvlan"),
        "vlan": macvlan(V4, type="vlan", vlanId=100),
        "sriov": {"type": "sriov", "deviceID": "0000:00:00.0"},
    }
    chain = [alone[kind] | keys] if kind in alone else [macvlan(V4), meta(kind) | keys]
    try:
        node.add(pod, "net1", *chain)
    except UnderlayError as error:
        return error
    return None


@pytest.mark.parametrize(
    ("interfaces", "words"),
    [([], "lists 0"), ([{"name": "eth0"}, {"name": "eth1"}], "lists 2"), ([{"name": "eth7"}], "'eth7' does not exist")],
)
def test_ipvlan_takes_one_interface_of_the_plugin_before_it_for_its_parent(
    node: Node, pod: Netns, interfaces: list[Conf], words: str
) -> None:
    before = node.state(pod)
    conf = macvlan(V4, type="ipvlan", master=None)
    with pytest.raises(InvalidConfig) as caught:
        node.plainly("ADD", "ipvlan", pod.path, "net1", conf, {"cniVersion": "1.0.0", "interfaces": interfaces})
    assert words in caught.value.message
    assert caught.value.hint
    assert node.state(pod) == before


@pytest.mark.parametrize(
    ("conf", "module"), [({"type": "ipvlan"}, "ipvlan"), ({"type": "vlan", "vlanId": 100}, "8021q")]
)
def test_a_kind_of_link_that_the_kernel_lacks_is_told_with_its_module(
    node: Node, pod: Netns, conf: Conf, module: str
) -> None:
    number = ["id", "100"] if "vlanId" in conf else []
    tried = node.ns.run("ip", "link", "add", "try0", "link", "eth0", "type", conf["type"], *number, check=False)
    if tried.returncode == 0:  # it has it: then the plugin works
        node.ns.batch("link delete try0")
        node.add(pod, "net1", macvlan(V4, **conf))
        assert pod.link("net1")["linkinfo"]["info_kind"] == conf["type"]
        return
    error = node.refused(pod, "net1", macvlan(V4, **conf))
    assert f"its module is {module} (modprobe {module})" in error.hint


def test_a_runtimes_wrong_hardware_address_is_named_by_its_place(node: Node, pod: Netns) -> None:
    able = macvlan(capabilities={"mac": True})
    assert "runtimeConfig.mac" in refused(node, pod, able, runtime={"mac": "x"}).message
    assert "runtimeConfig.mac" in refused(node, pod, able, runtime={"mac": 5}).message
    assert "CNI_ARGS MAC" in refused(node, pod, macvlan(), args="MAC=01:00:00:00:00:00").message


@pytest.mark.parametrize("kind", ["../veth", "veth/../../x", ".veth", "", LONG, "ve th"])
def test_a_type_that_is_no_plain_file_name_is_refused(node: Node, pod: Netns, kind: str) -> None:
    error = refused(node, pod, macvlan(V4), {"type": kind})
    assert "plugins[1].type" in error.message


def test_a_type_that_nobody_has_is_refused_with_the_directories(node: Node, pod: Netns) -> None:
    error = node.refused(pod, "net1", macvlan(V4), {"type": "nonesuch"})
    assert error.code == 106
    assert "nonesuch" in error.message


@pytest.mark.parametrize("kind", ["macvlan", "veth", "router"])
@pytest.mark.parametrize("netns", ["/run/netns/gone", "/proc/self/mem", "/etc/passwd", "/proc/self/ns/mnt"])
def test_a_namespace_that_is_none_is_refused(node: Node, kind: str, netns: str) -> None:
    before = node.state(netns)
    prev = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "net1", "sandbox": netns}],
        "ips": [{"address": V4, "interface": 0}],
    }
    conf = macvlan(V4) if kind == "macvlan" else meta(kind)
    with pytest.raises(UnderlayError) as caught:
        node.plainly("ADD", kind, netns, "net1", conf, prev)
    assert caught.value.code == 102
    assert netns in caught.value.message
    node.plainly("DEL", kind, netns, "net1", conf, prev)
    assert node.state(netns) == before


ETH0 = {"interfaces": [{"name": "eth0", "sandbox": "x"}]}
PREVIOUS: dict[str, tuple[Conf | None, str]] = {
    "none": (None, '"prevResult"'),
    "no interfaces": ({"ips": [{"address": V4}]}, '"prevResult.interfaces"'),
    "a NIC that is not there": ({"interfaces": [{"name": "net7", "sandbox": "x"}], "ips": [{"address": V4}]}, "net7"),
    "a NIC with a long name": ({"interfaces": [{"name": LONG, "sandbox": "x"}], "ips": []}, "prevResult"),
    "no address": (ETH0, '"prevResult.ips"'),
    "an address that is none": (
        ETH0 | {"ips": [{"address": "x"}]}, '"prevResult.ips[0].address"'
    ),
    "an address without length": (
        ETH0 | {"ips": [{"address": "10.1.1.1"}]}, '"prevResult.ips[0].address"'
    ),
    "a wrong type": ({"interfaces": {"name": "eth0"}}, "prevResult.interfaces"),
    "another version": ({"cniVersion": "9.0.0", "interfaces": []}, "9.0.0"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["veth", "router"])
@pytest.mark.parametrize("what", PREVIOUS)
def test_a_prevresult_that_is_of_no_use_is_named(node: Node, overlay: Netns, kind: str, what: str) -> None:
    prev, field = PREVIOUS[what]
    before = node.state(overlay)
    told = prev if prev is None else {"cniVersion": "1.0.0", **prev}
    with pytest.raises(UnderlayError) as caught:
        node.plainly("ADD", kind, overlay.path, "eth0", meta(kind), told)
    assert field in caught.value.message
    assert len(caught.value.message) < 400
    assert caught.value.code in (1, 6, 7)
    node.plainly("DEL", kind, overlay.path, "eth0", meta(kind), told)
    assert node.state(overlay) == before


def test_no_message_repeats_the_whole_configuration(node: Node, pod: Netns) -> None:
    secret = "hunter2"
    for keys in ({"mode": "x", "password": secret}, {"mtu": "x", "password": secret}):
        error = refused(node, pod, macvlan(V4, **keys))
        assert secret not in json.dumps([error.message, error.hint])
