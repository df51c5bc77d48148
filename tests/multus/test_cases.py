"""Pods and networks with what Multus v4.3.0 answered against a real API server, here from files.

The reference's network-status writes '<nil>' for gateways, so they are left out of the comparison; what ours has more
(mtu) is welcome. DEL must succeed in every case, also where the reference's does not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.multus.multus_node import InProcess, ShimAndDaemon

CASES = json.loads((Path(__file__).parent / "cases.json").read_text())
ARBITER = Path(__file__).resolve().parents[3] / "shared" / "conformance" / "multus" / "cases.json"
POD, UID = "pod", "5f6c9bd0-7d3c-4a8e-9a5e-0d9c64f1f3a1"


@pytest.fixture(params=[InProcess, ShimAndDaemon], ids=["in process", "shim and daemon"])
def node(request, uplink, tmp_path):
    made = request.param(uplink, tmp_path)
    yield made
    made.close()


def prepare(node: Any, case: dict[str, Any], uid: str = UID) -> dict[str, Any]:
    """Lay the case's objects out; returns the multus configuration."""
    node.write("net.d/10-cluster.conflist", CASES["cluster_network"])
    for name, conf in case.get("confdir", {}).items():
        node.write(f"net.d/{name}", conf)
    for nad in case["nads"]:
        node.network(nad["namespace"], nad["name"], nad.get("config"))
    if not case.get("no_pod"):
        node.pod(case["namespace"], POD, case["annotations"], uid)
    return {
        "cniVersion": "0.3.1",
        "name": "multus-net",
        "type": "multus",
        "clusterNetwork": "cluster-net",
        "confDir": str(node.conf_dir),
        **case["multus"],
    }


def links(ns: Any, wanted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The links but lo, with the hardware address where ``wanted`` has it."""
    with_mac = {each["name"] for each in wanted if "mac" in each}
    return [
        {"name": each["ifname"], "kind": each.get("linkinfo", {}).get("info_kind"), "mtu": each["mtu"]}
        | ({"mac": each["address"]} if each["ifname"] in with_mac else {})
        for each in ns.ip("link", "show")
        if each["ifname"] != "lo"
    ]


def addresses(ns: Any) -> list[dict[str, Any]]:
    return [
        {"dev": each["ifname"], "addr": f"{info['local']}/{info['prefixlen']}", "scope": info["scope"]}
        for each in ns.ip("addr", "show")
        if each["ifname"] != "lo"
        for info in each["addr_info"]
        if not info["local"].startswith("fe80")
    ]


def routes(ns: Any) -> list[dict[str, Any]]:
    return [
        {
            "dst": each["dst"],
            "via": each.get("gateway"),
            "dev": each.get("dev"),
            "table": str(each.get("table", "main")),
            "scope": each.get("scope", "global") if family == "-4" else "-",
            "hops": len(each.get("nexthops", [])),
        }
        for family in ("-4", "-6")
        for each in ns.ip(family, "route", "show", "table", "all")
        if each.get("type", "unicast") == "unicast"
        and each["dst"] not in ("fe80::/64", "ff00::/8")
        and each.get("dev") != "lo"
    ]


def statuses(written: Any, wanted: Any, macs: dict[str, str]) -> Any:
    """What was written, cut down to the keys of ``wanted``; both with hardware addresses as they are in the pod."""
    if written is None or wanted is None:
        return written, wanted
    expected = [{**each, "mac": macs.get(each["interface"])} for each in wanted]
    return [{key: got[key] for key in got if key in want} for got, want in zip(written, wanted, strict=True)], expected


def unordered(items: list[dict[str, Any]]) -> list[str]:
    return sorted(json.dumps(each, sort_keys=True) for each in items)


@pytest.mark.parametrize("case", CASES["cases"], ids=lambda case: case["name"])
def test_a_pod_is_attached_as_the_reference_attaches_it(case, node, pod, snapshot):
    expect = case["expect"]
    conf = prepare(node, case)
    uid = "other" if case.get("wrong_uid") else UID
    args = f"IgnoreUnknown=1;K8S_POD_NAMESPACE={case['namespace']};K8S_POD_NAME={POD};K8S_POD_UID={uid}"
    before = snapshot(node.ns), snapshot(pod)

    ok, printed = node.call("ADD", conf, netns=pod.path, args=args)
    assert ok == expect["ok"], printed
    if ok:
        assert [ip["address"] for ip in printed.get("ips", [])] == expect["result_ips"]
    else:
        assert printed["code"]
        assert f"{case['namespace']}/{POD}" in printed["msg"]
        assert printed["details"]
        assert (snapshot(node.ns), snapshot(pod)) == before
    assert unordered(links(pod, expect["links"])) == unordered(expect["links"])
    assert unordered(addresses(pod)) == unordered(expect["addrs"])
    assert unordered(routes(pod)) == unordered(expect["routes"])
    macs = {each["ifname"]: each["address"] for each in pod.ip("link", "show")}
    written, wanted = statuses(node.status(case["namespace"], POD), expect["network_status"], macs)
    assert written == wanted

    for _ in range(2):
        assert node.call("DEL", conf, netns=pod.path, args=args) == (True, None)
        assert links(pod, []) == expect["links_after_del"]
        assert (snapshot(node.ns), snapshot(pod)) == before
        assert node.status(case["namespace"], POD) is None


def test_the_copy_has_not_drifted_from_an_arbiter_beside_this_clone():
    if ARBITER.exists():
        assert json.loads(ARBITER.read_text()) == CASES


def test_every_case_of_the_arbiter_is_here():
    assert len(CASES["cases"]) == 31
