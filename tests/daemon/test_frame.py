"""The frames between shim and daemon, and what becomes of frames that lie."""

from __future__ import annotations

import socket
import struct
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from underlay.daemon import frame
from underlay.errors import DeadlineExceeded, DecodeFailure, InvalidEnvironment, UnderlayError

TEXT = st.text(st.characters(blacklist_characters="\0=", blacklist_categories=("Cs",)), min_size=1, max_size=40)


@given(plugin=TEXT, env=st.dictionaries(TEXT.map(lambda key: f"CNI_{key}"), TEXT | st.just("")), stdin=st.binary())
def test_a_request_comes_back_as_it_went(plugin: str, env: dict[str, str], stdin: bytes) -> None:
    assert frame.parse(frame.payload(frame.request(plugin, env, stdin))) == frame.Call(plugin, env, stdin)


@given(st.binary(max_size=200))
def test_whatever_bytes_come_are_a_call_or_a_cni_error(content: bytes) -> None:
    for whole in (content, struct.pack("<4sI", b"UND1", len(content)) + content):
        try:
            frame.parse(frame.payload(whole))
        except UnderlayError as error:
            assert error.message  # noqa: PT017
            assert error.hint  # noqa: PT017


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "breaks off: 0 bytes"),
        (b"UND1", "breaks off: 4 bytes"),
        (b"HTTP/1.1 200 OK", "begins with b'HTTP'"),
        (struct.pack("<4sI", b"UND1", 100) + b"short", "5 bytes came where it says 100"),
        (struct.pack("<4sI", b"UND1", 2) + b"longer", "6 bytes came where it says 2"),
        (struct.pack("<4sI", b"UND1", 0xFFFFFFFF), "above the limit of 4194304"),
        (struct.pack("<4sI", b"UND1", frame.LIMIT + 1), "above the limit"),
    ],
)
def test_a_frame_that_lies_is_refused_by_what_is_wrong(content: bytes, words: str) -> None:
    with pytest.raises(DecodeFailure, match=words):
        frame.payload(content)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"\0\0", DecodeFailure, "no plugin name"),
        (b"multus\0CNI_COMMAND=ADD\0", DecodeFailure, "no end of its environment"),
        (b"multus\0PATH=/bin\0\0", InvalidEnvironment, "'PATH=/bin'"),
        (b"multus\0CNI_COMMAND\0\0", InvalidEnvironment, "'CNI_COMMAND'"),
        (b"multus\0CNI_ARGS=\xff\0\0", InvalidEnvironment, "UTF-8"),
    ],
)
def test_a_payload_that_is_no_call_is_refused(content: bytes, error: type[UnderlayError], words: str) -> None:
    with pytest.raises(error, match=words):
        frame.parse(content)


def test_of_a_variable_named_twice_the_last_counts() -> None:
    assert frame.parse(b"veth\0CNI_COMMAND=ADD\0CNI_COMMAND=DEL\0\0").env == {"CNI_COMMAND": "DEL"}


def test_a_frame_in_single_bytes_is_read_whole() -> None:
    ours, theirs = socket.socketpair()
    whole = frame.request("veth", {"CNI_COMMAND": "ADD"}, b"{}")

    def drip() -> None:
        for n in range(len(whole)):
            theirs.sendall(whole[n : n + 1])

    with ours, theirs:
        thread = threading.Thread(target=drip)
        thread.start()
        frame.bound_receive(ours, 10)
        received = frame.begin(ours)
        frame.finish(ours, received, time.monotonic() + 10)
        thread.join()
    assert received == whole


def test_a_client_that_stalls_is_given_up_at_the_deadline() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(frame.request("veth", {}, b"{}")[:-1])
        frame.bound_receive(ours, 0.01)
        received = frame.begin(ours)
        with pytest.raises(DeadlineExceeded, match="did not arrive in time"):
            frame.finish(ours, received, time.monotonic() + 0.05)


def test_a_client_that_stops_short_is_told_apart_from_one_that_left() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"UND1\x10\0\0\0abc")
        theirs.shutdown(socket.SHUT_WR)
        received = frame.begin(ours)
        with pytest.raises(DecodeFailure, match="3 bytes came where it says 16"):
            frame.finish(ours, received, time.monotonic() + 5)
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        with pytest.raises(frame.PeerGone):
            frame.begin(ours)
