"""Whole chains: a fault at every act leaves all as it was, every version prints what was made, plugins' log files."""

from __future__ import annotations

import errno
import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.plugins.conftest import CONTAINER, Conf, Node, macvlan, meta

from underlay.cni import versions
from underlay.daemon.config import LogSettings
from underlay.daemon.log import Logs
from underlay.errors import KernelError, UnderlayError
from underlay.net import sysctl
from underlay.net.rtnl import Rtnl

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.conftest import Netns

V4, V6 = "172.18.7.5/16", "fd00:18::7:5/64"
GET = 2  # the kind of a message is its type's lowest two bits (rtnetlink.c): new, del, get, set


class Fault:
    """The kernel's refusal of the n-th act; 0: of none. An act is a message that changes something, or a setting."""

    def __init__(self) -> None:
        self.at = 0
        self.acts = 0

    def refuses(self) -> bool:
        self.acts += 1
        return self.acts == self.at


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fault]:
    made = Fault()
    failures, requests, write = Rtnl.failures, Rtnl.requests, sysctl.write

    def one_by_one(self: Rtnl, batch: Sequence[Any]) -> dict[int, Any]:
        failed: dict[int, Any] = {}
        for position, message in enumerate(batch):
            if made.refuses():
                failed[position] = KernelError(f"act {made.acts}", errno.ENOBUFS)
            elif refused := failures(self, [message]):
                failed[position] = refused[0]
        return failed

    def each(self: Rtnl, gets: Sequence[Any]) -> list[Any]:
        answers: list[Any] = []
        for message in gets:
            refused = message.type % 4 != GET and made.refuses()
            answers += [KernelError(f"act {made.acts}", errno.ENOBUFS)] if refused else requests(self, [message])
        return answers

    def set_or_not(path: str, value: str | int) -> bool:
        if made.refuses():
            raise KernelError(f"act {made.acts}: {path}", errno.EROFS)
        return write(path, value)

    monkeypatch.setattr(Rtnl, "failures", one_by_one)
    monkeypatch.setattr(Rtnl, "requests", each)
    monkeypatch.setattr(sysctl, "write", set_or_not)
    yield made
    made.at = 0


def attempt(node: Node, pod: Netns, plugins: list[Conf]) -> UnderlayError | None:
    try:
        node.add(pod, "net2", *plugins)
    except UnderlayError as error:
        return error
    return None


CHAINS: dict[str, tuple[list[Conf], list[Conf]]] = {
    "veth": ([], [macvlan(V4, V6), meta("veth", mac_prefix="0a:1b")]),
    "a second veth": ([macvlan("172.18.7.4/16"), meta("veth")], [macvlan(V4, V6), meta("veth")]),
    "router": ([], [macvlan(V4, V6), meta("router", mac_prefix="0a:1b")]),
    "a second router": ([macvlan("172.18.7.4/16"), meta("router")], [macvlan(V4, V6), meta("router")]),
}


@pytest.mark.parametrize("share", range(2))
@pytest.mark.parametrize("chain", CHAINS)
def test_a_refusal_of_any_act_leaves_node_and_pod_as_they_were(
    node: Node, pod: Netns, request: pytest.FixtureRequest, fault: Fault, chain: str, share: int
) -> None:
    if "router" in chain:
        request.getfixturevalue("overlay")
    earlier, plugins = CHAINS[chain]
    if earlier:
        node.add(pod, "net1", *earlier)
    before = node.state(pod)
    for at in range(share + 1, 1000, 2):
        fault.at, fault.acts = at, 0
        error = attempt(node, pod, plugins)
        if fault.acts < at:
            assert error is None
            break
        assert error is not None, f"act {at} was refused, and nobody minds"
        assert (error.code, f"act {at}" in error.message) == (101, True), error.message
        assert node.state(pod) == before, at
    assert at > 15
    node.check(pod, "net2")
    fault.at = 0
    assert node.delete(pod, "net2") == []


def test_what_the_kernel_refuses_for_real_is_undone_too(node: Node, overlay: Netns) -> None:
    """The pod has a route of veth's already, by another NIC."""
    overlay.batch("route add 10.96.0.0/16 dev eth0")
    error = node.refused(overlay, "net2", macvlan(V4), meta("veth"))
    assert error.code == 101
    assert "10.96.0.0/16" in error.message


def test_a_hijack_subnet_that_is_the_nics_own_is_told_by_its_route(node: Node, pod: Netns) -> None:
    error = node.refused(pod, "eth0", macvlan(V4), meta("veth", additional_hijack_subnet=["172.18.0.0/16"]))
    assert "172.18.0.0/16" in error.message


def lists_addresses(version: str, *cidrs: str) -> Any:
    """``ips`` as the version prints it."""
    families = {"0.3.0": True, "0.3.1": True, "0.4.0": True}
    gateway = {True: "fd00:18::1", False: "172.18.0.1"}
    return [
        ({"version": "6" if ":" in each else "4"} if version in families else {})
        | {"address": each, "gateway": gateway[":" in each], "interface": 0}
        for each in cidrs
    ]


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_a_chain_prints_what_was_made_in_its_version(node: Node, pod: Netns, version: str) -> None:
    result = node.add(pod, "eth0", macvlan(V4, V6), meta("veth"), version=version)
    assert result["cniVersion"] == version
    assert result["ips"] == lists_addresses(version, V4, V6)
    assert [(each["name"], each.get("sandbox", "")) for each in result["interfaces"]] == [
        ("eth0", pod.path), ("veth0", pod.path), (f"veth{CONTAINER[:11]}", "")
    ]  # fmt: skip
    for each in result["interfaces"]:
        ns = pod if each.get("sandbox") else node.ns
        assert ns.link(each["name"])["address"] == each["mac"]
    assert {each["dst"] for each in result["routes"]} == {"0.0.0.0/0", "::/0"}
    node.check(pod, "eth0")
    assert node.delete(pod, "eth0") == []


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_prevresult_is_read_in_every_version(node: Node, pod: Netns, version: str) -> None:
    """As a runtime calls the plugins one by one, without a ledger between them."""
    own = {"cniVersion": version}
    prev = node.plainly("ADD", "macvlan", pod.path, "eth0", macvlan(V4, V6))
    told = json.loads(versions.encode(node.result_of(prev), version))
    result = node.plainly("ADD", "veth", pod.path, "eth0", meta("veth") | own, told)
    assert [each["name"] for each in result["interfaces"]] == ["eth0", "veth0", f"veth{CONTAINER[:11]}"]
    assert [each["address"] for each in result["ips"]] == [V4, V6]
    node.plainly("DEL", "veth", pod.path, "eth0", meta("veth") | own, told)
    assert pod.link("veth0") is None


@pytest.mark.parametrize("kind", ["veth", "router"])
@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_versions_whose_results_name_no_interface_are_refused_by_what_they_lack(
    node: Node, overlay: Netns, kind: str, version: str
) -> None:
    prev = node.plainly("ADD", "macvlan", overlay.path, "net1", macvlan(V4))
    told = json.loads(versions.encode(node.result_of(prev), version))
    before = node.state(overlay)
    with pytest.raises(UnderlayError) as caught:
        node.plainly("ADD", kind, overlay.path, "net1", meta(kind) | {"cniVersion": version}, told)
    assert caught.value.code == 7
    assert '"prevResult.interfaces"' in caught.value.message
    assert "0.3.0" in caught.value.hint
    assert node.state(overlay) == before


@pytest.mark.parametrize("kind", ["veth", "router"])
def test_the_plugins_own_log_file_says_what_was_done_and_what_failed(
    node: Node, overlay: Netns, tmp_path: Path, kind: str
) -> None:
    logs = tmp_path / "log"
    node.log.also = Logs(LogSettings(plugin_dir=str(logs), file=str(tmp_path / "daemon.log")))
    files = {level: logs / "meta" / f"{level}.log" for level in ("debug", "error")}
    for number, (level, file) in enumerate(files.items()):
        options = {"log_level": level, "log_file": str(file)}
        ifname = f"net{number + 1}"
        node.add(overlay, ifname, macvlan(f"172.18.7.{number + 5}/16"), meta(kind, log_options=options))
        node.refused(overlay, "net9", macvlan("172.18.0.11/16"), meta(kind, log_options=options))
    lines = {level: [json.loads(line) for line in file.read_text().splitlines()] for level, file in files.items()}
    assert [line["event"] for line in lines["debug"]] == [f"{kind} added", f"{kind} failed"]
    assert (lines["debug"][0]["nic"], lines["debug"][0]["container"]) == ("net1", CONTAINER)
    assert [(line["event"], line["nic"]) for line in lines["error"]] == [(f"{kind} failed", "net9")]
    assert "172.18.0.11" in lines["error"][0]["error"]
    assert "log_file" not in (tmp_path / "daemon.log").read_text()


def test_the_plugins_own_log_file_is_rotated_and_the_oldest_are_removed(node: Node, pod: Netns, tmp_path: Path) -> None:
    file = tmp_path / "veth.log"
    node.log.also = Logs(LogSettings(plugin_dir=str(tmp_path), file=str(tmp_path / "daemon.log")))
    options = {"log_file": str(file), "log_max_size": 1, "log_max_count": 1}
    for number in range(3):
        with file.open("ab") as full:
            full.truncate(1 << 20)
        node.log.also.reopen()
        node.add(pod, f"net{number}", macvlan(f"172.18.7.{number + 5}/16"), meta("veth", log_options=options))
    assert len(list(tmp_path.glob("veth.log.*"))) == 1
    assert json.loads(file.read_text())["nic"] == "net2"
