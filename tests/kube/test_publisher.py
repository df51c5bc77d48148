"""Status and Events: written after the ADD, in order, once, to the right pod, over an API server's absence."""

from __future__ import annotations

import json
import time

import pytest
from tests.kube.api_server import EVENTS, PODS, Fault, pod
from tests.kube.cluster_bench import QUICK, soon, until

from underlay.kube import recorder as recorder_module
from underlay.kube.backoff import Backoff
from underlay.kube.faults import Refused
from underlay.kube.objects import Pod

STATUS = "k8s.v1.cni.cncf.io/network-status"


def made(server, name="web", uid="u1", **more):
    server.put(PODS, pod(name, node="n1", uid=uid, **more))
    return Pod("default", name, uid)


def status_of(server, name="web"):
    found = server.get(PODS, "default", name)
    return found and found["metadata"]["annotations"].get(STATUS)


def written(cluster):
    assert until(lambda: cluster.waiting() == 0), cluster.waiting()


def test_a_status_is_a_patch_of_the_status_subresource_with_the_pods_uid(server, cluster):
    cluster.write_status(made(server), b'[{"name": "a"}]')
    written(cluster)
    assert status_of(server) == '[{"name": "a"}]'
    (request,) = server.asked("patch")
    assert request.resource == "pods/status"
    assert json.loads(request.body)["metadata"]["uid"] == "u1"


def test_a_pod_costs_one_patch_and_one_event(server, benches):
    pods = [made(server, f"web-{number}", f"u{number}") for number in range(50)]
    cluster = benches.make(server)
    assert until(lambda: not cluster.fault())
    for each in pods:
        assert cluster.pod(each.namespace, each.name, soon(), each.uid) is not None
        cluster.write_status(each, b"[]")
        cluster.event(each, "Normal", "AddedInterface", "Add net1 [172.18.8.50/16]")
    written(cluster)
    per_pod = [request for request in server.requests if request.verb in ("get", "create", "patch", "update")]
    assert len(per_pod) == 100
    assert len(server.asked("create", EVENTS)) == 50


def test_an_event_names_the_pod_its_cause_and_its_source(server, cluster):
    cluster.event(made(server), "Warning", "NoNetworkFound", "network default/b is not defined")
    written(cluster)
    (event,) = server.objects.all(EVENTS)
    assert event["involvedObject"] == {
        "apiVersion": "v1", "kind": "Pod", "namespace": "default", "name": "web", "uid": "u1",
    }  # fmt: skip
    assert (event["type"], event["reason"], event["count"]) == ("Warning", "NoNetworkFound", 1)
    assert event["message"] == "network default/b is not defined"
    assert event["source"] == {"component": "underlay", "host": "n1"}
    assert event["firstTimestamp"].endswith("Z")


def test_the_same_event_again_is_counted_and_a_flood_is_kept_back(server, cluster):
    web = made(server)
    for _ in range(3):
        cluster.event(web, "Warning", "NoNetworkFound", "network default/b is not defined")
        written(cluster)
    (event,) = server.objects.all(EVENTS)
    assert event["count"] == 3
    for _ in range(100):
        cluster.event(web, "Warning", "NoNetworkFound", "network default/b is not defined")
        written(cluster)
    assert len(server.asked(resource=EVENTS)) <= 5
    cluster.event(web, "Normal", "AddedInterface", "another reason has its own rate")
    written(cluster)
    assert len(server.objects.all(EVENTS)) == 2


def test_what_was_kept_back_is_in_the_next_count(server, cluster, monkeypatch):
    web = made(server)
    for _ in range(20):
        cluster.event(web, "Warning", "R", "words")
        written(cluster)
    monkeypatch.setattr(recorder_module, "_REFILL_SECONDS", 1e-6)
    cluster.event(web, "Warning", "R", "words")
    written(cluster)
    (event,) = server.objects.all(EVENTS)
    assert event["count"] == 21


def test_an_event_that_the_server_has_forgotten_is_made_anew(server, cluster):
    web = made(server)
    cluster.event(web, "Normal", "R", "words")
    written(cluster)
    (event,) = server.objects.all(EVENTS)
    server.delete(EVENTS, "default", event["metadata"]["name"])
    cluster.event(web, "Normal", "R", "words")
    written(cluster)
    assert [each["count"] for each in server.objects.all(EVENTS)] == [2]


def test_what_happens_while_the_server_says_that_it_has_forgotten_an_event_is_counted(server, cluster, monkeypatch):
    web = made(server)
    cluster.event(web, "Normal", "R", "words")
    written(cluster)
    (event,) = server.objects.all(EVENTS)
    server.delete(EVENTS, "default", event["metadata"]["name"])
    send = cluster._client.call

    def refused(method, *arguments, **more):
        try:
            return send(method, *arguments, **more)
        except Refused:
            monkeypatch.setattr(cluster._client, "call", send)
            cluster.event(web, "Normal", "R", "words")
            raise

    monkeypatch.setattr(cluster._client, "call", refused)
    cluster.event(web, "Normal", "R", "words")
    written(cluster)
    assert [each["count"] for each in server.objects.all(EVENTS)] == [3]


def test_a_status_that_was_refused_and_dropped_is_not_waited_for(server, benches, monkeypatch):
    """Its moment passes, and whoever waited for that would look again and again while another waits for longer."""
    server.faults.append(Fault(path="/pods/", status=500, times=2))
    cluster = benches.make(server, start=False)
    publisher = cluster._threads[-1]
    for name in "ab":
        cluster.write_status(made(server, name, name), b"[]")
        publisher._try(*cluster._outbox.first(publisher._is_due))
    publisher._lanes["default", "b"] = (time.monotonic() + 60, Backoff())
    cluster.drop_status("default", "a", "a")
    waits = []
    monkeypatch.setattr(cluster._outbox.changed, "wait", waits.append)
    time.sleep(QUICK.most)
    publisher._idle()
    assert waits[0] > 30


def test_a_long_message_is_cut_to_what_the_server_takes(server, cluster):
    cluster.event(made(server), "Warning", "R", "x" * 5000)
    written(cluster)
    assert len(server.objects.all(EVENTS)[0]["message"]) == 1024


def test_a_pod_made_again_never_gets_its_predecessors_status(server, benches):
    old = made(server, uid="u1")
    cluster = benches.make(server, start=False)
    cluster.write_status(old, b"old")
    server.delete(PODS, "default", "web")
    new = made(server, uid="u2")
    cluster.write_status(new, b"new")
    cluster.start()
    written(cluster)
    assert status_of(server) == "new"


def test_a_predecessors_status_is_tried_once_however_late_the_watch_hears_of_the_new_pod(server, benches):
    old = made(server, uid="u1")
    cluster = benches.make(server)
    assert until(lambda: cluster.known_pod("default", "web", "u1"))
    server.stop()
    cluster.write_status(old, b"old")
    server.delete(PODS, "default", "web")
    new = made(server, uid="u2")
    cluster.write_status(new, b"new")
    server.faults.append(Fault(path="/pods", method="GET", status=500, times=1000))
    server.start()
    written(cluster)
    assert cluster.known_pod("default", "web", "u1")
    assert status_of(server) == "new"
    assert [json.loads(request.body)["metadata"]["uid"] for request in server.asked("patch")] == ["u1", "u2"]


def test_the_status_of_a_pod_that_is_gone_is_dropped(server, cluster):
    cluster.write_status(Pod("default", "gone", "u1"), b"[]")
    written(cluster)
    assert len(server.asked("patch")) == 1


def test_only_the_newest_status_of_a_pod_is_written(server, benches):
    web = made(server)
    cluster = benches.make(server, start=False)
    for number in range(10):
        cluster.write_status(web, str(number).encode())
    cluster.start()
    written(cluster)
    assert status_of(server) == "9"
    assert len(server.asked("patch")) == 1


@pytest.mark.parametrize(("uid", "waiting"), [("u1", 0), ("", 0), ("u2", 1)])
def test_a_dropped_status_is_never_written(server, benches, uid, waiting):
    cluster = benches.make(server, start=False)
    cluster.write_status(made(server), b"[]")
    cluster.drop_status("default", "web", uid)
    assert cluster.waiting() == waiting


def test_a_static_pods_status_is_dropped_by_the_uid_that_the_runtime_knows(server, benches):
    cluster = benches.make(server, start=False)
    cluster.write_status(Pod("default", "proxy", "mirror-uid", static=True), b"[]")
    cluster.drop_status("default", "proxy", "0123456789abcdef0123456789abcdef")
    assert cluster.waiting() == 0


def test_after_the_servers_absence_and_a_restart_everything_arrives_in_order_and_once(server, benches):
    pods = [made(server, f"web-{number}", f"u{number}") for number in range(5)]
    cluster = benches.make(server)
    assert until(lambda: not cluster.fault())
    server.stop()
    for each in pods:
        cluster.write_status(each, each.uid.encode())
        cluster.event(each, "Normal", "AddedInterface", f"of {each.name}")
        cluster.event(each, "Warning", "Other", f"of {each.name}")
    assert until(lambda: "status and Events wait for the API server" in benches.log.events())
    benches.close()

    again = benches.make(server)  # a restart while away: what is known is served
    assert again.waiting() == 15
    assert again.pod("default", "web-3", soon(), "u3").uid == "u3"
    again.check()
    server.start()
    written(again)
    asked = [(each.resource, each.name or json.loads(each.body)["message"]) for each in server.requests
             if each.verb in ("create", "patch")]  # fmt: skip
    expected = [[("pods/status", each.name), (EVENTS, f"of {each.name}"), (EVENTS, f"of {each.name}")] for each in pods]
    assert asked == [request for of_one in expected for request in of_one]
    assert [status_of(server, each.name) for each in pods] == [each.uid for each in pods]
    assert len(server.objects.all(EVENTS)) == 10


def test_an_answer_that_is_lost_does_not_make_an_event_twice(server, cluster):
    server.faults.append(Fault(path="/events", method="POST", after=True))
    cluster.event(made(server), "Normal", "R", "words")
    written(cluster)
    assert len(server.objects.all(EVENTS)) == 1
    assert len(server.asked("create")) == 2


def test_one_pod_that_is_refused_holds_nobody_up(server, cluster):
    server.faults.append(Fault(path="/pods/bad/", times=3, status=500))
    cluster.write_status(made(server, "bad"), b"[]")
    cluster.write_status(made(server, "good", "u2"), b"[]")
    written(cluster)
    assert (status_of(server, "bad"), status_of(server, "good")) == ("[]", "[]")
    assert [each.name for each in server.asked("patch")][:2] == ["bad", "good"]


def test_a_busy_server_is_not_asked_before_its_time(server, cluster):
    server.faults.append(Fault(method="PATCH", status=429, retry_after=1))
    cluster.write_status(made(server, "a"), b"[]")
    cluster.write_status(made(server, "b", "u2"), b"[]")
    written(cluster)
    first, *others = server.asked("patch")
    assert len(others) == 2
    assert others[0].at - first.at >= 1


def test_a_conflict_with_a_quicker_writer_is_tried_again(server, cluster):
    web = made(server)
    assert until(lambda: cluster._pods.find(("default", "web")))
    server.faults.append(Fault(method="PATCH", status=409))
    cluster.write_status(web, b"[]")
    written(cluster)
    assert status_of(server) == "[]"


def test_an_event_without_permission_is_dropped_and_said(server, cluster, benches):
    server.forbidden.add(("create", EVENTS))
    cluster.event(made(server), "Normal", "R", "words")
    written(cluster)
    assert "Event is refused" in benches.log.events()


def test_a_status_without_permission_waits_until_it_is_given(server, cluster, benches):
    server.forbidden.add(("patch", "pods/status"))
    cluster.write_status(made(server), b"[]")
    assert until(lambda: "network-status is refused" in benches.log.events())
    server.forbidden.clear()
    written(cluster)
    assert status_of(server) == "[]"


def test_too_many_events_push_out_the_oldest_but_no_status(server, benches):
    cluster = benches.make(server, start=False)
    cluster.write_status(made(server), b"[]")
    began = time.monotonic()
    for number in range(1010):
        cluster.event(Pod("default", f"p{number}", f"u{number}"), "Normal", "R", "words")
    print(f"1010 Events into the outbox: {time.monotonic() - began:.3f} s")
    assert cluster.waiting() == 1001
