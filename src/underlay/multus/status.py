"""The network-status annotation: what a pod was attached to, for people and for controllers to read.

Multi-network CRD standard, section 5: a list, one object an attachment, in the order of attachment. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from underlay.cni.result import DNS  # noqa: TC001 - msgspec reads the annotation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from underlay.cni.result import IPConfig, Result
    from underlay.delegate.attachment import Attachment

ANNOTATION: Final = "k8s.v1.cni.cncf.io/network-status"
_DEFAULT: Final = ("0.0.0.0/0", "::/0")
_ENCODER: Final = msgspec.json.Encoder()
_NONE: Final[Mapping[str, Any]] = {}


class NetworkStatus(msgspec.Struct, frozen=True, omit_defaults=True, rename={"device_info": "device-info"}):
    """One attachment. ``dns`` is written even when empty, as readers expect it; the rest only where known.

    ``device_info`` is as its device plugin or CNI plugin wrote it (device-info-spec, section 3).
    """

    name: str
    dns: DNS
    interface: str = ""
    ips: tuple[str, ...] = ()
    mac: str = ""
    mtu: int = 0
    default: bool = False
    gateway: tuple[str, ...] = ()
    device_info: dict[str, Any] | None = None


def statuses(
    attachments: Sequence[Attachment],
    results: Sequence[Result],
    infos: Mapping[str, Mapping[str, Any] | None] = _NONE,
    mtus: Mapping[str, int] = _NONE,
) -> list[NetworkStatus]:
    """One status for each attachment and its result; the first is the pod's default network.

    ``infos`` is what is known of devices, by the attachments' ``info_file``; ``mtus`` the MTUs of NICs whose results do
    not say it, by the attachments' ``ifname``.
    """
    return [
        _status(attachment, result, infos.get(attachment.info_file), mtus.get(attachment.ifname, 0), default=n == 0)
        for n, (attachment, result) in enumerate(zip(attachments, results, strict=True))
    ]


def encode(listed: Sequence[NetworkStatus]) -> bytes:
    """The annotation's value."""
    return msgspec.json.format(_ENCODER.encode(listed), indent=2)


def own_addresses(result: Result) -> list[IPConfig]:
    """The addresses of the NIC that the result is about, and those that name no interface."""
    return [ip for ip in result.ips if ip.interface in (None, _own(result))]


def _own(result: Result) -> int | None:
    """The index of the first interface that is in the sandbox."""
    return next((n for n, link in enumerate(result.interfaces) if link.sandbox), None)


def _status(
    attachment: Attachment, result: Result, info: Mapping[str, Any] | None, mtu: int, *, default: bool
) -> NetworkStatus:
    """From the first interface of the result that is in the sandbox."""
    index = _own(result)
    link = result.interfaces[index] if index is not None else None
    return NetworkStatus(
        name=attachment.network,
        dns=result.dns,
        interface=link.name if link else attachment.ifname,
        ips=tuple(ip.address.partition("/")[0] for ip in own_addresses(result)),
        mac=link.mac if link else "",
        mtu=(link.mtu if link else 0) or mtu,
        default=default,
        gateway=(*attachment.default_gateways, *_gateways(result)),
        device_info=dict(info) if info else None,
    )


def _gateways(result: Result) -> Iterator[str]:
    """The gateways of the result's default routes; a route without one means the address's of its family."""
    for route in result.routes:
        if route.dst in _DEFAULT:
            six = ":" in route.dst
            of_address = (ip.gateway for ip in result.ips if ip.gateway and (":" in ip.address) == six)
            gateway = route.gw or next(of_address, "")
            if gateway:
                yield gateway
