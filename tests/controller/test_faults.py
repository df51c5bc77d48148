"""Whatever goes wrong on the way, in the end the objects say what the blocks say."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest
from tests.controller.at_the_server import a_pool, put_blocks, status
from tests.controller.pictures import lease
from tests.kube.api_objects import BLOCKS, ENDPOINTS, PODS, POOLS
from tests.kube.api_server import Fault
from tests.kube.api_server import pod as a_pod
from tests.kube.cluster_bench import until


def truth(server: Any) -> dict[str, str]:
    """Pod by address, as the blocks have it."""
    return {
        ip: each["pod"] for block in server.objects.all(BLOCKS) for ip, each in block["spec"].get("leases", {}).items()
    }


def told(server: Any) -> dict[str, str]:
    """The same by the pool's status."""
    return {ip: each["pod"] for ip, each in json.loads(status(server).get("allocatedIPs", "{}")).items()}


def shown(server: Any) -> dict[str, str]:
    """The same by the SpiderEndpoints."""
    return {
        ip["ipv4"].partition("/")[0]: f"{each['metadata']['namespace']}/{each['metadata']['name']}"
        for each in server.objects.all(ENDPOINTS)
        for ip in each["status"]["current"]["ips"]
    }


def misfortune(chance: random.Random) -> Fault:
    return Fault(
        path=chance.choice(["/spiderippools", "/spiderendpoints", "/leases", "/underlayipblocks", "/pods", "/"]),
        method=chance.choice(["", "PATCH", "POST", "DELETE"]),
        times=chance.randint(1, 3),
        **chance.choice([
            {"status": 500}, {"status": 409}, {"status": 429, "retry_after": 0}, {"status": 503}, {"cut": 0},
            {"after": True}, {"delay": 0.3}, {"status": 404}, {"status": 410},
        ]),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_in_the_end_the_objects_say_what_the_blocks_say(server, controller, seed):
    chance = random.Random(seed)
    a_pool(server, ips=["10.0.0.1-10.0.0.60"])
    server.put("nodes", {"metadata": {"name": "n1"}})
    running = [controller(), controller()]
    held: dict[int, str] = {}
    for step in range(40):
        number = chance.randint(1, 60)
        if number in held:
            server.delete(PODS, "default", held.pop(number))
        else:
            held[number] = f"p{step}"
            server.put(PODS, a_pod(held[number], node="n1", uid=f"uid-p{step}"))
        put_blocks(server, *(lease(f"10.0.0.{n}", pod=f"default/{name}") for n, name in held.items()))
        for name in {block["metadata"]["name"] for block in server.objects.all(BLOCKS)}:
            if not any(f"v4-10.0.0.{n >> 4 << 4}" == name for n in held):
                server.delete(BLOCKS, "", name)
        if chance.random() < 0.5:
            server.faults.append(misfortune(chance))
        if chance.random() < 0.05:
            server.cut()
        if chance.random() < 0.05:
            server.objects.lose_history()
        if chance.random() < 0.03 and len(running) == 2:
            running.pop(0).stop()
        time.sleep(chance.random() / 20)
    server.faults.clear()
    assert until(lambda: told(server) == shown(server) == truth(server), 30), (told(server), truth(server))
    assert status(server)["allocatedIPCount"] == len(held)


def test_a_thousand_pods_at_once_are_seen_within_seconds(server, controller):
    a_pool(server, subnet="10.0.0.0/16", ips=["10.0.1.0-10.0.9.255"])
    server.put("nodes", {"metadata": {"name": "n1"}})
    running = controller(least=0.5)
    assert until(lambda: running.leads() and not running.fault())
    leases = [lease(f"10.0.{1 + n // 256}.{n % 256}", pod=f"default/p{n}") for n in range(1000)]
    for n in range(1000):
        server.put(PODS, a_pod(f"p{n}", node="n1", uid=f"uid-p{n}"))
    began = time.monotonic()
    put_blocks(server, *leases)
    assert until(lambda: len(server.objects.all(ENDPOINTS)) == 1000, 60)
    print(f"1000 SpiderEndpoints after {time.monotonic() - began:.1f} s")
    assert until(lambda: status(server).get("allocatedIPCount") == 1000)
    patches = list(server.asked("patch", f"{POOLS}/status"))
    print(f"{len(patches)} writes of the pool's status")
