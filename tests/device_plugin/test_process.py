"""``underlay device-plugin`` as a process, and what of it needs no kubelet."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.device_plugin.conftest import DPDK, OTHER_PF, PF, SRIOV, VF0, VF1

from underlay.cli import main
from underlay.device_plugin import api, preference
from underlay.device_plugin.inventory import Held, Inventory
from underlay.device_plugin.plugin import endpoint_name
from underlay.device_plugin.selection import Resource, Selector
from underlay.net.netns import Namespace
from underlay.net.pci import Function, Pci

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.device_plugin.conftest import Node
    from tests.device_plugin.kubelet import Kubelet

UNDERLAY = (sys.executable, "-m", "underlay", "device-plugin")


def arguments(node: Node, *resources: Any) -> list[str]:
    given = {
        "--config": node.configure(*resources), "--plugin-dir": node.plugins, "--device-info-dir": node.info,
        "--sysfs": node.sysfs.root, "--interval": 0.2,
    }  # fmt: skip
    return [*UNDERLAY, *(str(word) for pair in given.items() for word in pair)]


@contextmanager
def process(node: Node, *resources: Any, flags: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[bytes]]:
    with node.ns.popen(*arguments(node, *resources), *flags, stderr=subprocess.PIPE) as running:
        try:
            yield running
        finally:
            running.kill()


def lines(output: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_leaves_no_socket(node: Node, kubelet: Kubelet, number: int) -> None:
    with process(node, SRIOV, DPDK) as running:
        assert kubelet.endpoint("intel.com/sriov").allocate([VF0])
        running.send_signal(number)
        _, log = running.communicate(timeout=20)
    assert running.returncode == 0
    assert [path.name for path in node.plugins.iterdir()] == ["kubelet.sock"]
    events = [line["event"] for line in lines(log)]
    assert events[0] == "ready"
    assert events[-1] == "stopped"
    assert "allocated" in events


def test_a_configuration_that_changes_changes_the_resources(node: Node, kubelet: Kubelet) -> None:
    with process(node, SRIOV) as running:
        kubelet.endpoint("intel.com/sriov")
        node.configure({"resourceName": "sriov", "selectors": [{"vendors": ["intel"]}]})  # is not taken over
        assert running.stderr is not None
        told: dict[str, Any] = {"event": ""}
        while told["event"] != "configuration not taken over":
            told = json.loads(running.stderr.readline())
        assert "'intel' is no id of a vendor" in told["cause"]
        assert kubelet.endpoint("intel.com/sriov").allocate([VF0])
        node.configure(DPDK)
        assert kubelet.endpoint("intel.com/dpdk").allocate([VF1])
        kubelet.wait(lambda: kubelet.endpoints["intel.com/sriov"].ended)
        assert not (node.plugins / "intel.com_sriov.sock").exists()
        assert [path.name for path in (node.info / "dp").iterdir()] == [f"intel.com-dpdk-{VF1}-device.json"]
        running.send_signal(signal.SIGTERM)
        running.communicate(timeout=20)
    assert running.returncode == 0


def test_it_needs_no_capability(node: Node, kubelet: Kubelet) -> None:
    """As in the container of deploy/device-plugin.yaml: root, and nothing of what makes it one."""
    bare = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")
    with node.ns.popen(*bare, *arguments(node, SRIOV), stderr=subprocess.PIPE) as running:
        try:
            status = Path(f"/proc/{running.pid}/status")
            kubelet.until("intel.com/sriov", vf0="Healthy")
            assert re.search(r"(?m)^CapEff:\s+0+$", status.read_text())
            node.ns.batch("link set eth0 down")
            kubelet.until("intel.com/sriov", vf0="Unhealthy")
            node.ns.batch("link set eth0 up")
            kubelet.until("intel.com/sriov", vf0="Healthy")
            assert kubelet.endpoint("intel.com/sriov").allocate([VF0])
        finally:
            running.kill()


def test_the_next_process_takes_over_what_a_killed_one_left(node: Node, kubelet: Kubelet) -> None:
    with process(node, SRIOV) as running:
        kubelet.endpoint("intel.com/sriov")
        running.kill()
        running.wait(20)
    kubelet.wait(lambda: kubelet.endpoints["intel.com/sriov"].ended)
    assert (node.plugins / "intel.com_sriov.sock").exists()
    with process(node, SRIOV):
        kubelet.wait(lambda: len(kubelet.registrations) == 2)
        assert kubelet.endpoint("intel.com/sriov").allocate([VF0])


def test_a_bad_configuration_does_not_start(node: Node) -> None:
    argv = arguments(node, {"resourceName": "a", "selectors": [{"vendors": ["intel"]}]})
    done = node.ns.run(*argv, check=False)
    assert done.returncode == 1
    assert "\"resourceList[0].selectors[0].vendors[0]\": 'intel' is no id of a vendor" in done.stderr


def test_a_node_without_a_kubelet_says_so(node: Node) -> None:
    done = node.ns.run(*arguments(node, SRIOV), "--plugin-dir", "/run/nonesuch", check=False)
    assert (done.returncode, "there is no directory /run/nonesuch" in done.stderr) == (1, True)


def test_once_shows_what_each_resource_has(node: Node) -> None:
    node.ns.batch("link set eth1 down")
    others = {"resourceName": "others", "selectors": [{}]}
    none = {"resourceName": "none", "selectors": [{"drivers": ["x"]}]}
    done = node.ns.run(*arguments(node, SRIOV, DPDK, none, others), "--once")
    rows = [line.split(maxsplit=5) for line in done.stdout.splitlines()]
    assert rows[0] == ["RESOURCE", "DEVICE", "PF", "DRIVER", "NUMA", "STATE"]
    assert rows[1] == ["intel.com/sriov", VF0, "eth0", "iavf", "0", "healthy"]
    assert rows[2] == ["intel.com/dpdk", VF1, "eth0", "vfio-pci", "0", "healthy"]
    assert rows[3] == ["intel.com/none", "none", "-", "-", "-", "no virtual function is selected"]
    assert rows[4][2:] == ["eth1", "mlx5_core", "1", "its physical function eth1 is down"]
    assert "takes every virtual function" in done.stderr
    assert list(node.plugins.iterdir()) == []


def test_check_prints_every_finding_and_its_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps({"resourceList": [SRIOV, DPDK]}))
    bad.write_text(json.dumps({"resourceList": [{"resourceName": "a", "selectors": [{"vendors": ["x"], "y": 1}]}]}))
    assert main.main(["device-plugin", "--check", str(good)]) == 0
    assert capsys.readouterr().out == "1 file: 0 errors, 0 warnings\n"
    assert main.main(["device-plugin", "--check", str(bad)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{bad}: warning: resourceList[0].selectors[0].y: the key is unknown")
    assert lines[1].startswith(f"{bad}: error: resourceList[0].selectors[0].vendors[0]: 'x' is no id of a vendor")
    assert lines[2] == "1 file: 1 error, 1 warning"
    assert main.main(["device-plugin", "--check", str(tmp_path / "none")]) == 1
    assert "No such file" in capsys.readouterr().err


def test_it_starts_on_little(node: Node) -> None:
    """The budget of the module's first lines, without what the kubelet's messages take."""
    script = "import underlay.device_plugin.plugin, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    outside = {name for name in done.stdout.split() if name not in sys.stdlib_module_names and name[0] != "_"}
    assert outside <= {"underlay", "msgspec", "h2", "hpack", "hyperframe", "typing_extensions", "sitecustomize"}


def test_a_device_that_stays_away_is_forgotten(node: Node) -> None:
    resource = Resource("intel.com", "sriov", (Selector(drivers=frozenset({"iavf"})),), {})
    with node.ns.entered(), Namespace.current() as host:
        inventory = Inventory(Pci(str(node.sysfs.root)), host, [resource], patience=60.0)
        ((before,),) = inventory.look(100.0).values()
        assert (before.function.address, before.fault) == (VF0, "")
        node.sysfs.bind(VF0, "vfio-pci")
        ((held,),) = inventory.look(130.0).values()
        assert held.fault == "its driver is vfio-pci and no longer iavf"
        assert list(inventory.look(161.0).values()) == [()]
        node.sysfs.bind(VF0, "iavf")
        ((again,),) = inventory.look(162.0).values()
        assert again.fault == ""


@given(
    st.from_regex(r"[a-z0-9]([a-z0-9.]{0,250}[a-z0-9])?", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9_]{1,63}", fullmatch=True),
)
def test_sockets_of_resources_have_short_names(prefix: str, short: str) -> None:
    name = endpoint_name(Resource(prefix, short, (), {}))
    assert len(f"/var/lib/kubelet/device-plugins/{name}.new") <= 107
    assert "/" not in name


def held(address: str, pf: str, numa: int) -> Held:
    function = Function(address, "8086", "1889", "iavf", (), numa, pf, 0)
    return Held(function, Function(pf, "8086", "1592", "ice", (), numa), Selector(), "", 0.0)


NODE = {
    f"{pf[:-4]}{n:02}.0": held(f"{pf[:-4]}{n:02}.0", pf, numa)
    for pf, numa in ((PF, 0), ("0000:3c:00.0", 0), (OTHER_PF, 1))
    for n in range(2, 6)
}


@given(st.data())
def test_a_preference_is_of_what_is_there(data: st.DataObject) -> None:
    available = data.draw(st.lists(st.sampled_from([*NODE, "x"]), unique=True))
    must = data.draw(st.lists(st.sampled_from(available), unique=True)) if available else []
    size = data.draw(st.integers(len(must), 14))
    chosen = preference.choose(api.Preference(tuple(available), tuple(must), size), NODE)
    known = [each for each in available if each in NODE]
    assert len(chosen) == len(set(chosen)) == min(size, len(known))
    assert set(chosen) <= set(known)
    assert set(must) - {"x"} <= set(chosen)
    near = {numa for numa in (0, 1) if sum(NODE[each].numa == numa for each in known) >= size > 0}
    if near and not must:
        assert len({NODE[each].numa for each in chosen}) == 1
