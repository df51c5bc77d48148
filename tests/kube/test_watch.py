"""What the API server and the wire do to a list and a watch, and that the caches are right afterwards."""

from __future__ import annotations

import time

import pytest
from tests.kube.api_server import NETWORKS, PODS, Fault, network, pod
from tests.kube.cluster_bench import QUICK, soon, until

from underlay.kube.backoff import Backoff
from underlay.kube.reflector import Timing

NADS = "/network-attachment-definitions"


@pytest.fixture
def watching(server, benches):
    """A cluster source that watches one network, "a"."""
    server.put(NETWORKS, network("a", {"mtu": 1}))
    cluster = benches.make(server)
    assert until(lambda: cluster._networks.state == cluster._pods.state == "watching")
    return cluster


def config(cluster, name):
    found = cluster._networks.find(("default", name))
    return found.value.config if found else None


def test_a_long_list_is_fetched_in_pages_and_seen_whole(server, benches):
    for number in range(250):
        server.put(NETWORKS, network(f"n{number}", {}))
    cluster = benches.make(server)
    assert until(lambda: not cluster.fault())
    assert len(cluster._networks) == 250
    assert [each.query.get("limit") for each in server.asked("list", NETWORKS)] == ["100"] * 3


def test_a_list_whose_pages_are_lost_begins_anew_from_the_newest(server, benches):
    for number in range(150):
        server.put(NETWORKS, network(f"n{number}", {}))
    cluster = benches.make(server, start=False)
    page = server.objects.page
    lost = []

    def lose(resource, chosen, limit, token):
        if token and not lost:
            lost.append(token)
            server.objects.lose_history()
        return page(resource, chosen, limit, token)

    server.objects.page = lose
    cluster.start()
    assert until(lambda: len(cluster._networks) == 150)
    assert lost
    assert "resourceVersion" not in server.asked("list", NETWORKS)[-2].query


def test_changes_and_removals_arrive(server, watching):
    server.put(NETWORKS, network("a", {"mtu": 2}))
    server.put(NETWORKS, network("b", {"mtu": 3}))
    assert until(lambda: config(watching, "b"))
    assert config(watching, "a") == '{"mtu": 2}'
    server.delete(NETWORKS, "default", "a")
    assert until(lambda: config(watching, "a") is None)
    assert len(server.asked("list", NETWORKS)) == 1


def test_a_watch_goes_on_from_the_last_bookmark(server, benches):
    server.bookmark_every = 0.05
    cluster = benches.make(server, timing=Timing(watch=1, silence=5, first=0.02, most=0.1))
    assert until(lambda: cluster._networks.state == "watching")
    for number in range(10):
        server.put(PODS, pod(f"elsewhere-{number}", node="n2"))
    newest = server.objects.version
    assert until(lambda: len(server.asked("watch", NETWORKS)) > 1)
    assert int(server.asked("watch", NETWORKS)[1].query["resourceVersion"]) == newest
    assert len(server.asked("list", NETWORKS)) == 1


def test_lost_history_while_away_leads_to_a_new_list(server, watching):
    server.stop()
    server.delete(NETWORKS, "default", "a")
    server.put(NETWORKS, network("b", {"mtu": 5}))
    server.objects.lose_history()
    server.start()
    assert until(lambda: config(watching, "b"))
    assert config(watching, "a") is None
    assert "resourceVersion" not in server.asked("list", NETWORKS)[-1].query


def test_history_lost_in_the_middle_of_a_watch_leads_to_a_new_list(server, benches):
    server.faults.append(Fault(path=NADS, watch=True, error=410))
    server.put(NETWORKS, network("a", {}))
    cluster = benches.make(server)
    assert until(lambda: len(server.asked("list", NETWORKS)) == 2)
    assert until(lambda: cluster._networks.state == "watching")
    assert config(cluster, "a") == "{}"


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_connection_cut_in_the_middle_of_an_event_loses_nothing(server, benches, cut):
    cluster = benches.make(server, start=False)
    server.faults.append(Fault(path=NADS, watch=True, cut=cut))
    cluster.start()
    assert until(lambda: server.asked("watch", NETWORKS))
    server.put(NETWORKS, network("a", {"text": "x" * 500}))
    assert until(lambda: config(cluster, "a"))
    assert len(server.asked("list", NETWORKS)) == 1


def test_a_connection_that_is_closed_under_a_watch_is_made_again(server, watching):
    for number in range(3):
        server.cut()
        server.put(NETWORKS, network("a", {"mtu": 100 + number}))
        assert until(lambda number=number: config(watching, "a") == f'{{"mtu": {100 + number}}}')
    assert len(server.asked("list", NETWORKS)) == 1


def test_a_silent_connection_is_cut(server, benches):
    server.faults.append(Fault(path=NADS, watch=True, silent=True))
    cluster = benches.make(server, timing=Timing(silence=0.3, first=0.02, most=0.1))
    assert until(lambda: server.asked("watch", NETWORKS))
    server.put(NETWORKS, network("a", {}))
    assert until(lambda: config(cluster, "a") == "{}")


def test_429_is_waited_out_as_long_as_the_server_wishes(server, benches):
    server.faults.append(Fault(path=NADS, watch=False, status=429, retry_after=1))
    cluster = benches.make(server)
    assert until(lambda: cluster._networks.ever)
    first, second = server.asked("list", NETWORKS)
    assert second.at - first.at >= 1


@pytest.mark.parametrize("status", [401, 403, 500, 503])
def test_a_refusing_server_is_asked_seldom_and_heard_when_it_answers(server, benches, status):
    server.faults.append(Fault(path=NADS, times=6, status=status))
    server.put(NETWORKS, network("a", {}))
    cluster = benches.make(server)
    assert until(lambda: config(cluster, "a"))
    assert len(server.asked("list", NETWORKS)) <= 8
    assert any("refuses" in fields.get("cause", "") for _, _, fields in cluster._threads[1]._log)


def test_an_event_that_is_no_json_is_not_passed_over_in_silence(server, watching):
    with pytest.raises(Exception, match="sent what it should not"):
        watching._networks_resource.happening(b'{"type": "ADDED", "object": {"metadata": {"name": 3}}}')


def test_a_server_that_ends_every_watch_at_once_is_not_stormed(server, benches):
    server.faults.append(Fault(path=NADS, watch=True, times=10_000, cut=0))
    cluster = benches.make(server, timing=Timing(first=0.1, most=0.4))
    time.sleep(1.0)
    assert len(server.asked("watch", NETWORKS)) <= 12
    assert cluster._networks.state == "away"


def test_what_was_cached_is_served_while_away(server, watching):
    server.stop()
    assert until(lambda: watching._networks.state == "away")
    assert watching.network("default", "a", soon()) is not None
    watching.check()


def test_waiting_times_double_and_are_spread():
    backoff = Backoff(1, 8)
    delays = [backoff.next() for _ in range(6)]
    for delay, whole in zip(delays, (1, 2, 4, 8, 8, 8), strict=True):
        assert whole / 2 <= delay <= whole
    assert backoff.next(30) >= 30
    backoff.reset()
    assert backoff.next() <= 1
    assert QUICK.first < QUICK.most
