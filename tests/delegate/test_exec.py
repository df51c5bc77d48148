from __future__ import annotations

import contextlib
import json
import os
import select
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.delegate.conftest import Log, soon

from underlay.cni.request import Verb
from underlay.delegate.exec import Executor, Invocation
from underlay.errors import DeadlineExceeded, DelegateFailed, InvalidConfig, IOFailure, PluginMissing

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Lay an executable with that content into the plugin directory."""

    def lay(name: str, content: str) -> Path:
        path = tmp_path / name
        path.write_text(content)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return lay


@pytest.fixture
def executor(log: Log) -> Executor:
    return Executor(log=log, environ={"PATH": os.environ["PATH"], "HOME": "/root", "CNI_STALE": "1"})


def call(tmp_path: Path, name: str, verb: Verb = Verb.ADD, stdin: bytes = b"{}") -> Invocation:
    return Invocation(verb, name, stdin, (str(tmp_path),), "c1", "/run/netns/x", "net1", "A=B")


def test_the_environment_is_the_protocols_and_what_was_given(executor: Executor, write: Write, tmp_path: Path) -> None:
    write("show", "#!/bin/sh\nenv | sort")
    seen = dict(line.split("=", 1) for line in executor.run(call(tmp_path, "show"), soon()).decode().splitlines())
    assert {key: value for key, value in seen.items() if key.startswith("CNI_")} == {
        "CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/x", "CNI_IFNAME": "net1",
        "CNI_ARGS": "A=B", "CNI_PATH": str(tmp_path),
    }  # fmt: skip
    assert seen["HOME"] == "/root"


def test_a_configuration_larger_than_a_pipe_goes_in_and_out(executor: Executor, write: Write, tmp_path: Path) -> None:
    write("echo", "#!/bin/sh\ncat")
    stdin = os.urandom(1 << 20)
    assert executor.run(call(tmp_path, "echo", stdin=stdin), soon()) == stdin


def test_a_plugin_that_reads_nothing_is_no_fault(executor: Executor, write: Write, tmp_path: Path) -> None:
    write("deaf", "#!/bin/sh\nexec <&-\necho ok")
    assert executor.run(call(tmp_path, "deaf", stdin=bytes(1 << 20)), soon()) == b"ok\n"


@pytest.mark.parametrize(
    ("printed", "addresses"),
    [
        ({"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.2/24", "gateway": "10.0.0.1"}}, ["10.0.0.2/24"]),
        ({"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.0.0.2/24"}], "dns": {}}, ["10.0.0.2/24"]),
        ({"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.2/24"}]}, ["10.0.0.2/24"]),
        ({"ips": [{"address": "fd00::2/64"}]}, ["fd00::2/64"]),
        ({}, []),
    ],
)
def test_a_result_is_read_in_the_version_that_it_says(
    executor: Executor, write: Write, tmp_path: Path, printed: dict[str, object], addresses: list[str]
) -> None:
    write("adds", f"#!/bin/sh\nprintf '%s' '{json.dumps(printed)}'")
    result = executor.result(call(tmp_path, "adds"), soon(), version="1.0.0")
    assert [ip.address for ip in result.ips] == addresses


@pytest.mark.parametrize("printed", ["", "hello", "[1]", '{"ips": 3}', '{"cniVersion": "9.9"}', "\\377"])
def test_what_is_no_result_fails_the_add(executor: Executor, write: Write, tmp_path: Path, printed: str) -> None:
    write("talks", f"#!/bin/sh\nprintf '{printed}'")
    with pytest.raises(DelegateFailed, match="talks"):
        executor.result(call(tmp_path, "talks"), soon(), version="1.0.0")


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        ('printf \'{"code":11,"msg":"later","details":"d"}\'; exit 1', 11, "later"),
        ('printf \'{"msg":"no code"}\'; exit 1', 107, "no code"),
        ("echo oops >&2; exit 2", 107, "oops"),
        ("echo not JSON; exit 2", 107, "not JSON"),
        ("exit 2", 107, "status 2: without a word"),
        ("kill -9 $$", 107, "signal 9"),
    ],
)
def test_a_failure_carries_the_plugins_own_words(
    executor: Executor, write: Write, tmp_path: Path, script: str, code: int, words: str
) -> None:
    write("fails", f"#!/bin/sh\n{script}")
    with pytest.raises(DelegateFailed, match=words) as caught:
        executor.run(call(tmp_path, "fails"), soon())
    assert caught.value.code == code


def test_standard_error_goes_to_the_log_bounded(executor: Executor, write: Write, tmp_path: Path, log: Log) -> None:
    write("chatty", "#!/bin/sh\nhead -c 1000000 /dev/zero | tr '\\0' x >&2\necho end >&2")
    executor.run(call(tmp_path, "chatty"), soon())
    ((_, _, fields),) = log.lines
    assert fields["text"].endswith("x" * 100 + "end\n")
    assert len(fields["text"]) <= 16 << 10


def test_endless_output_is_cut_off(executor: Executor, write: Write, tmp_path: Path) -> None:
    write("endless", "#!/bin/sh\nexec yes")
    with pytest.raises(DelegateFailed, match="more than"):
        executor.run(call(tmp_path, "endless"), soon())


def test_at_the_deadline_the_whole_process_group_is_killed(executor: Executor, write: Write, tmp_path: Path) -> None:
    write("slow", f"#!/bin/sh\nsleep 1000 & echo $! >{tmp_path}/pid\nwait")
    with pytest.raises(DeadlineExceeded):
        executor.run(call(tmp_path, "slow"), soon(1.0))
    grandchild = int((tmp_path / "pid").read_text())
    for _ in range(500):
        if not _lives(grandchild):
            return
        time.sleep(0.01)
    pytest.fail("the child's child still runs")


def _lives(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_something_left_running_with_the_pipes_open_is_not_waited_for(
    executor: Executor, write: Write, tmp_path: Path
) -> None:
    write("daemonises", f"#!/bin/sh\nsleep 1000 & echo $! >{tmp_path}/pid\necho done")
    try:
        assert executor.run(call(tmp_path, "daemonises"), soon()) == b"done\n"
    finally:
        os.kill(int((tmp_path / "pid").read_text()), 9)


def test_what_it_says_last_is_heard_though_only_its_end_is_told(
    executor: Executor, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """poll(2) looks at one descriptor after the other: what is written behind its back is told the next time."""

    class Late:
        def __init__(self) -> None:
            self._poll = select.epoll()
            self._last = -1

        def register(self, fd: int, _events: int) -> None:
            self._last = fd  # the process itself comes last

        def unregister(self, fd: int) -> None:
            pass

        def poll(self, timeout: float) -> list[tuple[int, int]]:
            self._poll.register(self._last, select.EPOLLIN)
            try:
                return self._poll.poll(timeout / 1000)
            finally:
                self._poll.close()

    monkeypatch.setattr("underlay.delegate.exec.select.poll", Late)
    write("brief", "#!/bin/sh\necho result; echo trace >&2")
    assert executor.run(call(tmp_path, "brief"), soon()) == b"result\n"


def test_a_missing_plugin_is_named_with_the_directories(executor: Executor, tmp_path: Path) -> None:
    with pytest.raises(PluginMissing, match=f"'none'.*{tmp_path}"):
        executor.run(call(tmp_path, "none"), soon())
    (tmp_path / "plain-file").write_text("not executable")
    with pytest.raises(PluginMissing):
        executor.run(call(tmp_path, "plain-file"), soon())


@pytest.mark.parametrize("name", ["../sh", "/bin/sh", "..", ".", "", "a\0b"])
def test_a_type_never_leads_out_of_the_directories(executor: Executor, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidConfig):
        executor.run(call(tmp_path, name), soon())


def test_an_executable_that_is_being_replaced_is_waited_for(executor: Executor, write: Write, tmp_path: Path) -> None:
    busy = tmp_path / "busy"
    busy.write_bytes(Path("/bin/true").read_bytes())
    busy.chmod(0o755)
    writing = busy.open("r+b")
    timer = threading.Timer(0.2, writing.close)
    timer.start()
    assert executor.run(call(tmp_path, "busy"), soon()) == b""
    timer.join()


def test_what_the_kernel_cannot_run_is_an_error_not_a_traceback(
    executor: Executor, write: Write, tmp_path: Path
) -> None:
    write("garbage", "\x7fELFgarbage")
    with pytest.raises(IOFailure, match="garbage"):
        executor.run(call(tmp_path, "garbage"), soon())


def test_only_so_many_run_at_once_and_the_slot_is_lent_meanwhile(write: Write, tmp_path: Path, log: Log) -> None:
    lent = []

    @contextlib.contextmanager
    def blocking() -> Iterator[None]:
        lent.append(1)
        yield

    executor = Executor(log=log, environ={}, blocking=blocking, limit=1)
    write("slow", "#!/bin/sh\nsleep 0.3")
    thread = threading.Thread(target=executor.run, args=(call(tmp_path, "slow"), soon()))
    thread.start()
    while not lent:
        time.sleep(0.001)
    with pytest.raises(DeadlineExceeded, match="too many"):
        executor.run(call(tmp_path, "slow"), soon(0.02))
    executor.run(call(tmp_path, "slow"), soon())
    thread.join()
    assert len(lent) == 3
