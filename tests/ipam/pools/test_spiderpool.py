from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from tests.ipam.pools.conftest import Node, stateful
from tests.keep import Keep

from underlay.cni.address import Address
from underlay.cni.result import IPConfig, Result, Route
from underlay.errors import (
    AddressInUse,
    CheckFailed,
    GatewaySilent,
    InvalidConfig,
    NoAddressLeft,
    NotAvailable,
    PoolMissing,
    TryAgain,
)
from underlay.ipam.allocator import Holder
from underlay.ipam.pools.surroundings import Owner
from underlay.ipam.undo import Release

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def test_a_dual_stack_result_as_the_reference_gives_it_but_in_a_stable_order(node: Node) -> None:
    node.world.define("d4", subnet="172.31.0.0/16", ips=["172.31.80.10-172.31.80.60"], gateway="172.31.0.1",
                      routes=[{"dst": "10.99.0.0/16", "gw": "172.31.0.2"}])  # fmt: skip
    node.world.define("d6", subnet="fd00:31::/64", ips=["fd00:31::10-fd00:31::60"], gateway="fd00:31::1")
    result = node.add("dual-000", default_ipv4_ippool=["d4"], default_ipv6_ippool=["d6"])
    assert result == Result(
        ips=(IPConfig("172.31.80.10/16", "172.31.0.1"), IPConfig("fd00:31::10/64", "fd00:31::1")),
        routes=(
            Route("10.99.0.0/16", "172.31.0.2"),
            Route("0.0.0.0/0", "172.31.0.1"),
            Route("::/0", "fd00:31::1"),
        ),
    )


def test_the_pods_own_routes_come_first_and_count(node: Node) -> None:
    node.world.pod("p", routes=[{"dst": "0.0.0.0/0", "gw": "10.1.0.7"}, {"dst": "fd00::/8", "gw": "fd00::1"}])
    assert node.add("p").routes == (Route("0.0.0.0/0", "10.1.0.7"),)


def test_cleangateway_leaves_the_default_route_out(node: Node) -> None:
    node.world.pod("p", ippools=[{"ipv4": ["a"], "cleangateway": True}])
    result = node.add("p")
    assert result.ips == (IPConfig("10.1.0.10/16", "10.1.0.1"),)
    assert result.routes == ()


def test_add_twice_gives_the_same_address_and_records_no_second_release(node: Node) -> None:
    first = node.add("p")
    assert node.add("p") == first
    assert len(node.recorded) == 1
    assert len(node.leases.everything()) == 1


def test_what_is_recorded_takes_the_address_back_once(node: Node) -> None:
    node.add("p")
    (entry,) = node.recorded
    assert entry == Release("spiderpool", "", "", "p", "eth0", ("10.1.0.10",))
    node.plugin.release(entry, deadline=0.0)
    assert node.states() == {}
    assert node.address("q", "c2", uid="v") == "10.1.0.11"
    node.clock.wait(31)
    assert node.address("r", "c3") == "10.1.0.10"
    node.plugin.release(entry, deadline=0.0)  # late, and for another container's address by now
    assert node.states() == {"10.1.0.10": "held", "10.1.0.11": "held"}


def test_delete_twice_and_without_an_add_succeeds(node: Node) -> None:
    node.delete("never")
    node.add("p")
    node.add("p", ifname="net1")
    node.delete("p")
    node.delete("p")
    assert node.states() == {"10.1.0.11": "held"}


def test_leases_are_there_after_a_restart_and_what_rests_goes_on_resting(node: Node) -> None:
    assert node.address("p") == "10.1.0.10"
    assert node.address("q") == "10.1.0.11"
    node.delete("p")
    node.clock.wait(10)
    node.restart()
    assert node.address("q") == "10.1.0.11"
    assert node.address("r") == "10.1.0.12"
    node.clock.wait(25)
    assert node.address("s") == "10.1.0.10"


@pytest.mark.parametrize("jump", [-100_000.0, 100_000.0])
def test_a_clock_that_jumps_makes_an_address_rest_no_longer_than_once_more(node: Node, jump: float) -> None:
    node.add("p")
    node.delete("p")
    node.clock.real += jump
    node.restart()
    node.clock.wait(31)
    assert node.address("q") == "10.1.0.10"


def test_addresses_are_used_again_at_once_where_no_other_is_left(node: Node) -> None:
    for turn in range(3):
        assert len({node.address(f"p{turn}-{n}") for n in range(10)}) == 10
        with pytest.raises(NoAddressLeft, match="no free address in pool 'a'"):
            node.add("one-more")
        for n in range(10):
            node.delete(f"p{turn}-{n}")


def test_the_second_pool_is_the_fallback_of_the_first(node: Node) -> None:
    node.world.define("b", subnet="10.2.0.0/16", ips=["10.2.0.5"])
    node.world.pod("p", ippool={"ipv4": ["b", "a"]})
    node.world.pod("q", ippool={"ipv4": ["b", "a"]})
    assert [node.address("p"), node.address("q")] == ["10.2.0.5", "10.1.0.10"]


def test_one_family_exhausted_leaves_nothing_of_the_other_held(node: Node) -> None:
    node.world.define("six", subnet="fd00::/64", ips=["fd00::5"], default=True)
    node.add("p")
    with pytest.raises(NoAddressLeft, match="'six'"):
        node.add("q")
    assert len(node.leases.everything()) == 2
    assert node.recorded[1:] == []
    node.world.remove("six")
    assert node.address("r") == "10.1.0.11"  # never used, so it need not rest


def test_reserved_addresses_are_never_handed_out(node: Node) -> None:
    node.world.define("r", "SpiderReservedIP", ips=["10.1.0.10-10.1.0.12"])
    assert node.address("p") == "10.1.0.13"


def test_a_terminating_pool_hands_out_nothing_and_takes_back(node: Node) -> None:
    node.add("p")
    node.world.define("a", subnet="10.1.0.0/16", ips=["10.1.0.10-10.1.0.19"], default=True, deleted=True)
    with pytest.raises(PoolMissing, match="it is being deleted"):
        node.add("q")
    node.delete("p")
    assert node.states() == {}


def test_a_pool_deleted_under_a_pod_and_made_again(node: Node) -> None:
    node.add("p")
    node.world.remove("a")
    with pytest.raises(PoolMissing):
        node.add("q")
    node.world.define("a", subnet="10.1.0.0/16", ips=["10.1.0.10-10.1.0.11"], default=True)
    assert node.address("q") == "10.1.0.11"
    node.delete("p")
    assert node.states() == {"10.1.0.11": "held"}


def test_two_pools_with_overlapping_ranges_never_give_one_address_twice(node: Node) -> None:
    node.world.define("b", subnet="10.1.0.0/16", ips=["10.1.0.15-10.1.0.24"])
    node.world.pod("q", ippool={"ipv4": ["b"]})
    seen = [node.address("q", f"b{n}") for n in range(10)] + [node.address("p", f"a{n}") for n in range(5)]
    assert len(set(seen)) == 15
    with pytest.raises(NoAddressLeft):
        node.add("p", "a5")


def test_many_threads_get_exactly_the_addresses_there_are(node: Node) -> None:
    node.world.define("a", subnet="10.1.0.0/16", ips=["10.1.1.0-10.1.1.199"], default=True)
    found: list[str] = []
    failed: list[Exception] = []

    def work(number: int) -> None:
        for turn in range(10):
            try:
                found.append(node.address(f"p{number}-{turn}"))
            except NoAddressLeft as error:
                failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(21)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(set(found)) == 200
    assert len(failed) == 10
    node.restart()
    assert len(node.leases.everything()) == 200


# -- keeping -----------------------------------------------------------------------------------------------------------


def test_a_statefulset_pod_gets_its_address_back_after_restart_rebuild_and_long_absence(node: Node) -> None:
    node.world.pod("db-0", stateful())
    assert node.address("db-0", "old") == "10.1.0.10"
    node.delete("old")
    assert node.states() == {"10.1.0.10": "kept"}
    node.clock.wait(3600)
    assert node.address("web") == "10.1.0.11"
    node.restart()
    assert node.address("db-0", "new", uid="another") == "10.1.0.10"
    assert node.states() == {"10.1.0.10": "held", "10.1.0.11": "held"}


def test_scaling_down_frees_the_address(node: Node) -> None:
    node.world.pod("db-0", stateful())
    node.add("db-0")
    node.delete("db-0")
    node.plugin.tidy()
    assert node.states() == {"10.1.0.10": "kept"}
    node.world.gone.add("StatefulSet/default/db-0")
    node.plugin.tidy()
    assert node.states() == {}
    node.clock.wait(31)
    assert node.address("web") == "10.1.0.10"


def test_a_changed_annotation_moves_the_pod_and_frees_what_was_kept(node: Node) -> None:
    node.world.define("b", subnet="10.2.0.0/16", ips=["10.2.0.5"])
    node.world.pod("db-0", stateful())
    node.add("db-0", "one")
    node.delete("one")
    node.world.pod("db-0", stateful(), ippool={"ipv4": ["b"]})
    assert node.address("db-0", "two") == "10.2.0.5"
    assert node.states() == {"10.2.0.5": "held"}


def test_a_pod_whose_old_container_still_holds_its_address_gets_another_and_one_is_kept(node: Node) -> None:
    node.world.pod("db-0", stateful())
    assert node.address("db-0", "old") == "10.1.0.10"
    assert node.address("db-0", "new") == "10.1.0.11"
    node.delete("old")
    assert node.states() == {"10.1.0.11": "held"}
    node.delete("new")
    assert node.states() == {"10.1.0.11": "kept"}


def test_a_virtual_machine_keeps_its_address_though_its_pods_have_random_names(node: Node) -> None:
    machine = Owner("VirtualMachineInstance", "vm1")
    node.world.pod("virt-launcher-vm1-abcde", machine)
    node.world.pod("virt-launcher-vm1-fghij", machine)
    node.add("virt-launcher-vm1-abcde")
    node.delete("virt-launcher-vm1-abcde")
    assert node.address("other") == "10.1.0.11"
    assert node.address("virt-launcher-vm1-fghij") == "10.1.0.10"


def test_a_claim_keeps_the_address_for_whoever_names_it(node: Node) -> None:
    conf = msgspec.structs.replace(node.conf(), cni_args={"ipam-claim-reference": "vm1-net"})
    assert node.address("p", conf=conf) == "10.1.0.10"
    node.delete("p")
    assert node.address("q") == "10.1.0.11"
    assert node.address("r", conf=conf) == "10.1.0.10"


def test_a_deployments_pod_keeps_nothing(node: Node) -> None:
    node.world.pod("web-1-x", Owner("ReplicaSet", "web-1"))
    node.add("web-1-x")
    node.delete("web-1-x")
    assert node.states() == {}


def test_a_reserved_address_waits_for_its_pod_and_is_kept_again(node: Node) -> None:
    node.add("first")
    address = Address(4, (10 << 24) + (1 << 16) + 15)
    node.leases.keep(address, "a", "Reserved/default/vip")
    with pytest.raises(NoAddressLeft, match="kept for Reserved/default/vip"):
        node.leases.keep(address, "a", "Reserved/default/other")
    assert node.address("vip") == "10.1.0.15"
    node.delete("vip")
    assert node.states()["10.1.0.15"] == "kept"
    node.plugin.tidy()
    node.restart()
    assert node.address("vip", "again") == "10.1.0.15"


# -- subnets -----------------------------------------------------------------------------------------------------------


def test_an_application_gets_a_pool_of_its_own_from_a_subnet(node: Node) -> None:
    node.world.define("s", "SpiderSubnet", subnet="10.1.0.0/16", ips=["10.1.0.18-10.1.0.30"], gateway="10.1.0.1")
    for name in ("web-1-x", "web-1-y", "web-1-z"):
        node.world.pod(name, Owner("ReplicaSet", "web-1"), subnet={"ipv4": ["s"]}, ippool_ip_number="2")
    assert node.address("web-1-x") == "10.1.0.20"  # .18 and .19 are pool a's
    assert node.address("web-1-y") == "10.1.0.21"
    with pytest.raises(NoAddressLeft, match="auto4-web-1-eth0-"):
        node.add("web-1-z")
    node.restart()
    node.delete("web-1-x")
    assert node.address("web-1-z") == "10.1.0.20"
    node.delete("web-1-y")
    node.delete("web-1-z")
    node.plugin.tidy()
    assert node.plugin.cuts.pools(node.world.seen) == []


def test_a_flexible_pool_grows_with_its_pods_until_the_subnet_is_used(node: Node) -> None:
    node.world.define("s", "SpiderSubnet", subnet="10.3.0.0/16", ips=["10.3.0.1-10.3.0.4"])
    owner = Owner("ReplicaSet", "web-1")
    for n in range(5):
        node.world.pod(f"w{n}", owner, subnet={"ipv4": ["s"]}, ippool_ip_number="+1", ippool_reclaim="false")
    assert [node.address(f"w{n}") for n in range(4)] == ["10.3.0.1", "10.3.0.2", "10.3.0.3", "10.3.0.4"]
    with pytest.raises(NoAddressLeft, match="no address is left to cut for ReplicaSet/default/web-1"):
        node.add("w4")
    for n in range(4):
        node.delete(f"w{n}")
    node.plugin.tidy()
    assert len(node.plugin.cuts.pools(node.world.seen)) == 1


def test_a_statefulset_pod_comes_back_to_its_address_though_the_subnet_is_used_up(node: Node) -> None:
    node.world.define("s", "SpiderSubnet", subnet="10.3.0.0/16", ips=["10.3.0.1-10.3.0.2"])
    for name in ("db-0", "db-1"):
        node.world.pod(name, stateful(), subnet={"ipv4": ["s"]}, ippool_ip_number="+1")
        node.add(name)
    node.delete("db-0")
    assert node.states() == {"10.3.0.1": "kept", "10.3.0.2": "held"}
    assert node.address("db-0", "again") == "10.3.0.1"


def test_an_applications_pool_does_not_end_under_its_first_pod(node: Node) -> None:
    class Tidying(Wire):
        def conflicts(self, conf: object, addresses: Sequence[str], deadline: float) -> Mapping[str, str]:
            node.plugin.tidy()
            return {}

    node.world.define("s", "SpiderSubnet", subnet="10.3.0.0/16", ips=["10.3.0.1-10.3.0.2"])
    node.world.pod("w", Owner("ReplicaSet", "web-1"), subnet={"ipv4": ["s"]})
    node.wire = Tidying()
    node.restart()
    assert node.address("w", detectIPConflict=True) == "10.3.0.1"
    node.delete("w")
    node.plugin.tidy()
    assert node.plugin.cuts.pools(node.world.seen) == []


def test_a_flexible_pool_grows_with_pods_that_are_attached_at_the_same_time(node: Node) -> None:
    names, given = [f"w{n}" for n in range(4)], []

    class Meanwhile(Wire):
        def conflicts(self, conf: object, addresses: Sequence[str], deadline: float) -> Mapping[str, str]:
            if names:
                given.append(node.address(names.pop(), detectIPConflict=True))
            return {}

    node.world.define("s", "SpiderSubnet", subnet="10.3.0.0/16", ips=["10.3.0.1-10.3.0.9"])
    for name in names:
        node.world.pod(name, Owner("ReplicaSet", "web-1"), subnet={"ipv4": ["s"]}, ippool_ip_number="+1")
    node.wire = Meanwhile()
    node.restart()
    given.append(node.address(names.pop(), detectIPConflict=True))
    assert sorted(given) == ["10.3.0.1", "10.3.0.2", "10.3.0.3", "10.3.0.4"]


def test_an_application_that_outgrows_a_subnet_goes_on_in_the_next_and_the_first_stays_as_it_is(node: Node) -> None:
    node.world.define("s", "SpiderSubnet", subnet="10.3.0.0/24", ips=["10.3.0.5"], gateway="10.3.0.1")
    node.world.define("t", "SpiderSubnet", subnet="10.4.0.0/16", ips=["10.4.0.5-10.4.0.9"], gateway="10.4.0.1")
    for name in ("x", "y", "z"):
        node.world.pod(name, Owner("ReplicaSet", "web-1"), subnet={"ipv4": ["s", "t"]}, ippool_ip_number="+0")
    first = node.add("x")
    assert [ip.address for ip in first.ips] == ["10.3.0.5/24"]
    assert [ip.address for ip in node.add("y").ips] == ["10.4.0.5/16"]
    node.plugin.check(node.conf(prev=first), Holder("x", "eth0"), {})
    assert node.add("x") == first
    node.delete("x")
    assert node.address("z") == "10.3.0.5"


# -- other verbs -------------------------------------------------------------------------------------------------------


def test_check_compares_with_what_is_held_and_with_the_pool(node: Node) -> None:
    result = node.add("p")
    holder, conf = Holder("p", "eth0"), node.conf(prev=result)
    node.plugin.check(conf, holder, {})
    with pytest.raises(CheckFailed, match=r"does not list 10\.1\.0\.10/16"):
        node.plugin.check(node.conf(prev=Result(ips=(IPConfig("10.1.0.11/16"),))), holder, {})
    with pytest.raises(CheckFailed, match="holds no address"):
        node.plugin.check(conf, Holder("q", "eth0"), {})
    node.world.define("a", subnet="10.1.0.0/16", ips=["10.1.0.10"], gateway="10.1.0.2", default=True)
    with pytest.raises(CheckFailed, match="gateway"):
        node.plugin.check(conf, holder, {})
    node.world.define("a", subnet="10.1.0.0/16", ips=["10.1.0.19"], gateway="10.1.0.1", default=True)
    node.plugin.check(conf, holder, {})  # a pool that shrank takes nothing from a pod that runs
    node.world.remove("a")
    with pytest.raises(CheckFailed, match="does not exist any more"):
        node.plugin.check(conf, holder, {})


def test_gc_takes_back_what_this_network_alone_holds_and_nobody_lists(node: Node) -> None:
    node.add("p")
    node.add("q")
    node.add("r", name="other")
    node.plugin.gc(node.conf(), Keep({("q", "eth0")}), deadline=0.0)
    assert [lease.container_id for lease in node.leases.everything()] == ["q", "r"]


def test_status_says_whether_a_pod_could_be_served(node: Node) -> None:
    node.plugin.status(node.conf())
    with pytest.raises(NotAvailable, match="'nope'"):
        node.plugin.status(node.conf(default_ipv4_ippool=["nope"]))
    for n in range(10):
        node.add(f"p{n}")
    with pytest.raises(NotAvailable, match="no address is free in 'a'"):
        node.plugin.status(node.conf())
    node.world.remove("a")
    with pytest.raises(NotAvailable, match="no address pool"):
        node.plugin.status(node.conf())


def test_full_pools_are_no_fault_where_more_can_be_cut(node: Node) -> None:
    for n in range(10):
        node.add(f"p{n}")
    node.world.define("s", "SpiderSubnet", subnet="10.2.0.0/24", ips=["10.2.0.10-10.2.0.20"])
    node.plugin.status(node.conf())
    with pytest.raises(NotAvailable, match="no address is free in 'a'"):
        node.plugin.status(node.conf(default_ipv4_ippool=["a"]))


def test_after_a_reboot_nothing_is_held_but_what_is_kept(node: Node) -> None:
    node.world.pod("db-0", stateful())
    node.add("db-0")
    node.add("web")
    node.add("alive")
    node.boot = "boot-2"
    node.restart()
    node.plugin.after_reboot(frozenset({("alive", "eth0")}))
    assert node.states() == {"10.1.0.10": "kept", "10.1.0.12": "held"}


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_every_version_of_the_protocol_is_served(node: Node, version: str) -> None:
    assert node.address("p", version=version) == "10.1.0.10"


def test_numbers_of_the_section_may_be_strings(node: Node) -> None:
    node.add("p", log_level="DEBUG", log_file_path="/var/log/s.log", log_file_max_size="7", log_file_max_age=3)
    (options,) = (fields["to"] for _, event, fields in node.lines if event == "addresses held")
    assert (options.level, options.file, options.max_size, options.max_age, options.max_count) == (
        "debug", "/var/log/s.log", 7, 3, 10,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ipam", "field"),
    [
        ({"log_level": "loud"}, "ipam.log_level"),
        ({"log_file_path": "relative"}, "ipam.log_file_path"),
        ({"log_file_max_size": "many"}, "ipam.log_file_max_size"),
        ({"log_file_max_count": -1}, "ipam.log_file_max_count"),
        ({"default_ipv4_ippool": "a"}, "ipam.default_ipv4_ippool"),
    ],
)
def test_a_wrong_section_names_the_field(node: Node, ipam: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidConfig, match=field):
        node.add("p", **ipam)
    assert node.states() == {}


# -- the wire ----------------------------------------------------------------------------------------------------------


class Wire:
    """Hosts outside: address to MAC; gateways that answer."""

    def __init__(self, *outside: str, gateways: Sequence[str] = ()) -> None:
        self.outside = {address: f"02:00:00:00:00:{n:02}" for n, address in enumerate(outside)}
        self.gateways = gateways

    def conflicts(self, conf: object, addresses: Sequence[str], deadline: float) -> Mapping[str, str]:
        return {address: self.outside[address] for address in addresses if address in self.outside}

    def silent(self, conf: object, gateways: Sequence[str], deadline: float) -> Sequence[str]:
        return [gateway for gateway in gateways if gateway not in self.gateways]


def test_an_address_that_somebody_outside_uses_is_set_aside_and_the_next_one_taken(node: Node) -> None:
    node.wire = Wire("10.1.0.10", "10.1.0.11")
    node.restart()
    assert node.address("p", detectIPConflict=True) == "10.1.0.12"
    told = [fields for level, event, fields in node.lines if event == "address in use by a host outside"]
    assert [(each["address"], each["mac"]) for each in told] == [
        ("10.1.0.10", "02:00:00:00:00:00"), ("10.1.0.11", "02:00:00:00:00:01"),
    ]  # fmt: skip
    node.restart()
    assert node.address("q") == "10.1.0.13"
    node.clock.wait(601)
    node.wire = Wire()
    assert node.address("r") == "10.1.0.10"


def test_the_pods_owner_is_told_of_each_address_that_is_used_outside(node: Node) -> None:
    node.wire = Wire("10.1.0.10", "10.1.0.11")
    node.restart()
    node.add("p", uid="uid-7", detectIPConflict=True)
    assert [each[:3] for each in node.told] == [("default/p", "uid-7", "IPConflict")] * 2
    assert node.told[0][3].startswith("10.1.0.10 of pool 'a' is in use by 02:00:00:00:00:00 outside")
    assert node.told[1][3].startswith("10.1.0.11 of pool 'a' is in use by 02:00:00:00:00:01 outside")


def test_a_container_without_a_pod_has_no_owner_to_tell(node: Node) -> None:
    node.wire = Wire("10.1.0.10")
    node.restart()
    conf = node.conf(detectIPConflict=True)
    added = node.plugin.add(conf, Holder("c", "eth0"), {}, record=node.recorded.append, deadline=time.monotonic() + 10)
    assert [ip.address for ip in added.ips] == ["10.1.0.11/16"]
    assert node.told == []


def test_without_the_setting_nobody_is_asked(node: Node) -> None:
    node.wire = Wire("10.1.0.10")
    node.restart()
    assert node.address("p") == "10.1.0.10"


def test_a_wire_full_of_strangers_ends_the_add_and_leaves_nothing(node: Node) -> None:
    node.wire = Wire(*(f"10.1.0.{n}" for n in range(10, 20)))
    node.restart()
    with pytest.raises(AddressInUse, match="8 addresses before it"):
        node.add("p", detectIPConflict=True)
    assert node.states() == {}
    assert node.recorded == []
    told = [message for _, _, reason, message in node.told if reason == "IPConflict"]
    assert [message.split()[0] for message in told] == [f"10.1.0.{n}" for n in range(10, 19)]
    assert all("the next address is tried" in message for message in told[:-1])
    assert "no further one is tried" in told[-1]


def test_what_comes_in_the_place_of_a_reserved_address_in_use_outside_is_reserved_for_nobody(node: Node) -> None:
    node.leases.keep(Address(4, (10 << 24) + (1 << 16) + 15), "a", "Reserved/default/vip")
    node.wire = Wire("10.1.0.15")
    node.restart()
    assert node.address("vip", detectIPConflict=True) == "10.1.0.10"
    node.delete("vip")
    assert node.states() == {}


def test_a_gateway_that_does_not_answer_fails_the_add(node: Node) -> None:
    node.wire = Wire(gateways=("10.1.0.1",))
    node.restart()
    node.add("p", detectGateway=True)
    node.wire.gateways = ()
    with pytest.raises(GatewaySilent, match=r"10\.1\.0\.1"):
        node.add("q", detectGateway=True)
    assert list(node.states()) == ["10.1.0.10"]


def test_a_pool_that_goes_while_a_pod_holds_its_address_fails_a_second_add_for_now(node: Node) -> None:
    node.world.define("b", subnet="10.2.0.0/16", ips=["10.2.0.5"])
    node.world.pod("p", ippool={"ipv4": ["b"]})
    node.add("p")
    node.world.remove("b")
    node.world.pod("p")
    with pytest.raises(TryAgain, match="'b' has gone"):
        node.add("p")
