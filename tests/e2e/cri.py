"""The part of the Container Runtime Interface that the kubelet uses to start and stop a pod's sandbox.

kubernetes/cri-api, package runtime.v1, api.proto: only the fields named here are written or read. The messages are
small enough to be encoded by hand (protobuf encoding guide: a field is its number and wire type, then the value).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VARINT, BYTES = 0, 2


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
    """PodSandboxConfig, as far as CNI sees it."""

    name: str
    uid: str
    cgroup_parent: str
    namespace: str = "default"

    def encode(self) -> bytes:
        metadata = field(1, self.name) + field(2, self.uid) + field(3, self.namespace)
        return field(1, metadata) + field(2, self.name) + field(8, field(1, self.cgroup_parent))


class Runtime:
    """runtime.v1.RuntimeService on a unix socket. A refusal raises grpc.RpcError with the runtime's words."""

    def __init__(self, path: Path) -> None:
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
