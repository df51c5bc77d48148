"""What statuses and SpiderEndpoints are to say, of pictures of a cluster."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.controller.pictures import Object, endpoint, lease, picture, pod, pool, subnet

from underlay.controller import views
from underlay.controller.view_writes import of_views
from underlay.ipam.pools.lease import ASIDE, KEPT


def test_a_pools_status_is_the_documented_one():
    known = picture(
        pool("d4", subnet="172.31.0.0/16", ips=["172.31.80.10-172.31.80.60"], gateway="172.31.0.1"),
        lease("172.31.80.10", "d4", "default/dual-000", uid="8ee6d403"),
    )
    assert views.pool_statuses(known) == {
        "d4": {
            "totalIPCount": 51,
            "allocatedIPCount": 1,
            "allocatedIPs": '{"172.31.80.10":{"pod":"default/dual-000","podUid":"8ee6d403","state":"held"}}',
        }
    }


def test_a_pool_without_leases_lists_none():
    assert views.pool_statuses(picture(pool())) == {"p": {"totalIPCount": 10, "allocatedIPCount": 0}}


def test_kept_addresses_are_allocated_and_those_set_aside_are_not():
    known = picture(
        pool(),
        lease("10.0.0.11", pod="", keeper="StatefulSet/shop/db-0", state=KEPT),
        lease("10.0.0.12", pod="", state=ASIDE, keeper="02:00:00:00:00:01"),
    )
    status = views.pool_statuses(known)["p"]
    assert (status["allocatedIPCount"], list(json.loads(status["allocatedIPs"]))) == (1, ["10.0.0.11"])
    assert json.loads(status["allocatedIPs"])["10.0.0.11"]["pod"] == "shop/db-0"


def test_addresses_are_listed_by_number_and_a_pool_that_cannot_be_read_says_nothing():
    known = picture(pool(), pool("bad", ips=["x"]), lease("10.0.0.19"), lease("10.0.0.9"), lease("10.0.0.10"))
    assert list(json.loads(views.pool_statuses(known)["p"]["allocatedIPs"])) == ["10.0.0.9", "10.0.0.10", "10.0.0.19"]
    assert "bad" not in views.pool_statuses(known)


def test_a_status_stays_below_what_the_api_server_takes(monkeypatch):
    monkeypatch.setattr(views, "LISTED_BYTES", 200)
    known = picture(pool(), *(lease(f"10.0.0.{n}") for n in range(10, 20)))
    status = views.pool_statuses(known)["p"]
    assert status["allocatedIPCount"] == 10
    assert len(status["allocatedIPs"]) <= 200
    assert json.loads(status["allocatedIPs"])


def test_a_subnets_pools_are_those_of_its_cidr():
    labels = {f"ipam.spidernet.io/owner-application-{key}": value for key, value in
              {"gv": "apps_v1", "kind": "Deployment", "namespace": "shop", "name": "web"}.items()}  # fmt: skip
    known = picture(subnet(), pool("auto", metadata={"labels": labels}), pool("else", subnet="10.0.0.0/16"))
    status = views.subnet_statuses(known)["s"]
    assert (status["totalIPCount"], status["allocatedIPCount"]) == (90, 10)
    assert json.loads(status["controlledIPPools"]) == {
        "auto": {"ips": ["10.0.0.10-10.0.0.19"], "application": "apps_v1:Deployment:shop:web"}
    }


DUAL = (
    pool("d4", subnet="172.31.0.0/16", ips=["172.31.80.10-172.31.80.60"], gateway="172.31.0.1",
         routes=[{"dst": "10.99.0.0/16", "gw": "172.31.0.2"}]),
    pool("d6", subnet="fd00:31::/64", ips=["fd00:31::10-fd00:31::60"], gateway="fd00:31::1"),
    lease("fd00:31::10", "d6", "default/dual-000", node="node1", uid="8ee6d403"),
    lease("172.31.80.10", "d4", "default/dual-000", node="node1", uid="8ee6d403"),
)  # fmt: skip


def test_an_endpoint_is_the_documented_one():
    assert views.endpoints(picture(*DUAL, pod("dual-000", uid="8ee6d403"))) == {
        ("default", "dual-000"): {
            "current": {
                "ips": [
                    {
                        "cleanGateway": False, "interface": "net1",
                        "ipv4": "172.31.80.10/16", "ipv4Gateway": "172.31.0.1", "ipv4Pool": "d4",
                        "ipv6": "fd00:31::10/64", "ipv6Gateway": "fd00:31::1", "ipv6Pool": "d6",
                        "routes": [{"dst": "10.99.0.0/16", "gw": "172.31.0.2"}], "vlan": 0,
                    }
                ],
                "node": "node1",
                "uid": "8ee6d403",
            },
            "ownerControllerName": "dual-000",
            "ownerControllerType": "Pod",
        }
    }  # fmt: skip


def only(known: Any) -> tuple[tuple[str, str], dict[str, Any]]:
    ((key, status),) = views.endpoints(known).items()
    return key, status


def test_the_owner_is_the_deployment_and_not_its_replica_set():
    web = pod("web", owner=("ReplicaSet", "shop-5d9f"), labels={"pod-template-hash": "5d9f"})
    _, status = only(picture(pool(), lease("10.0.0.10"), web))
    assert (status["ownerControllerType"], status["ownerControllerName"]) == ("Deployment", "shop")


def test_what_the_pod_asked_for_itself_is_told():
    annotations = {
        "ipam.spidernet.io/ippools": '[{"interface": "net1", "ipv4": ["p"], "cleangateway": true}]',
        "ipam.spidernet.io/routes": '[{"dst": "10.7.0.0/16", "gw": "10.0.0.1"}]',
    }
    _, status = only(picture(pool(), lease("10.0.0.10"), pod("web", annotations=annotations)))
    assert status["current"]["ips"][0]["cleanGateway"] is True
    assert status["current"]["ips"][0]["routes"] == [{"dst": "10.7.0.0/16", "gw": "10.0.0.1"}]


def test_an_annotation_that_has_become_wrong_takes_no_endpoint_away():
    wrong = pod("web", annotations={"ipam.spidernet.io/routes": "["})
    assert only(picture(pool(), lease("10.0.0.10"), wrong))[1]["current"]["ips"][0]["ipv4"] == "10.0.0.10/24"


def test_several_nics_are_in_their_order_and_a_pool_that_is_gone_is_still_named():
    known = picture(pool(), lease("10.0.0.11", ifname="net2"), lease("10.9.0.1", "gone", ifname="net1"), pod("web"))
    ips = only(known)[1]["current"]["ips"]
    assert [(ip["interface"], ip["ipv4"], ip["ipv4Pool"]) for ip in ips] == [
        ("net1", "10.9.0.1/32", "gone"), ("net2", "10.0.0.11/24", "p"),
    ]  # fmt: skip


def test_a_set_pods_endpoint_stays_while_its_address_is_kept():
    kept = lease("10.0.0.10", pod="shop/db-0", state=KEPT, keeper="StatefulSet/shop/db-0")
    key, status = only(picture(pool(), kept))
    assert key == ("shop", "db-0")
    assert (status["ownerControllerType"], status["ownerControllerName"]) == ("StatefulSet", "db")
    assert views.forgotten(picture(pool(), endpoint("db-0", namespace="shop")), {}) == [("shop", "db-0")]


def test_a_machines_endpoint_is_named_as_the_machine():
    held = lease("10.0.0.10", pod="shop/virt-launcher-vm-x7", keeper="VirtualMachine/shop/vm")
    launcher = pod("virt-launcher-vm-x7", "shop", owner=("VirtualMachineInstance", "vm"))
    assert only(picture(pool(), held, launcher))[0] == ("shop", "vm")
    assert views.forgotten(picture(endpoint("vm", namespace="shop"), launcher), {}) == []


def test_a_reservation_has_no_endpoint_and_a_container_without_a_pod_neither():
    known = picture(
        pool(), lease("10.0.0.10", pod="", state=KEPT, keeper="Reserved/default/web"), lease("10.0.0.11", pod="")
    )
    assert views.endpoints(known) == {}


def test_of_an_old_and_a_new_pod_of_one_name_the_one_there_is_counts():
    old, new = lease("10.0.0.10", uid="old", since=9), lease("10.0.0.11", uid="new", since=1)
    assert only(picture(pool(), old, new, pod("web", uid="new")))[1]["current"]["uid"] == "new"
    assert only(picture(pool(), old, new))[1]["current"]["uid"] == "old"  # the later one, where none is known


def test_a_moved_pods_old_address_is_not_listed_while_it_is_still_kept():
    keeper = "StatefulSet/default/db-0"
    known = picture(
        pool(),
        lease("10.0.0.10", pod="default/db-0", state=KEPT, keeper=keeper, uid="u"),
        lease("10.0.0.12", pod="default/db-0", keeper=keeper, node="n2", uid="u"),
    )
    current = only(known)[1]["current"]
    assert [ip["ipv4"] for ip in current["ips"]] == ["10.0.0.12/24"]
    assert current["node"] == "n2"


# -- writes ------------------------------------------------------------------------------------------------------------


def shown(known: Any) -> list[tuple[str, str, Any]]:
    return [(each.method, str(each.thing), json.loads(each.body)) for each in of_views(known)]


def same(known: Any) -> list[Object]:
    """The objects as they are once everything has been written."""
    pools = [pool(name, status) for name, status in views.pool_statuses(known).items()]
    return [*pools, *(endpoint(name, status) for (_, name), status in views.endpoints(known).items())]


def test_nothing_is_written_where_the_objects_say_it_already():
    around = (lease("10.0.0.10"), pod("web"))
    known = picture(pool(), *around)
    assert len(shown(known)) == 2
    assert shown(picture(*same(known), *around)) == []


def test_a_status_is_changed_by_what_differs_and_conditions_are_another_ones():
    before = {"totalIPCount": 10, "allocatedIPCount": 1, "allocatedIPs": "{}", "conditions": [{"type": "Valid"}]}
    assert shown(picture(pool(status=before))) == [
        ("PATCH", "spiderippools/p/status",
         {"metadata": {"uid": "uid-p"}, "status": {"allocatedIPCount": 0, "allocatedIPs": None}}),
    ]  # fmt: skip


def test_an_endpoint_is_made_changed_and_removed():
    ((method, thing, body),) = list(shown(picture(lease("10.0.0.10"), pod("web"))))
    assert (method, thing, body["kind"]) == ("POST", "spiderendpoints/default/web", "SpiderEndpoint")
    assert "ownerReferences" not in body["metadata"]
    ((method, _, body),) = shown(picture(lease("10.0.0.10"), pod("web"), endpoint("web", {"current": {"x": 1}})))
    assert method == "PATCH"
    assert body["status"]["current"]["x"] is None
    assert shown(picture(endpoint("web"))) == [
        ("DELETE", "spiderendpoints/default/web",
         {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": "uid-web"}}),
    ]  # fmt: skip


def test_an_endpoint_of_a_pod_that_is_there_stays_without_addresses():
    """Those that another IPAM made are not ours to take from a pod that lives."""
    assert shown(picture(endpoint("web"), pod("web"))) == []


def test_the_finalizer_is_taken_off_what_is_to_go_and_others_are_left():
    theirs = endpoint("web", finalizers=["spiderpool.spidernet.io", "x/y"], deletionTimestamp="now")
    assert shown(picture(theirs)) == [
        ("PATCH", "spiderendpoints/default/web/metadata",
         {"metadata": {"finalizers": ["x/y"], "uid": "uid-web", "resourceVersion": "1"}}),
    ]  # fmt: skip
    assert shown(picture(endpoint("web", finalizers=["x/y"], deletionTimestamp="now"))) == []


@pytest.mark.parametrize("number", [10_000])
def test_ten_thousand_leases_are_a_matter_of_moments(number):
    import time

    leases = [lease(f"10.0.{n >> 8}.{n & 255}", pod=f"default/p{n}") for n in range(number)]
    known = picture(pool(subnet="10.0.0.0/16", ips=["10.0.0.0-10.0.255.255"]), *leases,
                    *(pod(f"p{n}") for n in range(number)))  # fmt: skip
    began = time.monotonic()
    assert len(list(of_views(known))) == number + 1
    spent = time.monotonic() - began
    print(f"{number} leases: {spent:.3f} s")
    assert spent < 5
