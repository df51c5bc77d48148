"""Address pools judged among the others of their cluster: reviews in, answers out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from underlay.cni.address import parse
from underlay.daemon.builtin import ALLOCATORS, PLUGINS
from underlay.ipam.pools.lease import HELD, Lease
from underlay.ipam.pools.objects import Pool, Subnet, parse_object
from underlay.multus.lint import Linter
from underlay.multus.lint_pools import Around
from underlay.webhook.admission import answer

LINTER = Linter(PLUGINS, ALLOCATORS)
SUBNET = "10.0.0.0/24"


def pool(name: str = "p", ips: str = "10.0.0.10-10.0.0.19", subnet: str = SUBNET, **metadata: Any) -> dict[str, Any]:
    return {"kind": "SpiderIPPool", "metadata": {"name": name, **metadata}, "spec": {"subnet": subnet, "ips": [ips]}}


def subnet(name: str = "s", ips: str = "10.0.0.10-10.0.0.99", cidr: str = SUBNET) -> dict[str, Any]:
    return {"kind": "SpiderSubnet", "metadata": {"name": name}, "spec": {"subnet": cidr, "ips": [ips]}}


def lease(address: str, pool: str = "p", pod: str = "shop/web") -> Lease:
    found = parse(address)
    assert found is not None
    return Lease(found, pool, HELD, pod=pod, ifname="net1")


def around(*things: dict[str, Any] | Lease) -> Around:
    read = [parse_object(each) for each in things if isinstance(each, dict)]
    leases: dict[str, list[Lease]] = {}
    for each in things:
        if isinstance(each, Lease):
            leases.setdefault(each.pool, []).append(each)
    pools = {each.name: each for each in read if isinstance(each, Pool)}
    return Around(pools, {each.name: each for each in read if isinstance(each, Subnet)}, leases)


def judge(
    new: dict[str, Any] | None, known: Around | None, *, old: dict[str, Any] | None = None, operation: str = ""
) -> dict[str, Any]:
    meant = new or old
    assert meant is not None
    request = {
        "uid": "u-1", "name": meant["metadata"]["name"], "object": new, "oldObject": old,
        "kind": {"group": "spiderpool.spidernet.io", "version": "v2beta1", "kind": meant["kind"]},
        "operation": operation or ("UPDATE" if new and old else "CREATE" if new else "DELETE"),
    }  # fmt: skip
    raw = json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).encode()
    return json.loads(answer(raw, LINTER, lambda: known).body)["response"]


def words(response: dict[str, Any]) -> str:
    assert not response["allowed"]
    return str(response["status"]["message"])


def test_a_pool_among_others_that_it_does_not_touch_is_allowed():
    assert judge(pool("q", "10.0.0.20-10.0.0.29"), around(pool(), subnet()))["allowed"]


def test_a_pool_that_overlaps_another_of_its_subnet_is_refused():
    said = words(judge(pool("q", "10.0.0.19-10.0.0.29"), around(pool())))
    assert said.startswith("spec.ips: its addresses overlap those of SpiderIPPool 'p', from 10.0.0.19 on (Part ")


def test_a_pool_that_overlaps_one_of_another_subnet_is_warned_of():
    response = judge(pool("q", "10.0.0.19", subnet="10.0.0.0/16"), around(pool()))
    assert response["allowed"]
    assert "handed out once, by whichever pool comes first" in response["warnings"][0]


def test_a_pool_does_not_overlap_itself():
    assert judge(pool(ips="10.0.0.10-10.0.0.25"), around(pool()), old=pool()) == {"uid": "u-1", "allowed": True}


def test_an_overlap_from_before_does_not_keep_the_pool_from_being_changed():
    bad = pool("q", "10.0.0.19-10.0.0.29")
    response = judge({**bad, "spec": {**bad["spec"], "disable": True}}, around(pool(), bad), old=bad)
    assert response["allowed"]
    assert "overlap" in response["warnings"][0]


def test_a_pool_keeps_to_what_the_subnet_of_its_cidr_lists():
    said = words(judge(pool(ips="10.0.0.98-10.0.0.101"), around(subnet())))
    assert "SpiderSubnet 's' does not list 10.0.0.100-10.0.0.101" in said
    assert judge(pool(ips="10.1.0.98", subnet="10.1.0.0/24"), around(subnet()))["allowed"]


@pytest.mark.parametrize("cidr", ["10.0.0.0/24", "10.0.0.0/16", "10.0.0.128/25"])
def test_subnets_do_not_overlap(cidr):
    first = cidr.rpartition(".")[0] + ".200"
    assert "overlaps 10.0.0.0/24 of SpiderSubnet 's'" in words(judge(subnet("t", first, cidr), around(subnet())))
    assert judge(subnet("t", "10.0.1.5", "10.0.1.0/24"), around(subnet()))["allowed"]


def test_addresses_in_use_are_not_taken_out():
    known = around(pool(), *(lease(f"10.0.0.{n}") for n in range(15, 20)))
    said = words(judge(pool(ips="10.0.0.10-10.0.0.14"), known, old=pool()))
    assert "spec.ips: it takes out addresses in use: 10.0.0.15 is held by pod shop/web (net1), " in said
    assert "and 2 more" in said
    assert judge(pool(ips="10.0.0.15-10.0.0.30"), known, old=pool())["allowed"]


def test_excluding_takes_out_too():
    excluding = pool()
    excluding["spec"]["excludeIPs"] = ["10.0.0.15"]
    assert "in use" in words(judge(excluding, around(pool(), lease("10.0.0.15")), old=pool()))


def test_what_pools_have_is_not_taken_out_of_their_subnet():
    known = around(subnet(), pool())
    said = words(judge(subnet(ips="10.0.0.15-10.0.0.99"), known, old=subnet()))
    assert "it takes out 10.0.0.10-10.0.0.14, which SpiderIPPool 'p' lists" in said


def test_a_pool_in_use_is_not_deleted():
    known = around(pool(), lease("10.0.0.15"))
    assert words(judge(None, known, old=pool())).startswith("it is in use: 10.0.0.15 is held by pod shop/web (net1) (")
    assert judge(None, around(pool()), old=pool())["allowed"]
    assert judge(None, known, old=pool(deletionTimestamp="now"))["allowed"]


def test_a_subnet_with_pools_is_not_deleted():
    assert "pools were cut from it: p" in words(judge(None, around(subnet(), pool()), old=subnet()))
    assert judge(None, around(subnet()), old=subnet())["allowed"]


def test_reserving_what_is_in_use_is_warned_of():
    reserved = {"kind": "SpiderReservedIP", "metadata": {"name": "r"}, "spec": {"ips": ["10.0.0.10-10.0.0.20"]}}
    response = judge(reserved, around(pool(), lease("10.0.0.15")))
    assert response["allowed"]
    assert "10.0.0.15 is held by pod shop/web (net1)" in response["warnings"][0]


def test_without_knowledge_of_the_cluster_the_fields_alone_are_judged():
    assert judge(pool("q", "10.0.0.19"), None)["allowed"]
    assert judge(None, None, old=pool())["allowed"]
    assert "spec.ips[0]" in words(judge(pool(ips="10.9.0.1"), None))
