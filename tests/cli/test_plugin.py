"""`underlay plugin NAME`: a plain CNI process, without daemon and ledger, on the real kernel."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Netns, State


@pytest.fixture
def conf(tmp_path: Path) -> dict[str, Any]:
    ipam = {"type": "host-local", "dataDir": str(tmp_path / "networks"), "ranges": [[{"subnet": "172.18.0.0/16",
            "rangeStart": "172.18.5.1", "rangeEnd": "172.18.5.9"}]]}  # fmt: skip
    return {"cniVersion": "1.0.0", "name": "lan", "type": "macvlan", "master": "eth0", "ipam": ipam}


def plugin(
    node: Netns, verb: str, conf: Any, pod: Netns | None = None, *, name: str = "macvlan", debug: bool = False
) -> subprocess.CompletedProcess[str]:
    env = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "net1", "CNI_PATH": "/nowhere"}
    env["CNI_NETNS"] = pod.path if pod else ""
    return node.run(
        sys.executable, "-m", "underlay", "plugin", *["--debug"] * debug, name,
        env={"PATH": os.environ["PATH"]} | env, input=conf if isinstance(conf, str) else json.dumps(conf), check=False,
    )  # fmt: skip


def fault(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert (done.returncode, done.stderr) == (1, "")
    told: dict[str, Any] = json.loads(done.stdout)
    assert told.keys() == {"cniVersion", "code", "msg", "details"}
    return told


def leases(conf: dict[str, Any]) -> list[str]:
    network = f"{conf['ipam']['dataDir']}/lan"
    return sorted(name for name in os.listdir(network) if name[0].isdigit())


def test_macvlan_with_host_local_is_added_checked_and_deleted(
    uplink: Netns, lan: Netns, pod: Netns, conf: dict[str, Any], snapshot: Callable[[Netns], State]
) -> None:
    before = snapshot(pod), snapshot(uplink)
    added = plugin(uplink, "ADD", conf, pod)
    assert (added.returncode, added.stderr) == (0, "")
    result = json.loads(added.stdout)
    assert result["cniVersion"] == "1.0.0"
    assert [each["address"] for each in result["ips"]] == ["172.18.5.1/16"]
    link = pod.link("net1")
    assert link["linkinfo"]["info_kind"] == "macvlan"
    assert link["address"] == result["interfaces"][0]["mac"]
    assert [each["local"] for each in pod.ip("-4", "addr", "show", "dev", "net1")[0]["addr_info"]] == ["172.18.5.1"]
    assert leases(conf) == ["172.18.5.1"]
    assert lan.pings("172.18.5.1")
    known = conf | {"prevResult": result}
    checked = plugin(uplink, "CHECK", known, pod)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    pod.batch("addr flush dev net1")
    assert fault(plugin(uplink, "CHECK", known, pod))["code"] >= 100
    for _ in range(2):
        deleted = plugin(uplink, "DEL", known, pod)
        assert (deleted.returncode, deleted.stdout, deleted.stderr) == (0, "", "")
        assert (snapshot(pod), snapshot(uplink)) == before
        assert leases(conf) == []


def test_del_of_a_pod_that_is_gone_gives_the_address_back(uplink: Netns, pod: Netns, conf: dict[str, Any]) -> None:
    added = plugin(uplink, "ADD", conf, pod)
    assert leases(conf) == ["172.18.5.1"]
    assert plugin(uplink, "DEL", conf | {"prevResult": json.loads(added.stdout)}).returncode == 0
    assert leases(conf) == []


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"master": "eth9"}, 7, "eth9"),
        ({"mode": "sideways"}, 7, "mode"),
        ({"mtu": -1}, 7, "mtu"),
        ({"cniVersion": "9.9.9"}, 1, "9.9.9"),
        ({"ipam": {"type": "host-local", "ranges": [[{"subnet": "nonsense"}]]}}, 7, "nonsense"),
        ({"ipam": {"type": "no-such-ipam"}}, None, "no-such-ipam"),
    ],
)
def test_bad_input_is_named_and_the_kernel_stays_as_it_was(
    uplink: Netns, pod: Netns, conf: dict[str, Any], snapshot: Callable[[Netns], State],
    change: dict[str, Any], code: int | None, words: str,
) -> None:  # fmt: skip
    before = snapshot(pod), snapshot(uplink)
    told = fault(plugin(uplink, "ADD", conf | change, pod))
    assert code in (None, told["code"])
    assert words in told["msg"]
    assert told["details"]
    assert (snapshot(pod), snapshot(uplink)) == before


@pytest.mark.parametrize(
    ("verb", "text", "code"), [("ADD", "{", 6), ("ADD", "", 6), ("ADD", "[]", 6), ("NONSENSE", "{}", 4), ("", "{}", 4)]
)
def test_what_is_no_call_is_answered_by_a_cni_error(uplink: Netns, pod: Netns, verb: str, text: str, code: int) -> None:
    assert fault(plugin(uplink, verb, text, pod))["code"] == code


@pytest.mark.parametrize("name", ["macvlan", "veth", "router", "host-local", "static", "spiderpool"])
def test_every_plugin_tells_its_versions(uplink: Netns, name: str) -> None:
    told = json.loads(plugin(uplink, "VERSION", "{}", name=name).stdout)
    assert (told["cniVersion"], told["supportedVersions"][0]) == ("1.1.0", "0.1.0")


def test_host_local_alone_gives_and_takes_an_address(uplink: Netns, pod: Netns, conf: dict[str, Any]) -> None:
    alone = conf | {"type": "host-local"}
    added = plugin(uplink, "ADD", alone, pod, name="host-local")
    assert [each["address"] for each in json.loads(added.stdout)["ips"]] == ["172.18.5.1/16"]
    assert plugin(uplink, "DEL", alone, pod, name="host-local").returncode == 0
    assert leases(conf) == []
