"""The messages of the kubelet's device plugin API, by field number.

Source: k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1/api.proto.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from underlay.kube.protobuf import embed, encode, encode_integer, integer, messages, texts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

VERSION: Final = "v1beta1"
REGISTER: Final = "/v1beta1.Registration/Register"
OPTIONS: Final = "/v1beta1.DevicePlugin/GetDevicePluginOptions"
WATCH: Final = "/v1beta1.DevicePlugin/ListAndWatch"
ALLOCATE: Final = "/v1beta1.DevicePlugin/Allocate"
PREFERRED: Final = "/v1beta1.DevicePlugin/GetPreferredAllocation"
PRE_START: Final = "/v1beta1.DevicePlugin/PreStartContainer"
EMPTY: Final = b""
KUBELET: Final = "kubelet.sock"
"""The kubelet's own socket, in the directory of the plugins' sockets."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device as ListAndWatch tells it; ``numa`` None where there is no choice, or it is not to count."""

    id: str
    healthy: bool
    numa: int | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """What one container gets: variables, device nodes of the node by their path in the container, CDI names."""

    environment: Mapping[str, str]
    nodes: Mapping[str, str] = field(default_factory=dict)
    cdi: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Preference:
    """``size`` of the ``available`` devices are to be named, all of ``must`` among them."""

    available: tuple[str, ...]
    must: tuple[str, ...]
    size: int


def options() -> bytes:
    """DevicePluginOptions: containers need nothing before they start, and there are devices to be preferred."""
    return encode_integer(2, 1)


def registration(endpoint: str, resource: str) -> bytes:
    """RegisterRequest; ``endpoint`` is the name of our socket in the kubelet's directory."""
    return encode(1, VERSION) + encode(2, endpoint) + encode(3, resource) + embed(4, options())


def listed(devices: Iterable[Device]) -> bytes:
    """ListAndWatchResponse."""
    return b"".join(embed(1, _device(each)) for each in devices)


def _device(device: Device) -> bytes:
    told = encode(1, device.id) + encode(2, "Healthy" if device.healthy else "Unhealthy")
    if device.numa is None:
        return told
    return told + embed(3, embed(1, encode_integer(1, device.numa)))


def wanted(request: bytes) -> list[list[str]]:
    """AllocateRequest: the ids for each container. Raises Malformed."""
    return [texts(each, 1) for each in messages(request, 1)]


def granted(grants: Iterable[Grant]) -> bytes:
    """AllocateResponse."""
    return b"".join(embed(1, _grant(each)) for each in grants)


def _grant(grant: Grant) -> bytes:
    variables = b"".join(embed(1, encode(1, key) + encode(2, value)) for key, value in grant.environment.items())
    nodes = b"".join(
        embed(3, encode(1, inside) + encode(2, outside) + encode(3, "rw")) for inside, outside in grant.nodes.items()
    )
    return variables + nodes + b"".join(embed(5, encode(1, each)) for each in grant.cdi)


def choices(request: bytes) -> list[Preference]:
    """PreferredAllocationRequest. Raises Malformed."""
    return [Preference(tuple(texts(each, 1)), tuple(texts(each, 2)), integer(each, 3)) for each in messages(request, 1)]


def preferred(chosen: Iterable[Iterable[str]]) -> bytes:
    """PreferredAllocationResponse."""
    return b"".join(embed(1, b"".join(encode(1, device) for device in each)) for each in chosen)
