"""`underlay doctor`: what is missing is found by looking, and each line says what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.kube.api_server import ApiServer

import underlay
from underlay.cli import install, node_checks, shim_binary
from underlay.cli.main import main
from underlay.cli.node_checks import Node
from underlay.daemon import config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from underlay.cli.node_checks import Finding

UNDERLAY = (sys.executable, "-m", "underlay")
READ_ONLY = 'mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys; exec "$@"'
CLUSTER = {"cniVersion": "1.0.0", "name": "cluster", "plugins": [{"type": "ptp"}]}
MULTUS = {"cniVersion": "1.0.0", "name": "multus-cni-network", "type": "multus"}


class Bench:
    """A node's directories, and what a check says of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin, self.conf, self.state, self.run = (root / name for name in ("bin", "net.d", "state", "run"))
        for directory in (self.conf, self.state, self.run):
            directory.mkdir()
        install.install(self.bin, str(self.run), install.DEFAULT_NAMES)
        self.lay("10-cluster.conflist", CLUSTER)
        self.lay("00-multus.conf", MULTUS | {"clusterNetwork": str(self.conf / "10-cluster.conflist")})

    def lay(self, name: str, content: object) -> Path:
        (self.conf / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return self.conf / name

    def flags(self) -> list[str]:
        places = {"bin-dir": self.bin, "state-dir": self.state, "run-dir": self.run}
        return [f"--{key}={path}" for key, path in places.items()]

    def node(self, **keys: Any) -> Node:
        places = {"bin_dir": [str(self.bin)], "state_dir": str(self.state), "run_dir": str(self.run)}
        return Node(config.load(None, places | keys), str(self.conf), lambda path: f"{self.root}{path}"
                    if path.startswith("/run/multus") else path)  # fmt: skip

    def doctor(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict[str, str]]]:
        status = main(["doctor", "--json", f"--conf-dir={self.conf}", *self.flags(), *arguments])
        return status, json.loads(capsys.readouterr().out)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as made:
        yield made


def states(found: list[Finding]) -> list[str]:
    return [each.state for each in found]


def test_a_node_with_all_of_it_is_well(
    bench: Bench, server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "underlay.json"
    kube = {"kubeconfig": server.kubeconfig(tmp_path / "kubeconfig"), "node_name": "n1"}
    file.write_text(json.dumps({"kube": kube, "pools": "manifests", "manifest_dir": str(tmp_path)}))
    daemon = subprocess.Popen([*UNDERLAY, "daemon", "--config", file, *bench.flags()], stderr=subprocess.DEVNULL)
    try:
        subprocess.run([*UNDERLAY, "status", "--wait=10", f"--run-dir={bench.run}"], check=True, capture_output=True)
        status, found = bench.doctor(capsys, "--config", str(file))
        assert status == 0, found
        assert [each for each in found if each["state"] == "fail"] == []
        told = {(each["what"], each["message"]) for each in found if each["state"] == "ok"}
        assert {("kernel", "makes veth"), ("kernel", "makes macvlan")} <= told
        assert ("daemon", f"ready: process {daemon.pid}, version {underlay.__version__}") in told
        assert ("API server", f"{server.url} answers for k8s.cni.cncf.io") in told
        assert ("runtime", f"{bench.conf}/00-multus.conf comes first and calls multus") in told
        assert {each.verb for each in server.asked() if "underlay-doctor" in each.headers["User-Agent"]} == {"list"}
    finally:
        daemon.terminate()
        daemon.wait(30)
    status, found = bench.doctor(capsys, "--config", str(file))
    assert status == 1
    assert [each["what"] for each in found if each["state"] == "fail"] == ["daemon"]


def test_lines_for_people_have_the_hint_below(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    (bench.bin / "veth").unlink()
    assert main(["doctor", f"--conf-dir={bench.conf}", *bench.flags()]) == 1
    lines = capsys.readouterr().out.splitlines()
    at = lines.index(f"fail  executables: {bench.bin}/veth is not there")
    assert lines[at + 1] == f"      underlay install --bin-dir {bench.bin} --run-dir {bench.run}"


def test_the_hint_mends_it(bench: Bench) -> None:
    (bench.bin / "veth").unlink()
    (bench.bin / "multus").unlink()
    (bench.bin / "multus").write_text("another's")
    found = list(node_checks.executables(bench.node()))
    assert states(found) == ["fail", "fail"]
    for each in found:
        _, *arguments = each.hint.split()
        assert main(arguments) == 0
    assert states(list(node_checks.executables(bench.node()))) == ["ok"]


def test_executables_of_another_daemon_or_version_or_that_cannot_run_are_named(bench: Bench, tmp_path: Path) -> None:
    (finding, *_) = node_checks.executables(bench.node(run_dir="/run/other"))
    assert (finding.state, f"looks for its daemon in {bench.run}" in finding.message) == ("fail", True)
    with open(bench.bin / "veth", "ab") as file:
        file.write(b"\0")
    assert states(list(node_checks.executables(bench.node()))) == ["warn"] * len(install.DEFAULT_NAMES)
    install.install(bench.bin, str(bench.run), install.DEFAULT_NAMES)
    for name in install.DEFAULT_NAMES:
        (bench.bin / name).chmod(0o644)
    found = list(node_checks.executables(bench.node()))
    assert "Permission denied" in found[0].message
    assert shim_binary.run_dir_of(bench.bin / "veth") == str(bench.run)


@pytest.mark.parametrize(
    ("first", "words"),
    [
        ({**CLUSTER, "name": "x"}, "comes first and calls ptp: pods get its network alone"),
        ("{", "is no JSON of a network"),
        ({**MULTUS, "clusterNetwork": "/none"}, "clusterNetwork /none does not exist"),
    ],
)
def test_a_first_file_that_leads_elsewhere_is_named(bench: Bench, first: object, words: str) -> None:
    bench.lay("00-a.conf", first)
    (finding, other) = node_checks.runtime(bench.node())
    assert (finding.state, words in finding.message) == ("fail", True), finding
    assert (other.state, other.message) == ("warn", f"{bench.conf}/00-multus.conf calls multus too")


def test_no_file_at_all_is_named(bench: Bench) -> None:
    for path in bench.conf.iterdir():
        path.unlink()
    (finding,) = node_checks.runtime(bench.node())
    assert (finding.state, "no pod starts" in finding.message) == ("fail", True)


def test_a_chain_without_multus_is_well(bench: Bench) -> None:
    (bench.conf / "00-multus.conf").unlink()
    bench.lay("05-chain.conflist", {**CLUSTER, "plugins": [{"type": "macvlan"}, {"type": "veth"}]})
    assert states(list(node_checks.runtime(bench.node()))) == ["ok"]


def test_what_the_api_server_lacks_or_refuses_is_named(bench: Bench, server: ApiServer, tmp_path: Path) -> None:
    kube = {"kubeconfig": server.kubeconfig(tmp_path / "kubeconfig"), "node_name": "n1"}
    node = bench.node(kube=kube)
    server.unserved |= {"network-attachment-definitions"}
    server.forbidden |= {("list", "underlayipblocks")}
    networks, blocks = node_checks.api_server(node)
    assert (networks.state, networks.hint) == ("fail", "kubectl apply -f deploy/crds")
    assert (blocks.state, blocks.hint) == ("warn", "kubectl apply -f deploy/rbac.yaml")
    server.stop()
    (away,) = node_checks.api_server(node)
    assert (away.state, server.url in away.message) == ("fail", True)
    assert "the address in the kubeconfig" in away.hint


def test_without_an_api_server_the_directory_of_manifests_is_looked_for(bench: Bench, tmp_path: Path) -> None:
    node = bench.node(manifest_dir=str(tmp_path / "manifests"))
    (finding,) = node_checks.api_server(node)
    assert (finding.state, finding.hint) == ("warn", f"mkdir -p {tmp_path}/manifests, or set kube.kubeconfig.")
    (tmp_path / "manifests").mkdir()
    assert states(list(node_checks.api_server(node))) == ["ok"]


def test_anothers_daemon_is_named(bench: Bench) -> None:
    assert list(node_checks.others(bench.node())) == []
    (bench.root / "run/multus").mkdir()
    (bench.root / "run/multus/multus.sock").write_text("")
    assert states(list(node_checks.others(bench.node()))) == ["warn"]


def test_a_disk_that_is_full_or_read_only_is_named(bench: Bench) -> None:
    assert node_checks.state_directory(bench.node()).state == "ok"
    options = ("size=1m", "ro")
    for option, state in zip(options, ("warn", "fail"), strict=True):
        subprocess.run(["mount", "-t", "tmpfs", "-o", option, "state", bench.state], check=True)
        try:
            assert node_checks.state_directory(bench.node(state_dir=f"{bench.state}/new")).state == state
        finally:
            subprocess.run(["umount", bench.state], check=True)


@pytest.mark.parametrize("named", ["state", "state/below"])
def test_a_file_in_the_place_of_the_state_directory_is_named(bench: Bench, named: str) -> None:
    bench.state.rmdir()
    bench.state.touch()
    found = node_checks.state_directory(bench.node(state_dir=f"{bench.root}/{named}"))
    assert (found.state, found.message) == ("fail", f"{bench.state} is not a directory")
    assert found.hint


def test_who_may_not_ask_the_daemon_is_told_so(bench: Bench) -> None:
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *UNDERLAY, "doctor", "--json", *bench.flags()],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    asked = next(each for each in json.loads(done.stdout) if each["what"] == "daemon")
    assert "Permission denied" in asked["message"]
    assert "as root" in asked["hint"]


@pytest.mark.parametrize(
    ("wrapped", "words"),
    [
        (["setpriv", "--bounding-set=-sys_admin"], "no network namespace can be made: Operation not permitted"),
        (
            ["unshare", "--mount", "sh", "-ec", READ_ONLY, "sh"],
            "Read-only file system",
        ),
    ],
    ids=["no privileges", "settings cannot be written"],
)  # fmt: skip
def test_a_container_that_may_too_little_is_named(bench: Bench, wrapped: list[str], words: str) -> None:
    command = [*wrapped, *UNDERLAY, "doctor", "--json", f"--conf-dir={bench.conf}", *bench.flags()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 1, done.stderr
    faults = [
        each["message"] for each in json.loads(done.stdout) if (each["what"], each["state"]) == ("kernel", "fail")
    ]
    assert any(words in each for each in faults), done.stdout
