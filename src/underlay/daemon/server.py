"""The unix socket: each worker accepts a connection, reads one request, answers, and writes the log line after that.

    RUN_DIR        0700, the daemon's user
    underlay.lock  held as long as the daemon lives, so a socket found there is a dead daemon's and may go
    underlay.sock  0600; only uid 0 is served

No request is parsed here: frames in, frames out.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Protocol

from underlay.daemon import frame
from underlay.errors import DeadlineExceeded, DecodeFailure, IOFailure, UnderlayError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

_UCRED = struct.Struct("3i")
# A shim has its whole frame ready before it connects. What comes later than this is waited for on a lent slot.
_PROMPT = 0.05
_FRAME_DEADLINE = 10.0
_WRITE_DEADLINE = 10.0
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


class Handler(Protocol):
    """The edge of the daemon: never raises but ThreadLost."""

    def answer(
        self, payload: bytes, deadline: float, gone: Callable[[], bool]
    ) -> tuple[int, bytes, Callable[[], None]]:
        """Exit status and standard output, and what writes the log line once they are sent.

        ``gone`` tells whether the client went away while its request was waiting.
        """

    def refuse(self, error: UnderlayError) -> bytes:
        """Standard output for a request that is no frame; logged."""


class Server:
    """Serves one socket. :meth:`serve_one` is what the workers run."""

    def __init__(self, path: str, *, backlog: int, deadline: float, handler: Handler, log: Callable[..., None]) -> None:
        self.path = path
        self._backlog = backlog
        self._deadline = deadline
        self._handler = handler
        self._log = log
        self._lend: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
        self._listening: socket.socket | None = None
        self._file: os.stat_result | None = None
        self._closed = False
        self._changing = threading.Lock()

    def listen(self, lend: Callable[[], AbstractContextManager[None]]) -> None:
        """Open the socket, in the place of a dead daemon's. The caller holds the run directory's lock.

        ``lend`` gives a worker's slot away while it waits for a slow client. Once more where the file is gone: the
        workers go over to the new socket. After :meth:`close` it does nothing. Raises IOFailure.
        """
        self._lend = lend
        with self._changing:
            if not self._closed:
                self._listen()

    def _listen(self) -> None:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
            # Bound under another name: nobody connects to a socket that does not listen or has not its mode yet.
            fresh = f"{self.path}.new"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(fresh)
            listening.bind(fresh)
            os.chmod(fresh, 0o600)
            listening.listen(self._backlog)
            os.rename(fresh, self.path)
            self._file = os.stat(self.path)
        except OSError as error:
            listening.close()
            raise IOFailure(f"cannot listen at {self.path}: {error.strerror}") from error
        former, self._listening = self._listening, listening
        if former is not None:
            former.shutdown(socket.SHUT_RD)

    def reachable(self) -> bool:
        """Whether the socket's file is still there, and the one that was made."""
        try:
            return self._file is not None and os.path.samestat(os.stat(self.path), self._file)
        except OSError:
            return False

    def close(self) -> None:
        """Take no new connection. The workers answer what the backlog holds, then their serve_one returns False."""
        with self._changing:
            self._closed = True
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        if self._listening is not None:
            # On a listening unix socket: connect() is refused from now on, accept() ends when the backlog is empty.
            self._listening.shutdown(socket.SHUT_RD)

    def release(self) -> None:
        """Give the socket back to the kernel: after :meth:`close`, and after every worker has ended."""
        if self._listening is not None:
            self._listening.close()
            self._listening = None

    def serve_one(self) -> bool:
        """Wait for one connection and serve it. False when the socket was closed."""
        listening = self._listening
        assert listening is not None, "listen() comes first"
        try:
            connection, _ = listening.accept()
        except OSError as error:
            if listening is not self._listening:
                return True
            if error.errno not in _EXHAUSTED:
                return error.errno != errno.EINVAL
            self._log("error", "cannot accept", error=os.strerror(error.errno or 0))
            time.sleep(0.1)  # no event tells when there are file descriptors again
            return True
        with connection:
            try:
                self._serve(connection)
            except frame.PeerGone:
                self._log("debug", "client gone")
            except OSError as error:
                self._log("warn", "connection failed", error=str(error))
        return True

    def _serve(self, connection: socket.socket) -> None:
        accepted = time.monotonic()
        _, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        if uid != 0:
            self._log("warn", "refused a client", uid=uid)
            frame.send(connection, frame.answer(1, self._handler.refuse(_not_root(uid))), _WRITE_DEADLINE)
            return
        try:
            payload = self._read(connection, accepted)
        except (DecodeFailure, DeadlineExceeded) as error:
            frame.send(connection, frame.answer(1, self._handler.refuse(error)), _WRITE_DEADLINE)
            return
        status, stdout, written = self._handler.answer(payload, accepted + self._deadline, lambda: _gone(connection))
        try:
            frame.send(connection, frame.answer(status, stdout), _WRITE_DEADLINE)
            os.sched_yield()  # whoever waited for it may be bound to this processor, and what is left can wait
        finally:
            written()

    def _read(self, connection: socket.socket, accepted: float) -> bytes:
        frame.bound_receive(connection, _PROMPT)
        received = frame.begin(connection)
        if not frame.complete(received):
            with self._lend():
                frame.bound_receive(connection, _FRAME_DEADLINE)
                frame.finish(connection, received, accepted + _FRAME_DEADLINE)
        return frame.payload(received)


def _gone(connection: socket.socket) -> bool:
    """Whether the client has closed both directions; one that only ended its sending is still there."""
    poll = select.poll()
    poll.register(connection, 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


def _not_root(uid: int) -> UnderlayError:
    return IOFailure(f"uid {uid} may not talk to the daemon", hint="Only root may: CNI plugins run as root.")
