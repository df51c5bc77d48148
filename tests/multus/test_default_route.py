from __future__ import annotations

import pytest

from underlay.delegate import default_route
from underlay.errors import KernelError
from underlay.net.netns import Namespace
from underlay.net.replay import replay
from underlay.net.undo import UndoLog


@pytest.fixture
def two_nics(pod, host):
    """A pod with eth0 in 10.244.7.0/24 and net1 in 172.18.0.0/16, both with IPv6 too, defaults through eth0."""
    for nic, peer, v4, v6 in (
        ("eth0", "h0", "10.244.7.9/24", "fd00:244::9/64"),
        ("net1", "h1", "172.18.8.1/16", "fd00:18::801/64"),
    ):
        pod.batch(
            f"link add {nic} type veth peer name {peer} netns {host.name}",
            f"link set {nic} up",
            f"addr add {v4} dev {nic}",
            f"addr add {v6} dev {nic} nodad",
        )
        host.batch(f"link set {peer} up")
    pod.batch(
        "route add default via 10.244.7.1",
        "route add default via 10.244.7.2 metric 50",
        "route add default via fd00:244::1 dev eth0",
        "route add default via 10.244.7.1 table 100",
    )
    return pod


def defaults(ns, family: str, table: str = "main") -> list[tuple[object, object, int]]:
    listed = ns.ip(family, "route", "show", "default", "table", table)
    return sorted((each.get("gateway"), each.get("dev"), len(each.get("nexthops", []))) for each in listed)


def move(ns, undo: UndoLog, gateways: tuple[str, ...]) -> None:
    with Namespace.open(ns.path) as opened:
        default_route.move(opened, undo, ifname="net1", gateways=gateways)


def take_back(ns, undo: UndoLog) -> None:
    with Namespace.open(ns.path) as opened, Namespace.current() as current:
        assert replay(undo.entries, host=current, pod=opened) == []


@pytest.fixture
def undo():
    return UndoLog(lambda entries: None)


def test_every_other_default_route_of_the_family_goes_and_is_put_back_by_the_undo(two_nics, snapshot, undo):
    before = snapshot(two_nics)
    move(two_nics, undo, ("172.18.0.1",))
    assert defaults(two_nics, "-4") == [("172.18.0.1", "net1", 0)]
    assert defaults(two_nics, "-4", "100") == [("10.244.7.1", "eth0", 0)]
    assert defaults(two_nics, "-6") == [("fd00:244::1", "eth0", 0)]
    for _ in range(2):  # the undo may be carried out again after a crash
        take_back(two_nics, undo)
        assert snapshot(two_nics) == before


def test_both_families_move_together(two_nics, snapshot, undo):
    before = snapshot(two_nics)
    move(two_nics, undo, ("172.18.0.1", "fd00:18::1"))
    assert defaults(two_nics, "-4") == [("172.18.0.1", "net1", 0)]
    assert defaults(two_nics, "-6") == [("fd00:18::1", "net1", 0)]
    take_back(two_nics, undo)
    assert snapshot(two_nics) == before


@pytest.mark.parametrize(
    ("family", "gateways"), [("-4", ("172.18.0.1", "172.18.0.2")), ("-6", ("fd00:18::1", "fd00:18::2"))]
)
def test_several_gateways_of_one_family_share_the_traffic(two_nics, snapshot, undo, family, gateways):
    before = snapshot(two_nics)
    move(two_nics, undo, gateways)
    (route,) = two_nics.ip(family, "route", "show", "default")
    assert sorted((hop["gateway"], hop["dev"]) for hop in route["nexthops"]) == [(each, "net1") for each in gateways]
    take_back(two_nics, undo)
    assert snapshot(two_nics) == before


def test_a_default_route_of_the_nic_itself_is_replaced_too(two_nics, snapshot, undo):
    two_nics.batch("route add default via 172.18.0.7 metric 7")
    before = snapshot(two_nics)
    move(two_nics, undo, ("172.18.0.1",))
    assert defaults(two_nics, "-4") == [("172.18.0.1", "net1", 0)]
    take_back(two_nics, undo)
    assert snapshot(two_nics) == before


def test_what_was_recorded_and_not_done_is_undone_to_nothing(two_nics, snapshot):
    class Crashed(Exception):
        pass

    def crash(entries):
        undo.entries.extend(entries)
        raise Crashed

    undo = UndoLog(crash)
    before = snapshot(two_nics)
    with pytest.raises(Crashed):
        move(two_nics, undo, ("172.18.0.1",))
    take_back(two_nics, undo)
    assert snapshot(two_nics) == before


def test_a_gateway_that_no_subnet_of_the_nic_holds_is_named(two_nics, snapshot, undo):
    before = snapshot(two_nics)
    with pytest.raises(KernelError, match=r"0\.0\.0\.0/0 via 192\.0\.2\.1.*net1"):
        move(two_nics, undo, ("192.0.2.1",))
    take_back(two_nics, undo)
    assert snapshot(two_nics) == before


def test_a_missing_nic_is_named(pod, undo):
    with pytest.raises(KernelError, match="net1"):
        move(pod, undo, ("172.18.0.1",))
    assert undo.entries == []
