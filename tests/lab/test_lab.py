"""`underlay lab`: what it shows, what it leaves, and that nothing ends it halfway."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests import published
from tests.lab.conftest import HOME, begun, lab, machine, wait_for

from underlay.cli.lab import networks
from underlay.kube import manifest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("untouched")

ALL = ["✓"] * 6
OUTCOME = {
    "node → pod  health check": ["✗", "✗", "✓", "✓", "✓", "✓"],
    "pod  → node": ["✗", "✗", "✓", "✓", "✓", "✓"],
    "pod  → ClusterIP": ["✗", "✗", "✓", "✓", "✓", "✓"],
    "LAN  → pod": ALL,
    "pod  → LAN": ALL,
}
MOMENTS = ("manifests", "overlay", "run/underlay.sock", "answer")


def table(output: str) -> dict[str, list[str]]:
    """The marks of each row."""
    rows = (re.fullmatch(r"  (\S.*?)((?:\s+(?:[✓✗]|yes|no)!?)+)", line) for line in output.splitlines())
    return {row[1]: row[2].split() for row in rows if row}


def test_the_demo_shows_what_macvlan_lacks_and_that_its_repairs_lack_nothing() -> None:
    before = machine()
    done = lab()
    assert (done.returncode, done.stderr) == (0, "")
    assert table(done.stdout) == OUTCOME
    assert "All 30 paths are as they should be" in done.stdout
    for verb in ("ADD", "DEL"):
        assert re.search(rf"{verb}, median of 10 +\d+\.\d ms +\d+\.\d ms +\d+\.\d ms\n", done.stdout)
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert machine() == before


def test_the_demo_does_without_nft(tmp_path: Path) -> None:
    for program in ("ip", "sh"):
        found = shutil.which(program)
        assert found
        (tmp_path / program).symlink_to(found)
    done = lab(env={"PATH": str(tmp_path), "PYTHONUTF8": "1"})
    assert (done.returncode, done.stderr) == (0, "")
    assert table(done.stdout) == OUTCOME


def test_the_table_is_readable_where_the_encoding_has_no_signs() -> None:
    done = lab(env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert done.stdout.isascii()
    assert table(done.stdout)["LAN  > pod"] == ["yes"] * 6
    assert table(done.stdout)["pod  > node"] == ["no"] * 2 + ["yes"] * 4


def test_a_lab_that_is_up_can_be_played_with() -> None:
    up = lab("up")
    assert (up.returncode, up.stderr) == (0, "")
    assert table(up.stdout) == OUTCOME
    assert lab("up").stdout.startswith("  The lab 'lab' is up already.")
    address = lab("exec", "veth", "--", "ip", "-br", "-4", "addr", "show", "eth0").stdout.split()[-1]
    assert address == "172.18.7.20/16"
    assert lab("exec", "node", "curl", "--silent", "172.18.7.20:8080").stdout == "veth is well\n"
    assert lab("exec", "router", "sh", "-c", "exit 7").returncode == 7
    assert lab("exec", "router", "no-such-program").returncode == 127
    assert table(lab("status").stdout) == OUTCOME
    down = lab("down")
    assert (down.returncode, down.stdout) == (0, "  The lab 'lab' is removed.\n")
    assert lab("down").stdout == "  The lab 'lab' is not there.\n"


def test_a_path_that_breaks_is_marked_and_is_the_exit_status() -> None:
    assert lab("up", "--name", "broken").returncode == 0
    assert lab("exec", "--name", "broken", "veth", "ip", "link", "del", "veth0").returncode == 0
    status = lab("status", "--name", "broken")
    assert status.returncode == 1
    assert table(status.stdout)["pod  → node"] == ["✗", "✗", "✗!", "✗!", "✓", "✓"]
    assert "paths are not as they should be" in status.stdout


@pytest.mark.parametrize("words", [("status",), ("exec", "node", "true")])
def test_a_lab_that_is_not_up_is_told_so(words: tuple[str, ...]) -> None:
    done = lab(*words)
    assert done.returncode == 1
    assert done.stderr.startswith("underlay: the lab 'lab' is not up")
    assert "underlay lab up" in done.stderr


@pytest.mark.parametrize(("command", "number"), [("demo", signal.SIGINT), ("up", signal.SIGTERM)])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_ends_it_and_leaves_nothing(command: str, moment: str, number: signal.Signals) -> None:
    before = machine()
    running = begun("up", "--name", "lab") if command == "up" else begun("--name", "lab")
    wait_for(HOME / "lab" / moment, running)
    running.send_signal(number)
    _, errors = running.communicate(timeout=30)
    assert (running.returncode, errors) == (128 + number, "underlay: interrupted, the lab is removed\n")
    assert machine() == before


def test_a_signal_that_python_drops_in_a_destructor_ends_it_all_the_same() -> None:
    program = (
        "import signal\n"
        "from underlay.cli.lab.command import _removed_after\n"
        "from underlay.cli.lab.topology import Lab\n"
        "class Dropping:\n"
        "    def __del__(self): signal.raise_signal(signal.SIGTERM)\n"
        "with _removed_after(Lab.named('never-built'), unless_it_succeeds=True):\n"
        "    Dropping()"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (143, "underlay: interrupted, the lab is removed\n")


@pytest.mark.parametrize(
    ("moment", "healing"), [*((moment, ("down",)) for moment in MOMENTS), ("answer", ()), ("answer", ("up",))]
)
def test_what_kill_9_leaves_the_next_command_removes(moment: str, healing: tuple[str, ...]) -> None:
    before = machine()
    running = begun()
    wait_for(HOME / "demo" / moment, running)
    running.kill()
    running.communicate()
    assert machine() != before
    healed = lab(*healing)
    assert (healed.returncode, healed.stderr) == (0, "")
    if healing == ("up",):
        assert lab("down").returncode == 0
    assert machine() == before


def test_two_demos_at_once_are_refused_by_name_and_others_live_side_by_side() -> None:
    first = begun()
    wait_for(HOME / "demo" / "run/underlay.sock", first)
    second, third = begun(), begun("--name", "third")
    assert second.communicate(timeout=30) == (
        "",
        "underlay: another command works on the lab 'demo'\n  Wait for it, or choose another lab by --name.\n",
    )
    assert second.returncode == 1
    for running in (first, third):
        output, _ = running.communicate(timeout=30)
        assert running.returncode == 0
        assert table(output) == OUTCOME


def test_a_reader_that_has_seen_enough_ends_it_and_nothing_is_left() -> None:
    before = machine()
    running = begun()
    assert running.stdout is not None
    running.stdout.close()
    running.stdout = None
    running.communicate(timeout=30)
    assert running.returncode == 1
    assert machine() == before


@pytest.mark.parametrize("name", ["", "../up", "a" * 25, "-x", "A"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    done = lab(f"--name={name}", "up")
    assert done.returncode == 1
    assert "is no name for a lab" in done.stderr


def test_without_root_it_says_what_to_do() -> None:
    program = "import os, underlay.cli.lab.command as _; from underlay.cli.main import main; os.seteuid(65534); "
    command = [sys.executable, "-c", f"{program} raise SystemExit(main(['lab']))"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "underlay: the lab needs root: it makes network namespaces\n  Run it with sudo.\n"


def test_its_networks_are_the_published_ones_but_for_nic_and_logs(tmp_path: Path) -> None:
    networks.write(tmp_path, ipv6=True)
    for name in published.NAMES:
        (found,) = manifest.parse("n.yaml", (tmp_path / f"manifests/{name}.yaml").read_bytes()).networks
        assert found.config is not None
        config = json.loads(found.config.replace(f"{tmp_path}/log/spiderpool", "/var/log/spidernet/spiderpool"))
        config = json.loads(json.dumps(config).replace(f"{tmp_path}/log/", "/var/log/meta-plugins/"))
        assert config == published.network(name)
