"""Whatever comes in, the shim sends one right frame, and prints the daemon's answer or a CNI error."""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from underlay.daemon import frame
from underlay.errors import InvalidEnvironment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.shim.conftest import Daemon, Shim

VALUES = st.binary(max_size=200).map(lambda raw: raw.replace(b"\0", b""))
KEYS = st.one_of(
    st.sampled_from([b"CNI_ARGS", b"CNI_PATH", b"CNI_NETNS", b"CNI_", b"PATH", b"CN", b"CNIX"]),
    st.binary(max_size=12).map(lambda raw: b"CNI_" + raw.replace(b"\0", b"").replace(b"=", b"")),
)
NAMES = st.binary(max_size=400).map(lambda raw: raw.replace(b"\0", b"").replace(b"/", b""))
VERBS = st.sampled_from([b"ADD", b"ADD", b"CHECK", b"DEL", b"GC", b"STATUS", b"", b"\xff"])
STDIN = st.binary(max_size=3000)
GOOD_ANSWERS = st.builds(frame.answer, st.integers(0, 255), st.binary(max_size=3000))
BAD_ANSWERS = st.one_of(
    st.binary(max_size=100),
    st.builds(lambda whole, n: whole[: n % len(whole)], GOOD_ANSWERS, st.integers(0)),
    st.builds(lambda size, rest: b"UND1" + size.to_bytes(4, "little") + rest, st.integers(0, 2**32 - 1), STDIN),
)


class Once:
    """Answers each request with ``answer``."""

    answer = b""

    def __call__(self, daemon: Daemon, connection: Any) -> None:
        daemon.receive(connection)
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(self.answer)


@pytest.fixture
def once(daemon: Any) -> Iterator[tuple[Daemon, Once]]:
    behaviour = Once()
    with daemon(behaviour) as it:
        yield it, behaviour


def is_whole(answer: bytes) -> bool:
    return answer[:4] == b"UND1" and len(answer) > 8 and int.from_bytes(answer[4:8], "little") == len(answer) - 8


@settings(max_examples=80)
@given(verb=VERBS, rest=st.dictionaries(KEYS, VALUES, max_size=8), name=NAMES, stdin=STDIN, answer=GOOD_ANSWERS)
def test_the_frame_holds_what_was_given_and_the_answer_is_printed(
    shim: Shim, once: tuple[Daemon, Once], verb: bytes, rest: dict[bytes, bytes], name: bytes, stdin: bytes,
    answer: bytes,
) -> None:  # fmt: skip
    daemon, behaviour = once
    behaviour.answer = answer
    env = rest | {b"CNI_COMMAND": verb}
    outcome = shim.call(name=name, env=env, stdin=stdin)
    assert (outcome.status, outcome.stdout, outcome.stderr) == (answer[8], answer[9:], "")
    content = frame.payload(daemon.requests.pop())
    given_to_it = {key: value for key, value in env.items() if key.startswith(b"CNI_")}
    strings = [name, *(b"%b=%b" % pair for pair in given_to_it.items())]
    assert content == b"\0".join(strings) + b"\0\0" + stdin
    if not name:
        return
    try:
        call = frame.parse(content)
    except InvalidEnvironment:
        with pytest.raises(UnicodeDecodeError):
            b"\0".join(strings).decode()
    else:
        assert call == frame.Call(name.decode(), {k.decode(): v.decode() for k, v in given_to_it.items()}, stdin)


@settings(max_examples=80)
@given(verb=VERBS, name=NAMES, stdin=STDIN, answer=BAD_ANSWERS)
def test_an_answer_that_is_none_becomes_an_error_or_a_spooled_deletion(
    shim: Shim, once: tuple[Daemon, Once], verb: bytes, name: bytes, stdin: bytes, answer: bytes
) -> None:
    daemon, behaviour = once
    behaviour.answer = answer
    outcome = shim.call(name=name, env={b"CNI_COMMAND": verb}, stdin=stdin)
    request = daemon.requests.pop()
    spooled = shim.spooled()
    shutil.rmtree(shim.run_dir / "spool", ignore_errors=True)
    assert outcome.stderr == ""
    if is_whole(answer):
        assert (outcome.status, outcome.stdout) == (answer[8], answer[9:])
    elif verb == b"DEL":
        assert (outcome.status, outcome.stdout, spooled) == (0, b"", [request])
        return
    else:
        assert outcome.error()["code"] in ((50,) if verb == b"STATUS" else (5, 11))
        assert outcome.error()["msg"].startswith(name.decode("latin-1")[:300] + ": ")
    assert spooled == []
