"""`underlay uninstall` of a whole node: what was laid goes, what is others' stays, and pods are thought of first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from underlay.cli import install
from underlay.cli.main import main
from underlay.daemon.lock import Lock
from underlay.delegate import entries
from underlay.delegate.ledger import Ledger, Row
from underlay.multus.laid import Laid
from underlay.net import undo

if TYPE_CHECKING:
    from pathlib import Path

CLUSTER = {"cniVersion": "1.0.0", "name": "cluster", "plugins": [{"type": "ptp"}]}
MULTUS = {"cniVersion": "1.0.0", "name": "multus-cni-network", "type": "multus", "clusterNetwork": "cluster"}
BY_OTHERS = entries.ExecDelete("ptp", "{}", "1.0.0", "c", "/run/netns/c", "eth0")
DROPS = undo.DropLink("pod", "net1", kind="macvlan")


class Bench:
    """A node's directories, as `underlay install` and a daemon have left them."""

    def __init__(self, root: Path) -> None:
        self.bin, self.conf, self.state, self.run = (root / name for name in ("bin", "net.d", "state", "run"))
        for directory in (self.conf, self.state, self.run):
            directory.mkdir()
        install.install(self.bin, str(self.run), install.DEFAULT_NAMES)
        (self.bin / "ptp").write_text("another's")
        self.lay("10-cluster.conflist", CLUSTER)
        self.ours = self.lay("00-multus.conf", MULTUS)
        Laid(str(self.state)).note("/elsewhere/net.d/00-multus.conf", self.ours.read_bytes())

    def lay(self, name: str, content: object) -> Path:
        (self.conf / name).write_text(json.dumps(content))
        return self.conf / name

    def uninstall(self, *arguments: str) -> int:
        places = {"bin-dir": self.bin, "conf-dir": self.conf, "state-dir": self.state, "run-dir": self.run}
        return main(["uninstall", *(f"--{key}={path}" for key, path in places.items()), *arguments])

    def has(self) -> tuple[list[str], list[str]]:
        return sorted(os.listdir(self.bin)), sorted(os.listdir(self.conf))

    def attach(self, pod: str, *undone: Any, ifname: str = "eth0", origin: str = "eth0") -> None:
        ledger = Ledger(f"{self.state}/ledger.db", lambda *_, **__: None)
        row = Row(
            id=0, owner="multus", container_id=f"c-{pod}", ifname=ifname, network="n", origin_network="n",
            origin_ifname=origin, state="added", netns="/run/netns/c", cookie=1, boot="b", created=1, conf=b"{}",
            call=b"{}", pod_namespace="default", pod_name=pod,
        )  # fmt: skip
        ledger.begin(row, undone)
        ledger.close()


WHOLE = (["multus", "ptp", "router", "veth"], ["00-multus.conf", "10-cluster.conflist"])
GONE = (["ptp"], ["10-cluster.conflist"])


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_what_was_laid_goes_and_the_rest_stays(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.uninstall() == 0
    assert bench.has() == GONE
    assert capsys.readouterr().out.split()[:2] == ["removed", str(bench.ours)]
    assert bench.uninstall() == 0
    assert capsys.readouterr().out == f"nothing was laid in {bench.bin} or {bench.conf}\n"
    assert bench.has() == GONE
    assert (bench.state / "laid.json").exists()


def test_a_dry_run_says_what_would_go(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    lock = Lock(str(bench.run))
    assert bench.uninstall("--dry-run") == 0
    lock.release()
    told = capsys.readouterr().out.split()
    assert told == [word for path in (bench.ours, *(bench.bin / name for name in install.DEFAULT_NAMES))
                    for word in ("would", "go", str(path))]  # fmt: skip
    assert bench.has() == WHOLE


@pytest.mark.parametrize(
    "attached",
    [
        {"undone": ()},
        {"undone": (DROPS,)},
        {"undone": (BY_OTHERS, DROPS)},
        {"undone": (BY_OTHERS,), "ifname": "net1"},
    ],
    ids=["begun", "built-in", "a chain of both", "a further NIC"],
)
def test_pods_that_only_the_daemon_can_take_back_stand_against_it(
    bench: Bench, capsys: pytest.CaptureFixture[str], attached: dict[str, Any]
) -> None:
    undone = attached.pop("undone")
    for number in range(7):
        bench.attach(f"web-{number}", *undone, **attached)
    assert bench.uninstall() == 1
    assert "default/web-0, default/web-1" in (words := capsys.readouterr().err)
    assert "default/web-4 and 2 more" in words
    assert bench.uninstall("--dry-run") == 1
    assert bench.has() == WHOLE
    assert bench.uninstall("--force") == 0
    assert bench.has() == GONE
    assert "default/web-0" in capsys.readouterr().err


def test_a_pod_of_the_cluster_network_alone_is_its_own_plugins(bench: Bench) -> None:
    bench.attach("web", BY_OTHERS)
    assert bench.uninstall() == 0
    assert bench.has() == GONE


def test_the_daemon_is_to_be_stopped_first(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    lock = Lock(str(bench.run))
    assert bench.uninstall() == 1
    assert f"the daemon of {bench.run}, process {os.getpid()}, runs" in capsys.readouterr().err
    assert bench.has() == WHOLE
    lock.release()
    assert bench.uninstall() == 0


def test_a_configuration_of_others_that_calls_the_shim_is_named_and_kept(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.ours.write_text(json.dumps(MULTUS | {"name": "changed by hand"}))
    assert bench.uninstall() == 1
    assert f"{bench.ours} calls multus" in capsys.readouterr().err
    assert bench.has() == WHOLE
    assert bench.uninstall("--force") == 0
    assert bench.has() == (["ptp"], WHOLE[1])


def test_one_that_calls_what_is_put_back_is_no_obstacle(bench: Bench) -> None:
    for name in install.DEFAULT_NAMES:
        install.uninstall(bench.bin, [name])
    (bench.bin / "multus").write_text("another's")
    install.install(bench.bin, str(bench.run), ["multus"], force=True)
    bench.lay("01-theirs.conf", MULTUS)
    assert bench.uninstall() == 0
    assert (bench.bin / "multus").read_text() == "another's"
    assert bench.has()[1] == ["01-theirs.conf", "10-cluster.conflist"]


def test_the_name_that_multus_own_daemon_writes_can_be_laid_and_goes_too(bench: Bench) -> None:
    assert main(["install", "--bin-dir", str(bench.bin), "--run-dir", str(bench.run), "multus", "multus-shim"]) == 0
    assert (bench.bin / "multus-shim").samefile(bench.bin / "multus")
    bench.ours.unlink()
    theirs = bench.lay("00-theirs.conf", MULTUS | {"type": "multus-shim"})
    assert bench.uninstall() == 1
    theirs.unlink()
    assert bench.uninstall() == 0
    assert bench.has() == GONE


def test_names_concern_the_executables_alone(bench: Bench) -> None:
    bench.attach("web")
    assert bench.uninstall("veth") == 0
    assert bench.has() == (["multus", "ptp", "router"], WHOLE[1])


def test_purge_empties_what_is_a_daemons(bench: Bench) -> None:
    for directory in (bench.state, bench.run):
        Lock(str(directory)).release()
    (bench.run / "spool").mkdir()
    (bench.run / "spool" / "1.del").write_text("x")
    assert bench.uninstall("--purge") == 0
    assert [os.listdir(each) for each in (bench.state, bench.run)] == [[], []]
    (bench.state / "of somebody").write_text("x")
    assert bench.uninstall("--purge") == 0
    assert os.listdir(bench.state) == ["of somebody"]


def test_a_ledger_that_may_not_be_looked_at_is_not_an_empty_one(bench: Bench, tmp_path: Path) -> None:
    bench.attach("web", DROPS)
    bench.state.chmod(0o700)
    seen = tmp_path / "seen"  # as the state directory lies where everybody may go
    seen.mkdir()
    looked = ["uninstall", "--dry-run", f"--bin-dir={bench.bin}", f"--conf-dir={bench.conf}", f"--state-dir={seen}"]
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" "$1"; shift; exec "$@"', bench.state, seen,
         *nobody, sys.executable, "-m", "underlay", *looked],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"cannot look at {seen}/ledger.db: Permission denied" in done.stderr
    assert "as root" in done.stderr


def test_a_name_that_is_anothers_or_nobodys_is_told(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    (bench.bin / "macvlan").write_text("another's")
    assert bench.uninstall("macvlan", "ipvlan", "veth") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"removed         {bench.bin}/veth",
        f"not ours        {bench.bin}/macvlan",
        f"not there       {bench.bin}/ipvlan",
    ]
    assert (bench.bin / "macvlan").read_text() == "another's"
