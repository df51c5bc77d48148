"""underlay devices, on a folder laid out as sysfs is; real virtual functions are looked at in the machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from tests.net.test_pci import PF, VF0, VF1, device, pci

from underlay.cli import main
from underlay.cli.columns import table

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Netns

    from underlay.net.pci import Pci

__all__ = ["pci"]


def run(capsys: pytest.CaptureFixture[str], root: Path, *arguments: str) -> str:
    assert main.main(["devices", "--sysfs", str(root), "--state-dir", str(root / "state"), *arguments]) == 0
    return capsys.readouterr().out


def test_every_function_is_in_the_table(pci: Pci, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, tmp_path).splitlines()
    assert [line.split()[0] for line in lines] == ["ADDRESS", PF, VF0, VF1]
    assert lines[1].split()[1:3] == ["PF", "ice"]
    assert "2 of 64 VFs" in lines[1]
    assert lines[3].split()[1:4] == ["VF", "1", "vfio-pci"]


def test_json_says_the_same(pci: Pci, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pf, first, second = json.loads(run(capsys, tmp_path, "--json"))
    assert (pf["kind"], pf["numa"], pf["vfs"]) == ("pf", 1, 2)
    assert (first["pf"], first["number"], first["driver"], first["pod"]) == (PF, 0, "iavf", "")
    assert second["driver"] == "vfio-pci"
    assert not (tmp_path / "state").exists(), "looking makes no ledger"


def test_a_nic_of_the_node_shows_its_state(
    uplink: Netns, in_host: Netns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device(tmp_path, PF, "ice", sriov_totalvfs="4", nics="eth0")
    (pf,) = json.loads(run(capsys, tmp_path, "--json"))
    assert (pf["nic"], pf["state"]) == ("eth0", "up")
    uplink.batch("link set eth0 down")
    assert json.loads(run(capsys, tmp_path, "--json"))[0]["state"] == "down"


def test_a_node_without_any_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no NIC of this node" in run(capsys, tmp_path)
    assert json.loads(run(capsys, tmp_path, "--json")) == []


@pytest.mark.parametrize("place", ["none", "file"])
def test_a_sysfs_that_is_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "config.json").write_text(
        '{"resourceList": [{"resourceName": "vf", "selectors": [{"drivers": ["a"]}]}]}'
    )
    for command in (["devices"], ["device-plugin", "--once", f"--config={tmp_path}/config.json"]):
        assert main.main([*command, f"--sysfs={tmp_path / place}"]) == 1
        assert f"{tmp_path / place} is no directory" in capsys.readouterr().err


def test_columns_are_as_wide_as_their_cells() -> None:
    assert table([("A", "B"), ("long", "x")]) == "A     B\nlong  x\n"
