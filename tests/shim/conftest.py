"""The shim as a process, and a daemon on a real socket that behaves as the test says.

Each test runs twice: with the shim as it is shipped, and with one that AddressSanitizer and UBSan watch.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import shim_build
from underlay.cli import shim_binary
from underlay.daemon import frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Behaviour = Callable[["Daemon", socket.socket], None]
    Env = Mapping[str, str] | Mapping[bytes, bytes]

HERE = Path(__file__).resolve().parent
WATCHED = ("gcc", "-std=gnu11", "-O1", "-g", "-fsanitize=address,undefined", "-Wall", "-Wextra", "-Werror")
# For tests of what happens when a deadline passes; all others have the deadlines that are shipped.
WAIT_MS, ANSWER_MS, DEL_MS = 200, 300, 250
HASTY = (f"-DWAIT_MS={WAIT_MS}", f"-DANSWER_MS={ANSWER_MS}", f"-DDEL_MS={DEL_MS}")
GOOD = b'{"cniVersion":"1.1.0","ips":[]}'
BINARIES: dict[tuple[str, ...], Path] = {}


@dataclass(frozen=True)
class Outcome:
    """What a finished shim left."""

    status: int
    stdout: bytes
    stderr: str

    def error(self) -> dict[str, Any]:
        """The CNI error that was printed, checked for its form (CNI specification 1.1.0, "Error")."""
        assert self.status == 1
        told: dict[str, Any] = json.loads(self.stdout)
        assert {key: type(value) for key, value in told.items()} == {
            "cniVersion": str, "code": int, "msg": str, "details": str,
        }  # fmt: skip
        assert told["msg"]
        assert told["details"]
        return told


@dataclass(frozen=True)
class Shim:
    """A laid copy of the shim, which looks for its daemon in ``run_dir``."""

    path: Path
    run_dir: Path

    def start(
        self, verb: str = "ADD", *, name: str | bytes = "multus", env: Env | None = None, **kwargs: Any
    ) -> subprocess.Popen[bytes]:
        """Start it under ``name``, in exactly that environment (one that is usual for ``verb``, if it is None)."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | kwargs
        environment = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1"} if env is None else env
        return subprocess.Popen([name], executable=self.path, env=environment, **pipes)

    def call(self, verb: str = "ADD", stdin: bytes = b"{}", **kwargs: Any) -> Outcome:
        """Run it to its end."""
        return finished(self.start(verb, **kwargs), stdin)

    def spooled(self) -> list[bytes]:
        """The frames in the spool, oldest first; everything that lies there must be one."""
        with contextlib.suppress(FileNotFoundError):
            return [(self.run_dir / "spool" / name).read_bytes() for name in sorted(os.listdir(self.run_dir / "spool"))]
        return []


def finished(process: subprocess.Popen[bytes], stdin: bytes | None = None) -> Outcome:
    """Give it the rest of its standard input and wait for its end."""
    stdout, stderr = process.communicate(stdin, timeout=60)
    told = (stderr or b"").decode()
    assert "Sanitizer" not in told, told
    assert "runtime error" not in told, told
    return Outcome(process.returncode, stdout or b"", told)


@dataclass
class Daemon:
    """Accepts on a socket as the daemon does; what it does with a connection is ``behaviour``'s affair."""

    path: Path
    behaviour: Behaviour
    backlog: int = 64
    requests: list[bytes] = field(default_factory=list)

    def __enter__(self) -> Daemon:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(str(self.path))
        self._listening.listen(self.backlog)
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()
        self.path.unlink()

    def calls(self) -> list[frame.Call]:
        return [frame.parse(frame.payload(each)) for each in self.requests]

    def receive(self, connection: socket.socket, most: int = 1 << 16) -> None:
        """Take one request, at most so many bytes at a time."""
        received = bytearray()
        while not frame.complete(received):
            chunk = connection.recv(most)
            assert chunk, f"the shim broke off after {len(received)} bytes"
            received += chunk
        self.requests.append(bytes(received))

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection:
                self.behaviour(self, connection)


def sends(content: bytes) -> Behaviour:
    """Takes the request, then sends these bytes and hangs up."""

    def behave(daemon: Daemon, connection: socket.socket) -> None:
        daemon.receive(connection)
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(content)

    return behave


def answers(status: int = 0, stdout: bytes = GOOD) -> Behaviour:
    """Takes the request and answers as it should."""
    return sends(frame.answer(status, stdout))


@pytest.fixture(params=["shipped", "watched"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def lay(kind: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Shim]:
    """``lay(*flags, run_dir=…)`` compiles the shim with further flags and lays a copy for that run directory."""

    def compiled(*flags: str) -> Path:
        if (kind, *flags) not in BINARIES:
            out = tmp_path_factory.mktemp("shim") / "underlay-shim"
            command = [*shim_build.native(), *shim_build.FLAGS] if kind == "shipped" else WATCHED
            subprocess.run([*command, *flags, "-o", out, shim_build.SOURCE], check=True)
            BINARIES[kind, *flags] = out
        return BINARIES[kind, *flags]

    def make(*flags: str, run_dir: Path = tmp_path / "run") -> Shim:
        image = compiled(*flags).read_bytes()
        start = image.index(shim_binary.MARK)
        slot = (shim_binary.MARK + os.fsencode(run_dir)).ljust(shim_binary.SLOT, b"\0")
        assert len(slot) == shim_binary.SLOT
        path = tmp_path / "laid"
        path.write_bytes(image[:start] + slot + image[start + len(slot) :])
        shutil.copymode(compiled(*flags), path)
        return Shim(path, run_dir)

    return make


@pytest.fixture
def shim(lay: Callable[..., Shim]) -> Shim:
    """As it is shipped."""
    return lay()


@pytest.fixture
def hasty(lay: Callable[..., Shim]) -> Shim:
    """With deadlines of fractions of a second."""
    return lay(*HASTY)


@pytest.fixture
def daemon(tmp_path: Path) -> Callable[..., contextlib.AbstractContextManager[Daemon]]:
    """``with daemon(behaviour) as it`` listens in the shim's run directory."""

    @contextlib.contextmanager
    def listening(behaviour: Behaviour, **kwargs: Any) -> Iterator[Daemon]:
        with Daemon(tmp_path / "run" / "underlay.sock", behaviour, **kwargs) as it:
            yield it

    return listening
