"""A socket to the kernel's rtnetlink in one network namespace.

The kernel works a request off inside send(), so every answer is in the receive queue when send() returns: nothing here
waits, and an empty queue where an answer is due means that the answer was lost.

Budget: a batch is two system calls, however many messages it holds. Only the last message asks for an ACK; the kernel
answers a failed one in any case (netlink_rcv_skb), so one answer comes back when all went well.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from typing import TYPE_CHECKING, Protocol

from underlay.errors import KernelError
from underlay.net.netlink import (
    HEADER,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_NOOP,
    Message,
    attribute_u32,
    attributes,
    error_answer,
    messages,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12

# What may be in flight at once. A send larger than the send buffer (208 KiB by default) is refused; an error answer
# takes at most 1 KiB of the receive buffer (208 KiB), the answer to a get up to 8 KiB.
_BATCH_MESSAGES = 128
_BATCH_BYTES = 64 << 10
_GETS = 16
_ACK_SPACE = 4 << 10
_ANSWER_SPACE = 128 << 10  # one link with 256 VFs is the largest answer
_DUMP_SPACE = 32 << 10  # the kernel fills datagrams up to the size it has seen asked for, 32 KiB at most
_DUMP_ATTEMPTS = 64

_GET = 2
_RTM_GETLINK = 18
_IFLA_IFNAME = 3
_IFLA_EXT_MASK = 29
_SKIP_STATS = 1 << 3
_DONTWAIT = socket.MSG_DONTWAIT


class Transport(Protocol):
    """What is needed of a socket: the seam below which the kernel is."""

    def send(self, data: bytes, /) -> int:
        """Hand all messages of ``data`` to the kernel."""

    def recv(self, size: int, flags: int, /) -> bytes:
        """One datagram of answers."""

    def close(self) -> None:
        """Give the descriptor back."""


def connect() -> socket.socket:
    """An rtnetlink socket in the calling thread's namespace: extended and capped ACKs, strict checking of gets.

    Raises OSError.
    """
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    try:
        sock.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        sock.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        sock.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
    except BaseException:
        sock.close()
        raise
    return sock


class Rtnl:
    """Requests to one namespace's rtnetlink. Used by one thread at a time."""

    __slots__ = ("_sequence", "_socket")

    def __init__(self, sock: Transport) -> None:
        self._socket = sock
        self._sequence = 1

    def close(self) -> None:
        """Close the socket; again is no fault."""
        self._socket.close()

    def batch(self, batch: Sequence[Message], *, tolerate: frozenset[int] = frozenset()) -> None:
        """Carry out all messages; raises KernelError of the first that failed with an errno not in ``tolerate``.

        The kernel carries out every message, also those after a failed one.
        """
        failed = self.failures(batch)
        if failed:
            for error in failed.values():
                if error.errno not in tolerate:
                    raise error

    def failures(self, batch: Sequence[Message]) -> dict[int, KernelError]:
        """Carry out all messages; returns what failed, by position in ``batch``, in its order.

        Raises KernelError (ENOBUFS) when answers were lost, so that it is unknown what failed.
        """
        failed: dict[int, KernelError] = {}
        first = 0
        while first < len(batch):
            first = self._carry_out(batch, first, failed)
        return failed

    def request(self, message: Message) -> bytes:
        """The body of the one answer to a get. Raises KernelError."""
        answer = self.requests((message,))[0]
        if isinstance(answer, KernelError):
            raise answer
        return answer

    def requests(self, gets: Sequence[Message]) -> list[bytes | KernelError]:
        """The answers to several gets, in order: a body, or why there is none. Raises KernelError when one was lost.

        Changes may stand among them, to read in the same send what they made; the answer to a change is b"".
        """
        answers: list[bytes | KernelError] = []
        for first in range(0, len(gets), _GETS):
            answers += self._answers(gets[first : first + _GETS])
        return answers

    def dump(self, message: Message) -> list[tuple[int, bytes]]:
        """All objects a dump lists, as (message type, body), of one consistent state. Raises KernelError.

        Starts over while the kernel reports that the state changed meanwhile, or that answers were lost.
        """
        for _ in range(_DUMP_ATTEMPTS):
            found = self._dump_once(message)
            if found is not None:
                return found
        raise KernelError(message.act(), errno.EINTR, f"changed during each of {_DUMP_ATTEMPTS} dumps")

    def _take_sequence(self, count: int) -> int:
        first = self._sequence
        if first + count > 0x7FFFFFFF:
            first = 1
        self._sequence = first + count
        return first

    def _carry_out(self, batch: Sequence[Message], first: int, failed: dict[int, KernelError]) -> int:
        """Send what fits, from ``first`` on, note what failed, and return the position of the first not sent."""
        last = first
        end = min(len(batch), first + _BATCH_MESSAGES)
        sequence = self._take_sequence(end - first)
        parts: list[bytes] = []
        size = 0
        while last < end:
            message = batch[last]
            length = len(message.body) + 16
            size += length
            if size > _BATCH_BYTES and parts:
                break
            flags = message.flags | NLM_F_REQUEST
            parts.append(HEADER.pack(length, message.type, flags, sequence + last - first, 0))
            parts.append(message.body)
            last += 1
        final = batch[last - 1]
        parts[-2] = HEADER.pack(
            len(final.body) + 16, final.type, final.flags | NLM_F_REQUEST | NLM_F_ACK, sequence + last - 1 - first, 0
        )
        self._send(b"".join(parts), batch[first])
        told = self._acknowledgements(sequence, sequence + last - 1 - first, batch[first])
        for number, why, extack in told:
            position = first + number - sequence
            failed[position] = self._error(batch[position], why, extack)
        return last

    def _acknowledgements(self, first: int, last: int, message: Message) -> list[tuple[int, int, str]]:
        """(sequence, errno, extack) of each failed message; returns once the last one's ACK is here."""
        told: list[tuple[int, int, str]] = []
        while True:
            for kind, flags, sequence, body in messages(self._receive(_ACK_SPACE, message)):
                if kind != NLMSG_ERROR or not first <= sequence <= last:
                    continue  # an answer to an earlier, broken-off exchange
                number, extack = error_answer(kind, flags, body)
                if number:
                    told.append((sequence, number, extack))
                if sequence == last:
                    return told

    def _answers(self, gets: Sequence[Message]) -> list[bytes | KernelError]:
        first = self._take_sequence(len(gets))
        parts: list[bytes] = []
        for position, get in enumerate(gets):
            # rtnetlink's types come in fours: new, delete, get, set; a get is answered in any case
            flags = get.flags | NLM_F_REQUEST | (0 if get.type & 3 == _GET else NLM_F_ACK)
            parts.append(HEADER.pack(len(get.body) + 16, get.type, flags, first + position, 0))
            parts.append(get.body)
        self._send(b"".join(parts), gets[0])
        found: dict[int, bytes | tuple[int, str]] = {}
        while len(found) < len(gets):
            for kind, flags, sequence, body in messages(self._receive(_ANSWER_SPACE, gets[0])):
                position = sequence - first
                if not 0 <= position < len(gets) or kind == NLMSG_NOOP:
                    continue
                if kind == NLMSG_ERROR:
                    told = error_answer(kind, flags, body)
                    found[position] = told if told[0] else b""
                else:
                    found[position] = body
        answers: list[bytes | KernelError] = []
        for position, get in enumerate(gets):
            answer = found[position]
            answers.append(answer if isinstance(answer, bytes) else self._error(get, *answer))
        return answers

    def _dump_once(self, message: Message) -> list[tuple[int, bytes]] | None:
        """One run of a dump; None when it has to be started over."""
        sequence = self._take_sequence(1)
        flags = message.flags | NLM_F_REQUEST | NLM_F_DUMP
        self._send(HEADER.pack(len(message.body) + 16, message.type, flags, sequence, 0) + message.body, message)
        found: list[tuple[int, bytes]] = []
        broken = False
        while True:
            try:
                data = self._socket.recv(_DUMP_SPACE, _DONTWAIT)
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    broken = True
                    continue
                if error.errno == errno.EAGAIN and broken:
                    return None
                raise KernelError(message.act(), error.errno or errno.EIO, "while reading a dump") from error
            for kind, answer_flags, number, body in messages(data):
                if number != sequence:
                    continue
                broken = broken or bool(answer_flags & NLM_F_DUMP_INTR)
                if kind not in (NLMSG_DONE, NLMSG_ERROR):
                    found.append((kind, body))
                    continue
                why, extack = error_answer(kind, answer_flags, body)
                if why == errno.EBUSY:  # an earlier dump was broken off by an exception: read it to its end
                    self._drain()
                elif why and why != errno.EINTR:
                    raise self._error(message, why, extack)
                return None if broken or why else found

    def _drain(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._socket.recv(_DUMP_SPACE, _DONTWAIT)

    def _send(self, data: bytes, message: Message) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise KernelError(message.act(), error.errno or errno.EIO, "while sending it") from error

    def _receive(self, space: int, message: Message) -> bytes:
        try:
            return self._socket.recv(space, _DONTWAIT)
        except OSError as error:
            # EAGAIN: the queue is empty although an answer is due
            number = errno.ENOBUFS if error.errno in (errno.EAGAIN, errno.ENOBUFS) else error.errno or errno.EIO
            raise KernelError(message.act(), number, "the kernel's answer was lost") from error

    def _error(self, message: Message, number: int, extack: str) -> KernelError:
        act = message.act()
        if message.dev:
            act = f"{act} dev {self._device(message.dev)}"
        return KernelError(act, number, extack)

    def _device(self, index: int) -> str:
        """A device's name for an error text; its number when it has none any more."""
        body = b"\0\0\0\0" + index.to_bytes(4, sys.byteorder) + bytes(8) + attribute_u32(_IFLA_EXT_MASK, _SKIP_STATS)
        try:
            answer = self.requests((Message(_RTM_GETLINK, 0, body, "name a device"),))[0]
            if isinstance(answer, bytes):
                return text(attributes(answer, 16)[_IFLA_IFNAME])
        except (KernelError, KeyError):
            pass
        return f"#{index}"
