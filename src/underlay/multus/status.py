"""The network-status annotation: what a pod was attached to, for people and for controllers to read.

Multi-network CRD standard, section 5: a list, one object an attachment, in the order of attachment. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from underlay.cni.result import DNS  # noqa: TC001 - msgspec reads the annotation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from underlay.cni.result import Result
    from underlay.delegate.attachment import Attachment

ANNOTATION: Final = "k8s.v1.cni.cncf.io/network-status"
_DEFAULT: Final = ("0.0.0.0/0", "::/0")
_ENCODER: Final = msgspec.json.Encoder()


class NetworkStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """One attachment. ``dns`` is written even when empty, as readers expect it; the rest only where known."""

    name: str
    dns: DNS
    interface: str = ""
    ips: tuple[str, ...] = ()
    mac: str = ""
    mtu: int = 0
    default: bool = False
    gateway: tuple[str, ...] = ()


def statuses(attachments: Sequence[Attachment], results: Sequence[Result]) -> list[NetworkStatus]:
    """One status for each attachment and its result; the first is the pod's default network."""
    return [
        _status(attachment, result, default=n == 0)
        for n, (attachment, result) in enumerate(zip(attachments, results, strict=True))
    ]


def encode(listed: Sequence[NetworkStatus]) -> bytes:
    """The annotation's value."""
    return msgspec.json.format(_ENCODER.encode(listed), indent=2)


def _status(attachment: Attachment, result: Result, *, default: bool) -> NetworkStatus:
    """From the first interface of the result that is in the sandbox."""
    index = next((n for n, link in enumerate(result.interfaces) if link.sandbox), None)
    link = result.interfaces[index] if index is not None else None
    return NetworkStatus(
        name=attachment.network,
        dns=result.dns,
        interface=link.name if link else attachment.ifname,
        ips=tuple(ip.address.partition("/")[0] for ip in result.ips if ip.interface in (None, index)),
        mac=link.mac if link else "",
        mtu=link.mtu if link else 0,
        default=default,
        gateway=(*attachment.default_gateways, *_gateways(result)),
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
