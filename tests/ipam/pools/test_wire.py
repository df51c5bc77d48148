"""The wire asked through the parent on a real kernel: strangers with both families, and gateways."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from underlay.cni.config import parse_plugin
from underlay.daemon.wire import HostWire

if TYPE_CHECKING:
    from tests.conftest import Netns

    from underlay.cni.config import PluginConfig

WIRE = HostWire()


def conf(**keys: object) -> PluginConfig:
    raw = {"cniVersion": "1.0.0", "name": "n", "type": "macvlan", "ipam": {"type": "spiderpool"}, **keys}
    return parse_plugin(json.dumps(raw).encode())


def soon() -> float:
    return time.monotonic() + 10


def test_every_address_of_both_families_that_a_stranger_uses_is_told_with_its_mac(
    uplink: Netns, in_host: Netns, lan: Netns
) -> None:
    lan.batch("addr add 172.18.40.10/16 dev br0", "addr add fd00:18::40:10/64 dev br0 nodad")
    mac = lan.link("br0")["address"]
    wanted = ["172.18.40.10", "172.18.40.11", "fd00:18::40:10", "fd00:18::40:11"]
    found = WIRE.conflicts(conf(master="eth0"), wanted, soon())
    assert found == {"172.18.40.10": mac, "fd00:18::40:10": mac}


def test_free_addresses_of_both_families_cost_150_ms_at_most_together(uplink: Netns, in_host: Netns) -> None:
    began = time.monotonic()
    assert WIRE.conflicts(conf(master="eth0"), ["172.18.40.11", "fd00:18::40:11"], soon()) == {}
    seen = time.monotonic() - began
    assert seen >= 0.12  # three times 40 ms were really waited
    print(f"probe of both families: {seen * 1000:.0f} ms")


def test_gateways_that_do_not_answer_are_told(uplink: Netns, in_host: Netns) -> None:
    asked = ["172.18.0.1", "fd00:18::1", "172.18.0.99", "fd00:18::99"]
    assert list(WIRE.silent(conf(master="eth0"), asked, soon())) == ["172.18.0.99", "fd00:18::99"]


def test_a_network_without_a_parent_is_not_asked(uplink: Netns, in_host: Netns) -> None:
    assert WIRE.conflicts(conf(), ["172.18.0.1"], soon()) == {}
    assert WIRE.silent(conf(), ["172.18.0.99"], soon()) == []
    assert WIRE.conflicts(conf(master="nope"), ["172.18.0.1"], soon()) == {}
