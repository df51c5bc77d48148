"""Candidates for one Lease, each a thread of its own, over HTTP."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.kube.api_objects import LEASES
from tests.kube.api_server import Fault
from tests.kube.cluster_bench import until

from underlay.controller.election import Election, Terms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SPACE, NAME = "kube-system", "underlay-controller"
QUICK = Terms(lease=1.0, renew=0.6, retry=0.05)


@pytest.fixture
def candidate(client, log) -> Iterator[Callable[..., Election]]:
    made: list[Election] = []

    def make(identity: str, **keys: Any) -> Election:
        keys.setdefault("terms", QUICK)
        made.append(Election(client(), namespace=SPACE, name=NAME, identity=identity, log=log, **keys))
        made[-1].start()
        return made[-1]

    yield make
    for each in made:
        each.stop()


def spec(server) -> dict[str, Any]:
    found = server.get(LEASES, SPACE, NAME)
    return found["spec"] if found else {}


class Referee:
    """Looks all the time whether two lead at once."""

    def __init__(self, *candidates: Election) -> None:
        self.worst = 0
        self._ended = threading.Event()
        self._candidates = candidates
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._ended.is_set():
            self.worst = max(self.worst, sum(each.leads() for each in self._candidates))
            time.sleep(0.001)

    def __enter__(self) -> Referee:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def test_the_first_makes_the_lease_and_leads(server, candidate):
    one = candidate("one")
    assert until(one.leads)
    assert spec(server)["holderIdentity"] == "one"
    assert spec(server)["leaseDurationSeconds"] == 1
    before = spec(server)["renewTime"]
    assert until(lambda: spec(server)["renewTime"] > before)
    assert spec(server)["acquireTime"] <= before
    (created,) = server.asked("create", LEASES)
    assert created.group == "coordination.k8s.io"


def test_the_second_waits_and_takes_over_at_once_when_the_first_stops(server, candidate):
    one = candidate("one")
    assert until(one.leads)
    two = candidate("two")
    time.sleep(1.5)
    assert (one.leads(), two.leads()) == (True, False)
    one.stop()
    assert not one.leads()
    began = time.monotonic()
    assert until(two.leads)
    assert time.monotonic() - began < 0.9  # it did not wait for the Lease's end
    assert spec(server)["leaseTransitions"] == 1


def test_one_that_dies_is_followed_after_the_lease(server, candidate):
    server.put(LEASES, {
        "metadata": {"name": NAME, "namespace": SPACE},
        "spec": {"holderIdentity": "dead", "leaseDurationSeconds": 1, "leaseTransitions": 4},
    })  # fmt: skip
    began = time.monotonic()
    one = candidate("one")
    assert until(one.leads)
    assert time.monotonic() - began >= 1.0
    assert spec(server)["leaseTransitions"] == 5


@pytest.mark.parametrize("renewed", ["1999-01-01T00:00:00.000000Z", "2999-01-01T00:00:00.000000Z"])
def test_what_the_holders_clock_says_is_not_believed(server, candidate, renewed):
    """Neither an old time takes the Lease from a holder that renews, nor a time to come keeps it for a dead one."""

    def renew(number: int) -> None:
        held = {"holderIdentity": "skewed", "leaseDurationSeconds": 1, "renewTime": renewed, "leaseTransitions": number}
        server.put(LEASES, {"metadata": {"name": NAME, "namespace": SPACE}, "spec": held})

    renew(0)
    one = candidate("one")
    for number in range(1, 8):
        time.sleep(0.2)
        renew(number)
        assert not one.leads()
    assert until(one.leads)


def test_two_never_lead_at_once_whatever_becomes_of_their_requests(server, candidate):
    one, two = candidate("one"), candidate("two")
    with Referee(one, two) as referee:
        for _ in range(3):
            assert until(lambda: one.leads() or two.leads())
            server.faults.append(Fault(path="/leases/", method="PATCH", times=2, delay=0.9))
            server.faults.append(Fault(path="/leases/", method="PATCH", times=1, after=True))
            time.sleep(1.0)
        assert until(lambda: one.leads() or two.leads())
    assert referee.worst == 1


def test_a_leader_that_reaches_nobody_stops_leading_by_its_own_clock(server, candidate, log):
    one = candidate("one")
    assert until(one.leads)
    server.stop()
    began = time.monotonic()
    assert until(lambda: not one.leads())
    assert time.monotonic() - began < QUICK.lease
    assert until(lambda: "leads no more" in log.events())
    server.start()
    assert until(one.leads)


def test_a_renewal_that_comes_late_counts_from_when_it_was_sent(server, candidate):
    one = candidate("one")
    assert until(one.leads)
    server.faults.append(Fault(path="/leases/", method="PATCH", times=1, delay=0.4))
    renewals = len(server.asked("patch", LEASES))
    assert until(lambda: len(server.asked("patch", LEASES)) == renewals + 1)
    sent = server.asked("patch", LEASES)[renewals].at
    assert until(lambda: one.until > sent)
    assert one.until <= sent + QUICK.renew + 0.05


def test_an_answer_that_is_lost_is_found_to_have_been_written(server, candidate, log):
    server.faults.append(Fault(path="/leases", method="POST", after=True))
    one = candidate("one")
    assert until(one.leads)
    assert spec(server)["holderIdentity"] == "one"


def test_of_two_that_see_it_free_at_once_one_gets_it(server, candidate):
    server.put(LEASES, {"metadata": {"name": NAME, "namespace": SPACE}, "spec": {"holderIdentity": ""}})
    server.faults.append(Fault(path="/leases/", method="GET", times=2, delay=0.2))
    made = [candidate("one"), candidate("two")]
    with Referee(*made) as referee:
        assert until(lambda: any(each.leads() for each in made))
        time.sleep(0.3)
    assert referee.worst == 1
    bodies = [json.loads(each.body) for each in server.asked("patch", LEASES)]
    assert all(body["metadata"]["resourceVersion"] for body in bodies)


def test_changes_are_told(server, candidate):
    told = threading.Event()
    one = candidate("one", changed=told.set)
    assert told.wait(10)
    told.clear()
    one.stop()
    assert told.is_set()


def test_a_lease_that_may_not_be_read_is_said_once(server, candidate, log):
    server.forbidden.add(("get", LEASES))
    one = candidate("one")
    assert until(lambda: "Lease is out of reach" in log.events())
    time.sleep(0.3)
    assert not one.leads()
    assert log.events().count("Lease is out of reach") == 1
