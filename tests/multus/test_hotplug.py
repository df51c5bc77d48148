"""A changed networks annotation of a pod that runs, on a real kernel."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from dataclasses import replace

import pytest
from tests.multus.multus_node import InProcess, ShimAndDaemon
from tests.multus.test_handler import NETWORKS, args, conf, host_local, nics

from underlay.cni.request import parse as parse_request
from underlay.delegate import entries
from underlay.delegate.reclaim import Reclaimer
from underlay.ipam.undo import Release
from underlay.net.undo import DropAddress, DropRoute

CLUSTER_V4, SERVICES_V4 = "10.240.0.0/12", "10.96.0.0/16"
META = {
    "overlay_hijack_subnet": [CLUSTER_V4, "fd00:240::/48"],
    "service_hijack_subnet": [SERVICES_V4, "fd00:96::/108"],
}


def macvlan(number: int, **keys: object) -> dict[str, object]:
    addresses = [
        {"address": f"172.18.8.{number}/16", "gateway": "172.18.0.1"},
        {"address": f"fd00:18::8:{number}/64", "gateway": "fd00:18::1"},
    ]
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    ipam = {"type": "static", "addresses": addresses, "routes": routes}
    return {"type": "macvlan", "master": "eth0", "ipam": ipam, **keys}


def chain(number: int, *metas: str) -> dict[str, object]:
    plugins = [macvlan(number), *({"type": meta, **META} for meta in metas)]
    return {"cniVersion": "1.0.0", "plugins": plugins}


OVERLAY = {
    "cniVersion": "1.0.0",
    "name": "cluster-net",
    "type": "ptp",
    "ipam": {
        "type": "static",
        "addresses": [{"address": "10.244.7.9/24", "gateway": "10.244.7.1"}],
        "routes": [{"dst": "0.0.0.0/0"}],
    },
}
UNDERLAY = {"cniVersion": "1.0.0", "name": "cluster-net", "plugins": [macvlan(9), {"type": "veth", **META}]}


@pytest.fixture
def node(uplink, tmp_path):
    made = InProcess(uplink, tmp_path)
    yield made
    made.close()


@pytest.fixture(params=["plain", "veth", "router"])
def kind(request, node) -> str:
    """The cluster network, and networks a, b and c that are made alike."""
    metas = {"plain": [], "veth": ["veth"], "router": ["router"]}[request.param]
    node.write("net.d/10-cluster.conflist" if metas == ["veth"] else "net.d/10-cluster.conf",
               UNDERLAY if metas == ["veth"] else OVERLAY)  # fmt: skip
    for number, name in enumerate("abc", 1):
        node.network("default", name, chain(number, *metas))
    return request.param


def add(node, pod, annotation: str, name: str = "web", container: str = "c1") -> dict[str, object]:
    node.pod("default", name, {NETWORKS: annotation})
    ok, result = node.call("ADD", conf(), netns=pod.path, args=args(name), container=container)
    assert ok, result
    return result


def change(node, annotation: str, name: str = "web") -> None:
    node.pod("default", name, {NETWORKS: annotation})
    node.sweep()


def wiring(ns) -> list[str]:
    """Addresses, routes and rules of a namespace, without what is drawn by lot."""
    found = [each for six in ("-4", "-6") for each in ns.ip(six, "rule", "show")]
    for six in ("-4", "-6"):
        routes = ns.ip(six, "route", "show", "table", "all")
        found += [
            {key: each[key] for key in each if key not in ("flags", "metrics")}
            for each in routes
            if not each["dst"].startswith(("fe80", "ff00")) and each.get("table") != "local"
        ]
    lines = [json.dumps(each, sort_keys=True) for each in found]
    for each in ns.ip("addr", "show"):
        lines += [f"{each['ifname']} {info['local']}" for info in each["addr_info"] if info["scope"] != "link"]
    return sorted(re.sub(r"vethc\w+", "HOST_END", line) for line in lines)


def told(node) -> list[tuple[str, str]]:
    return [(line["reason"], line["message"]) for line in node.log if line["event"] == "event"]


def listed(node) -> list[tuple[str, str]]:
    return [(each["interface"], each["name"]) for each in node.status("default", "web")]


@pytest.mark.parametrize(
    ("before", "after", "anew"),
    [
        ("", "a", "a"),
        ("a", "", ""),
        ("a,b,c", "b,c", "b@net2,c@net3"),
        ("a,b,c", "a,c", "a,c@net3"),
        ("a,b", "b,c", "b@net2,c@net1"),
        ("a", '[{"name": "a", "default-route": ["172.18.0.1"]}]', '[{"name": "a", "default-route": ["172.18.0.1"]}]'),
        ('[{"name": "a", "default-route": ["172.18.0.1"]}, {"name": "b"}]', "b", "b@net2"),
        (
            '[{"name": "b"}, {"name": "a", "default-route": ["172.18.0.1"]}]',
            '[{"name": "c"}, {"name": "a", "default-route": ["172.18.0.1"]}]',
            '[{"name": "a", "interface": "net2", "default-route": ["172.18.0.1"]}, {"name": "c", "interface": "net1"}]',
        ),
    ],
)
def test_a_pod_that_was_changed_is_wired_as_one_attached_anew(node, kind, pod, new_netns, before, after, anew):
    result = add(node, pod, before)
    change(node, after)
    other = new_netns("pod")
    changed = wiring(pod)
    check = conf(prevResult=result)
    assert node.call("CHECK", check, netns=pod.path, args=args("web")) == (True, None)
    assert node.call("DEL", conf(), netns=pod.path, args=args("web")) == (True, None)
    add(node, other, anew)
    assert changed == wiring(other)


def test_nothing_is_left_of_a_pod_that_was_changed_often(node, kind, pod, snapshot):
    def state() -> list[object]:
        return [replace(snapshot(ns), sysctls=()) for ns in (node.ns, pod)]  # rp_filter is the pod's for good

    before = state()
    add(node, pod, "a,b")
    for annotation in ("b,c", "c,a,b", "", "a,b,c", "c"):
        change(node, annotation)
    assert [line for line in node.log if line["level"] in ("warn", "error") and line["event"] != "event"] == []
    assert node.call("DEL", conf(), netns=pod.path, args=args("web")) == (True, None)
    assert state() == before
    assert node.ledger.rows() == []


def test_status_and_events_tell_what_came_and_went(node, kind, pod):
    add(node, pod, "a,b")
    change(node, "b,c")
    assert listed(node) == [("eth0", "cluster-net"), ("net2", "default/b"), ("net1", "default/c")]
    assert told(node)[1:] == [
        ("RemovedInterface", "Remove net1 from default/a"),
        ("AddedInterface", "Add net1 [172.18.8.3/16 fd00:18::8:3/64] from default/c"),
    ]
    node.sweep()
    assert len(told(node)) == 3


def test_a_nic_that_stays_keeps_its_address_and_its_link(node, kind, pod):
    pool = {**macvlan(1), "ipam": host_local(node)}
    metas = {"plain": [], "veth": ["veth"], "router": ["router"]}[kind]
    for name in "ab":
        node.network(
            "default", name, {"cniVersion": "1.0.0", "plugins": [pool, *({"type": each, **META} for each in metas)]}
        )
    add(node, pod, "a,b")
    (before,) = pod.ip("addr", "show", "dev", "net2")
    change(node, "b")
    (after,) = pod.ip("addr", "show", "dev", "net2")
    assert (after["ifindex"], after["address"]) == (before["ifindex"], before["address"])
    assert [info["local"] for info in after["addr_info"]] == [info["local"] for info in before["addr_info"]]


def test_a_network_that_cannot_be_attached_leaves_the_others_and_is_tried_again(node, kind, pod, monkeypatch):
    add(node, pod, "a")
    change(node, "b,nosuch")
    assert "net1" in nics(pod)
    assert listed(node)[1:] == [("net1", "default/a")]
    reason, words = told(node)[-1]
    assert reason == "NoNetworkFound"
    assert "network default/nosuch" in words
    node.sweep()
    assert len(told(node)) == 2
    now = time.monotonic
    monkeypatch.setattr("underlay.multus.hotplug.time.monotonic", lambda: now() + 10)
    node.network("default", "nosuch", chain(3))
    node.sweep()
    assert listed(node)[1:] == [("net1", "default/b"), ("net2", "default/nosuch")]


def test_a_fault_of_the_kernel_takes_back_what_was_added_and_keeps_what_stays(node, kind, pod, new_netns):
    result = add(node, pod, "a,b")
    node.network("default", "bad", chain(77) | {"plugins": [macvlan(77, master="nosuch0")]})
    change(node, "b,c,bad")
    assert nics(pod) == sorted({"eth0", "net2", *(["veth0"] if kind == "veth" else [])})
    assert listed(node) == [("eth0", "cluster-net"), ("net2", "default/b")]
    assert told(node)[-1][0] == "ParentMissing"
    assert node.call("CHECK", conf(prevResult=result), netns=pod.path, args=args("web")) == (True, None)
    change(node, "b")
    changed = wiring(pod)
    assert node.call("DEL", conf(), netns=pod.path, args=args("web")) == (True, None)
    other = new_netns("pod")
    add(node, other, "b@net2")
    assert changed == wiring(other)


def test_switched_off_it_keeps_nothing_and_changes_nothing(uplink, tmp_path, pod):
    node = InProcess(uplink, tmp_path, hotplug=False)
    try:
        node.write("net.d/10-cluster.conf", OVERLAY)
        node.network("default", "a", chain(1))
        add(node, pod, "")
        change(node, "a")
        assert nics(pod) == ["eth0"]
    finally:
        node.close()


def test_a_pod_of_the_same_name_and_another_uid_is_another_pod(node, kind, pod):
    add(node, pod, "a")
    node.pod("default", "web", {NETWORKS: ""}, uid="uid-2")
    node.sweep()
    assert "net1" in nics(pod)


def test_a_pod_that_is_deleted_while_its_change_waits_is_attached_to_nothing(node, kind, pod, monkeypatch):
    add(node, pod, "a")
    known_pod = node.source.known_pod

    def a_delete_comes_first(*names):
        found = known_pod(*names)
        assert node.call("DEL", conf(), netns=pod.path, args=args("web")) == (True, None)
        return found

    monkeypatch.setattr(node.source, "known_pod", a_delete_comes_first)
    change(node, "b")
    assert nics(pod) == []
    assert node.ledger.rows() == []
    assert node.status("default", "web") is None


def test_a_pod_that_is_deleted_right_after_its_change_gets_no_status_back(node, kind, pod, monkeypatch):
    add(node, pod, "a")
    whole = node.engine.whole

    def a_delete_comes_first(*asked):
        monkeypatch.setattr(node.engine, "whole", whole)
        assert node.call("DEL", conf(), netns=pod.path, args=args("web")) == (True, None)
        return whole(*asked)

    monkeypatch.setattr(node.engine, "whole", a_delete_comes_first)
    change(node, "b")
    assert node.status("default", "web") is None


def test_a_pod_that_is_deleted_while_its_changed_status_is_written_keeps_none(node, kind, pod, monkeypatch):
    add(node, pod, "a")
    write = node.source.write_status

    def a_delete_comes_first(*status):
        assert node.call("DEL", conf(), netns=pod.path, args=args("web")) == (True, None)
        write(*status)

    monkeypatch.setattr(node.source, "write_status", a_delete_comes_first)
    change(node, "b")
    assert node.status("default", "web") is None


def test_a_delete_that_was_spooled_before_a_change_takes_what_came_by_it_too(node, kind, pod):
    add(node, pod, "a")
    spooled = time.time_ns()
    change(node, "b,c")
    env = {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "c1", "CNI_NETNS": pod.path, "CNI_IFNAME": "eth0"}
    env |= {"CNI_PATH": node.path(), "CNI_ARGS": args("web")}
    request = parse_request("multus", env, json.dumps(conf()).encode())
    with node.ns.entered():
        node.multus.delete_spooled(request, spooled, time.monotonic() + 30)
    assert nics(pod) == []
    assert node.ledger.rows() == []
    assert node.status("default", "web") is None


FLAKY = """#!/bin/sh
cat > /dev/null
if [ $CNI_COMMAND = ADD ]; then
    echo '{"cniVersion": "1.0.0", "ips": [{"address": "172.18.8.1/16", "gateway": "172.18.0.1"}],'
    echo ' "routes": [{"dst": "0.0.0.0/0"}]}'
elif [ -e "$0.down" ]; then
    echo '{"cniVersion": "1.0.0", "code": 11, "msg": "the store does not answer"}'
    exit 1
fi
"""


def test_what_is_given_back_late_takes_nothing_that_was_laid_anew(node, kind, pod, new_netns, tmp_path, monkeypatch):
    ipam = tmp_path / "cni" / "flaky"
    ipam.parent.mkdir()
    ipam.write_text(FLAKY)
    ipam.chmod(0o755)
    path = f"{ipam.parent}:{node.path()}"
    monkeypatch.setattr(node, "path", lambda: path)
    first = chain(1, *({"plain": [], "veth": ["veth"], "router": ["router"]}[kind]))
    first["plugins"][0]["ipam"] = {"type": "flaky"}
    node.network("default", "a", first)
    result = add(node, pod, "a,b")
    down = ipam.with_name("flaky.down")
    down.touch()
    change(node, "b")
    assert [(row.ifname, row.state) for row in node.ledger.rows()] == [
        ("eth0", "added"), ("net1", "deleting"), ("net2", "added"),
    ]  # fmt: skip
    down.unlink()
    with node.ns.entered():
        Reclaimer(node.engine).sweep()
    assert [(row.ifname, row.state) for row in node.ledger.rows()] == [("eth0", "added"), ("net2", "added")]
    changed = wiring(pod)
    assert node.call("CHECK", conf(prevResult=result), netns=pod.path, args=args("web")) == (True, None)
    assert node.call("DEL", conf(), netns=pod.path, args=args("web")) == (True, None)
    other = new_netns("pod")
    add(node, other, "b@net2")
    assert changed == wiring(other)


def test_what_the_kernel_refuses_is_done_later_and_nothing_that_was_laid_anew_with_it(node, kind, pod, new_netns):
    result = add(node, pod, "a,b")
    row = node.ledger.rows()[1]
    refused = DropRoute("pod", "no address", 254)
    node.ledger.record(row.id, [refused])
    node.ledger.record(row.id, [DropAddress("pod", "lo", "192.0.2.9/32")])
    change(node, "b")
    assert [(row.ifname, row.state) for row in node.ledger.rows()] == [
        ("eth0", "added"), ("net1", "deleting"), ("net2", "added"),
    ]  # fmt: skip
    pod.batch("addr add 192.0.2.9/32 dev lo")  # somebody else's, from here on
    changed = wiring(pod)
    known, _ = entries.decode(node.ledger.rows()[1].undo)
    acts = [entry for entry in known if not isinstance(entry, Release)]
    assert acts == [refused]
    node.ledger.rewrite(row.id, entries.encode([entry for entry in known if entry != refused]))  # it is well by now
    with node.ns.entered():
        Reclaimer(node.engine).sweep()
    assert [(row.ifname, row.state) for row in node.ledger.rows()] == [("eth0", "added"), ("net2", "added")]
    assert wiring(pod) == changed
    assert node.call("CHECK", conf(prevResult=result), netns=pod.path, args=args("web")) == (True, None)
    pod.batch("addr del 192.0.2.9/32 dev lo")
    changed = wiring(pod)
    assert node.call("DEL", conf(), netns=pod.path, args=args("web")) == (True, None)
    other = new_netns("pod")
    add(node, other, "b@net2")
    assert changed == wiring(other)


def test_the_daemon_follows_the_annotation_where_it_is_switched_on(uplink, tmp_path, pod):
    settings = tmp_path / "underlay.yaml"
    settings.write_text("hotplug: true\n")
    node = ShimAndDaemon(uplink, tmp_path, "--config", str(settings))
    try:
        node.write("net.d/10-cluster.conflist", UNDERLAY)
        for number, name in enumerate("ab", 1):
            node.network("default", name, chain(number, "veth"))
        result = add(node, pod, "a")
        node.pod("default", "web", {NETWORKS: "b@fast0"})
        wanted = [("eth0", "cluster-net"), ("fast0", "default/b")]
        until = time.monotonic() + 30
        while listed(node) != wanted and time.monotonic() < until:
            time.sleep(0.05)
        assert listed(node) == wanted
        assert nics(pod) == ["eth0", "fast0", "veth0"]
        assert node.call("CHECK", conf(prevResult=result), netns=pod.path, args=args("web")) == (True, None)
        assert node.call("DEL", conf(), netns=pod.path, args=args("web")) == (True, None)
        assert nics(pod) == []
    finally:
        node.close()


def test_after_a_fault_of_our_own_a_refused_change_is_not_tried_at_every_look(node, pod, monkeypatch):
    node.write("net.d/10-cluster.conf", OVERLAY)
    add(node, pod, "")
    with monkeypatch.context() as patched:
        patched.setattr(node.multus, "plan_of", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            change(node, "nosuch")
    now = time.monotonic
    monkeypatch.setattr("underlay.multus.hotplug.time.monotonic", lambda: now() + 600)
    node.sweep()
    assert [reason for reason, _ in told(node)[1:]] == ["NoNetworkFound"]
    node.sweep()
    assert len(told(node)) == 2


@pytest.mark.parametrize(
    ("asked_before", "asked_now"), [(["extra"], ["extra", "more"]), (["extra"], []), ([], ["extra"])]
)
def test_default_networks_that_are_others_by_now_change_nothing_and_take_no_name(
    node, pod, uplink, tmp_path, asked_before, asked_now
):
    node.write("net.d/10-cluster.conf", OVERLAY)
    for number, name in enumerate(("extra", "more"), 10):
        node.network("kube-system", name, macvlan(number))
    for number, name in enumerate("abc", 1):
        node.network("default", name, macvlan(number))
    node.pod("default", "web", {NETWORKS: "a,b"})
    ok, result = node.call("ADD", conf(defaultNetworks=asked_before), netns=pod.path, args=args("web"))
    assert ok, result
    before = listed(node)
    node.close()
    again = InProcess(uplink, tmp_path, overrides={"defaultNetworks": asked_now})
    try:
        again.sweep()
        assert told(again) == []
        change(again, "b,c")
        first = 1 + len(asked_before)
        fixed = before[:first]
        assert listed(again) == [*fixed, (f"net{first + 1}", "default/b"), (f"net{first}", "default/c")]
        assert sorted(nics(pod)) == sorted(name for name, _ in listed(again))
        change(again, "")
        assert listed(again) == fixed
    finally:
        again.close()


def test_what_does_not_say_who_asked_for_it_is_left_as_it_is(node, pod):
    node.write("net.d/10-cluster.conf", OVERLAY)
    for number, name in enumerate("ab", 1):
        node.network("default", name, macvlan(number))
    add(node, pod, "a")
    row = node.ledger.rows()[1]
    call = json.loads(row.call)
    assert call.pop("by") == "annotation"
    with sqlite3.connect(node.ledger.path) as file:  # as an earlier version wrote it
        file.execute("UPDATE attachment SET call = ? WHERE id = ?", (json.dumps(call).encode(), row.id))
    file.close()
    change(node, "b")
    assert (listed(node), told(node)[1:]) == ([("eth0", "cluster-net"), ("net1", "default/a")], [])
