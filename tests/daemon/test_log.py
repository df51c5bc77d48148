"""Log lines and their files."""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from underlay.daemon import builtin, log
from underlay.daemon.config import LogSettings
from underlay.daemon.log import LogFile, Logs
from underlay.delegate.attachment import Attachment, Origin, Sandbox
from underlay.delegate.engine import Engine
from underlay.delegate.exec import Executor
from underlay.delegate.ledger import Ledger
from underlay.plugins.log_options import LogOptions

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Netns


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_a_line_is_one_json_object_whatever_its_fields_hold() -> None:
    fields = {"pod": "a/b\n", "path": "\udcff", "error": ValueError("x"), "n": 1}
    content = log.line("info", "request", fields, now=1714557600.25)
    assert content.endswith(b"\n")
    assert content.count(b"\n") == 1
    parsed = json.loads(content)
    assert parsed["time"] == "2024-05-01T10:00:00.250000Z"
    assert parsed["event"] == "request"
    assert json.loads(log.line("info", "x", {"pod": "a\nb"}, now=0))["pod"] == "a\nb"


def test_lines_below_the_level_are_left_out(tmp_path: Path) -> None:
    logs = Logs(LogSettings(level="warn", file=str(tmp_path / "d.log")))
    for level in ("debug", "info", "warn", "error"):
        logs(level, "event", n=1)
    assert [each["level"] for each in lines(tmp_path / "d.log")] == ["warn", "error"]


def test_a_full_file_is_rotated_and_the_oldest_are_removed(tmp_path: Path) -> None:
    file = LogFile(str(tmp_path / "d.log"), max_size=1, max_age=0, max_count=2)
    block = b"x" * (600 << 10) + b"\n"
    for _ in range(5):
        file.write(block)
    names = sorted(os.listdir(tmp_path))
    assert len(names) == 3
    assert names[0] == "d.log"
    assert all((tmp_path / name).stat().st_size == len(block) for name in names)


def test_rotated_files_beyond_the_age_are_removed_and_strangers_stay(tmp_path: Path) -> None:
    for name in ("d.log.20200101T000000.000000", "d.log.old", "other.log"):
        (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, (time.time() - 6 * 86400,) * 2)
    file = LogFile(str(tmp_path / "d.log"), max_size=1, max_age=5, max_count=0)
    file.write(b"x" * (1 << 20))
    file.write(b"y")
    names = os.listdir(tmp_path)
    assert "d.log.20200101T000000.000000" not in names
    assert {"d.log", "d.log.old", "other.log"} <= set(names)
    assert len(names) == 4


def test_a_file_moved_away_is_made_anew_after_reopening(tmp_path: Path) -> None:
    logs = Logs(LogSettings(file=str(tmp_path / "d.log")))
    logs("info", "one")
    (tmp_path / "d.log").rename(tmp_path / "moved.log")
    logs("info", "two")
    logs.reopen()
    logs("info", "three")
    assert [each["event"] for each in lines(tmp_path / "moved.log")] == ["one", "two"]
    assert [each["event"] for each in lines(tmp_path / "d.log")] == ["three"]


def test_a_file_that_cannot_be_written_loses_lines_and_says_how_many(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "logs"
    directory.write_text("in the way")
    logs = Logs(LogSettings(file=str(directory / "d.log")))
    logs("info", "one")
    logs("info", "two")
    assert capfd.readouterr().err.count("log file cannot be written") == 1
    directory.unlink()
    logs("info", "three")
    assert [(each["event"], each.get("lines")) for each in lines(directory / "d.log")] == [
        ("log lines lost", 2),
        ("three", None),
    ]


def test_a_plugins_file_is_shared_and_has_its_own_level(tmp_path: Path) -> None:
    logs = Logs(LogSettings(level="info", file=str(tmp_path / "d.log"), plugin_dir=str(tmp_path)))
    options = LogOptions(file=str(tmp_path / "meta/veth.log"), level="debug")
    logs("debug", "routes set", to=options, pod="a/b")
    logs("info", "done", to=LogOptions(file=options.file, level="error"))
    logs("error", "failed", to=options)
    assert [each["event"] for each in lines(tmp_path / "meta/veth.log")] == ["routes set", "failed"]
    assert [each["event"] for each in lines(tmp_path / "d.log")] == ["done", "failed"]
    assert all("to" not in each for each in lines(tmp_path / "d.log"))


def test_veth_writes_the_file_that_its_log_options_name(
    uplink: Netns, pod: Netns, in_host: Netns, tmp_path: Path
) -> None:
    logs = Logs(LogSettings(file=str(tmp_path / "d.log"), plugin_dir=str(tmp_path)))
    engine = Engine(
        ledger=Ledger(str(tmp_path / "ledger.db"), logs), executor=Executor(log=logs, environ=os.environ),
        plugins=builtin.PLUGINS, allocators=builtin.ALLOCATORS, log=logs,
    )  # fmt: skip
    macvlan = {"type": "macvlan", "ipam": {"type": "static", "addresses": [{"address": "172.18.7.1/16"}]}}
    hijack = {"service_hijack_subnet": ["10.96.0.0/16"], "overlay_hijack_subnet": ["10.244.0.0/16"]}
    veth = {
        "type": "veth",
        **hijack,
        "log_options": {"log_level": "debug", "log_file": str(tmp_path / "meta/veth.log")},
    }
    conf = json.dumps({"cniVersion": "1.0.0", "name": "underlay-a", "plugins": [macvlan | {"master": "eth0"}, veth]})
    asked = Attachment(network="default/a", conf=conf.encode(), ifname="eth0")
    origin, sandbox, deadline = Origin("multus", "multus-net", "eth0"), Sandbox("c1", pod.path), time.monotonic() + 10
    with contextlib.closing(engine), engine.session(sandbox, origin, deadline) as session:
        session.add(asked)
    assert [each["event"] for each in lines(tmp_path / "meta/veth.log")] == ["veth added"]


@pytest.mark.parametrize("name", ["../outside.log", "sub/../../outside.log", "cron.d/job"])
def test_a_network_cannot_write_where_it_likes(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    logs = Logs(LogSettings(file=str(tmp_path / "d.log"), plugin_dir=str(inside)))
    for _ in range(2):
        logs("info", "done", to=LogOptions(file=f"{inside}/{name}"))
    assert os.listdir(inside) == []
    assert not (tmp_path / "outside.log").exists()
    assert [each["event"] for each in lines(tmp_path / "d.log")] == ["plugin log refused", "done", "done"]


def test_a_symbolic_link_or_a_fifo_in_a_plugins_place_is_not_written(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("")
    (tmp_path / "link.log").symlink_to(target)
    os.mkfifo(tmp_path / "fifo.log")
    logs = Logs(LogSettings(file=str(tmp_path / "d.log"), plugin_dir=str(tmp_path)))
    for name in ("link.log", "fifo.log"):
        logs("info", "done", to=LogOptions(file=str(tmp_path / name)))
    assert target.read_text() == ""
    assert len(lines(tmp_path / "d.log")) == 2
