"""Is an address already in use on this wire? ARP probes and duplicate address detection on packet sockets.

          ┌ARP probe, sender 0.0.0.0──▶ broadcast          an ARP packet from the address, or another's probe for it
    probe ┤                                        ──▶ answers   or
          └solicitation from ::  ──▶ solicited-node group   an advertisement of it, or another's solicitation from ::

All addresses of both families are asked at once, in one loop. Packet sockets, because a tentative address cannot be
bound to, and the kernel's own detection tells nobody who answered. Sources: RFC 5227 section 2.1, RFC 4862 section 5.4.
"""

from __future__ import annotations

import ctypes
import errno
import select
import socket
import struct
import time
from typing import TYPE_CHECKING

import msgspec

from underlay.errors import DeadlineExceeded, KernelError
from underlay.net import frames, packet
from underlay.net.netlink import pack_address, pack_mac, unpack_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from underlay.net.netns import Namespace

_SO_ATTACH_FILTER = 26
_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP = 1
_PACKET_MR_MULTICAST = 0
_FRAMES_AT_ONCE = 64

# Classic BPF: IPv6 with ICMPv6 right after its header, of type 135 or 136; else nothing.
_ONLY_ND = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 20),  # A = next header
        (0x15, 0, 4, 58),  # ICMPv6, or drop
        (0x30, 0, 0, 54),  # A = ICMPv6 type
        (0x15, 1, 0, 135),
        (0x15, 0, 1, 136),
        (0x06, 0, 0, 0xFFFF),  # take it whole
        (0x06, 0, 0, 0),  # drop
    )
)


class Conflict(msgspec.Struct, frozen=True):
    """Another host answered: the address (no prefix length) and its MAC."""

    address: str
    mac: str


class _Asked(msgspec.Struct, frozen=True):
    """One family's socket, the frames that ask, and what a received frame claims."""

    sock: socket.socket
    probes: tuple[bytes, ...]
    claim: Callable[[bytes], frames.Claim | None]


def probe(
    ns: Namespace,
    index: int,
    mac: str,
    addresses: Sequence[str],
    *,
    interval: float,
    retries: int,
    deadline: float | None = None,
    others: Iterable[str] = (),
) -> Conflict | None:
    """Ask ``retries`` times (at least once), ``interval`` seconds apart, who has one of ``addresses``; None: nobody.

    Prefix lengths are ignored. Returns at the first answer; takes retries x interval seconds when the addresses are
    free. Frames from ``mac``, the link's own, are no answers, nor are those from ``others``, of further links of this
    host: the kernel answers on each for the addresses of all (arp_ignore 0). The link ``index`` has to be up. Raises
    DeadlineExceeded when ``deadline`` (time.monotonic) comes first, KernelError, ValueError.
    """
    if not addresses:
        return None
    packed = [pack_address(cidr.partition("/")[0]) for cidr in addresses]
    own = pack_mac(mac)
    what = f"probe for {', '.join(addresses)}"
    asked: list[_Asked] = []
    try:
        _open(asked, ns, index, own, packed)
        _join(asked, index, packed)
        ours = frozenset(map(pack_mac, others)) | {own}
        return _ask(
            asked, ours, frozenset(address for _, address in packed), _Schedule(interval, retries, deadline, what)
        )
    except OSError as error:
        raise KernelError(what, error.errno or errno.EIO) from error
    finally:
        for each in asked:
            packet.close_behind(each.sock)


def _open(asked: list[_Asked], ns: Namespace, index: int, own: bytes, packed: Sequence[tuple[int, bytes]]) -> None:
    v4 = tuple(frames.arp(own, sender=bytes(4), target=address) for family, address in packed if len(address) == 4)
    v6 = tuple(frames.solicitation(own, address) for family, address in packed if len(address) == 16)
    for probes, protocol, claim in ((v4, frames.ETH_P_ARP, frames.arp_claim), (v6, frames.ETH_P_IPV6, frames.nd_claim)):
        if not probes:
            continue
        sock = packet.connect(ns)
        asked.append(_Asked(sock, probes, claim))
        sock.setblocking(False)
        if protocol == frames.ETH_P_IPV6:
            _attach(sock, _ONLY_ND)  # before bind, which starts the reception
        sock.bind((packet.device_name(sock, index), protocol))


def _attach(sock: socket.socket, program: bytes) -> None:
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: length u16, pointer, with the platform's padding between
    sock.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(program) // 8, ctypes.addressof(buffer))
    )


def _join(asked: Sequence[_Asked], index: int, packed: Sequence[tuple[int, bytes]]) -> None:
    """Let the NIC pass the groups that answers and others' probes go to, also where IPv6 is still switched off."""
    targets = [address for _, address in packed if len(address) == 16]
    if not targets:
        return
    groups = {frames.multicast_mac(frames.solicited_node(target)) for target in targets} | {frames.ALL_NODES_MAC}
    for group in groups:
        request = struct.pack("=iHH8s", index, _PACKET_MR_MULTICAST, 6, group)
        asked[-1].sock.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, request)


class _Schedule(msgspec.Struct, frozen=True):
    """When to ask (seconds), how often, until when, and what to call it in an error."""

    interval: float
    retries: int
    deadline: float | None
    what: str

    def left(self, until: float) -> float:
        """Seconds until then, or until the deadline. Raises DeadlineExceeded once that has passed."""
        now = time.monotonic()
        if self.deadline is None:
            return until - now
        if self.deadline <= now:
            raise DeadlineExceeded(f"{self.what}: no time left to wait for answers")
        return min(until, self.deadline) - now


def _ask(
    asked: Sequence[_Asked], ours: frozenset[bytes], wanted: frozenset[bytes], schedule: _Schedule
) -> Conflict | None:
    poll = select.poll()
    by_fd = {each.sock.fileno(): each for each in asked}
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    for _ in range(max(1, schedule.retries)):
        for each in asked:
            for frame in each.probes:
                each.sock.send(frame)
        round_ends = time.monotonic() + schedule.interval
        while (left := schedule.left(round_ends)) > 0:
            answers = (_answer(by_fd[fd], ours, wanted) for fd, _ in poll.poll(left * 1000))
            found = next((answer for answer in answers if answer is not None), None)
            if found is not None:
                return found
    return None


def _answer(asked: _Asked, ours: frozenset[bytes], wanted: frozenset[bytes]) -> Conflict | None:
    """The first conflict in the frames that have arrived."""
    for _ in range(_FRAMES_AT_ONCE):
        try:
            frame = asked.sock.recv(2048)
        except BlockingIOError:
            return None
        claim = asked.claim(frame)
        if claim is not None and claim.address in wanted and claim.mac not in ours:
            return Conflict(unpack_address(claim.address), claim.mac.hex(":"))
    return None
