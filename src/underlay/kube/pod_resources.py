"""A pod's devices as the kubelet tells them: its PodResources API, or else its checkpoint file.

    Get(pod) ──▶ the pod's devices           Kubernetes 1.27 behind a gate, 1.34 always
    List() ────▶ every pod's                 since 1.20; where Get is not served, or does not know the pod
    kubelet_internal_checkpoint              where neither is served: no socket there, or nobody behind it

Messages: k8s.io/kubelet/pkg/apis/podresources/v1/api.proto, by field number. The kubelet gives devices to a pod before
it asks the runtime for a sandbox, but after a restart it may serve before it knows its pods, and it refuses more than
100 calls a second: then it is asked again.

Budget: a pod 2 ms, with Get.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Final

from underlay.errors import DevicesUnknown
from underlay.kube import checkpoint, claimed, protobuf
from underlay.kube.devices import Device, unique

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

SOCKET: Final = "/var/lib/kubelet/pod-resources/kubelet.sock"
CHECKPOINT: Final = "/var/lib/kubelet/device-plugins/kubelet_internal_checkpoint"
_SERVICE: Final = "/v1.PodResourcesLister"
_PATIENCE: Final = 5.0  # seconds for a kubelet that does not know the pod yet, or does not answer
_PAUSE: Final = 0.1  # it tells nobody when it knows more


class PodResources:
    """The kubelet of this node. Thread-safe.

    ``blocking`` lends the caller's place in its thread pool while the kubelet is waited for.
    """

    def __init__(
        self,
        *,
        socket: str = SOCKET,
        checkpoint: str = CHECKPOINT,
        blocking: Callable[[], AbstractContextManager[None]] = nullcontext,
        patience: float = _PATIENCE,
    ) -> None:
        self._socket = socket
        self._checkpoint = checkpoint
        self._blocking = blocking
        self._patience = patience

    def of(self, namespace: str, name: str, uid: str, deadline: float) -> tuple[Device, ...]:
        """See :class:`~underlay.kube.devices.Devices`."""
        limit = min(deadline, time.monotonic() + self._patience)
        with self._blocking():
            while True:
                try:
                    return self._ask(namespace, name, uid, limit)
                except DevicesUnknown:
                    if time.monotonic() + _PAUSE >= limit:
                        raise
                time.sleep(_PAUSE)

    def _ask(self, namespace: str, name: str, uid: str, limit: float) -> tuple[Device, ...]:
        from underlay.kube import grpc  # with h2 16 ms and 2 MiB: only a node with devices pays for it

        try:
            answers = self._answers(namespace, name, limit)
            found = next((pod for pod in answers if (pod.namespace, pod.name) == (namespace, name)), None)
        except grpc.CallFailed as fault:
            return self._noted(uid, fault.status in (grpc.UNAVAILABLE, grpc.UNIMPLEMENTED), str(fault))
        except protobuf.Malformed as fault:
            raise DevicesUnknown(f"the kubelet's answer on {self._socket} is malformed: {fault}") from fault
        if found is None:
            raise DevicesUnknown(f"the kubelet ({self._socket}) does not know pod {namespace}/{name} yet")
        return unique(found.devices())

    def _answers(self, namespace: str, name: str, limit: float) -> Iterator[_Pod]:
        from underlay.kube import grpc

        asked = protobuf.encode(1, name) + protobuf.encode(2, namespace)
        try:
            yield from map(_Pod, protobuf.messages(grpc.call(self._socket, f"{_SERVICE}/Get", asked, limit), 1))
        except grpc.CallFailed as fault:
            # a kubelet whose gate is off, or that does not know the pod, says "unknown" and the rest in words
            if fault.status not in (grpc.UNIMPLEMENTED, grpc.UNKNOWN, grpc.NOT_FOUND):
                raise
            yield from map(_Pod, protobuf.messages(grpc.call(self._socket, f"{_SERVICE}/List", b"", limit), 1))

    def _noted(self, uid: str, unserved: bool, why: str) -> tuple[Device, ...]:
        """What the checkpoint says, where the API is not served at all."""
        asked = f"the kubelet's PodResources API on {self._socket} does not answer ({why})"
        if not unserved:
            raise DevicesUnknown(asked)
        try:
            found = checkpoint.read(self._checkpoint, uid)
        except (OSError, checkpoint.Malformed) as fault:
            words = fault.strerror if isinstance(fault, OSError) else fault
            raise DevicesUnknown(f"{asked}, and its checkpoint {self._checkpoint} does not help: {words}") from fault
        if not found:
            raise DevicesUnknown(f"{asked}, and its checkpoint {self._checkpoint} names no device of pod UID {uid!r}")
        return found


class _Pod:
    """Message PodResources: name 1, namespace 2, containers 3."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self.name = protobuf.text(raw, 1)
        self.namespace = protobuf.text(raw, 2)

    def devices(self) -> Iterator[Device]:
        """Container by container: devices 2 of device plugins, then dynamic_resources 5."""
        for container in protobuf.messages(self._raw, 3):
            for devices in protobuf.messages(container, 2):
                resource = protobuf.text(devices, 1)
                yield from (Device(each, (resource,)) for each in protobuf.texts(devices, 2))
            for claim in protobuf.messages(container, 5):
                yield from self._claimed(claim)

    def _claimed(self, claim: bytes) -> Iterator[Device]:
        """Message DynamicResource: claim_name 2, claim_resources 4 (cdi_devices 1, driver_name 2, device_name 4)."""
        for resource in protobuf.messages(claim, 4):
            cdi = [protobuf.text(each, 1) for each in protobuf.messages(resource, 1)]
            driver, device = protobuf.text(resource, 2), protobuf.text(resource, 4)
            found = claimed.device(self.name, protobuf.text(claim, 2), driver, device, cdi)
            if found is not None:
                yield found
