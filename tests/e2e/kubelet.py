"""The kubelet's part for pods of a manifest: volumes, environment, containers in their order, probes, grace.

Only what deploy/ says is played; a field that is not known here fails, so that nothing of a manifest goes unlooked at.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.e2e.cri import Container, Mount, Sandbox

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.conftest import Netns
    from tests.e2e.cri import Runtime

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_PATIENCE = 30.0
_POD_FIELDS = {
    "serviceAccountName", "automountServiceAccountToken", "hostNetwork", "hostPID", "priorityClassName", "volumes",
    "terminationGracePeriodSeconds", "nodeSelector", "tolerations", "initContainers", "containers",
}  # fmt: skip
_CONTAINER_FIELDS = {
    "name", "image", "command", "args", "env", "readinessProbe", "livenessProbe", "resources", "securityContext",
    "volumeMounts",
}  # fmt: skip
_SECURITY_FIELDS = {
    "privileged", "runAsUser", "runAsNonRoot", "readOnlyRootFilesystem", "allowPrivilegeEscalation", "capabilities",
}  # fmt: skip


@dataclass
class Kubelet:
    """Runs pods of manifests. ``tree`` is the node's root, ``directory`` holds the volumes, found under its path there
    too; ``config_maps`` and ``account`` (token, ca.crt, …) are file names and contents, ``services`` the environment.
    """

    ns: Netns
    tree: Path
    directory: Path
    runtime: Runtime
    node_name: str
    cgroup: str
    config_maps: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    account: Mapping[str, str] = field(default_factory=dict)
    services: Mapping[str, str] = field(default_factory=dict)

    def pod(self, workload: Any) -> ManifestPod:
        """Make the sandbox of a workload's pod."""
        spec = workload["spec"]["template"]["spec"]
        assert spec.keys() <= _POD_FIELDS
        uid = str(uuid.uuid4())
        logs = self.directory / "logs" / uid
        logs.mkdir(parents=True)
        every = (*spec.get("initContainers", ()), *spec["containers"])
        sandbox = Sandbox(
            f"{workload['metadata']['name']}-0", uid, f"/{self.cgroup}/{uid}", workload["metadata"]["namespace"],
            logs=str(logs), host_network=spec.get("hostNetwork", False), host_pid=spec.get("hostPID", False),
            privileged=any(each["securityContext"].get("privileged", False) for each in every),
        )  # fmt: skip
        return ManifestPod(self, spec, sandbox, self.runtime.run(sandbox))

    def volume(self, volume: Any) -> str:
        """The directory of the node that a volume is."""
        if "hostPath" in volume:
            assert volume["hostPath"]["type"] in ("Directory", "DirectoryOrCreate")
            there = self.tree / volume["hostPath"]["path"].lstrip("/")
            if volume["hostPath"]["type"] == "DirectoryOrCreate":
                there.mkdir(parents=True, exist_ok=True)
            assert there.is_dir()
            return str(volume["hostPath"]["path"])
        name = volume["configMap"]["name"]
        return self.files(f"config-{name}", self.config_maps[name])

    def files(self, name: str, content: Mapping[str, str]) -> str:
        """A directory with these files."""
        directory = self.directory / "volumes" / name
        directory.mkdir(parents=True, exist_ok=True)
        for file, text in content.items():
            (directory / file).write_text(text)
        return str(directory)


@dataclass
class ManifestPod:
    """A pod whose sandbox runs."""

    kubelet: Kubelet
    spec: Any
    sandbox: Sandbox
    id: str
    running: list[str] = field(default_factory=list)
    _attempts: int = 0

    def initialize(self) -> list[int]:
        """Run the init containers until one fails; their exit statuses."""
        statuses: list[int] = []
        for each in self.spec.get("initContainers", ()):
            container = self._create(each)
            deadline = time.monotonic() + _PATIENCE
            while (status := self.kubelet.runtime.exit_code(container)) is None:
                assert time.monotonic() < deadline, self.log(each["name"])
                time.sleep(0.02)
            self.kubelet.runtime.remove_container(container)
            statuses.append(status)
            if status:
                break
        return statuses

    def start(self) -> None:
        """Init containers, then the others; returns when all are ready."""
        assert set(self.initialize()) <= {0}, [self.log(each["name"]) for each in self.spec["initContainers"]]
        self.running = [self._create(each) for each in self.spec["containers"]]
        deadline = time.monotonic() + _PATIENCE
        for each in self.spec["containers"]:
            while not self.asks(each["readinessProbe"]):
                assert time.monotonic() < deadline, self.log(each["name"])
                time.sleep(0.02)

    def asks(self, probe: Any) -> bool:
        """One look of a probe, on the node's network."""
        wanted = probe["httpGet"]
        with contextlib.suppress(OSError), self.kubelet.ns.entered():
            sock = socket.create_connection((wanted["host"], wanted["port"]), probe.get("timeoutSeconds", 1))
            call = http.client.HTTPConnection(wanted["host"], wanted["port"])
            call.sock = sock
            with contextlib.closing(call):
                call.request("GET", wanted["path"])
                return 200 <= call.getresponse().status < 400
        return False

    def stop(self, grace: int | None = None) -> list[int]:
        """SIGTERM, and SIGKILL after the pod's grace, 0: at once; the exit statuses. The sandbox stays."""
        runtime, statuses = self.kubelet.runtime, []
        for container in self.running:
            runtime.stop_container(container, self.spec["terminationGracePeriodSeconds"] if grace is None else grace)
            statuses.append(runtime.exit_code(container))
            runtime.remove_container(container)
        self.running = []
        return [each for each in statuses if each is not None]

    def remove(self) -> None:
        """Stop all of it and remove it."""
        self.stop()
        self.kubelet.runtime.stop(self.id)
        self.kubelet.runtime.remove(self.id)

    def log(self, container: str) -> str:
        """What a container of that name has said, all attempts."""
        logs = self.kubelet.directory / "logs" / self.sandbox.uid
        return "".join(path.read_text() for path in sorted(logs.glob(f"{container}-*.log")))

    def _create(self, wanted: Any) -> str:
        assert wanted.keys() <= _CONTAINER_FIELDS
        security = wanted["securityContext"]
        assert security.keys() <= _SECURITY_FIELDS
        assert security.get("runAsUser", 0) == 0, "as who the image runs"
        self._attempts += 1
        container = Container(
            wanted["name"], self._attempts, wanted["image"], tuple(wanted["command"]),
            tuple(wanted.get("args", ())), tuple(self._environment(wanted)), tuple(self._mounts(wanted)),
            log=f"{wanted['name']}-{self._attempts}.log", privileged=security.get("privileged", False),
            read_only=security.get("readOnlyRootFilesystem", False),
            drop=tuple(security.get("capabilities", {}).get("drop", ())),
            no_new_privileges=not security.get("allowPrivilegeEscalation", True),
        )  # fmt: skip
        return self.kubelet.runtime.create(self.id, container, self.sandbox)

    def _environment(self, wanted: Any) -> list[tuple[str, str]]:
        fields = {"spec.nodeName": self.kubelet.node_name}
        named = [(each["name"], fields[each["valueFrom"]["fieldRef"]["fieldPath"]]) for each in wanted.get("env", ())]
        return [*self.kubelet.services.items(), *named]

    def _mounts(self, wanted: Any) -> list[Mount]:
        volumes = {each["name"]: each for each in self.spec["volumes"]}
        mounts = [
            Mount(
                each["mountPath"], self.kubelet.volume(volumes[each["name"]]), each.get("readOnly", False),
                propagates=each.get("mountPropagation", "None") == "HostToContainer",
            )
            for each in wanted["volumeMounts"]
        ]  # fmt: skip
        if self.spec.get("automountServiceAccountToken", True):
            mounts.append(Mount(ACCOUNT, self.kubelet.files("account", self.kubelet.account), read_only=True))
        return mounts
