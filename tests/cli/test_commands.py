"""The command line as people meet it: help, versions, mistakes, and a daemon that is or is not there."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

import underlay
from underlay.cli import status
from underlay.cli.main import main
from underlay.cni.versions import SUPPORTED
from underlay.daemon import frame

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMANDS = ("daemon", "install", "uninstall", "plugin", "lab", "status", "doctor", "version")
SERVICES = ("webhook", "controller")  # each of which has flags that must be given
UNDERLAY = (sys.executable, "-m", "underlay")


@contextmanager
def answering(run_dir: Path, answer: bytes) -> Iterator[None]:
    """A daemon that answers one request with these bytes and hangs up."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(run_dir / "underlay.sock"))
        listening.listen()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                frame.begin(connection)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    listed = capsys.readouterr().out
    commands = (*COMMANDS, *SERVICES)
    assert [command for command in commands if not re.search(rf"^    {command}\s", listed, re.MULTILINE)] == []


@pytest.mark.parametrize("command", [*COMMANDS, *SERVICES])
def test_every_command_has_help_that_says_its_flags(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: underlay {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["instal"], "invalid choice: 'instal'"),
        *(([command, "--nonsense"], "--nonsense") for command in COMMANDS if command != "plugin"),
        (["plugin", "macvlan", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["plugin"], "the following arguments are required: NAME"),
        (["plugin", "multus"], "invalid choice: 'multus'"),
        (["daemon", "--workers", "many"], "argument --workers: invalid int value: 'many'"),
        (["daemon", "--log-level", "loud"], "argument --log-level: invalid choice: 'loud'"),
        (["status", "--wait", "long"], "argument --wait: invalid number of seconds value: 'long'"),
        (["status", "--wait", "nan"], "argument --wait: invalid number of seconds value: 'nan'"),
        (["status", "--wait", "-1"], "argument --wait: invalid number of seconds value: '-1'"),
    ],
)
def test_wrong_usage_is_named_and_exits_with_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert words in told.err
    assert told.out == ""


def test_version_prints_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"underlay {underlay.__version__}\nCNI {' '.join(SUPPORTED)}\n"


@pytest.mark.parametrize(
    ("arguments", "text", "words"),
    [
        ([], "worker: 4", 'there is no key "worker"; did you mean "workers"?'),
        ([], "log: {max_sise: 1}", 'there is no key "log.max_sise"; did you mean "log.max_size"?'),
        ([], "queue: 0", "queue: 0 is not within 1 and 65535"),
        ([], "- a list", "holds no mapping of keys to values"),
        ([], "a: b: c", "is neither JSON nor YAML"),
        (["--run-dir", "run"], "", "run_dir: 'run' is no absolute path"),
        (["--workers", "0"], "", "workers: 0 is not within"),
        (["--health-address", "9464"], "", 'health_address: "9464" is not HOST:PORT'),
    ],
)
def test_a_daemon_refuses_a_bad_configuration_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str, words: str
) -> None:
    file = tmp_path / "underlay.yaml"
    file.write_text(text)
    assert main(["daemon", "--config", str(file), *arguments]) == 1
    first, hint, *rest = capsys.readouterr().err.splitlines()
    assert words in first
    assert hint.strip()
    assert rest == []


def test_a_daemon_without_the_named_configuration_does_not_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["daemon", "--config", str(tmp_path / "none.yaml")]) == 1
    assert f"the configuration file {tmp_path}/none.yaml does not exist" in capsys.readouterr().err


def test_status_follows_a_daemon_from_its_start_to_its_end(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    status = [*UNDERLAY, "status", "--run-dir", str(run_dir)]
    before = subprocess.run(status, capture_output=True, text=True, check=False)
    assert (before.returncode, before.stdout) == (1, "")
    assert f"no daemon answers in {run_dir}: No such file or directory" in before.stderr
    flags = [f"--{name}-dir={tmp_path / name}" for name in ("run", "state", "conf", "bin", "manifest")]
    with subprocess.Popen([*UNDERLAY, "daemon", *flags], stderr=subprocess.DEVNULL) as daemon:
        ready = subprocess.run([*status, "--wait", "60"], capture_output=True, text=True, check=False)
        whole = subprocess.run([*status, "--json"], capture_output=True, text=True, check=False)
        daemon.terminate()
        assert daemon.wait(60) == 0
    assert (ready.returncode, ready.stderr) == (0, "")
    assert ready.stdout.startswith(f"ready: pid {daemon.pid}, version {underlay.__version__}, ")
    told = json.loads(whole.stdout)
    assert (told["ready"], told["state"], told["pid"], told["faults"]) == (True, "ready", daemon.pid, [])
    assert subprocess.run(status, capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (frame.answer(1, b'{"code":5,"msg":"uid 7 may not talk","details":"Only root may."}'),
         "refuses: uid 7 may not talk\n  Only root may."),
        (frame.answer(0, b'{"ready":true}'), "gives no status that this command understands"),
        (frame.answer(0, b"not JSON"), "gives no status that this command understands"),
        (frame.answer(0, b"[1]"), "gives no status that this command understands"),
        (b"UND1\0\0\0\0", "the daemon's answer is empty"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "begins with"),
        (b"", "no daemon answers in"),
    ],
    ids=["refused", "half a status", "no JSON", "no object", "empty", "another protocol", "nothing"],
)  # fmt: skip
def test_an_answer_that_is_no_status_is_told_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: bytes, words: str
) -> None:
    with answering(tmp_path, answer):
        assert main(["status", "--run-dir", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert words in told.err
    assert told.out == ""


@pytest.mark.parametrize(
    ("state", "ready", "words"),
    [("ready", True, "ready"), ("ready", False, "not ready"), ("starting", False, "not ready (starting)")],
)
def test_a_daemon_that_runs_with_a_fault_is_not_called_ready_in_the_same_breath(
    state: str, ready: bool, words: str
) -> None:
    assert status.in_words({"state": state, "ready": ready}) == words


def test_a_run_directory_that_no_socket_can_have_is_no_daemon(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--run-dir", "/" + "r" * 200]) == 1
    assert "no daemon answers in /rrr" in capsys.readouterr().err


@pytest.mark.parametrize("stream", ["<&-", ">&-", "</dev/null | true"])
def test_a_stream_that_nobody_has_is_no_fault(stream: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'"$@" {stream}', "sh", *UNDERLAY, "version"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", sorted({*COMMANDS, *SERVICES} - {"version"}))
def test_help_says_what_a_command_does_and_shows_how(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    _, _, examples = capsys.readouterr().out.partition("\nexample")
    assert f" underlay {command}" in examples
