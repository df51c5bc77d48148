"""What happens to a node: disks fill up or become read-only, files are cut off or vanish. Through shim and daemon.

A clear CNI error where one is due, no traceback in the log, DEL succeeds, and all is well once the fault is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Netns, State

UNDERLAY = (sys.executable, "-m", "underlay")
SUBNETS = {"overlay_hijack_subnet": ["10.240.0.0/12"], "service_hijack_subnet": ["10.96.0.0/16"]}
SECONDS = 60.0
GARBAGE = [b"", b"\0", b"ULAY", os.urandom(300), b"{" * 5000]


class Node:
    """A daemon with a state directory that is a small file system of its own, and the shims that call it."""

    def __init__(self, ns: Netns, directory: Path) -> None:
        self.ns = ns
        self.directory = directory
        self.state, self.run, self.log = directory / "state", directory / "run", directory / "daemon.log"
        for name in ("state", "bin", "conf", "manifests"):
            (directory / name).mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k,mode=700", "state", str(self.state)], check=True)
        install = ["install", "--all", "--bin-dir", str(directory / "bin"), "--run-dir", str(self.run)]
        subprocess.run([*UNDERLAY, *install], check=True, capture_output=True)
        self.daemon: subprocess.Popen[Any] | None = None

    def start(self) -> None:
        """Returns when it serves: a DEL before that would be spooled."""
        before = self.events().count("ready") if self.log.exists() else 0
        command = [*UNDERLAY, "daemon", "--run-dir", str(self.run), "--state-dir", str(self.state)]
        command += ["--conf-dir", str(self.directory / "conf"), "--manifest-dir", str(self.directory / "manifests")]
        with self.log.open("ab") as log:
            self.daemon = self.ns.popen(*command, stdout=log, stderr=log)
        self.until(lambda: self.events().count("ready") > before)

    def kill(self) -> None:
        if self.daemon is not None:
            self.daemon.send_signal(signal.SIGKILL)
            self.daemon.wait()
            self.daemon = None

    def close(self) -> None:
        self.kill()
        while subprocess.run(["umount", str(self.state)], capture_output=True, check=False).returncode == 0:
            pass

    def call(self, verb: str, pod: Netns, container: str) -> Any:
        """None for success, or the CNI error."""
        ipam = {"type": "host-local", "subnet": "172.18.0.0/16", "rangeStart": "172.18.9.1",
                "dataDir": str(self.directory / "data")}  # fmt: skip
        chain = [{"type": "macvlan", "master": "eth0", "ipam": ipam}, {"type": "veth", **SUBNETS}]
        networks = [{"cniVersion": "1.0.0", "name": "underlay", "plugins": chain}]
        conf = {"cniVersion": "1.0.0", "name": "multus-net", "type": "multus", "delegates": networks}
        env = {"CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_NETNS": pod.path, "CNI_IFNAME": "eth0"}
        done = subprocess.run(
            [self.directory / "bin" / "multus"], env=env | {"CNI_PATH": str(self.directory / "bin")},
            input=json.dumps(conf).encode(), capture_output=True, check=False,
        )  # fmt: skip
        return None if done.returncode == 0 else json.loads(done.stdout)

    def held(self) -> list[str]:
        """The addresses that are reserved."""
        directory = self.directory / "data" / "underlay"
        return sorted(each for each in os.listdir(directory) if each[0].isdigit()) if directory.is_dir() else []

    def events(self) -> list[str]:
        return [json.loads(line)["event"] for line in self.log.read_text().splitlines() if line.startswith("{")]

    def until(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + SECONDS
        while not holds():
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)


@pytest.fixture
def node(uplink: Netns, tmp_path: Path) -> Iterator[Node]:
    made = Node(uplink, tmp_path)
    made.start()
    yield made
    made.close()
    log = made.log.read_text()
    assert "Traceback" not in log
    assert '"traceback"' not in log


@pytest.fixture
def state(node: Node, pod: Netns, snapshot: Callable[[Netns], State]) -> Callable[[], Any]:
    """What node and pod hold, rp_filter apart, and the addresses."""

    def read() -> Any:
        seen = [snapshot(node.ns), snapshot(pod)]
        return [(one.links, one.addresses, one.routes, one.rules, one.neighbours) for one in seen], node.held()

    return read


def is_unwritable(error: Any) -> bool:
    """Code 109, and what to do about it."""
    return error is not None and error["code"] == 109 and "writable" in error["details"]


def fill(directory: Path) -> Path:
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


def test_a_full_disk_refuses_add_lets_del_through_and_heals(
    node: Node, pod: Netns, new_netns: Callable[[str], Netns], state: Callable[[], Any]
) -> None:
    other, before = new_netns("pod"), state()
    assert node.call("ADD", other, "other") is None
    with_other = state()
    filler = fill(node.state)
    errors = [
        node.call("ADD", pod, f"c{number}") for number in range(4)
    ]  # the first may fit into what is left of a page
    assert is_unwritable(errors[-1]), errors
    for number in range(4):
        assert node.call("DEL", pod, f"c{number}") is None
    assert state() == with_other
    assert node.call("DEL", other, "other") is None
    assert state() == before
    filler.unlink()
    assert node.call("ADD", pod, "c9") is None
    assert node.call("DEL", pod, "c9") is None
    assert state() == before


def test_a_disk_that_is_full_at_the_start_refuses_add_and_heals(
    node: Node, pod: Netns, state: Callable[[], Any]
) -> None:
    before = state()
    assert node.call("ADD", pod, "c1") is None
    node.kill()
    filler = fill(node.state)
    node.start()
    assert node.call("DEL", pod, "c1") is None
    assert state() == before
    assert is_unwritable(node.call("ADD", pod, "c2")) or node.call("DEL", pod, "c2") is None
    assert state() == before
    filler.unlink()
    assert node.call("ADD", pod, "c3") is None
    assert node.call("DEL", pod, "c3") is None
    assert state() == before


@pytest.mark.parametrize("attached", [True, False])
def test_a_read_only_state_directory_refuses_add_lets_del_through_and_heals(
    node: Node, pod: Netns, new_netns: Callable[[str], Netns], state: Callable[[], Any], attached: bool
) -> None:
    before = state()
    if attached:
        assert node.call("ADD", pod, "c1") is None
    node.kill()
    for options in (["--bind"], ["-o", "remount,bind,ro"]):
        subprocess.run(["mount", *options, str(node.state), str(node.state)], check=True)
    node.start()
    assert is_unwritable(node.call("ADD", new_netns("pod"), "c2"))
    for container in ("c1", "c2"):
        assert node.call("DEL", pod, container) is None
    assert state() == before
    subprocess.run(["mount", "-o", "remount,bind,rw", str(node.state), str(node.state)], check=True)
    assert node.call("ADD", pod, "c3") is None
    assert node.call("DEL", pod, "c3") is None
    assert state() == before
    node.kill()
    node.start()  # what the ledger could not be told is not believed again
    assert node.call("ADD", pod, "c1") is None
    assert node.call("DEL", pod, "c1") is None
    assert state() == before


@pytest.mark.parametrize("length", [0, 100, 4096, 9000])
@pytest.mark.parametrize("running", [True, False])
def test_a_ledger_that_is_cut_off_is_replaced_and_del_goes_on(
    node: Node, pod: Netns, new_netns: Callable[[str], Netns], state: Callable[[], Any], length: int, running: bool
) -> None:
    other, before = new_netns("pod"), state()
    assert node.call("ADD", pod, "c1") is None
    if not running:
        node.kill()
    for each in node.state.glob("ledger.db*"):
        if each.suffix != ".db-shm":
            os.truncate(each, min(length, each.stat().st_size))
    if not running:
        node.start()
    error = node.call("ADD", other, "c2")
    assert error is None or is_unwritable(error), error
    for container, ns in (("c1", pod), ("c2", other)):
        assert node.call("DEL", ns, container) is None
    assert state() == before
    for container in ("c1", "c3"):
        assert node.call("ADD", pod, container) is None
        assert node.call("DEL", pod, container) is None
    assert state() == before


@pytest.mark.parametrize("running", [True, False])
def test_garbage_in_the_spool_is_set_aside_and_the_rest_worked_off(
    node: Node, pod: Netns, state: Callable[[], Any], running: bool
) -> None:
    before, spool = state(), node.run / "spool"
    assert node.call("ADD", pod, "c1") is None
    node.kill()
    if running:
        node.start()
        assert node.call("DEL", pod, "nobody") is None
    for number, content in enumerate(GARBAGE):
        part = spool / f"part{number}"
        part.write_bytes(content)
        part.rename(spool / f"{number:020}-1.del")
    (spool / "stranger").write_bytes(b"x")
    if not running:
        assert node.call("DEL", pod, "c1") is None  # spooled as well
        (whole,) = (each for each in spool.glob("*.del") if each.name[:5] != "00000")
        (spool / f"{time.time_ns():020}-2.del").write_bytes(whole.read_bytes()[:-7])
        node.start()
    cut_off = 0 if running else 1
    node.until(lambda: [each.name for each in spool.iterdir()] == ["bad"])
    assert len(list((spool / "bad").iterdir())) == len(GARBAGE) + 1 + cut_off
    assert node.events().count("bad spool file") == len(GARBAGE) + 1 + cut_off
    if running:
        assert node.call("DEL", pod, "c1") is None
    assert state() == before
    assert node.call("ADD", pod, "c1") is None
    assert node.call("DEL", pod, "c1") is None


def test_a_run_directory_that_vanishes_comes_back(node: Node, pod: Netns, state: Callable[[], Any]) -> None:
    before = state()
    assert node.call("ADD", pod, "c1") is None
    shutil.rmtree(node.run)
    assert node.call("DEL", pod, "c1") is None
    node.until(lambda: (node.run / "underlay.sock").exists())
    assert node.call("ADD", pod, "c2") is None
    assert node.call("DEL", pod, "c2") is None
    node.until(lambda: state() == before)
