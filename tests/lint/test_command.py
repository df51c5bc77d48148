"""`underlay networks lint` as people call it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

GOOD = {"cniVersion": "1.0.0", "name": "lan", "type": "macvlan", "master": "eth0"}
WARNED = {**GOOD, "mastre": "eth1"}
BAD = {**GOOD, "mode": "bridg"}


def lint(*arguments: Any, stdin: bytes = b"", **keys: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "underlay", "networks", "lint", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=60, **keys)


def write(directory: Path, name: str, conf: Any) -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(conf if isinstance(conf, str) else json.dumps(conf))
    return path


@pytest.mark.parametrize(
    ("conf", "flags", "status"),
    [(GOOD, [], 0), (WARNED, [], 0), (WARNED, ["--strict"], 1), (BAD, [], 1), (GOOD, ["--strict"], 0)],
)
def test_the_exit_status_says_whether_there_are_errors(tmp_path, conf, flags, status):
    done = lint(*flags, write(tmp_path, "a.conf", conf))
    assert (done.returncode, done.stderr) == (status, b"")


@pytest.mark.parametrize("arguments", [[], ["--output", "xml", "x"], ["/nonexistent.conf"], ["/dev/null/x"]])
def test_wrong_usage_and_files_that_cannot_be_read_are_status_2(arguments):
    done = lint(*arguments)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert done.stderr


def test_a_directory_without_such_files_is_no_success(tmp_path):
    write(tmp_path, "README.md", "x")
    done = lint(tmp_path)
    assert done.returncode == 2
    assert b"nothing to look through" in done.stderr


def test_a_finding_is_one_line_with_file_severity_object_field_message_and_hint(tmp_path):
    path = write(tmp_path, "a.conf", WARNED)
    lines = lint(path).stdout.decode().splitlines()
    assert lines == [
        f"{path}: warning: CNI configuration: mastre: \"mastre\" is no key of plugin 'macvlan' and has no effect "
        '(Did you mean "master"?)',
        "1 file: 0 errors, 1 warning",
    ]


def test_directories_are_walked_in_order_hidden_ones_left_out_and_each_file_is_read_once(tmp_path):
    write(tmp_path, "b/z.conf", BAD)
    write(tmp_path, "a.json", BAD)
    write(tmp_path, ".git/c.conf", BAD)
    done = lint("--output", "json", tmp_path, tmp_path / "a.json")
    files = [each["file"] for each in json.loads(done.stdout)]
    assert files == [str(tmp_path / "a.json"), str(tmp_path / "b/z.conf")]


def test_json_has_every_part_of_a_finding(tmp_path):
    (finding,) = json.loads(lint("--output", "json", write(tmp_path, "a.conf", BAD)).stdout)
    assert finding.pop("file").endswith("/a.conf")
    assert finding == {
        "kind": "CNI configuration",
        "object": "",
        "field": "mode",
        "severity": "error",
        "message": "\"mode\" 'bridg' is none of private, vepa, bridge, passthru",
        "hint": "",
    }


def test_standard_input_is_looked_at():
    done = lint("-", stdin=json.dumps(BAD).encode())
    assert done.returncode == 1
    assert done.stdout.startswith(b"<stdin>: error: CNI configuration: mode:")


def test_infos_are_not_shown_when_quiet(tmp_path):
    path = write(tmp_path, "a.conf", {**GOOD, "type": "bridge"})
    assert b"info: " in lint(path).stdout
    assert b"info: " not in lint("--quiet", path).stdout


def test_what_others_wrote_cannot_steer_the_terminal(tmp_path):
    path = write(tmp_path, "a\x1b[31m\n.conf", {**GOOD, "\x1b]0;x\x07\n\u202e": 1})
    for flags in ([], ["--output", "json"]):
        done = lint(*flags, path)
        assert done.returncode == 0, done.stderr
        assert b"\x1b" not in done.stdout
    assert len(lint(path).stdout.decode().splitlines()) <= 3


def test_it_works_without_root_and_without_the_daemon(tmp_path):
    path = write(tmp_path, "a.conf", GOOD)
    script = (
        "import os, sys\n"
        "from underlay.cli.main import main\n"
        "assert main(['networks', 'lint', '/dev/fd/0']) == 0\n"  # the interpreter may lie where only root can read
        "os.lseek(0, 0, os.SEEK_SET); os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "status = main(['networks', 'lint', '-'])\n"
        "loaded = {name for name in sys.modules if name.startswith('underlay.daemon')}\n"
        "assert loaded <= {'underlay.daemon', 'underlay.daemon.builtin'}, loaded\n"
        "assert not {'asyncio', 'http', 'ssl', 'sqlite3'} & set(sys.modules)\n"
        "sys.exit(status)"
    )
    with path.open("rb") as stdin:
        done = subprocess.run([sys.executable, "-c", script], stdin=stdin, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def on_this_node(ns, path: Path, bin_dir: Path) -> Any:
    command = [sys.executable, "-m", "underlay", "networks", "lint", "--on-this-node", "--bin-dir", str(bin_dir)]
    done = ns.run(*command, "--output", "json", str(path), check=False)
    assert not done.stderr
    return [(each["severity"], each["field"], each["message"]) for each in json.loads(done.stdout)]


def test_on_this_node_a_missing_parent_is_an_error_and_one_that_is_there_is_none(tmp_path, uplink):
    assert on_this_node(uplink, write(tmp_path, "a.conf", GOOD), tmp_path) == []
    ((severity, field, words),) = on_this_node(uplink, write(tmp_path, "b.conf", {**GOOD, "master": "eth7"}), tmp_path)
    assert (severity, field) == ("error", "master")
    assert "does not exist on this node" in words


def test_on_this_node_plugins_that_are_not_built_in_must_be_there(tmp_path, host):
    path = write(tmp_path, "a.conf", {**GOOD, "type": "bridge", "ipam": {"type": "whereabouts"}})
    found = on_this_node(host, path, tmp_path / "bin")
    assert [(severity, "'bridge'" in words) for severity, _, words in found if severity == "error"] == [("error", True)]
    write(tmp_path, "bin/bridge", "#!/bin/sh\n").chmod(0o755)
    found = on_this_node(host, path, tmp_path / "bin")
    assert ["'whereabouts'" in words for severity, _, words in found if severity == "error"] == [True]
    write(tmp_path, "bin/whereabouts", "#!/bin/sh\n").chmod(0o755)
    assert [severity for severity, _, _ in on_this_node(host, path, tmp_path / "bin")] == ["info", "info"]


def test_without_the_flag_no_parent_is_looked_for(tmp_path):
    assert lint(write(tmp_path, "a.conf", {**GOOD, "master": "eth7"})).returncode == 0
