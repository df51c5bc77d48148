"""``lab(...)`` runs the command `underlay lab` as a user does; ``machine()`` is what it must leave as it was."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LAB = (sys.executable, "-m", "underlay", "lab")
HOME = Path("/run/underlay-lab")


def lab(*words: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """`underlay lab WORDS`, finished."""
    return subprocess.run([*LAB, *words], capture_output=True, text=True, check=False, timeout=60, **kwargs)


def begun(*words: str) -> subprocess.Popen[str]:
    """`underlay lab WORDS`, under way."""
    return subprocess.Popen([*LAB, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until a file is there that the lab makes on its way."""
    deadline = time.monotonic() + 30
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def machine() -> dict[str, Any]:
    """The namespace that the command is called in, and what labs consist of."""
    asked = (
        ("link",),
        ("addr",),
        ("route", "show", "table", "all"),
        ("-6", "route", "show", "table", "all"),
        ("rule",),
    )
    told = [subprocess.run(["ip", "-j", *each], check=True, capture_output=True, text=True).stdout for each in asked]
    with open("/proc/sys/net/ipv4/ip_forward") as forward:
        told.append(forward.read())
    return {
        "network": told,
        "firewall": subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout,
        "namespaces": sorted(os.listdir("/run/netns")),
        "files": sorted(map(str, Path("/run").rglob("*"))),
        "mounts": Path("/proc/self/mountinfo").read_text(),
        "processes": sorted(_labs_processes()),
    }


def _labs_processes() -> Iterator[str]:
    mounts = os.stat("/proc/self/ns/mnt").st_ino
    for pid in (name for name in os.listdir("/proc") if name.isdigit()):
        with contextlib.suppress(OSError):  # ended, or none of our business
            command = os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes())
            if os.stat(f"/proc/{pid}/ns/mnt").st_ino == mounts and ("underlay" in command or "ip\0" in command):
                yield command.replace("\0", " ")


@pytest.fixture
def untouched() -> Iterator[Callable[[], dict[str, Any]]]:
    """The machine is the same before and after the test; every lab is removed even when the test fails."""
    # the first `ip netns add` on a machine makes /run/netns a mount of its own, which is iproute2's way
    for verb in ("add", "del"):
        subprocess.run(["ip", "netns", verb, "first"], check=True)
    before = machine()
    yield machine
    for root in HOME.glob("*"):
        subprocess.run([*LAB, "down", "--name", root.name], check=True, capture_output=True)
    assert machine() == before
