"""The frames between the shim and the daemon: one request and one answer per connection.

    request  "UND1" | u32 length | plugin NUL  KEY=VALUE NUL …  NUL  standard input
    answer   "UND1" | u32 length | u8 exit status  standard output

Lengths are little-endian and count what follows them, at most 4 MiB. The same bytes, request only, lie in the spool.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import TYPE_CHECKING

import msgspec

from underlay.errors import DeadlineExceeded, DecodeFailure, InvalidEnvironment

if TYPE_CHECKING:
    from collections.abc import Mapping

MAGIC = b"UND1"
LIMIT = 4 << 20
_HEADER = struct.Struct("<4sI")
_ANSWER = struct.Struct("<4sIB")
_TIMEVAL = struct.Struct("@ll")
# A request is 1-3 KiB: one system call reads it whole.
_FIRST_READ = 16 << 10
_PEER = 'The shim and the daemon speak different protocols: run "underlay install" again on this node.'


class Call(msgspec.Struct, frozen=True):
    """What the shim saw: the name it was called by, the CNI_* environment, standard input's bytes."""

    plugin: str
    env: Mapping[str, str]
    stdin: bytes


class PeerGone(Exception):
    """The client closed its end without sending a byte, or before the answer was written."""


def bound_receive(connection: socket.socket, seconds: float) -> None:
    """Bound each receive of a blocking socket. By the kernel: settimeout would cost a poll per call."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(seconds))


def bound_send(connection: socket.socket, seconds: float) -> None:
    """Bound each send of a blocking socket."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(seconds))


def begin(connection: socket.socket) -> bytearray:
    """What is there already, usually the whole request; empty when the first timeout passed without a byte.

    Raises PeerGone when the client went away.
    """
    received = bytearray()
    _more(connection, received, _FIRST_READ)
    return received


def complete(received: bytearray) -> bool:
    """Whether the frame that begins so is all there (or is so wrong that waiting for more is no use)."""
    if len(received) < _HEADER.size:
        return False
    magic, length = _HEADER.unpack_from(received)
    return bool(magic != MAGIC or length > LIMIT or len(received) >= _HEADER.size + length)


def finish(connection: socket.socket, received: bytearray, deadline: float) -> None:
    """Read on until the frame is complete. ``deadline`` is on the monotonic clock.

    Raises DecodeFailure when the client stops short of the length it gave, DeadlineExceeded when it is too slow.
    """
    while not complete(received):
        if time.monotonic() >= deadline:
            raise DeadlineExceeded(f"the request did not arrive in time: {_progress(received)}", hint=_PEER)
        wanted = _HEADER.size if len(received) < _HEADER.size else _HEADER.size + _HEADER.unpack_from(received)[1]
        try:
            _more(connection, received, wanted - len(received))
        except PeerGone as gone:
            if not received:
                raise
            raise DecodeFailure(f"the request breaks off: {_progress(received)}", hint=_PEER) from gone


def payload(frame: bytes | bytearray) -> bytes:
    """The payload of one whole frame. Raises DecodeFailure naming what is wrong with it."""
    if len(frame) < _HEADER.size:
        raise DecodeFailure(f"the request breaks off: {_progress(frame)}", hint=_PEER)
    magic, length = _HEADER.unpack_from(frame)
    if magic != MAGIC:
        raise DecodeFailure(f"the request begins with {bytes(magic)!r} instead of {MAGIC!r}", hint=_PEER)
    if length > LIMIT:
        raise DecodeFailure(f"the request's length {length} is above the limit of {LIMIT} bytes", hint=_PEER)
    if len(frame) != _HEADER.size + length:
        raise DecodeFailure(f"the request's length is wrong: {_progress(frame)}", hint=_PEER)
    return bytes(memoryview(frame)[_HEADER.size :])


def parse(content: bytes) -> Call:
    """Split a request's payload. Raises DecodeFailure, or InvalidEnvironment for what is no KEY=VALUE."""
    head, mark, stdin = content.partition(b"\0\0")
    if not mark or not head or head.startswith(b"\0"):
        raise DecodeFailure("the request holds no plugin name or no end of its environment", hint=_PEER)
    try:
        plugin, *pairs = head.decode().split("\0")
    except UnicodeDecodeError as error:
        raise InvalidEnvironment("the plugin's name or a CNI_* variable is not valid UTF-8") from error
    env: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.startswith("CNI_"):
            raise InvalidEnvironment(f"the environment string {pair[:64]!r} is no CNI_* variable")
        env[key] = value
    return Call(plugin, env, stdin)


def request(plugin: str, env: Mapping[str, str], stdin: bytes) -> bytes:
    """A whole request frame, as the shim makes it."""
    strings = [plugin, *(f"{key}={value}" for key, value in env.items()), ""]
    content = b"".join(text.encode() + b"\0" for text in strings) + stdin
    return _HEADER.pack(MAGIC, len(content)) + content


def answer(status: int, stdout: bytes) -> bytes:
    """A whole answer frame."""
    return _ANSWER.pack(MAGIC, len(stdout) + 1, status) + stdout


def send(connection: socket.socket, content: bytes, seconds: float) -> None:
    """Write a frame. Raises PeerGone when nobody reads it within ``seconds``."""
    try:
        sent = _send_now(connection, content)
        if sent < len(content):  # seldom: most fit into the socket's buffer
            bound_send(connection, seconds)
            connection.sendall(memoryview(content)[sent:])
    except (BrokenPipeError, ConnectionResetError, BlockingIOError) as error:
        raise PeerGone from error


def _send_now(connection: socket.socket, content: bytes) -> int:
    try:
        return connection.send(content, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return 0


def ask(path: str, content: bytes, deadline: float) -> tuple[int, bytes]:
    """The client's side: send a request frame to the daemon at ``path``; exit status and standard output.

    Raises OSError when no daemon answers there, DecodeFailure when its answer is malformed.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        left = max(deadline - time.monotonic(), 0.001)
        bound_receive(connection, left)
        bound_send(connection, left)
        connection.connect(path)
        connection.sendall(content)
        received = bytearray()
        try:
            finish(connection, received, deadline)
        except PeerGone as gone:
            raise ConnectionResetError(f"the daemon at {path} closed the connection") from gone
        content = payload(received)
        if not content:
            raise DecodeFailure("the daemon's answer is empty", hint=_PEER)
        return content[0], content[1:]


def _timeval(seconds: float) -> bytes:
    # Zero would mean: wait for ever.
    return _TIMEVAL.pack(int(seconds), int(seconds % 1 * 1e6) or (seconds < 1))


def _more(connection: socket.socket, received: bytearray, size: int) -> None:
    """Append up to ``size`` bytes; nothing when the socket's timeout passes first."""
    try:
        chunk = connection.recv(size)
    except BlockingIOError:
        return
    except ConnectionResetError as error:
        raise PeerGone from error
    if not chunk:
        raise PeerGone
    received += chunk


def _progress(received: bytes | bytearray) -> str:
    if len(received) < _HEADER.size:
        return f"{len(received)} bytes came of a header of {_HEADER.size}"
    length = _HEADER.unpack_from(received)[1]
    return f"{len(received) - _HEADER.size} bytes came where it says {length}"
