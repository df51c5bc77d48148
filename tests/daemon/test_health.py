"""Ready and alive: what keeps a daemon from serving, and which of it a new start mends."""

from __future__ import annotations

import errno
import os
import socket
import time
from urllib.request import urlopen

import pytest

from underlay.daemon.health import Health, Probes


def verdict(health: Health) -> tuple[bool, bool]:
    status = health.status()
    return status.ready, status.alive


def test_a_fault_of_a_part_ends_with_it_and_only_a_lost_socket_calls_for_a_new_start() -> None:
    health = Health("1")
    assert verdict(health) == (False, True)
    health.state = "ready"
    assert verdict(health) == (True, True)
    for part, alive in (("ledger", True), ("kubernetes", True), ("socket", False)):
        health.fault(part, "why")
        assert verdict(health) == (False, alive)
        assert health.status().faults == (f"{part}: why",)
        health.fault(part, "")
        assert verdict(health) == (True, True)


def test_who_asks_for_the_status_is_not_counted_in_it() -> None:
    health = Health("1")
    served = health.begin(time.monotonic() + 60)
    asking = health.begin(time.monotonic() + 60)
    health.overlook(asking)
    assert (health.status().requests, health.status().in_flight) == (1, 1)
    health.end(asking, failed=False)
    another = health.begin(time.monotonic() + 60)
    assert another not in (served, asking)
    health.end(another, failed=False)
    assert (health.status().requests, health.status().in_flight) == (2, 1)


def test_a_request_far_past_its_deadline_is_no_life() -> None:
    health = Health("1")
    health.state = "ready"
    number = health.begin(time.monotonic() - 3600)
    assert verdict(health) == (False, False)
    health.end(number, failed=True)
    assert verdict(health) == (True, True)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ECONNABORTED])
def test_a_connection_that_cannot_be_accepted_does_not_end_the_probes(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    accept, faults = socket.socket.accept, [OSError(number, os.strerror(number))]

    def fails_once(listening: socket.socket) -> tuple[socket.socket, object]:
        if faults:
            raise faults.pop()
        return accept(listening)

    monkeypatch.setattr(socket.socket, "accept", fails_once)
    probes = Probes("127.0.0.1", 0, Health("1").status)
    try:
        with urlopen(f"http://127.0.0.1:{probes.port}/healthz", timeout=5) as answer:
            assert answer.read() == b"ok\n"
        assert faults == []
    finally:
        probes.close()
