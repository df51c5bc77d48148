"""`underlay install` and `uninstall`: a bin directory is as it should be at any time, or as it was."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from underlay.cli import install, shim_binary
from underlay.cli.main import main
from underlay.daemon import config, frame
from underlay.errors import InvalidConfig, IOFailure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

EVERY = ["host-local", "ipvlan", "macvlan", "multus", "router", "spiderpool", "sriov", "static", "veth", "vlan"]


def lay(bin_dir: Path, *arguments: str) -> int:
    return main(["install", "--bin-dir", str(bin_dir), *arguments])


def remove(bin_dir: Path, *arguments: str) -> int:
    return main(["uninstall", "--bin-dir", str(bin_dir), *arguments])


def contents(directory: Path) -> dict[str, object]:
    """Every name and what it holds: a link's target, or bytes and mode."""
    return {
        path.name: os.readlink(path) if path.is_symlink() else (path.read_bytes(), path.stat().st_mode)
        for path in directory.iterdir()
    }


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    return tmp_path / "opt" / "cni" / "bin"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """``small_disk("nr_inodes=7")`` mounts a file system that is soon full; each call replaces the last."""
    where = tmp_path / "disk"
    where.mkdir()
    with contextlib.ExitStack() as mounted:

        def mount(options: str) -> Path:
            mounted.close()
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "disk", where], check=True)
            mounted.callback(subprocess.run, ["umount", where], check=True)
            return where

        yield mount


def test_the_default_names_are_laid_as_one_file(bin_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lay(bin_dir) == 0
    assert sorted(os.listdir(bin_dir)) == ["multus", "router", "veth"]
    files = {(path.stat().st_ino, path.stat().st_nlink, path.stat().st_mode) for path in bin_dir.iterdir()}
    assert [(links, mode) for _, links, mode in files] == [(3, 0o100755)]
    assert capsys.readouterr().out.split() == [
        word for name in ("multus", "veth", "router") for word in ("laid", str(bin_dir / name))
    ]


def test_all_and_later_names_share_the_file_that_is_there(bin_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lay(bin_dir, "veth") == 0
    inode = (bin_dir / "veth").stat().st_ino
    assert lay(bin_dir, "--all") == 0
    assert sorted(os.listdir(bin_dir)) == EVERY
    assert {path.stat().st_ino for path in bin_dir.iterdir()} == {inode}
    assert "already current " + str(bin_dir / "veth") in capsys.readouterr().out


def test_a_second_time_nothing_changes(bin_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay(bin_dir, "--all")
    before = bin_dir.stat().st_mtime_ns
    capsys.readouterr()
    assert lay(bin_dir, "--all") == 0
    assert bin_dir.stat().st_mtime_ns == before
    assert capsys.readouterr().out.count("already current") == len(EVERY)


def test_a_copy_that_cannot_be_executed_is_replaced(bin_dir: Path) -> None:
    lay(bin_dir, "veth")
    (bin_dir / "veth").chmod(0o644)
    lay(bin_dir, "veth")
    assert os.access(bin_dir / "veth", os.X_OK)


def test_the_laid_shim_finds_the_daemon_of_its_run_directory(bin_dir: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(run_dir / "underlay.sock"))
        listening.listen()
        assert lay(bin_dir, "--run-dir", f"{run_dir}/", "macvlan") == 0
        environment = {"CNI_COMMAND": "CHECK"}
        shim = subprocess.Popen(
            [bin_dir / "macvlan"], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        connection, _ = listening.accept()
        with connection:
            received = frame.begin(connection)
            connection.sendall(frame.answer(3, b"seen"))
        assert shim.communicate(timeout=30)[0] == b"seen"
    assert shim.returncode == 3
    assert frame.parse(frame.payload(received)) == frame.Call("macvlan", environment, b"")


def test_another_run_directory_replaces_the_shim_under_every_name(bin_dir: Path, tmp_path: Path) -> None:
    lay(bin_dir)
    assert lay(bin_dir, "--run-dir", "/run/other") == 0
    assert {shim_binary.run_dir_of(path) for path in bin_dir.iterdir()} == {"/run/other"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run-dir", "run/underlay"], 'the run directory "run/underlay" is not an absolute path'),
        (["--run-dir", ""], "is not an absolute path"),
        (["--run-dir", "/" + "r" * 80], "has 81 bytes, and a socket's path leaves room for 80"),
        (["bridge"], '"bridge" is no built-in plugin\n  Built in are: multus'),
        (["../veth"], '"../veth" is no built-in plugin'),
    ],
)
def test_what_cannot_be_is_named_and_nothing_is_laid(
    bin_dir: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert lay(bin_dir, *arguments) == 1
    assert words in capsys.readouterr().err
    assert not bin_dir.exists()


def test_the_daemon_takes_every_run_directory_that_can_be_laid() -> None:
    longest, longer = "/" + "r" * (shim_binary.RUN_DIR_LIMIT - 1), "/" + "r" * shim_binary.RUN_DIR_LIMIT
    assert config.load(None, {"run_dir": longest}).run_dir == longest
    with pytest.raises(InvalidConfig, match="run_dir"):
        config.load(None, {"run_dir": longer})
    image = shim_binary.load()
    assert shim_binary.run_dir(shim_binary.with_run_dir(image, longest)) == longest
    with pytest.raises(InvalidConfig):
        shim_binary.with_run_dir(image, longer)


def test_the_slot_is_all_that_a_laid_copy_differs_in() -> None:
    image = shim_binary.load()
    other = shim_binary.with_run_dir(image, "/run/other")
    start = image.index(shim_binary.MARK)
    assert len(other) == len(image)
    assert (other[:start], other[start + 256 :]) == (image[:start], image[start + 256 :])
    assert shim_binary.with_run_dir(other, "/run/underlay") == shim_binary.with_run_dir(image, "/run/underlay")


def test_anothers_plugin_is_replaced_by_force_alone_and_put_back(
    bin_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bin_dir.mkdir(parents=True)
    (bin_dir / "macvlan").write_text("#!/bin/sh\necho another's\n")
    (bin_dir / "macvlan").chmod(0o755)
    (bin_dir / "static").symlink_to("macvlan")
    before = contents(bin_dir)
    assert lay(bin_dir, "--all") == 1
    assert "holds another's plugin under: macvlan static" in capsys.readouterr().err
    assert contents(bin_dir) == before
    assert lay(bin_dir, "--all", "--force") == 0
    assert all(shim_binary.run_dir_of(bin_dir / name) == "/run/underlay" for name in EVERY)
    assert lay(bin_dir, "--all", "--force", "--run-dir", "/run/other") == 0
    assert remove(bin_dir) == 0
    assert contents(bin_dir) == before


def test_the_latest_of_anothers_plugins_is_put_back(bin_dir: Path) -> None:
    bin_dir.mkdir(parents=True)
    for release in ("first", "second"):
        (bin_dir / "macvlan").unlink(missing_ok=True)
        (bin_dir / "macvlan").write_text(release)
        assert lay(bin_dir, "--force", "macvlan") == 0
    assert remove(bin_dir) == 0
    assert {path.name: path.read_text() for path in bin_dir.iterdir()} == {"macvlan": "second"}


def test_uninstall_takes_ours_and_leaves_anothers(bin_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay(bin_dir)
    (bin_dir / "macvlan").write_text("another's")
    (bin_dir / "loopback").write_text("another's")
    capsys.readouterr()
    assert remove(bin_dir, "veth") == 0
    assert capsys.readouterr().out == f"removed         {bin_dir / 'veth'}\n"
    assert remove(bin_dir) == 0
    assert sorted(os.listdir(bin_dir)) == ["loopback", "macvlan"]
    assert remove(bin_dir) == 0
    assert remove(bin_dir / "none") == 0
    assert remove(bin_dir, "loopback") == 1


def test_a_reader_finds_a_whole_shim_at_any_time(bin_dir: Path) -> None:
    images = [shim_binary.with_run_dir(shim_binary.load(), run_dir) for run_dir in ("/run/a", "/run/b")]
    install.install(bin_dir, "/run/a", ["veth", "router"])
    done = threading.Event()

    def change() -> None:
        for n in range(100):
            install.install(bin_dir, "/run/b" if n % 2 else "/run/a", ["veth", "router"])
        done.set()

    thread = threading.Thread(target=change)
    thread.start()
    seen = set()
    while not done.is_set():
        seen.add((bin_dir / "veth").read_bytes())
        assert subprocess.run([bin_dir / "router"], env={"CNI_COMMAND": "VERSION"}, check=False).returncode == 0
    thread.join()
    assert seen <= set(images)


def test_several_at_once_all_end_well(tmp_path: Path) -> None:
    """As where a node's pods are restarted while an operator upgrades by hand; each of a process of its own."""
    bin_dir = tmp_path / "bin"
    install.install(bin_dir, "/run/old", ["veth"])
    (bin_dir / "macvlan").write_text("another's")
    commands = [
        ["install", "--all", "--force", "--run-dir", f"/run/{'ab'[n % 2]}"] if n % 4 else ["uninstall"]
        for n in range(8)
    ]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "underlay", command, "--bin-dir", str(bin_dir), *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for command, *arguments in commands
    ]  # fmt: skip
    for each in running:
        _, words = each.communicate(timeout=60)
        assert (each.returncode, words) == (0, "")
    assert lay(bin_dir, "--all", "--force", "--run-dir", "/run/c") == 0
    assert sorted(os.listdir(bin_dir)) == [".macvlan.before-underlay", *EVERY]
    assert (bin_dir / ".macvlan.before-underlay").read_text() == "another's"
    assert len({path.stat().st_ino for path in bin_dir.iterdir()}) == 2


def test_what_a_killed_call_left_behind_does_no_harm(bin_dir: Path) -> None:
    """Killed before it took its links away: the next one, of the same number as in every container, meets them."""
    lay(bin_dir, "--run-dir", "/run/old")
    for left in (f".underlay-shim.{os.getpid()}", ".veth.underlay-new", ".veth.underlay-old"):
        os.link(bin_dir / "veth", bin_dir / left)
    with open(bin_dir / "veth", "rb") as executed:
        assert lay(bin_dir, "--run-dir", "/run/new") == 0
        assert shim_binary.run_dir(executed.read()) == "/run/old"
    assert sorted(os.listdir(bin_dir)) == ["multus", "router", "veth"]


def test_a_fault_at_any_step_puts_everything_back(small_disk: Callable[[str], Path]) -> None:
    """A link takes an inode on tmpfs: with one inode more at a time, each step in turn is the one that fails."""
    faults = 0
    for inodes in range(8, 40):
        bin_dir = small_disk(f"nr_inodes={inodes}")
        install.install(bin_dir, "/run/old", ["multus", "veth"])
        (bin_dir / "macvlan").write_text("newer")
        (bin_dir / ".macvlan.before-underlay").write_text("older")
        (bin_dir / "static").symlink_to("macvlan")
        before = contents(bin_dir)
        try:
            install.install(bin_dir, "/run/new", install.BUILT_IN, force=True)
        except IOFailure as fault:
            assert fault.message == f"cannot lay the shim into {bin_dir}: No space left on device"  # noqa: PT017
            assert contents(bin_dir) == before
            faults += 1
        else:
            break
    assert faults >= 8
    assert sorted(os.listdir(bin_dir)) == sorted([*EVERY, ".macvlan.before-underlay", ".static.before-underlay"])
    assert (bin_dir / ".macvlan.before-underlay").read_text() == "newer"


def test_a_full_disk_leaves_nothing_behind(
    small_disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bin_dir = small_disk("size=4k")
    assert lay(bin_dir) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert os.listdir(bin_dir) == []


def test_a_directory_in_the_way_is_named(bin_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bin_dir / "veth").mkdir(parents=True)
    assert lay(bin_dir) == 1
    assert f"{bin_dir / 'veth'} is a directory" in capsys.readouterr().err
    assert os.listdir(bin_dir) == ["veth"]
    shutil.rmtree(bin_dir)
    bin_dir.write_text("a file")
    assert lay(bin_dir) == 1
    assert f"cannot lay the shim into {bin_dir}: File exists" in capsys.readouterr().err
