"""A kubelet's PodResources API: a real gRPC server on a unix socket, with pods that the test writes.

Answers and refusals are those of Kubernetes' pkg/kubelet/apis/podresources/server_v1.go; messages are encoded by field
number, independent of the decoder under test.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
from tests.e2e.cri import field as encoded
from tests.e2e.cri import texts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

PREFIX = "/v1.PodResourcesLister/"


def devices(resource: str, *ids: str, numa: int = 0) -> bytes:
    """A container's ContainerDevices, as field 2 of ContainerResources."""
    topology = encoded(1, encoded(1, numa + 1))
    return encoded(2, encoded(1, resource) + b"".join(encoded(2, each) for each in ids) + encoded(3, topology))


def claim(name: str, *resources: bytes, namespace: str = "default") -> bytes:
    """A container's DynamicResource, as field 5."""
    return encoded(5, encoded(2, name) + encoded(3, namespace) + b"".join(encoded(4, each) for each in resources))


def claimed(driver: str = "", device: str = "", cdi: Iterable[str] = (), pool: str = "node-1") -> bytes:
    """A ClaimResource."""
    ids = b"".join(encoded(1, encoded(1, each)) for each in cdi)
    return ids + (encoded(2, driver) + encoded(3, pool) + encoded(4, device) if driver else b"")


def container(*parts: bytes) -> bytes:
    """A container with cpu_ids (packed) and memory besides."""
    return encoded(1, "app") + encoded(3, b"\x01\x02") + b"".join(parts) + encoded(4, encoded(1, "hugepages-2Mi"))


def pod(name: str, *containers: bytes, namespace: str = "default") -> bytes:
    """PodResources."""
    return encoded(1, name) + encoded(2, namespace) + b"".join(encoded(3, each) for each in containers)


@dataclass
class Kubelet(grpc.GenericRpcHandler):
    """Serves ``methods``. ``get_gate`` off: Get is refused in words, as before Kubernetes 1.34. ``late`` seconds pass
    before any answer; ``unaware`` calls are answered as if no pod were known yet, ``refusals`` with ``refusal``.
    """

    path: Path
    pods: list[bytes] = field(default_factory=list)
    methods: tuple[str, ...] = ("Get", "List")
    get_gate: bool = True
    late: float = 0.0
    unaware: int = 0
    refusal: grpc.StatusCode = grpc.StatusCode.RESOURCE_EXHAUSTED
    refusals: int = 0
    calls: list[str] = field(default_factory=list)

    def __enter__(self) -> Kubelet:
        self._server = grpc.server(ThreadPoolExecutor(4), handlers=[self])
        self._server.add_insecure_port(f"unix://{self.path}")
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()
        self.path.unlink(missing_ok=True)

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method.removeprefix(PREFIX)
        if method not in self.methods:
            return None
        return grpc.unary_unary_rpc_method_handler({"Get": self._get, "List": self._list}[method])

    def _known(self, context: Any, method: str) -> list[bytes]:
        self.calls.append(method)
        time.sleep(self.late)
        if self.refusals:
            self.refusals -= 1
            context.abort(self.refusal, "no: 100% refused")
        if self.unaware:
            self.unaware -= 1
            return []
        return self.pods

    def _get(self, request: bytes, context: Any) -> bytes:
        (name,), (namespace,) = texts(request, 1), texts(request, 2)
        known = self._known(context, "Get")
        if not self.get_gate:
            context.abort(grpc.StatusCode.UNKNOWN, "PodResources API Get method disabled")
        for each in known:
            if (texts(each, 1), texts(each, 2)) == ([name], [namespace]):
                return encoded(1, each)
        words = f"pod {name.decode()} in namespace {namespace.decode()} not found"
        context.abort(grpc.StatusCode.UNKNOWN, words)
        raise AssertionError

    def _list(self, request: bytes, context: Any) -> bytes:
        return b"".join(encoded(1, each) for each in self._known(context, "List"))


def ids(found: Iterable[Any]) -> Iterator[str]:
    """The ids of devices, in order."""
    return (each.id for each in found)
