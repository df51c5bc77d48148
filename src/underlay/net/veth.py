"""Pairs of virtual Ethernet devices (veth(4)): one message for both ends, each in its namespace."""

from __future__ import annotations

from underlay.net import link, link_info
from underlay.net.link_info import Data
from underlay.net.netlink import NLM_F_CREATE, NLM_F_EXCL, Message, attribute_text, attribute_u32, nest

_IFLA_NUM_TX_QUEUES = 31
_IFLA_NUM_RX_QUEUES = 32
_VETH_INFO_PEER = 1
# A veth has as many queues as the machine may have CPUs, each with its sysfs directories, and uses them for XDP alone.
# One queue: a sixth less time to make a pair on 2 CPUs, more on more.
_ONE_QUEUE = attribute_u32(_IFLA_NUM_TX_QUEUES, 1) + attribute_u32(_IFLA_NUM_RX_QUEUES, 1)


def create(  # noqa: PLR0913 - two devices, all by keyword
    *,
    name: str,
    mac: str,
    peer_name: str,
    peer_mac: str,
    mtu: int,
    peer_netns_fd: int | None,
    netns_fd: int | None = None,
    up: bool = True,
    index: int = 0,
    peer_index: int = 0,
) -> Message:
    """Make a veth pair, each end in its namespace, with its MAC and the MTU: one message.

    ``up`` is of ``name``'s end: the kernel makes the peer first, and refuses to bring up an end that is still alone
    (veth_open: ENOTCONN). Explicit MACs keep systemd-udevd's MACAddressPolicy from changing them later. Indexes may be
    chosen, both or none (the kernel passes a peer's alone over); one that is taken gives EEXIST or EBUSY.
    Raises ValueError for a bad MAC.
    """
    flags = link.IFF_UP if up else 0
    head = link.IFINFOMSG.pack(0, 0, index, flags, flags)
    peer = (
        link.IFINFOMSG.pack(0, 0, peer_index, 0, 0)
        + attribute_text(link.IFLA_IFNAME, peer_name)
        + _ONE_QUEUE
        + link.settings(peer_mac, mtu, peer_netns_fd)
    )
    body = (
        head
        + attribute_text(link.IFLA_IFNAME, name)
        + _ONE_QUEUE
        + link.settings(mac, mtu, netns_fd)
        + link_info.nested(Data("veth", nest(_VETH_INFO_PEER, peer)))
    )
    return Message(link.RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"create veth pair {name} - {peer_name}")
