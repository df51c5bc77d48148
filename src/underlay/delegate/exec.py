"""Run a CNI executable by the standard protocol (specification, section 2): environment, JSON in, JSON out."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import threading
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Final

import msgspec

from underlay.cni import versions
from underlay.errors import (
    DeadlineExceeded,
    DecodeFailure,
    DelegateFailed,
    IncompatibleVersion,
    InvalidConfig,
    IOFailure,
    PluginMissing,
)
from underlay.net.host_root import HostRoot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from underlay.cni.request import Verb
    from underlay.cni.result import Result

_STDOUT_LIMIT: Final = 4 << 20
_STDERR_KEPT: Final = 16 << 10
_TEXT_BUSY_SECONDS: Final = 5.0  # an executable being replaced in place is busy for the length of one copy
_QUOTED: Final = 200


class Invocation(msgspec.Struct, frozen=True):
    """One call of an executable: the CNI_* environment as values, and standard input."""

    verb: Verb
    type: str
    stdin: bytes
    path: tuple[str, ...]
    container_id: str = ""
    netns: str = ""
    ifname: str = ""
    args: str = ""

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """The process's whole environment: ``inherited`` without its own CNI_*, and this call's."""
        env = {key: value for key, value in inherited.items() if not key.startswith("CNI_")}
        env["CNI_COMMAND"] = self.verb
        env["CNI_PATH"] = ":".join(self.path)
        if self.container_id:
            env |= {"CNI_CONTAINERID": self.container_id, "CNI_NETNS": self.netns, "CNI_IFNAME": self.ifname}
            env["CNI_ARGS"] = self.args
        return env


class _Fault(msgspec.Struct, frozen=True):
    """The specification's error object, as other people's plugins print it."""

    code: int = 0
    msg: str = ""
    details: str = ""


class Executor:
    """Runs executables, at most ``limit`` at a time.

    ``blocking`` lends the caller's place in its thread pool for as long as it waits for a child: a delegate may call
    this same daemon back (ptp with host-local as its IPAM). ``environ`` is what children inherit besides CNI_*.
    ``root`` is the root that they are looked for in and run with.
    """

    def __init__(
        self,
        *,
        log: Callable[..., None],
        environ: Mapping[str, str],
        blocking: Callable[[], AbstractContextManager[None]] = nullcontext,
        limit: int = 32,
        root: HostRoot | None = None,
    ) -> None:
        self.root = root or HostRoot()
        self._log = log
        self._environ = dict(environ)
        self._blocking = blocking
        self._slots = threading.BoundedSemaphore(limit)

    def result(self, call: Invocation, deadline: float, *, version: str) -> Result:
        """ADD: the result that the plugin prints, in whichever version it says, else in ``version``."""
        output = self.run(call, deadline)
        try:
            return versions.decode(output, version)
        except (DecodeFailure, InvalidConfig, IncompatibleVersion) as error:
            message = f"plugin {call.type!r} printed no CNI result: {error.message}: {_quote(output)}"
            raise DelegateFailed(message) from error

    def find(self, plugin_type: str, path: tuple[str, ...]) -> str:
        """The executable of that name in the first directory of the node that has one. Raises PluginMissing."""
        with self.root.entered():
            return find(plugin_type, path)

    def run(self, call: Invocation, deadline: float) -> bytes:
        """Run to the end and return standard output.

        Raises PluginMissing, DelegateFailed (with the code, message and details that the plugin printed),
        DeadlineExceeded after the process group was killed, IOFailure.
        """
        executable = self.find(call.type, call.path)
        env = call.environment(self._environ)
        with self._blocking():
            if not self._slots.acquire(timeout=max(0.0, deadline - time.monotonic())):
                raise DeadlineExceeded(f"plugin {call.type!r} was not started in time: too many plugins are running")
            try:
                status, output, errors = _run(self.root, executable, env, call.stdin, deadline)
            finally:
                self._slots.release()
        if errors:
            self._log("debug", "plugin's standard error", plugin=call.type, verb=str(call.verb),
                      container=call.container_id, text=errors.decode(errors="replace"))  # fmt: skip
        if status == 0:
            return output
        raise _fault(call.type, status, output, errors)


def find(plugin_type: str, path: tuple[str, ...]) -> str:
    """The executable of that name in the first directory that has one; never outside them (CVE-2021-20206)."""
    if not plugin_type or "/" in plugin_type or "\0" in plugin_type or plugin_type in {".", ".."}:
        raise InvalidConfig(f'"type": {plugin_type!r} is no plain file name')
    for directory in path:
        candidate = os.path.join(directory, plugin_type)
        if directory and os.access(candidate, os.X_OK) and os.path.isfile(candidate):
            return candidate
    where = ", ".join(path) or "an empty CNI_PATH"
    raise PluginMissing(f"plugin {plugin_type!r} is not built in and not found in {where}")


def _fault(plugin_type: str, status: int, output: bytes, errors: bytes) -> DelegateFailed:
    try:
        printed = msgspec.json.decode(output, type=_Fault)
    except msgspec.MsgspecError:
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        said = _quote(output) if output.strip() else _quote(errors[-_QUOTED:]) if errors.strip() else "without a word"
        return DelegateFailed(f"plugin {plugin_type!r} {how}: {said}")
    message = printed.msg or f"ended with status {status}"
    fault = DelegateFailed(f"plugin {plugin_type!r}: {message}", hint=printed.details or None)
    fault.code = printed.code or DelegateFailed.code
    return fault


def _quote(output: bytes) -> str:
    text = output[:_QUOTED].decode(errors="replace").strip()
    return f"{text!r}…" if len(output) > _QUOTED else repr(text)


def _start(root: HostRoot, executable: str, env: dict[str, str], deadline: float) -> subprocess.Popen[bytes]:
    """Start the child in a process group of its own; no preexec_fn, so that CPython uses vfork."""
    patience = min(deadline, time.monotonic() + _TEXT_BUSY_SECONDS)
    while True:
        try:
            with root.entered():
                return subprocess.Popen(
                    [executable], env=env, start_new_session=True, bufsize=0,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                )  # fmt: skip
        except OSError as error:
            if error.errno != errno.ETXTBSY or time.monotonic() > patience:
                raise IOFailure(f"plugin {executable} cannot be run: {error.strerror}") from error
        time.sleep(0.02)


def _run(
    root: HostRoot, executable: str, env: dict[str, str], stdin: bytes, deadline: float
) -> tuple[int, bytes, bytes]:
    with _start(root, executable, env, deadline) as child:
        try:
            conversation = _Conversation(child, stdin)
            if not conversation.hold(deadline):
                raise DeadlineExceeded(f"plugin {executable} did not end in time and was killed")
            if conversation.overflow:
                raise DelegateFailed(f"plugin {executable} printed more than {_STDOUT_LIMIT} bytes and was killed")
            return child.wait(), bytes(conversation.stdout), bytes(conversation.stderr)
        finally:
            _kill_group(child)


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    if child.returncode is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


class _Conversation:
    """Feeds standard input and gathers both outputs until the child has ended.

    The child's end counts, not the pipes': a plugin may leave something running that has inherited them.
    """

    def __init__(self, child: subprocess.Popen[bytes], stdin: bytes) -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        self._child = child
        self._in, self._out, self._err = child.stdin.fileno(), child.stdout.fileno(), child.stderr.fileno()
        self._rest = memoryview(stdin)
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.overflow = False
        self._poll = select.poll()
        for fd in (self._in, self._out, self._err):
            os.set_blocking(fd, False)
        self._poll.register(self._in, select.POLLOUT)
        self._poll.register(self._out, select.POLLIN)
        self._poll.register(self._err, select.POLLIN)

    def hold(self, deadline: float) -> bool:
        """Whether the child ended by the deadline; kills its group otherwise, and when it prints too much."""
        pidfd = os.pidfd_open(self._child.pid)
        self._poll.register(pidfd, select.POLLIN)
        try:
            while not self.overflow:
                ready = self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
                if not ready:
                    break
                self._serve({fd for fd, _ in ready})
                if any(fd == pidfd for fd, _ in ready):
                    # poll looks at one after the other: the last words may have come behind its back
                    self._serve({self._out, self._err} - {-1})
                    return True
        finally:
            os.close(pidfd)
        os.killpg(self._child.pid, signal.SIGKILL)
        return self.overflow

    def _serve(self, ready: set[int]) -> None:
        if self._in in ready:
            self._feed()
        if self._out in ready:
            self._out = self._drain(self._out, self.stdout)
            self.overflow = len(self.stdout) > _STDOUT_LIMIT
        if self._err in ready:
            self._err = self._drain(self._err, self.stderr)
            del self.stderr[:-_STDERR_KEPT]

    def _feed(self) -> None:
        try:
            self._rest = self._rest[os.write(self._in, self._rest) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # it does not read its configuration: its own affair
            self._rest = memoryview(b"")
        if not self._rest and self._child.stdin is not None:
            self._poll.unregister(self._in)
            self._child.stdin.close()
            self._in = -1

    def _drain(self, fd: int, into: bytearray) -> int:
        """Read what is there; returns ``fd``, or -1 where it has ended."""
        try:
            while chunk := os.read(fd, 65536):
                into += chunk
                if len(into) > _STDOUT_LIMIT:
                    return fd
        except BlockingIOError:
            return fd
        self._poll.unregister(fd)
        return -1
