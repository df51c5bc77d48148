"""A node that runs multus for the tests, in two ways: the handler called in this process, and the shim and a daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import msgspec

from underlay.cni import request, versions
from underlay.cni.request import Verb
from underlay.daemon import builtin, pools
from underlay.delegate.engine import Engine
from underlay.delegate.exec import Executor
from underlay.delegate.ledger import Ledger
from underlay.delegate.report import Report
from underlay.errors import UnderlayError
from underlay.kube.device_info import DeviceInfo
from underlay.kube.manifests import Manifests
from underlay.kube.pod_resources import PodResources
from underlay.multus.handler import Multus
from underlay.multus.hotplug import HotPlug

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

GO_PLUGINS = "/usr/lib/cni"
UNDERLAY = (sys.executable, "-m", "underlay")
SECONDS = 60.0


class Lines(list[dict[str, Any]]):
    """A log that keeps its lines."""

    def __call__(self, level: str, event: str, /, **fields: Any) -> None:
        self.append({"level": level, "event": event, **fields})


class Node:
    """What a test needs of either: directories for its input, and calls. ``ns`` is the node's namespace."""

    def __init__(self, ns: Any, directory: Path) -> None:
        self.ns = ns
        self.directory = directory
        self.manifests = directory / "manifests"
        self.conf_dir = directory / "net.d"
        for each in (self.manifests, self.conf_dir):
            each.mkdir(exist_ok=True)

    def write(self, path: str, content: object) -> Path:
        """Write JSON (or text as it is) to a file below the node's directory, by rename."""
        target = self.directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        temporary.write_text(content if isinstance(content, str) else json.dumps(content))
        temporary.rename(target)
        return target

    def network(self, namespace: str, name: str, config: object = None) -> None:
        """Define a network by a manifest."""
        spec = {} if config is None else {"config": config if isinstance(config, str) else json.dumps(config)}
        metadata = {"namespace": namespace, "name": name}
        kind = {"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition"}
        self.write(f"manifests/networks/{namespace}.{name}.json", {**kind, "metadata": metadata, "spec": spec})

    def pod(self, namespace: str, name: str, annotations: Mapping[str, str], uid: str = "uid-1") -> None:
        """Define a pod by a manifest."""
        metadata = {"namespace": namespace, "name": name, "uid": uid, "annotations": dict(annotations)}
        self.write(f"manifests/pods/{namespace}.{name}.json", {"apiVersion": "v1", "kind": "Pod", "metadata": metadata})

    def status(self, namespace: str, name: str) -> Any:
        """The network-status that was written, or None."""
        path = self.manifests / "pods" / f"{namespace}.{name}.network-status.json"
        return json.loads(path.read_text()) if path.exists() else None

    def call(
        self, verb: str, conf: Any, *, netns: str = "", container: str = "c1", ifname: str = "eth0", args: str = ""
    ) -> tuple[bool, Any]:
        """Call multus: whether it succeeded, and what it printed as JSON (None for nothing)."""
        env = {"CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_NETNS": netns, "CNI_IFNAME": ifname}
        env |= {"CNI_PATH": self.path(), "CNI_ARGS": args}
        ok, printed = self._call({key: value for key, value in env.items() if value}, json.dumps(conf).encode())
        return ok, json.loads(printed) if printed else None

    def path(self) -> str:
        """CNI_PATH."""
        return GO_PLUGINS

    def _call(self, env: dict[str, str], stdin: bytes) -> tuple[bool, bytes]:
        raise NotImplementedError

    def close(self) -> None:
        """End what was started."""


class InProcess(Node):
    """The handler over an engine of its own. The calling thread enters the node's namespace for each call."""

    def __init__(
        self, ns: Any, directory: Path, *, hotplug: bool = True, overrides: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(ns, directory)
        self.log = Lines()
        self.ledger = Ledger(str(directory / "ledger.db"), self.log)
        self.source = Manifests(str(self.manifests), self.log)
        self.pools = pools.embedded(str(directory / "state"), self.source, self.log, rest=30.0)
        self.engine = Engine(
            ledger=self.ledger,
            executor=Executor(log=self.log, environ=os.environ),
            plugins=builtin.plugins(self.pools),
            allocators=builtin.allocators(self.pools),
            log=self.log,
        )
        self.device_info = directory / "devinfo"
        self.kubelet = directory / "kubelet.sock"
        self.checkpoint = directory / "checkpoint"
        self.multus = Multus(
            self.engine,
            self.source,
            self.log,
            devices=PodResources(socket=str(self.kubelet), checkpoint=str(self.checkpoint), patience=0.5),
            info=DeviceInfo(self.log, str(self.device_info)),
            conf_dir=str(self.conf_dir),
            overrides={key: msgspec.Raw(json.dumps(value).encode()) for key, value in (overrides or {}).items()},
            hotplug=hotplug,
        )
        self.hotplug = HotPlug(self.multus, self.engine, self.source, self.log)

    def sweep(self) -> None:
        """Look for changed annotations once."""
        with self.ns.entered():
            self.hotplug.sweep()

    def _call(self, env: dict[str, str], stdin: bytes) -> tuple[bool, bytes]:
        report = Report()
        with self.ns.entered():
            try:
                parsed = request.parse("multus", env, stdin)
                result = self.multus.run(parsed, time.monotonic() + SECONDS, report)
                report.answered(None)
            except UnderlayError as error:
                report.answered(error)
                return False, versions.encode_error(error)
        if parsed.verb is not Verb.ADD or result is None:
            return True, b""
        return True, versions.encode(result, json.loads(stdin)["cniVersion"])

    def close(self) -> None:
        self.engine.close()
        self.pools.close()
        self.source.close()


class ShimAndDaemon(Node):
    """The installed shim, and a daemon in the node's namespace with a run directory of its own.

    ``flags`` are further ones of the daemon.
    """

    def __init__(self, ns: Any, directory: Path, *flags: str) -> None:
        super().__init__(ns, directory)
        self.bin_dir = directory / "bin"
        run_dir = directory / "run"
        subprocess.run(
            [*UNDERLAY, "install", "--all", "--bin-dir", self.bin_dir, "--run-dir", run_dir],
            check=True,
            capture_output=True,
        )
        command = [*UNDERLAY, "daemon", "--run-dir", run_dir, "--state-dir", directory / "state"]
        command += ["--conf-dir", self.conf_dir, "--manifest-dir", self.manifests, *flags]
        self._command = [str(each) for each in command]
        self.start()

    def start(self) -> None:
        """Start the daemon; the shim waits for it. Its log goes on where it is."""
        with (self.directory / "daemon.log").open("ab") as log:
            self.daemon = self.ns.popen(*self._command, stdout=log, stderr=log)

    def path(self) -> str:
        return f"{self.bin_dir}:{GO_PLUGINS}"

    def _call(self, env: dict[str, str], stdin: bytes) -> tuple[bool, bytes]:
        done = subprocess.run([self.bin_dir / "multus"], env=env, input=stdin, capture_output=True, check=False)
        return done.returncode == 0, done.stdout

    def close(self) -> None:
        self.daemon.terminate()
        self.daemon.wait(30)
