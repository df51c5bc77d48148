"""Tell the neighbours which MAC has an address: gratuitous ARP and unsolicited neighbour advertisements.

Frames go out on a packet socket: IPv6 addresses need not be settled for it, and one socket serves both families.
Sources: RFC 5227 section 3 (ARP announcement), RFC 4861 sections 4.4 and 7.2.6.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from underlay.errors import KernelError
from underlay.net import frames, packet
from underlay.net.netlink import pack_address, pack_mac

if TYPE_CHECKING:
    from collections.abc import Sequence

    from underlay.net.netns import Namespace


def announce(ns: Namespace, index: int, mac: str, addresses: Sequence[str]) -> None:
    """Announce addresses (a prefix length is ignored) of the link ``index``, which is up.

    Sent without waiting. Raises KernelError, ValueError.
    """
    if not addresses:
        return
    own = pack_mac(mac)
    try:
        sock = packet.connect(ns)
        try:
            # Not bound: the kernel would set up receiving for it. The protocol is in the frame; 0 says so.
            device = (packet.device_name(sock, index), 0)
            for address in addresses:
                sock.sendto(_announcement(own, address), device)
        finally:
            packet.close_behind(sock)
    except OSError as error:
        raise KernelError(f"announce {', '.join(addresses)}", error.errno or errno.EIO) from error


def _announcement(mac: bytes, cidr: str) -> bytes:
    family, packed = pack_address(cidr.partition("/")[0])
    if family == socket.AF_INET:
        return frames.arp(mac, sender=packed, target=packed)
    return frames.advertisement(mac, packed)
