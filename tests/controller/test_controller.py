"""The whole controller against an API server over HTTP: nodes report, objects say so; one leads, the other follows."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

from tests.controller.at_the_server import a_pool, owned_pools, put_blocks, status
from tests.controller.pictures import lease
from tests.kube.api_objects import BLOCKS, ENDPOINTS, LEASES, PODS, POOLS, RESERVED, SUBNETS
from tests.kube.api_server import Fault
from tests.kube.api_server import pod as a_pod
from tests.kube.cluster_bench import QUICK, until

from underlay.controller import upkeep

F = "spiderpool.spidernet.io"


def test_what_nodes_report_is_seen_in_the_pool_and_in_an_endpoint(server, controller):
    a_pool(server)
    server.put("nodes", {"metadata": {"name": "n1"}})
    server.put(PODS, a_pod("web", node="n1", uid="uid-web"))
    put_blocks(server, lease("10.0.0.10"))
    running = controller()
    assert until(lambda: status(server).get("allocatedIPCount") == 1)
    assert json.loads(status(server)["allocatedIPs"]) == {
        "10.0.0.10": {"pod": "default/web", "podUid": "uid-web", "state": "held"}
    }
    assert until(lambda: server.get(ENDPOINTS, "default", "web"))
    assert until(lambda: {each["type"] for each in status(server).get("conditions", ())} == {"Valid"})
    assert until(lambda: server.get(POOLS, "", "p")["metadata"].get("finalizers") == [F])
    assert server.get(POOLS, "", "p")["spec"]["ipVersion"] == 4
    assert (running.fault(), running.stuck()) == ("", "")

    server.delete(PODS, "default", "web")
    put_blocks(server, lease("10.0.0.10", node="n1").__class__("10.0.0.10", "n1"))
    assert until(lambda: status(server).get("allocatedIPCount") == 0)
    assert "allocatedIPs" not in status(server)
    assert until(lambda: server.get(ENDPOINTS, "default", "web") is None)


def test_a_cluster_at_rest_costs_no_writes(server, controller):
    a_pool(server)
    server.put(RESERVED, {"metadata": {"name": "r"}, "spec": {"ips": ["10.0.0.10-10.0.0.11"]}})
    server.put("nodes", {"metadata": {"name": "n1"}})
    server.put(PODS, a_pod("web", node="n1", uid="uid-web"))
    put_blocks(server, lease("10.0.0.10"))
    controller()
    assert until(lambda: server.get(RESERVED, "", "r").get("status"))
    assert until(lambda: server.get(ENDPOINTS, "default", "web") and status(server).get("conditions"))
    time.sleep(0.5)
    before = [each for each in server.requests if each.verb not in ("list", "watch", "get")]
    time.sleep(1.0)
    after = [each for each in server.requests if each.verb not in ("list", "watch", "get")]
    assert {each.resource for each in after[len(before) :]} <= {LEASES}


def test_of_two_one_writes_and_the_other_goes_on_where_it_stopped(server, controller):
    one = controller()
    assert until(one.leads)
    two = controller()
    a_pool(server)
    assert until(lambda: status(server).get("totalIPCount") == 10)
    assert (one.leads(), two.leads()) == (True, False)
    one.stop()
    a_pool(server, "q")
    assert until(two.leads)
    assert until(lambda: status(server, "q").get("totalIPCount") == 10)


def test_a_pool_in_deletion_goes_when_its_last_address_is_free(server, controller):
    a_pool(server)
    server.put("nodes", {"metadata": {"name": "n1"}})
    put_blocks(server, lease("10.0.0.10"))
    controller()
    assert until(lambda: server.get(POOLS, "", "p")["metadata"].get("finalizers") == [F])
    server.objects.remove(POOLS, "", "p", {})
    time.sleep(0.6)
    assert server.get(POOLS, "", "p")
    put_blocks(server, lease("10.0.0.10").__class__("10.0.0.10", "n1"))
    assert until(lambda: server.get(POOLS, "", "p") is None)


def test_a_dead_nodes_addresses_become_free(server, controller):
    a_pool(server)
    put_blocks(server, lease("10.0.0.10", node="gone"))
    controller()
    name = "v4-10.0.0.0"
    assert until(lambda: "owned" not in server.get(BLOCKS, "", name)["spec"])
    assert list(server.get(BLOCKS, "", name)["spec"]["resting"]) == ["10.0.0.10"]
    assert until(lambda: status(server).get("allocatedIPCount") == 0)


def test_it_goes_on_after_the_api_servers_absence(server, controller):
    a_pool(server)
    running = controller()
    assert until(lambda: status(server).get("totalIPCount") == 10)
    server.stop()
    assert until(lambda: not running.leads())
    server.start()
    a_pool(server, "q")
    assert until(lambda: status(server, "q").get("totalIPCount") == 10)


def test_one_object_that_is_refused_keeps_no_other_waiting(server, controller):
    server.put("nodes", {"metadata": {"name": "n1"}})
    server.faults.append(Fault(path="/spiderippools/bad", status=500, times=1000))
    a_pool(server, "bad")
    a_pool(server, "good", ips=["10.0.0.30-10.0.0.39"])
    controller()
    assert until(lambda: status(server, "good").get("totalIPCount") == 10)
    assert status(server, "bad") == {}


def test_the_webhook_is_told_what_is_known_by_leaders_and_followers(server, controller):
    a_pool(server)
    server.put("nodes", {"metadata": {"name": "n1"}})
    put_blocks(server, lease("10.0.0.10"))
    made = [controller(), controller()]
    for each in made:
        assert until(lambda each=each: each.around())
        around = each.around()
        assert around is not None
        assert (list(around.pools), [one.shown for one in around.leases["p"]]) == (["p"], ["10.0.0.10"])


def test_an_applications_pool_comes_grows_shrinks_and_goes_with_it(server, controller):
    owner = [{"kind": "ReplicaSet", "name": "web-5d9f", "uid": "u", "controller": True}]

    def web(number: int) -> None:
        annotations = {"ipam.spidernet.io/subnet": '{"ipv4": ["s"]}'}
        server.put(PODS, a_pod(f"web-{number}", node="n1", annotations=annotations, ownerReferences=owner,
                               labels={"pod-template-hash": "5d9f"}))  # fmt: skip

    def ips() -> list[str]:
        return [one for each in owned_pools(server) for one in each["spec"]["ips"]]

    server.put("nodes", {"metadata": {"name": "n1"}})
    server.put("deployments", {"metadata": {"name": "web", "namespace": "default"}})
    server.put(SUBNETS, {"metadata": {"name": "s"}, "spec": {"subnet": "10.0.0.0/24", "ips": ["10.0.0.10-10.0.0.99"]}})
    controller()
    web(1)
    assert until(lambda: ips() == ["10.0.0.10-10.0.0.11"])
    web(2)
    assert until(lambda: ips() == ["10.0.0.10-10.0.0.12"])
    name = owned_pools(server)[0]["metadata"]["name"]
    status = lambda: (server.get(SUBNETS, "", "s") or {}).get("status") or {}  # noqa: E731
    assert until(lambda: status().get("allocatedIPCount") == 3)
    assert json.loads(status()["controlledIPPools"]) == {
        name: {"ips": ["10.0.0.10-10.0.0.12"], "application": "apps_v1:Deployment:default:web"}
    }
    server.delete(PODS, "default", "web-1")
    assert until(lambda: ips() == ["10.0.0.10-10.0.0.11"])
    server.delete(PODS, "default", "web-2")
    time.sleep(0.5)
    assert owned_pools(server)  # the Deployment is there, with no replicas
    server.delete("deployments", "default", "web")
    assert until(lambda: owned_pools(server) == [], 30)


def test_what_is_missing_is_said_until_it_is_there(server, controller):
    server.unserved.add(BLOCKS)
    running = controller(timing=replace(QUICK, unserved=0.1))
    assert until(lambda: running.fault() == "underlayipblocks: the API server has no underlayipblocks")
    assert running.around() is None
    server.unserved.clear()
    assert until(lambda: running.fault() == "")


def test_a_fault_of_ours_in_one_part_leaves_the_others_to_be_done(server, controller, log, monkeypatch):
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(upkeep.Upkeep, "writes", broken)
    a_pool(server)
    running = controller()
    assert until(lambda: status(server).get("totalIPCount") == 10)
    running.stop()
    assert [fields["error"] for _, event, fields in log if event == "look failed"][:1] == ["ZeroDivisionError()"]
    log.clear()
