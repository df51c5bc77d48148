"""An engine in a throw-away node, with the plugins that are built in, and executables written by the test."""

from __future__ import annotations

import json
import os
import stat
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from underlay.delegate.attachment import Attachment, Origin, Sandbox
from underlay.delegate.engine import Engine
from underlay.delegate.exec import Executor
from underlay.delegate.ledger import Ledger
from underlay.ipam.host_local import HOST_LOCAL
from underlay.ipam.static import STATIC
from underlay.plugins import host_local, macvlan, static

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Netns

ORIGIN = Origin("multus", "multus-net", "eth0")
PLUGINS = {plugin.name: plugin for plugin in (macvlan.Macvlan(), host_local.PLUGIN, static.PLUGIN)}
ALLOCATORS = {each.name: each for each in (HOST_LOCAL, STATIC)}


def soon(seconds: float = 10.0) -> float:
    """A deadline."""
    return time.monotonic() + seconds


@dataclass
class Log:
    """Keeps the lines, in order."""

    lines: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    def __call__(self, level: str, event: str, **fields: Any) -> None:
        self.lines.append((level, event, fields))

    def events(self) -> list[str]:
        return [event for _, event, _ in self.lines]


@pytest.fixture
def log() -> Log:
    return Log()


@dataclass
class Bench:
    """An engine and what it works on."""

    engine: Engine
    ledger: Ledger
    log: Log
    node: Netns
    bin_dir: Path
    data_dir: Path
    engines: list[Engine] = field(default_factory=list)

    def another_engine(self) -> Engine:
        """That of a daemon which starts on the same ledger, which has one owner at a time."""
        self.ledger.close()
        self.engines.append(make_engine(self.ledger, self.log))
        return self.engines[-1]

    def sandbox(self, pod: Netns | str, container_id: str = "c1") -> Sandbox:
        netns = pod if isinstance(pod, str) else pod.path
        return Sandbox(container_id, netns, path=(str(self.bin_dir), "/usr/lib/cni"))

    def macvlan(self, name: str = "underlay-a", *extra: dict[str, Any], **keys: Any) -> bytes:
        """A network of macvlan + host-local over eth0, and further plugins after it."""
        ipam = {
            "type": "host-local", "subnet": "172.18.0.0/16", "rangeStart": "172.18.9.1", "rangeEnd": "172.18.9.200",
            "dataDir": str(self.data_dir),
        }  # fmt: skip
        first = {"type": "macvlan", "master": "eth0", "ipam": ipam, **keys}
        return json.dumps({"cniVersion": "1.0.0", "name": name, "plugins": [first, *extra]}).encode()

    def attachment(self, conf: bytes | None = None, ifname: str = "net1", network: str = "default/a") -> Attachment:
        return Attachment(network=network, conf=conf or self.macvlan(), ifname=ifname)

    def executable(self, name: str, script: str) -> Path:
        """An executable plugin: a shell script that finds its standard input in $conf and writes what it saw."""
        path = self.bin_dir / name
        seen = self.bin_dir / f"{name}.calls"
        note = f'printf "%s %s %s\\n" "$CNI_COMMAND" "$CNI_NETNS" "$conf" >>{seen}'
        path.write_text(f"#!/bin/sh\nconf=$(cat)\n{note}\n{script}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    def calls(self, name: str) -> list[tuple[str, str, dict[str, Any]]]:
        """(CNI_COMMAND, CNI_NETNS, standard input) of every call of an executable, in order."""
        try:
            lines = (self.bin_dir / f"{name}.calls").read_text().splitlines()
        except FileNotFoundError:
            return []
        split = [line.split(" ", 2) for line in lines]
        return [(verb, netns, json.loads(conf)) for verb, netns, conf in split]

    def reserved(self, name: str = "underlay-a") -> list[str]:
        """The addresses that host-local holds."""
        directory = self.data_dir / name
        return sorted(each for each in os.listdir(directory) if each[0].isdigit()) if directory.is_dir() else []


@pytest.fixture
def bench(uplink: Netns, in_host: Netns, tmp_path: Path, log: Log) -> Iterator[Bench]:
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    ledger = Ledger(str(tmp_path / "state" / "ledger.db"), log)
    engine = make_engine(ledger, log)
    made = Bench(engine, ledger, log, uplink, bin_dir, tmp_path / "data", [engine])
    yield made
    for each in made.engines:
        each.close()


def make_engine(ledger: Ledger, log: Callable[..., None]) -> Engine:
    """The engine as the daemon makes it."""
    executor = Executor(log=log, environ={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    return Engine(ledger=ledger, executor=executor, plugins=PLUGINS, allocators=ALLOCATORS, log=log)
