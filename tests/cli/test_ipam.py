"""`underlay ipam` where no daemon is asked: which directory is at fault is said, and a look makes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from underlay.cli.main import main
from underlay.daemon.lock import Lock

if TYPE_CHECKING:
    from pathlib import Path

UNDERLAY = (sys.executable, "-m", "underlay")
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
ADDRESS = "172.18.40.10"


def flags(root: Path, *, run: str = "run", state: str = "state") -> list[str]:
    return [f"--run-dir={root / run}", f"--state-dir={root / state}"]


@pytest.mark.parametrize("act", [["list"], ["who", ADDRESS], ["release", ADDRESS]])
def test_a_state_directory_that_is_not_there_is_named_and_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], act: list[str]
) -> None:
    assert main(["ipam", *act, *flags(tmp_path)]) == 1
    told = capsys.readouterr()
    assert f"no daemon answers in {tmp_path}/run, and {tmp_path}/state is not there" in told.err
    assert "--run-dir" in told.err
    assert told.out == ""
    assert list(tmp_path.iterdir()) == []


def test_before_the_first_start_everything_is_free(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = {"kind": "SpiderIPPool", "metadata": {"name": "lan"}, "spec": {"subnet": "172.18.0.0/16", "default": True,
            "ips": [f"{ADDRESS}-172.18.40.19"]}}  # fmt: skip
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests/pool.json").write_text(json.dumps({"apiVersion": "spiderpool.spidernet.io/v2beta1"} | pool))
    (tmp_path / "underlay.json").write_text(json.dumps({"manifest_dir": str(tmp_path / "manifests")}))
    before = sorted(tmp_path.iterdir())
    asked = ["explain", "default/web", "--json", f"--config={tmp_path}/underlay.json"]
    assert main(["ipam", *asked, *flags(tmp_path)]) == 0
    (line,) = json.loads(capsys.readouterr().out)["lines"]
    assert (line["pool"], line["free"]) == ("lan", 10)
    assert sorted(tmp_path.iterdir()) == before


def test_of_a_daemon_that_never_ran_no_address_is_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "state").mkdir()
    assert main(["ipam", "list", *flags(tmp_path)]) == 0
    assert capsys.readouterr().out == "no address is in use\n"


def test_a_file_in_the_place_of_the_run_directory_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").touch()
    assert main(["ipam", "list", *flags(tmp_path)]) == 1
    message, hint = capsys.readouterr().err.splitlines()
    assert message == f"underlay: no daemon answers in {tmp_path}/run: Not a directory"
    assert "--run-dir" in hint


def test_who_may_not_ask_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    for command in (["ipam", "list", *flags(tmp_path)], ["status", f"--run-dir={tmp_path / 'run'}"]):
        done = subprocess.run([*NOBODY, *UNDERLAY, *command], capture_output=True, text=True, check=False)
        message, hint = done.stderr.splitlines()
        assert message == f"underlay: no daemon answers in {tmp_path}/run: Permission denied"
        assert "as root" in hint
        assert (done.returncode, done.stdout) == (1, "")


def test_the_daemon_of_another_run_directory_is_to_be_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "state").mkdir()
    held = Lock(str(tmp_path / "state"))
    assert main(["ipam", "list", *flags(tmp_path)]) == 1
    held.release()
    message, hint = capsys.readouterr().err.splitlines()
    assert f"holds {tmp_path}/state/underlay.lock" in message
    assert "--run-dir" in hint
    assert "Stop" not in hint


def test_what_all_nodes_report_only_a_daemon_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "state").mkdir()
    config = tmp_path / "underlay.yaml"
    config.write_text("{pools: cluster, kube: {kubeconfig: /nowhere, node_name: n}}")
    assert main(["ipam", "list", "--all", f"--config={config}", *flags(tmp_path)]) == 1
    assert "no daemon runs, and what the nodes report is for it to know" in capsys.readouterr().err
