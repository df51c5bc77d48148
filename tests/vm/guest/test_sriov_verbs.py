"""sriov on real virtual functions beside ADD and DEL: GC, STATUS, device information, the commands, and the shim."""

from __future__ import annotations

import json
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.multus.multus_node import ShimAndDaemon
from tests.plugins.conftest import CONTAINER, Conf, Log, Node, Tap
from tests.plugins.test_macvlan import is_announcement
from tests.vm.guest.conftest import PF, Pf, wait_for
from tests.vm.guest.test_sriov import MAC, sriov

from underlay.cli import main
from underlay.delegate import wire
from underlay.delegate.report import Report
from underlay.errors import NotAvailable
from underlay.net import link, vf_restore
from underlay.net.netns import Namespace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Netns

POD = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=uid-1"


@pytest.fixture(scope="module")
def daemon(made_pf: Pf, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShimAndDaemon]:
    """One for all tests: it takes its time to start here, longer than the shim waits."""
    directory = tmp_path_factory.mktemp("daemon")
    node = ShimAndDaemon(made_pf.ns, directory)
    wait_for((directory / "run/underlay.sock").exists, 90.0)
    yield node
    node.close()


def shim(
    daemon: ShimAndDaemon, verb: str, conf: Conf, pod: Netns | None = None, container: str = CONTAINER
) -> tuple[int, Any]:
    """The runtime's call of the plugin sriov itself: the exit status, and what was printed."""
    env = {"CNI_COMMAND": verb, "CNI_PATH": daemon.path()}
    if pod is not None:
        env |= {"CNI_CONTAINERID": container, "CNI_NETNS": pod.path, "CNI_IFNAME": "eth0", "CNI_ARGS": POD}
    whole = {"cniVersion": "1.1.0", "name": "vfs", **conf}
    done = subprocess.run(
        [daemon.bin_dir / "sriov"], env=env, input=json.dumps(whole).encode(), capture_output=True, check=False
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else None


def listed(capsys: pytest.CaptureFixture[str], state_dir: Path) -> dict[str, Conf]:
    """What "underlay devices" says, by PCI address."""
    assert main.main(["devices", "--state-dir", str(state_dir), "--json"]) == 0
    return {each["address"]: each for each in json.loads(capsys.readouterr().out)}


def test_through_the_shim_every_verb_works_and_devices_tells_whose_it_is(
    daemon: ShimAndDaemon, pf: Pf, pod: Netns, pod2: Netns, capsys: pytest.CaptureFixture[str]
) -> None:
    before, vf = pf.state(), pf.vfs[0]
    conf = sriov(vf, "172.18.7.5/16", vlan=0, trust="on", mac=MAC)
    status, result = shim(daemon, "ADD", conf, pod)
    assert status == 0, result
    assert result["interfaces"][0] | {"mtu": 0} == {
        "name": "eth0", "mac": MAC, "sandbox": pod.path, "pciID": vf.address, "mtu": 0,
    }  # fmt: skip
    assert pod.pings("172.18.0.1")
    assert shim(daemon, "CHECK", conf | {"prevResult": result}, pod) == (0, None)
    assert shim(daemon, "STATUS", conf) == (0, None)

    told = listed(capsys, daemon.directory / "state")
    assert (told[PF]["kind"], told[PF]["vfs"], told[PF]["nic"]) == ("pf", len(pf.vfs), pf.name)
    mine = told[vf.address]
    assert (mine["driver"], mine["pod"], mine["nic"]) == ("igbvf", "default/web:eth0", "")
    assert (mine["settings"]["mac"], mine["settings"]["trust"]) == (MAC, True)
    assert (told[pf.vfs[1].address]["pod"], told[pf.vfs[1].address]["nic"]) == ("", pf.vfs[1].name)

    status, refusal = shim(daemon, "ADD", sriov(vf), pod2, "other")
    assert (status, refusal["code"]) == (1, 11)
    assert "is in use by pod default/web as eth0" in refusal["msg"]

    assert shim(daemon, "DEL", conf, pod) == (0, None)
    assert pf.state() == before
    assert listed(capsys, daemon.directory / "state")[vf.address]["pod"] == ""


def test_gc_gives_back_what_nobody_holds_and_leaves_what_somebody_does(
    daemon: ShimAndDaemon, pf: Pf, pod: Netns, pod2: Netns
) -> None:
    before = pf.state()
    kept, lost = sriov(pf.vfs[0], trust="on"), sriov(pf.vfs[1], vlan=30, mac=MAC, trust="on")
    assert shim(daemon, "ADD", kept, pod, "kept")[0] == 0
    assert shim(daemon, "ADD", lost, pod2, "lost")[0] == 0
    held = {"cni.dev/valid-attachments": [{"containerID": "kept", "ifname": "eth0"}]}
    assert shim(daemon, "GC", {"type": "sriov", **held}) == (0, None)
    assert pod2.link("eth0") is None
    assert pf.ns.link(pf.vfs[1].name) is not None
    assert not pf.told(1)["trust"]
    assert not pf.told(1)["vlan_list"][0].get("vlan")
    assert pod.link("eth0") is not None
    assert pf.told(0)["trust"] is True
    assert shim(daemon, "GC", {"type": "sriov", "cni.dev/valid-attachments": []}) == (0, None)
    assert pf.state() == before


def test_multus_hands_the_virtual_function_of_the_network_to_the_pod(daemon: ShimAndDaemon, pf: Pf, pod: Netns) -> None:
    vf = pf.vfs[2]
    daemon.network("kube-system", "vf", {"cniVersion": "1.0.0", "name": "vf", **sriov(vf, "172.18.7.5/16")})
    daemon.pod("default", "web", {"v1.multus-cni.io/default-network": "kube-system/vf"})
    conf = {"cniVersion": "1.0.0", "name": "multus-net", "type": "multus", "clusterNetwork": "vf"}
    ok, result = daemon.call("ADD", conf, netns=pod.path, args=POD)
    assert ok, result
    assert pod.pings("172.18.0.1")
    assert daemon.status("default", "web")[0]["ips"] == ["172.18.7.5"]
    assert daemon.call("DEL", conf, netns=pod.path, args=POD)[0]


def test_a_nic_that_no_ledger_knows_gets_its_name_back_by_gc(node: Node, pf: Pf) -> None:
    vf = pf.vfs[1]
    mark = vf_restore.mark(vf.address, vf.name)
    pf.ns.batch(f"link set {vf.name} down", f"link set {vf.name} alias {mark}", f"link set {vf.name} name lost0")
    conf: Conf = {"type": "sriov", "cniVersion": "1.1.0", "cni.dev/valid-attachments": []}
    node.plainly("GC", "sriov", "", "", conf)
    assert pf.ns.link("lost0") is None
    assert not pf.ns.link(vf.name).get("ifalias")


def test_status_looks_at_the_device(node: Node, pf: Pf) -> None:
    conf: Conf = {"type": "sriov", "cniVersion": "1.1.0"}
    assert node.plainly("STATUS", "sriov", "", "", conf) is None
    assert node.plainly("STATUS", "sriov", "", "", conf | {"deviceID": pf.vfs[0].address}) is None
    with pytest.raises(NotAvailable, match="is a physical function") as caught:
        node.plainly("STATUS", "sriov", "", "", conf | {"deviceID": PF})
    assert caught.value.code == 50


def test_the_device_information_is_there_as_long_as_the_nic(node: Node, pf: Pf, pod: Netns, tmp_path: Path) -> None:
    file = tmp_path / "devinfo" / "vf.json"
    conf = sriov(pf.vfs[0], capabilities={"CNIDeviceInfoFile": True})
    node.add(pod, "net1", conf, runtime={"CNIDeviceInfoFile": str(file)})
    assert json.loads(file.read_text()) == {
        "type": "pci", "version": "1.1.0", "pci": {"pci-address": pf.vfs[0].address, "pf-pci-address": PF},
    }  # fmt: skip
    assert node.delete(pod, "net1") == []


def on_this_node(capsys: pytest.CaptureFixture[str], directory: Path, **keys: Any) -> tuple[int, str]:
    """The exit status and the words of lint for one network."""
    file = directory / "vfs.conf"
    file.write_text(json.dumps({"cniVersion": "1.0.0", "name": "vfs", "type": "sriov", **keys}))
    status = main.main(["networks", "lint", "--on-this-node", str(file)])
    return status, capsys.readouterr().out


def test_lint_looks_at_the_devices_of_this_node(pf: Pf, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert on_this_node(capsys, tmp_path, vlan=100)[0] == 0
    assert on_this_node(capsys, tmp_path, deviceID=pf.vfs[0].address)[0] == 0
    status, words = on_this_node(capsys, tmp_path, deviceID=PF)
    assert status == 1
    assert "is a physical function" in words
    status, words = on_this_node(capsys, tmp_path, deviceID=pf.vfs[0].address, vlan=4095, spoofcheck="on")
    assert status == 1
    assert '"vlan" 4095 is not in the range' in words
    assert 'Did you mean "spoofchk"?' in words


def test_the_answer_does_not_wait_for_the_wire_and_the_announcement_does(
    node: Node, pf: Pf, pod: Netns, lan: Netns
) -> None:
    tap = Tap(lan, "lan0")
    report = Report(waits=True)
    try:
        result = node.add(pod, "eth0", sriov(pf.vfs[0], "172.18.7.5/16", "fd00:18::7:5/64"), report=report)
        assert len(report.afterwards) == 1
        report.answered(None)
        assert [event for level, event, _ in node.log.lines if level == "warn"] == []  # the link came in time
        mac = result["interfaces"][0]["mac"]
        assert len(tap.until(is_announcement(mac, "172.18.7.5"), is_announcement(mac, "fd00:18::7:5"))) == 2
        assert "LOWER_UP" in pod.link("eth0")["flags"]
    finally:
        tap.close()
    assert node.delete(pod, "eth0") == []


def test_an_announcement_is_heard_though_the_link_is_seen_before_the_kernel_sends(pf: Pf, lan: Netns) -> None:
    with Namespace.current() as here:
        index, log = link.index_of(here.rtnl, pf.vfs[0].name), Log()
        nic = link.get_index(here.rtnl, index)
        assert nic is not None
        for number in range(20):
            tap, address = Tap(lan, "lan0"), f"172.18.9.{number}"
            here.rtnl.batch([link.change(index=index, up=True)])
            assert seen(here, index)
            wire.tell(Namespace.current(), {index: (nic.mac, [address])}, log)
            assert tap.until(is_announcement(nic.mac, address))
            tap.close()
            here.rtnl.batch([link.change(index=index, up=False)])
        assert log.lines == []


def seen(here: Namespace, index: int) -> bool:
    """The carrier, looked for without a pause."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        found = link.get_index(here.rtnl, index)
        if found is not None and found.carrier:
            return True
    return False
