"""What pods have from Spiderpool itself is set aside by "underlay ipam adopt", and found again by those it is for."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.controller.at_the_server import put_blocks
from tests.controller.pictures import Owned, lease
from tests.kube.api_objects import BLOCKS, ENDPOINTS, PODS, POOLS
from tests.kube.api_server import Fault
from tests.kube.api_server import pod as a_pod

from underlay.cni.address import parse
from underlay.controller import adopt
from underlay.errors import NotAvailable
from underlay.ipam.pools.block import Block, Key, key_of
from underlay.kube.block_store import ApiBlocks

if TYPE_CHECKING:
    from collections.abc import Callable

THEIRS = "spiderpool.spidernet.io"


def a_spiderpool(server: Any, name: str = "p", **held: str) -> None:
    """Its pool and what it wrote of pods: ``web="10.0.0.10"``."""
    told = {address: {"pod": f"default/{pod}", "podUid": f"uid-{pod}"} for pod, address in held.items()}
    spec = {"subnet": "10.0.0.0/24", "ips": ["10.0.0.10-10.0.0.40"]}
    status = {"allocatedIPCount": len(told), "allocatedIPs": json.dumps(told)}
    server.put(POOLS, {"metadata": {"name": name}, "spec": spec, "status": status})


def an_endpoint(server: Any, name: str, address: str, kind: str = "Pod", ifname: str = "eth0") -> None:
    nic = {"interface": ifname, "ipv4": f"{address}/24", "ipv4Pool": "p"}
    status = {"current": {"uid": f"uid-{name}", "node": "n1", "ips": [nic]}, "ownerControllerType": kind,
              "ownerControllerName": name}  # fmt: skip
    server.put(ENDPOINTS, {"metadata": {"name": name, "finalizers": [THEIRS]}, "status": status})


SET = {"ownerReferences": [{"kind": "StatefulSet", "name": "db", "controller": True}]}


@pytest.fixture
def command(server, tmp_path) -> Callable[..., tuple[int, Any]]:
    def run(*flags: str) -> tuple[int, Any]:
        config = server.kubeconfig(tmp_path / "admin")
        argv = [sys.executable, "-m", "underlay", "ipam", "adopt", "--kubeconfig", config, *flags]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, json.loads(done.stdout) if "--json" in flags else done.stdout + done.stderr

    return run


def leases(server: Any) -> dict[str, dict[str, str]]:
    return {ip: one for each in server.objects.all(BLOCKS) for ip, one in each["spec"].get("leases", {}).items()}


def test_nothing_is_written_unless_it_is_wanted_and_then_once(server, command):
    a_spiderpool(server, web="10.0.0.10", gone="10.0.0.11", **{"db-0": "10.0.0.40", "db-1": "10.0.0.12"})
    server.put(PODS, a_pod("web", node="n1", uid="uid-web"))
    server.put(PODS, a_pod("db-0", node="n1", uid="uid-db-0", **SET))
    an_endpoint(server, "web", "10.0.0.10")
    an_endpoint(server, "db-0", "10.0.0.40", "StatefulSet", "net1")
    an_endpoint(server, "db-1", "10.0.0.12", "StatefulSet", "net1")
    status, printed = command()
    assert status == 0
    assert printed.splitlines()[1:] == [
        "10.0.0.10  p     default/web   eth0  to be set aside",
        "10.0.0.11  p     default/gone        free: its pod is gone",
        "10.0.0.12  p     default/db-1  net1  to be set aside",
        "10.0.0.40  p     default/db-0  net1  to be set aside",
        "3 to be set aside; nothing was written: --apply writes it",
    ]
    assert leases(server) == {}
    before = server.objects.all(POOLS)
    status, told = command("--apply", "--json")
    assert (status, told["applied"]) == (0, True)
    assert {one["address"]: one["adopted"] for one in told["addresses"]} == {
        "10.0.0.10": True, "10.0.0.11": False, "10.0.0.12": True, "10.0.0.40": True,
    }  # fmt: skip
    found = leases(server)
    assert {ip: (one["state"], one["keeper"], one.get("uid", "")) for ip, one in found.items()} == {
        "10.0.0.10": ("held", "Pod/default/web/uid-web", "uid-web"),
        "10.0.0.12": ("kept", "StatefulSet/default/db-1", ""),
        "10.0.0.40": ("held", "StatefulSet/default/db-0", "uid-db-0"),
    }
    assert not any(each["spec"].get("owned") for each in server.objects.all(BLOCKS))
    assert server.objects.all(POOLS) == before
    server.delete(PODS, "default", "web")
    status, printed = command("--apply")
    assert (status, printed.splitlines()[1:]) == (0, ["10.0.0.11  p     default/gone       free: its pod is gone"])


def test_what_a_node_owns_already_is_told(server, command):
    a_spiderpool(server, web="10.0.0.10", late="10.0.0.11", ours="10.0.0.12")
    for name in ("web", "late", "ours"):
        server.put(PODS, a_pod(name, node="n1", uid=f"uid-{name}"))
    put_blocks(server, Owned("10.0.0.11", "n7"), lease("10.0.0.12", pod="default/ours"))
    status, printed = command("--apply")
    assert status == 1
    assert "default/late       node n7 may hand it out" in printed
    assert "reserve the addresses on that node" in printed
    assert set(leases(server)) == {"10.0.0.10", "10.0.0.12"}
    assert server.get(BLOCKS, "", "v4-10.0.0.0")["spec"]["owned"] == {"10.0.0.11": "n7", "10.0.0.12": "n1"}


@pytest.mark.parametrize("told", ["{", '["10.0.0.10"]', '{"10.0.0.10": {"pod": 1}}'])
def test_a_status_that_cannot_be_read_is_not_passed_over(told, server, command):
    a_spiderpool(server, web="10.0.0.10")
    a_spiderpool(server, "q")
    server.put(POOLS, {**server.get(POOLS, "", "q"), "status": {"allocatedIPs": told}})
    server.put(PODS, a_pod("web", node="n1", uid="uid-web"))
    status, printed = command("--apply")
    assert status == 1
    assert "status.allocatedIPs of SpiderIPPool 'q'" in printed
    assert leases(server) == {}


def test_what_a_node_has_given_to_another_pod_already_is_told(server, command):
    """Two pods use it: nothing else would say so."""
    a_spiderpool(server, web="10.0.0.10")
    for name in ("web", "other"):
        server.put(PODS, a_pod(name, node="n1", uid=f"uid-{name}"))
    put_blocks(server, lease("10.0.0.10", pod="default/other"))
    for flags in ([], ["--apply"]):
        status, printed = command(*flags)
        assert status == 1
        assert "10.0.0.10  p     default/web       it is held by pod default/other (net1)" in printed
        assert "delete those pods" in printed


def test_without_anything_to_adopt_that_is_said(server, command):
    assert command() == (0, "no pod holds an address that nodes do not know of\n")


def test_where_nobody_answers_the_way_is_asked_about_and_not_the_rights(command, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    config = {
        "current-context": "c", "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }  # fmt: skip
    (tmp_path / "astray").write_text(json.dumps(config))
    status, told = command("--kubeconfig", str(tmp_path / "astray"))
    assert status == 1
    assert "Connection refused" in told
    assert "can it be reached from here?" in told


@pytest.mark.parametrize(("faults", "unserved", "words"), [
    ([Fault(path="/spiderippools", status=500, times=9)], "", "spiderippools cannot be listed"),
    ([Fault(path="/pods", status=403, times=9)], "", "the rights to list pods"),
    ([], BLOCKS, "Apply deploy/crds"),
    ([Fault(path=f"/{BLOCKS}", method="POST", status=403, times=9)], "", "to write underlayipblocks"),
    ([Fault(path=f"/{BLOCKS}", method="POST", status=503, times=9)], "", "Run it again: it goes on"),
])  # fmt: skip
def test_what_stands_in_its_way_is_said(faults, unserved, words, server, command):
    a_spiderpool(server, web="10.0.0.10")
    server.put(PODS, a_pod("web", node="n1", uid="uid-web"))
    server.faults += faults
    server.unserved.add(unserved)
    status, printed = command("--apply")
    assert status == 1
    assert words in printed


class Rivals(ApiBlocks):
    """A node is faster, so many times."""

    def __init__(self, times: int, *more: Any) -> None:
        super().__init__(*more)
        self._times = times

    def swap(self, before: Block, after: Block, deadline: float) -> Block:
        if self._times > 0:
            self._times -= 1
            fifth = before.key.first + 5 + self._times
            super().swap(before, Block(before.key, before.revision + 1, {**before.owned, fifth: "n9"}), deadline)
        return super().swap(before, after, deadline)


@pytest.mark.parametrize(("times", "done"), [(1, True), (4, True), (9, False)])
def test_whoever_writes_the_block_meanwhile_is_heard(times, done, server, client, log):
    a_spiderpool(server, web="10.0.0.10", late="10.0.0.6")
    for name in ("web", "late"):
        server.put(PODS, a_pod(name, node="n1", uid=f"uid-{name}"))
    asking = client()
    verdicts = adopt.judged(adopt.look(asking))
    store = Rivals(times, asking, log)
    if not done:
        with pytest.raises(NotAvailable, match="by others each time"):
            adopt.apply(store, verdicts)
        return
    late, web = adopt.apply(store, verdicts)
    assert (web.why, web.lost) == ("", False)
    assert late.lost is (times > 1)
    address = parse("10.0.0.6")
    assert address is not None
    owned = store.read(key_of(address), 1e12).owned
    assert (address.value in owned) is late.lost
    assert key_of(address) == Key(4, 10 << 24)
