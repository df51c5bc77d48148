"""Writes at the API server over HTTP: wanted ones, in moderation, and by whoever leads alone."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from tests.controller.pictures import document
from tests.kube.api_objects import ENDPOINTS, POOLS
from tests.kube.api_server import Fault
from tests.kube.cluster_bench import until

from underlay.controller import writes
from underlay.controller.writer import Pace, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from underlay.controller.watched import Document

FOREVER = 1e12
QUICK = Pace(gap=0.3)


@pytest.fixture
def writer(client, log) -> Iterator[Callable[..., Writer]]:
    made: list[Writer] = []

    def make(until_: Callable[[], float] = lambda: FOREVER, pace: Pace = QUICK) -> Writer:
        made.append(Writer(client(), log, until_, pace=pace))
        made[-1].start()
        return made[-1]

    yield make
    for each in made:
        each.stop()


def a_pool(server, name: str = "p") -> Document:
    made = server.put(POOLS, {"metadata": {"name": name}, "spec": {"subnet": "10.0.0.0/24"}})
    return document("SpiderIPPool", name, {}, uid=made["metadata"]["uid"]).document


def count(of: Document, number: int) -> writes.Write:
    return writes.patch(POOLS, of, {"status": {"allocatedIPCount": number}}, part="status")


def status(server, name: str = "p") -> Any:
    return server.get(POOLS, "", name).get("status")


def make_endpoint(name: str) -> writes.Write:
    return writes.create(ENDPOINTS, "SpiderEndpoint", {"namespace": "default", "name": name}, status={"x": 1})


def test_objects_are_made_changed_and_removed(server, writer):
    writing = writer()
    pool = a_pool(server)
    writing.want([make_endpoint("web"), count(pool, 3)])
    assert until(lambda: status(server) == {"allocatedIPCount": 3})
    assert until(lambda: server.get(ENDPOINTS, "default", "web"))
    made = server.get(ENDPOINTS, "default", "web")
    assert made["status"] == {"x": 1}
    seen = document("SpiderEndpoint", "web", {}, namespace="default", uid=made["metadata"]["uid"]).document
    writing.want([writes.delete(ENDPOINTS, seen)])
    assert until(lambda: server.get(ENDPOINTS, "default", "web") is None)


def test_one_object_is_written_now_and_then_with_what_is_wanted_last(server, writer):
    writing = writer()
    pool = a_pool(server)
    for number in range(60):
        writing.want([count(pool, number)])
        time.sleep(0.01)
    assert until(lambda: status(server) == {"allocatedIPCount": 59})
    sent = [each.at for each in server.asked("patch")]
    assert len(sent) <= 4
    assert min(b - a for a, b in itertools.pairwise(sent)) >= 0.29


def test_what_is_wanted_of_an_object_while_it_is_being_written_comes_after_that(server, writer):
    server.faults.append(Fault(method="PATCH", delay=0.5))
    writing = writer()
    pool = a_pool(server)
    writing.want([count(pool, 1)])
    assert until(lambda: server.asked("patch"))
    writing.want([count(pool, 2)])
    time.sleep(0.1)
    assert writing.waiting() == 2
    writing.want([count(pool, 3)])
    assert until(lambda: status(server) == {"allocatedIPCount": 3})
    assert until(lambda: writing.waiting() == 0)
    assert len(server.asked("patch")) == 2


def test_a_large_object_is_written_less_often(server, writer):
    writing = writer(pace=replace(QUICK, per_second=100))
    pool = a_pool(server)
    for number in (1, 2):
        big = writes.patch(POOLS, pool, {"status": {"allocatedIPs": "x" * 100, "n": number}}, part="status")
        writing.want([big])
        assert until(lambda number=number: (status(server) or {}).get("n") == number)
    first, second = (each.at for each in server.asked("patch"))
    assert second - first > 1.0


def test_what_was_just_written_is_not_written_again_before_the_watch_has_shown_it(server, writer):
    writing = writer()
    pool = a_pool(server)
    for _ in range(50):
        writing.want([count(pool, 1)])
        time.sleep(0.01)
    assert len(server.asked("patch")) == 1


def test_what_is_no_longer_wanted_is_not_written(server, writer):
    server.stop()
    writing = writer()
    writing.want([make_endpoint("web")])
    time.sleep(0.1)
    writing.want([])
    server.start()
    time.sleep(0.5)
    assert server.asked("create") == []


def test_one_that_is_refused_holds_nobody_up_and_is_tried_less_and_less(server, writer, log):
    server.forbidden.add(("create", ENDPOINTS))
    writing = writer()
    pool = a_pool(server)
    ends = time.monotonic() + 3
    while time.monotonic() < ends:
        writing.want([make_endpoint("web"), count(pool, 1)])
        time.sleep(0.05)
    assert status(server) == {"allocatedIPCount": 1}
    assert 2 <= len(server.asked("create")) <= 5
    assert log.events().count("write is refused") == 1


def test_a_busy_server_is_left_alone_by_all(server, writer):
    server.faults.append(Fault(method="POST", status=429, retry_after=1))
    writing = writer(pace=replace(QUICK, threads=1))
    writing.want([make_endpoint("a")])
    assert until(lambda: server.asked("create"))
    time.sleep(0.05)
    writing.want([make_endpoint("a"), make_endpoint("b")])
    assert until(lambda: len(server.objects.all(ENDPOINTS)) == 2)
    first, second = (each.at for each in server.asked("create")[:2])
    assert second - first >= 1


def test_the_servers_absence_is_said_once_and_its_return(server, writer, log):
    server.stop()
    writing = writer()
    for _ in range(10):
        writing.want([make_endpoint("web")])
        time.sleep(0.05)
    server.start()
    for _ in range(100):
        writing.want([make_endpoint("web")])
        time.sleep(0.02)
    assert server.get(ENDPOINTS, "default", "web")
    assert log.events().count("writes wait for the API server") == 1
    assert until(lambda: "API server takes writes again" in log.events())


def test_an_object_of_another_uid_is_left_alone(server, writer, log):
    writing = writer()
    a_pool(server)
    other = document("SpiderIPPool", "p", {}, uid="another").document
    writing.want([count(other, 1)])
    assert until(lambda: server.asked("patch"))
    time.sleep(0.1)
    assert status(server) is None
    assert "write is refused" not in log.events()


def test_nothing_is_written_by_who_does_not_lead(server, writer):
    leading = [0.0]
    writing = writer(lambda: leading[0])
    writing.want([make_endpoint("web")])
    time.sleep(0.5)
    assert server.asked("create") == []
    leading[0] = FOREVER
    assert until(lambda: server.get(ENDPOINTS, "default", "web"))


def test_a_write_under_way_ends_with_the_leadership(server, writer):
    """So that a server that answers late cannot have it done after another has begun to lead."""
    server.faults.append(Fault(method="POST", delay=1.5))
    begun = threading.Event()
    leads_until = time.monotonic() + 0.4
    writing = writer(lambda: leads_until)
    writing.want([make_endpoint("web")])
    assert until(lambda: server.asked("create"))
    begun.set()
    assert until(lambda: writing.waiting() == 0, 1.0)  # the request was given up, not waited for
    assert time.monotonic() < leads_until + 1.0


def test_writes_are_spread_by_the_rate(server, writer):
    writing = writer(pace=Pace(rate=50))
    writing.want([make_endpoint(f"p{n}") for n in range(100)])
    assert until(lambda: len(server.objects.all(ENDPOINTS)) == 100)
    sent = [each.at for each in server.asked("create")]
    assert sent[-1] - sent[0] >= 0.9  # a second's worth may come at once
