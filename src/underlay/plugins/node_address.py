"""The node's addresses as a pod's meta-plugin needs them: those used towards the pod, and all it answers to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Final

from underlay.errors import AddressInUse
from underlay.net import addr, link, route

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from underlay.net.addr import Addr
    from underlay.net.netns import Namespace

# Interfaces of container networks and virtual machines: their addresses are no node addresses.
_NOT_THE_NODE: Final = re.compile(
    r"(docker|cbr|dummy|virbr|lxcbr|veth|cali|flannel|kube-ipvs|cni|cilium)|(lo|vx-submariner)\Z", re.ASCII
)
_FAMILIES: Final = {4: AF_INET, 6: AF_INET6}
_TYPE_LOCAL: Final = 2  # RTN_LOCAL


@dataclass(frozen=True, slots=True)
class NodeAddresses:
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
    listed = _global(host, families)
    owners = list(dict.fromkeys(one.index for one in listed))
    answers = host.rtnl.requests(
        [*map(route.lookup_message, pod_addresses), *(link.index_message(one) for one in owners)]
    )
    ways = [route.looked_up(answer) for answer in answers[: len(pod_addresses)]]
    links = [link.found(answer) for answer in answers[len(pod_addresses) :]]
    kept = {one.index for one in links if one is not None and not _NOT_THE_NODE.match(one.name)}

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


def _global(host: Namespace, families: Collection[int]) -> list[Addr]:
    """Every global address of the node, in the order of the interfaces."""
    return [
        one
        for family in families
        for one in addr.dump(host.rtnl, family=_FAMILIES[family], scope=addr.SCOPE_GLOBAL)
        if not one.flags & addr.IFA_F_DADFAILED
    ]


def _is_of_one_link(text: str) -> bool:
    """Link-local, or the loopback's, which the kernel takes for want of a better source (RFC 6724 section 5)."""
    return text == "::1" or text.startswith(("fe8", "fe9", "fea", "feb", "127."))
