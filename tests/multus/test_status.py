from __future__ import annotations

import json

from underlay.cni.result import DNS, Interface, IPConfig, Result, Route
from underlay.delegate.attachment import Attachment
from underlay.multus.status import encode, statuses

ETH0 = Attachment("cluster-net", b"", "eth0")
NET1 = Attachment("default/a", b"", "net1")


def written(*pairs: tuple[Attachment, Result]) -> list[dict[str, object]]:
    return json.loads(encode(statuses([one for one, _ in pairs], [result for _, result in pairs])))


def test_the_first_interface_inside_the_sandbox_counts_and_the_first_attachment_is_the_default():
    ptp = Result(
        interfaces=(
            Interface("veth1", "02:00:00:00:00:01"),
            Interface("eth0", "02:00:00:00:00:02", 1400, "/run/netns/p"),
        ),
        ips=(IPConfig("10.244.7.9/24", "10.244.7.1", 1), IPConfig("192.0.2.1/24", interface=0)),
        routes=(Route("0.0.0.0/0"), Route("10.0.0.0/8", "10.244.7.2")),
        dns=DNS(nameservers=("10.96.0.10",)),
    )
    macvlan = Result(
        interfaces=(Interface("net1", "02:00:00:00:00:03", 1500, "/run/netns/p"), Interface("veth0", "x", 0, "y")),
        ips=(IPConfig("172.18.8.1/16", interface=0), IPConfig("fd00:18::801/64")),
    )
    assert written((ETH0, ptp), (NET1, macvlan)) == [
        {
            "name": "cluster-net",
            "interface": "eth0",
            "ips": ["10.244.7.9"],
            "mac": "02:00:00:00:00:02",
            "mtu": 1400,
            "default": True,
            "dns": {"nameservers": ["10.96.0.10"]},
            "gateway": ["10.244.7.1"],
        },
        {
            "name": "default/a",
            "interface": "net1",
            "ips": ["172.18.8.1", "fd00:18::801"],
            "mac": "02:00:00:00:00:03",
            "mtu": 1500,
            "dns": {},
        },
    ]


def test_a_result_of_old_that_names_no_interface_is_of_the_nic_asked_for():
    assert written((NET1, Result(ips=(IPConfig("172.18.8.1/16"),)))) == [
        {"name": "default/a", "interface": "net1", "ips": ["172.18.8.1"], "default": True, "dns": {}}
    ]


def test_gateways_are_those_of_default_routes_of_both_families_and_those_taken_over():
    result = Result(
        ips=(IPConfig("172.18.8.1/16", "172.18.0.1"), IPConfig("fd00::9/64", "fd00::1")),
        routes=(Route("::/0"), Route("0.0.0.0/0", "172.18.0.7")),
    )
    taker = Attachment("default/a", b"", "net1", default_gateways=("172.18.0.1",))
    first, second = written((ETH0, result), (taker, Result()))
    assert first["gateway"] == ["fd00::1", "172.18.0.7"]
    assert second["gateway"] == ["172.18.0.1"]


def test_what_is_known_of_a_device_is_written_as_it_was_found():
    net1 = Attachment("default/a", b"", "net1", info_file="/devinfo/cni/x")
    info = {"type": "pci", "version": "1.1.0", "pci": {"pci-address": "0000:3b:02.1"}, "vendor.com/extra": [1]}
    made = json.loads(encode(statuses([ETH0, net1], [Result(), Result()], {"/devinfo/cni/x": info})))
    assert [each.get("device-info") for each in made] == [None, info]
