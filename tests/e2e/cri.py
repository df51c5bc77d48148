"""The part of the Container Runtime Interface that the kubelet uses to start and stop a pod's sandbox and containers.

kubernetes/cri-api, package runtime.v1, api.proto: only the fields named here are written or read. The messages are
small enough to be encoded by hand (protobuf encoding guide: a field is its number and wire type, then the value).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

VARINT, BYTES = 0, 2
NODE, CONTAINER = 2, 1  # NamespaceMode
HOST_TO_CONTAINER = 1  # MountPropagation
EXITED = 2  # ContainerState
# What the kubelet lets no container see or write that is not privileged (pkg/securitycontext).
MASKED = ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/sys/firmware")
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number: int, value: str | bytes | int) -> bytes:
    """One field; an empty value is left out, as proto3 has it."""
    if not value:
        return b""
    if isinstance(value, int):
        return varint(number << 3 | VARINT) + varint(value)
    raw = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | BYTES) + varint(len(raw)) + raw


def fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a message of varints and length-delimited fields."""
    at = 0

    def take() -> int:
        nonlocal at
        number = shift = 0
        while True:
            byte = raw[at]
            at += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number

    while at < len(raw):
        key = take()
        value: int | bytes = take()
        if key & 7 == BYTES:
            assert isinstance(value, int)
            value, at = raw[at : at + value], at + value
        yield key >> 3, value


def texts(raw: bytes, number: int) -> list[bytes]:
    """The length-delimited fields of one number."""
    return [value for key, value in fields(raw) if key == number and isinstance(value, bytes)]


@dataclass(frozen=True)
class Sandbox:
    """PodSandboxConfig, as far as CNI sees it, and what a pod of the node's own namespaces says besides."""

    name: str
    uid: str
    cgroup_parent: str
    namespace: str = "default"
    logs: str = ""
    host_network: bool = False
    host_pid: bool = False
    privileged: bool = False

    def namespaces(self) -> bytes:
        """NamespaceOption."""
        return field(1, NODE * self.host_network) + field(2, NODE if self.host_pid else CONTAINER)

    def encode(self) -> bytes:
        metadata = field(1, self.name) + field(2, self.uid) + field(3, self.namespace)
        security = field(1, self.namespaces()) if self.host_network or self.host_pid else b""
        linux = field(1, self.cgroup_parent) + field(2, security + field(6, self.privileged))
        return (
            field(1, metadata)
            + field(2, "" if self.host_network else self.name)
            + field(3, self.logs)
            + field(8, linux)
        )


@dataclass(frozen=True)
class Mount:
    """A directory of the node in a container; ``propagates``: what the node mounts below it later arrives."""

    inside: str
    on_the_node: str
    read_only: bool = False
    propagates: bool = False

    def encode(self) -> bytes:
        places = field(1, self.inside) + field(2, self.on_the_node)
        return places + field(3, self.read_only) + field(5, HOST_TO_CONTAINER * self.propagates)


@dataclass(frozen=True)
class Container:
    """ContainerConfig. ``command`` takes the place of the image's entry point, as a pod's does."""

    name: str
    attempt: int
    image: str
    command: tuple[str, ...]
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    mounts: tuple[Mount, ...] = ()
    log: str = ""
    privileged: bool = False
    read_only: bool = False
    drop: tuple[str, ...] = ()
    no_new_privileges: bool = False

    def encode(self, namespaces: bytes) -> bytes:
        security = field(1, _repeated(2, self.drop)) + field(2, self.privileged) + field(3, namespaces)
        security += field(7, self.read_only) + field(11, self.no_new_privileges)
        if not self.privileged:
            security += _repeated(13, MASKED) + _repeated(14, READ_ONLY)
        variables = (field(1, key) + field(2, value) for key, value in self.env)
        return (
            field(1, field(1, self.name) + field(2, self.attempt))
            + field(2, field(1, self.image))
            + _repeated(3, self.command)
            + _repeated(4, self.args)
            + _repeated(6, variables)
            + _repeated(7, (each.encode() for each in self.mounts))
            + field(11, self.log)
            + field(15, field(2, security))
        )


def _repeated(number: int, values: Iterable[str | bytes]) -> bytes:
    return b"".join(field(number, each) for each in values)


class Runtime:
    """runtime.v1.RuntimeService on a unix socket. A refusal raises grpc.RpcError with the runtime's words.

    ``mounts`` is the inode of the mount namespace in which it and its shims run.
    """

    def __init__(self, path: Path, mounts: int) -> None:
        self.mounts = mounts
        self._channel = grpc.insecure_channel(f"unix://{path}")

    def _call(self, method: str, request: bytes, seconds: float = 60.0) -> bytes:
        call = self._channel.unary_unary(f"/runtime.v1.RuntimeService/{method}")
        answer = call(request, timeout=seconds, wait_for_ready=True)
        assert isinstance(answer, bytes)
        return answer

    def network_ready(self) -> bool:
        """Whether the condition NetworkReady of Status holds."""
        (status,) = texts(self._call("Status", b""), 1)
        conditions = [dict(fields(condition)) for condition in texts(status, 1)]
        return any(condition.get(1) == b"NetworkReady" and condition.get(2) == 1 for condition in conditions)

    def run(self, sandbox: Sandbox) -> str:
        """RunPodSandbox: the sandbox's id."""
        return texts(self._call("RunPodSandbox", field(1, sandbox.encode())), 1)[0].decode()

    def addresses(self, sandbox_id: str) -> list[str]:
        """PodSandboxStatus: the addresses that the runtime learnt from the CNI result."""
        (status,) = texts(self._call("PodSandboxStatus", field(1, sandbox_id)), 1)
        (network,) = texts(status, 5)
        return [text.decode() for text in (*texts(network, 1), *(texts(more, 1)[0] for more in texts(network, 2)))]

    def netns(self, sandbox_id: str) -> str:
        """PodSandboxStatus, verbose: the path of the sandbox's network namespace."""
        answer = self._call("PodSandboxStatus", field(1, sandbox_id) + field(2, 1))
        entries = [dict(fields(entry)) for entry in texts(answer, 2)]
        (info,) = (json.loads(entry[2]) for entry in entries if entry[1] == b"info" and isinstance(entry[2], bytes))
        (path,) = (each["path"] for each in info["runtimeSpec"]["linux"]["namespaces"] if each["type"] == "network")
        assert isinstance(path, str)
        return path

    def reads_network(self, name: str) -> bool:
        """Whether it has read the configuration of the network of that name (Status, verbose)."""
        infos = (dict(fields(entry)) for entry in texts(self._call("Status", field(1, 1)), 2))
        told = next(info[2] for info in infos if info[1] == b"cniconfig")
        assert isinstance(told, bytes)
        return any(each["Config"]["Name"] == name for each in json.loads(told)["Networks"])

    def create(self, sandbox_id: str, container: Container, sandbox: Sandbox) -> str:
        """CreateContainer and StartContainer: the container's id."""
        request = field(1, sandbox_id) + field(2, container.encode(sandbox.namespaces())) + field(3, sandbox.encode())
        container_id = texts(self._call("CreateContainer", request), 1)[0]
        self._call("StartContainer", field(1, container_id))
        return container_id.decode()

    def execute(self, container_id: str, *argv: str, seconds: int = 60) -> tuple[int, str]:
        """ExecSync: exit status, and standard output and error."""
        request = field(1, container_id) + _repeated(2, argv) + field(3, seconds)
        answer = self._call("ExecSync", request, seconds + 5)
        code = dict(fields(answer)).get(3, 0)
        assert isinstance(code, int)
        return code, b"".join((*texts(answer, 1), *texts(answer, 2))).decode()

    def exit_code(self, container_id: str) -> int | None:
        """ContainerStatus: None while it runs."""
        (status,) = texts(self._call("ContainerStatus", field(1, container_id)), 1)
        told = dict(fields(status))
        code = told.get(7, 0)
        assert isinstance(code, int)
        return code if told.get(3) == EXITED else None

    def stop_container(self, container_id: str, grace: int) -> None:
        """StopContainer: SIGTERM, and SIGKILL after ``grace`` seconds, 0: at once. Returns when it has ended."""
        self._call("StopContainer", field(1, container_id) + field(2, grace))

    def remove_container(self, container_id: str) -> None:
        """RemoveContainer."""
        self._call("RemoveContainer", field(1, container_id))

    def sandboxes(self) -> list[str]:
        """ListPodSandbox: the ids of all, ready or not."""
        return [texts(item, 1)[0].decode() for item in texts(self._call("ListPodSandbox", b""), 1)]

    def stop(self, sandbox_id: str, seconds: float = 60.0) -> None:
        """StopPodSandbox: CNI DEL."""
        self._call("StopPodSandbox", field(1, sandbox_id), seconds)

    def remove(self, sandbox_id: str) -> None:
        """RemovePodSandbox."""
        self._call("RemovePodSandbox", field(1, sandbox_id))

    def close(self) -> None:
        self._channel.close()
