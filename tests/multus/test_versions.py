"""Each network is spoken to in the version of its own configuration, whatever that of the caller's is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.multus.multus_node import InProcess

from underlay.cni.versions import SUPPORTED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Netns

ARGS = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web"
VALID = {"cni.dev/valid-attachments": []}


def printed(version: str, address: str = "10.7.0.2/24") -> dict[str, Any]:
    """A result of one address on eth0 as a plugin of that version prints it (specification of each, "Result")."""
    if version < "0.3.0":
        return {"cniVersion": version, "ip4": {"ip": address, "gateway": "10.7.0.1"}, "dns": {}}
    ip: dict[str, Any] = {"address": address, "gateway": "10.7.0.1", "interface": 0}
    if version < "1.0.0":
        ip["version"] = "4"
    result = {"cniVersion": version, "interfaces": [{"name": "eth0", "sandbox": "/run/x"}], "ips": [ip]}
    return {**result, "dns": {}} if version < "1.0.0" else result


class Recording(InProcess):
    """A node with executable plugins that write down what they are told."""

    def __init__(self, ns: Netns, directory: Path) -> None:
        super().__init__(ns, directory)
        self.bin_dir = directory / "bin"
        self.bin_dir.mkdir()

    def plugin(self, name: str, result: object) -> None:
        """An executable that prints ``result`` at ADD; a string is a shell script's text in place of that."""
        path = self.bin_dir / name
        answer = f"printf '%s' '{json.dumps(result)}'" if not isinstance(result, str) else result
        path.write_text(
            f'#!/bin/sh\nconf=$(cat)\nprintf "%s %s\\n" "$CNI_COMMAND" "$conf" >>{path}.calls\n'
            f'if [ "$CNI_COMMAND" = ADD ]; then {answer}; fi\n'
        )
        path.chmod(0o755)

    def told(self, name: str) -> list[tuple[str, dict[str, Any]]]:
        """Verb and standard input of every call."""
        path = self.bin_dir / f"{name}.calls"
        lines = [line.split(" ", 1) for line in path.read_text().splitlines()] if path.exists() else []
        return [(verb, json.loads(conf)) for verb, conf in lines]

    def conf(self, *delegates: object, version: str = "1.1.0") -> dict[str, Any]:
        return {"cniVersion": version, "name": "m", "type": "multus", "binDir": str(self.bin_dir),
                "delegates": list(delegates)}  # fmt: skip


@pytest.fixture
def node(uplink: Netns, tmp_path: Path) -> Iterator[Recording]:
    made = Recording(uplink, tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("version", SUPPORTED)
def test_a_delegate_gets_its_own_version_and_the_caller_his(node: Recording, pod: Netns, version: str) -> None:
    node.plugin("old", printed(version))
    conf = node.conf({"cniVersion": version, "name": "old-net", "type": "old"})
    ok, result = node.call("ADD", conf, netns=pod.path)
    assert ok, result
    assert result["cniVersion"] == "1.1.0"
    assert [(ip["address"], ip["gateway"]) for ip in result["ips"]] == [("10.7.0.2/24", "10.7.0.1")]
    assert node.told("old") == [("ADD", {"cniVersion": version, "name": "old-net", "type": "old"})]


@pytest.mark.parametrize("version", SUPPORTED)
def test_a_new_delegate_is_converted_down_for_an_old_caller(node: Recording, pod: Netns, version: str) -> None:
    node.plugin("new", printed("1.1.0"))
    conf = node.conf({"cniVersion": "1.1.0", "name": "new-net", "type": "new"}, version=version)
    ok, result = node.call("ADD", conf, netns=pod.path)
    assert ok, result
    expected = printed(version)
    expected.get("ip4", expected).pop("interface", None)
    assert result == expected
    assert [conf["cniVersion"] for _, conf in node.told("new")] == ["1.1.0"]


@pytest.mark.parametrize("version", SUPPORTED)
def test_only_verbs_of_its_version_reach_a_delegate(node: Recording, pod: Netns, version: str) -> None:
    node.plugin("old", printed(version))
    conf = node.conf({"cniVersion": version, "name": "old-net", "type": "old"})
    ok, result = node.call("ADD", conf, netns=pod.path)
    assert ok, result
    for verb, extra in (("CHECK", {"prevResult": result}), ("STATUS", {}), ("DEL", {}), ("GC", VALID)):
        ok, answer = node.call(verb, {**conf, **extra}, netns=pod.path if verb in ("CHECK", "DEL") else "")
        assert ok, (verb, answer)
    expected = ["ADD"] + ["CHECK"] * (version >= "0.4.0") + ["STATUS"] * (version >= "1.1.0")
    expected += ["DEL"] + ["GC"] * (version >= "1.1.0")
    told = node.told("old")
    assert [verb for verb, _ in told] == expected
    assert {conf["cniVersion"] for _, conf in told} == {version}
    for verb, conf in told:
        with_result = verb == "CHECK" or (verb == "DEL" and version >= "0.4.0")
        assert conf.get("prevResult") == (printed(version) if with_result else None), verb


@pytest.mark.parametrize("version", SUPPORTED[2:])
def test_results_are_handed_on_through_a_chain_of_both_kinds(node: Recording, pod: Netns, version: str) -> None:
    """Built-in macvlan with an executed IPAM plugin, then an executed one that makes its result of prevResult."""
    node.plugin("addresses", {key: value for key, value in printed(version, "172.18.4.4/16").items()
                              if key != "interfaces"})  # fmt: skip
    take_prev = r"""s/.*"prevResult":\({.*}\).*/\1/; s/}$//"""
    add_route = r"""s/"cniVersion":/"routes":[{"dst":"10.99.0.0\/16"}],"cniVersion":/"""
    node.plugin("adds", f"printf '%s' \"$conf\" | sed '{take_prev}; {add_route}'")
    plugins = [{"type": "macvlan", "master": "eth0", "ipam": {"type": "addresses"}}, {"type": "adds"}]
    network = {"cniVersion": version, "name": "chain", "plugins": plugins}
    ok, result = node.call("ADD", node.conf(network), netns=pod.path)
    assert ok, (result, node.told("adds"))
    assert [ip["address"] for ip in result["ips"]] == ["172.18.4.4/16"]
    assert result["routes"] == [{"dst": "10.99.0.0/16"}]
    ((_, told),) = node.told("adds")
    prev = told["prevResult"]
    assert (told["cniVersion"], prev["cniVersion"]) == (version, version)
    assert ("version" in prev["ips"][0]) == (version < "1.0.0")
    assert [conf["cniVersion"] for _, conf in node.told("addresses")] == [version]
    assert node.call("DEL", node.conf(network), netns=pod.path)[0]
    assert pod.link("eth0") is None


@pytest.mark.parametrize("version", SUPPORTED[2:])
def test_a_built_in_plugin_goes_on_from_an_executed_ones_result(node: Recording, pod: Netns, version: str) -> None:
    node.plugin("first", {**printed(version), "interfaces": [{"name": "eth0", "sandbox": pod.path}]})
    static = {
        "type": "macvlan",
        "master": "eth0",
        "ipam": {"type": "static", "addresses": [{"address": "10.8.0.2/24"}]},
    }
    network = {"cniVersion": version, "name": "chain", "plugins": [{"type": "first"}, static]}
    ok, result = node.call("ADD", node.conf(network), netns=pod.path)
    assert ok, result
    assert result["ips"][-1]["address"] == "10.8.0.2/24"


def test_an_executable_that_does_not_know_the_version_says_so_and_nothing_stays(node: Recording, pod: Netns) -> None:
    """Debian's own macvlan knows no 1.1.0: the version is the network's choice, nobody lowers it behind its back."""
    (node.bin_dir / "their-macvlan").symlink_to("/usr/lib/cni/macvlan")
    network = {"cniVersion": "1.1.0", "name": "n", "type": "their-macvlan", "master": "eth0", "ipam": {}}
    ok, error = node.call("ADD", node.conf(network), netns=pod.path)
    assert not ok
    assert error["code"] == 1
    assert "their-macvlan" in error["msg"]
    assert pod.link("eth0") is None
    assert node.ledger.rows() == []  # its DEL was refused for the same reason, and is not tried for ever
    for version in SUPPORTED[2:-1]:
        conf = node.conf({**network, "cniVersion": version}, version="1.1.0")
        ok, result = node.call("ADD", conf, netns=pod.path)
        assert ok, result
        assert [each["name"] for each in result["interfaces"]] == ["eth0"]
        assert node.call("DEL", conf, netns=pod.path) == (True, None)
        assert pod.link("eth0") is None


def test_a_definition_of_another_version_than_the_cluster_networks(node: Recording, pod: Netns) -> None:
    node.plugin("new", printed("1.1.0"))
    node.plugin("old", printed("0.3.1", "10.9.0.9/24"))
    node.network("default", "old-net", {"cniVersion": "0.3.1", "type": "old"})
    node.pod("default", "web", {"k8s.v1.cni.cncf.io/networks": "old-net"})
    conf = node.conf({"cniVersion": "1.1.0", "name": "new-net", "type": "new"})
    ok, result = node.call("ADD", conf, netns=pod.path, args=ARGS)
    assert ok, result
    assert node.told("old") == [("ADD", {"cniVersion": "0.3.1", "name": "old-net", "type": "old"})]
    assert [each["ips"] for each in node.status("default", "web")] == [["10.7.0.2"], ["10.9.0.9"]]
    ok, answer = node.call("CHECK", {**conf, "prevResult": result}, netns=pod.path, args=ARGS)
    assert ok, answer
    assert [verb for verb, _ in node.told("old")] == ["ADD"]
    assert [verb for verb, _ in node.told("new")] == ["ADD", "CHECK"]
