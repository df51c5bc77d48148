"""The node's addresses as a pod's meta-plugin needs them: those used towards the pod, and all it answers to."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from underlay.errors import AddressInUse
from underlay.net import remembered, route

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from underlay.net.netns import Namespace

# Interfaces of container networks and virtual machines: their addresses are no node addresses.
_NOT_THE_NODE: Final = re.compile(
    r"(docker|cbr|dummy|virbr|lxcbr|veth|cali|flannel|kube-ipvs|cni|cilium)|(lo|vx-submariner)\Z", re.ASCII
)
_TYPE_LOCAL: Final = 2  # RTN_LOCAL


class NodeAddresses(msgspec.Struct, frozen=True):
    """The node towards one pod.

    ``addresses`` are those that the pod shall reach by way of the node, the ones that the node itself uses towards the
    pod first; ``towards`` holds the latter by family (4, 6). ``devices`` says by which device (index) the node has
    reached each of the pod's addresses so far.
    """

    addresses: tuple[str, ...]
    towards: Mapping[int, str]
    devices: Mapping[str, int]


def find(host: Namespace, pod_addresses: Sequence[str], families: Collection[int]) -> NodeAddresses:
    """Ask the node's kernel. Raises AddressInUse where an address of the pod is the node's own."""
    listed, names = remembered.addresses(host, families)
    ways = route.lookups(host.rtnl, pod_addresses)
    kept = {index for index, name in names.items() if not _NOT_THE_NODE.match(name)}

    found: dict[str, None] = {}
    towards: dict[int, str] = {}
    devices: dict[str, int] = {}
    for wanted, way in zip(pod_addresses, ways, strict=True):
        if way is None:
            continue
        if way.type == _TYPE_LOCAL:
            raise AddressInUse(f"the pod's address {wanted} is the node's own")
        devices[wanted] = way.dev
        if way.src and not _is_of_one_link(way.src):
            found[way.src] = None
            towards.setdefault(6 if ":" in way.src else 4, way.src)
    for each in (one.address.partition("/")[0] for one in listed if one.index in kept):
        found[each] = None
        towards.setdefault(6 if ":" in each else 4, each)
    return NodeAddresses(tuple(found), towards, devices)


def _is_of_one_link(text: str) -> bool:
    """Link-local, or the loopback's, which the kernel takes for want of a better source (RFC 6724 section 5)."""
    return text == "::1" or text.startswith(("fe8", "fe9", "fea", "feb", "127."))
