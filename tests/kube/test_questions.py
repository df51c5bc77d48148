"""Questions that several ask at once."""

from __future__ import annotations

import threading
import time

import pytest

from underlay.errors import TryAgain
from underlay.kube import resources
from underlay.kube.questions import Questions


class Breaks:
    """A client whose request breaks off as nobody expects, once somebody else waits for its answer."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.may_break = threading.Event()

    def call(self, *_: object, **__: object) -> bytes:
        self.asked.set()
        assert self.may_break.wait(10)
        raise MemoryError


def test_a_request_that_breaks_off_says_to_nobody_that_there_is_no_such_object(monkeypatch):
    client = Breaks()
    questions = Questions(client, 5.0)
    heard = []

    def ask():
        try:
            heard.append(questions.ask(resources.networks(), ("default", "a"), time.monotonic() + 10))
        except (MemoryError, TryAgain) as fault:
            heard.append(type(fault))

    first, second = threading.Thread(target=ask), threading.Thread(target=ask)
    first.start()
    assert client.asked.wait(10)
    (asking,) = questions._asking.values()
    wait = asking.ended.wait
    monkeypatch.setattr(asking.ended, "wait", lambda seconds: (client.may_break.set(), wait(seconds))[1])
    second.start()
    for each in (first, second):
        each.join(10)
    assert sorted(heard, key=str) == sorted([MemoryError, TryAgain], key=str)
    with pytest.raises(MemoryError):
        questions.ask(resources.networks(), ("default", "a"), time.monotonic() + 10)
