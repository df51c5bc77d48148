"""Names and sizes of applications' pools, and the pools of a cluster, which the controller makes."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from underlay.errors import InvalidAnnotation, TryAgain
from underlay.ipam.pools import intervals
from underlay.ipam.pools.applications import MadePools, asked, fitted, name_of, nic_of
from underlay.ipam.pools.choose import Ask, choose
from underlay.ipam.pools.objects import parse_object
from underlay.ipam.pools.surroundings import Catalogue, Owner, Subject
from underlay.kube.objects import is_subdomain

P = "ipam.spidernet.io/"
BOTH = {f"{P}subnets": '[{"interface": "net1", "ipv4": ["a", "b"]}, {"interface": "net2", "ipv6": ["c"]}]'}


def subject(**annotations: str) -> Subject:
    told = {P + key.replace("_", "-"): value for key, value in annotations.items()}
    return Subject("shop", "web-5d9f-x", annotations=told, owner=Owner("StatefulSet", "web"))


def test_what_a_pod_asks_for_is_told_nic_by_nic():
    first, second = asked({**BOTH, f"{P}ippool-ip-number": "3", f"{P}ippool-reclaim": "false"})
    assert (first.nic, first.subnets, first.number.count, first.number.flexible) == ("net1", {4: ("a", "b")}, 3, False)
    assert (second.nic, second.subnets, second.reclaim) == ("net2", {6: ("c",)}, False)
    (single,) = asked({f"{P}subnet": '{"ipv4": ["a"], "ipv6": ["c"]}'})
    assert (single.nic, single.subnets, single.number.count) == ("eth0", {4: ("a",), 6: ("c",)}, 1)
    assert asked({f"{P}ippool": "{}"}) == []
    assert [one.nic for one in asked({f"{P}subnets": '[{"ipv4": ["a"]}]'})] == ["eth0"]


@pytest.mark.parametrize("annotations", [
    {f"{P}subnets": "["}, {f"{P}subnet": "[]"}, {f"{P}subnets": '[{"ipv4": ["a"]}, {"ipv4": ["a"]}]'},
    {f"{P}subnet": '{"ipv4": ["a"]}', f"{P}ippool-ip-number": "x"},
])  # fmt: skip
def test_what_is_wrong_is_said(annotations):
    with pytest.raises(InvalidAnnotation):
        asked(annotations)


@pytest.mark.parametrize(("annotations", "ifname", "nic"), [
    (BOTH, "net2", "net2"), ({f"{P}subnet": '{"ipv4": ["a"]}'}, "net1", "eth0"),
    ({f"{P}subnets": '[{"ipv4": ["a"]}]'}, "net1", "eth0"), ({f"{P}subnets": "["}, "net1", "eth0"),
])  # fmt: skip
def test_controller_and_node_name_a_nics_pool_alike(annotations, ifname, nic):
    assert nic_of(annotations, ifname) == nic


@given(st.text(min_size=1, max_size=80), st.from_regex(re.compile(r"[A-Za-z0-9_.-]{1,15}", re.ASCII), fullmatch=True))
def test_a_pools_name_is_one_that_an_object_may_have(name, nic):
    made = name_of(Subject("shop", "x", owner=Owner("StatefulSet", name)), nic, 4, "s")
    assert is_subdomain(made)
    assert made != name_of(Subject("shop", "x", owner=Owner("StatefulSet", name)), nic, 4, "t")


VALUES = st.sets(st.integers(0, 40))


def of(values: set[int]) -> intervals.Intervals:
    return intervals.union((value, value) for value in values)


def values(of: intervals.Intervals) -> set[int]:
    return {value for start, end in of for value in range(start, end + 1)}


@given(VALUES, st.integers(0, 30), VALUES, VALUES)
def test_a_pool_is_fitted_to_its_size_as_far_as_it_can_be(have, wanted, free, used):
    after = values(fitted(of(have), wanted, of(free), used))
    assert after <= have | free
    assert have & used <= after  # what is in use is never taken out
    if wanted >= len(have):
        assert have <= after
        assert len(after) == min(wanted, len(have | free))
    else:
        assert after <= have
        assert len(after) == max(wanted, len(have & used))


# -- the node's side ---------------------------------------------------------------------------------------------------


def catalogue(*pools: Any) -> Catalogue:
    subnet = parse_object({"kind": "SpiderSubnet", "metadata": {"name": "a"},
                           "spec": {"subnet": "10.0.0.0/24", "ips": ["10.0.0.10-10.0.0.99"]}})  # fmt: skip
    return Catalogue({pool.name: pool for pool in pools}, (), {"a": subnet})  # type: ignore[dict-item]


def a_pool(name: str, **metadata: Any) -> Any:
    spec = {"subnet": "10.0.0.0/24", "ips": ["10.0.0.10-10.0.0.11"]}
    return parse_object({"kind": "SpiderIPPool", "metadata": {"name": name, **metadata}, "spec": spec})


def served(who: Subject, ifname: str, known: Catalogue) -> list[str]:
    from underlay.cni.address import Address
    from underlay.ipam.pools.lease import HELD, Lease

    choice = choose(Ask(who, ifname), known)
    lease = Lease(Address(0, 0), "", HELD, ifname=ifname)
    found = MadePools().serve(choice, who, lease, known, None)  # type: ignore[arg-type]
    return [pool.name for pools in found.values() for pool in pools]


def test_the_pool_that_the_controller_has_made_is_found_by_its_name():
    web = subject(subnet='{"ipv4": ["a"]}')
    name = name_of(web, "eth0", 4, "a")
    assert served(web, "net1", catalogue(a_pool("other"), a_pool(name))) == [name]


@pytest.mark.parametrize("metadata", [None, {"deletionTimestamp": "now"}])
def test_one_that_is_not_there_yet_is_waited_for(metadata):
    web = subject(subnet='{"ipv4": ["a"]}')
    name = name_of(web, "eth0", 4, "a")
    pools = [] if metadata is None else [a_pool(name, **metadata)]
    with pytest.raises(TryAgain, match=f"SpiderIPPool '{name}', to be cut from SpiderSubnet 'a', is not there yet"):
        served(web, "net1", catalogue(*pools))


def test_who_waits_for_a_pool_lends_its_place_meanwhile():
    lent = []

    @contextmanager
    def lend():
        lent.append("begin")
        yield
        lent.append("end")

    MadePools(lend).pause()
    assert lent == ["begin", "end"]
