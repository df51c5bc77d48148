"""Look-ups against a live API server: what is asked, what is waited for, and what is never said."""

from __future__ import annotations

import threading
import time

import pytest
from tests.kube.api_server import NETWORKS, PODS, Fault, network, pod
from tests.kube.cluster_bench import QUICK, soon, until

from underlay.errors import DeadlineExceeded, NotAvailable, TryAgain
from underlay.kube.reflector import Timing

HASH = "0123456789abcdef0123456789abcdef"


def synchronised(cluster):
    assert until(lambda: not cluster.fault()), cluster.fault()
    assert until(lambda: [each for each in states(cluster) if each != "watching"] == [])


def states(cluster):
    return [cluster._pods.state, cluster._networks.state]


def test_what_is_cached_costs_no_request(server, benches):
    uid = server.put(PODS, pod("web", node="n1", networks="a"))["metadata"]["uid"]
    server.put(NETWORKS, network("a", {"type": "macvlan"}))
    cluster = benches.make(server)
    synchronised(cluster)
    found = cluster.pod("default", "web", soon(), uid)
    assert (found.uid, found.annotations["k8s.v1.cni.cncf.io/networks"], found.static) == (uid, "a", False)
    assert cluster.network("default", "a", soon()).config == '{"type": "macvlan"}'
    assert server.asked("get") == []
    cluster.check()


def test_only_this_nodes_pods_are_heard_of(server, cluster):
    server.put(PODS, pod("mine", node="n1"))
    server.put(PODS, pod("theirs", node="n2"))
    synchronised(cluster)
    assert cluster.pod("default", "mine", soon()) is not None
    assert len(cluster._pods) == 1
    assert {each.query.get("fieldSelector") for each in server.asked(resource="pods")} == {"spec.nodeName=n1"}


def test_a_pod_made_after_the_question_is_waited_for_and_not_asked_for(server, benches):
    cluster = benches.make(server)
    synchronised(cluster)
    threading.Timer(0.1, server.put, (PODS, pod("web", node="n1", uid="u2"))).start()
    assert cluster.pod("default", "web", soon(), "u2").uid == "u2"
    assert server.asked("get") == []


def test_a_pod_that_the_watch_does_not_tell_of_is_asked_for_once_by_all(server, benches):
    server.put(PODS, pod("web", node="elsewhere", uid="u1"))
    cluster = benches.make(server)
    synchronised(cluster)
    server.faults.append(Fault(path="/pods/web", delay=0.3))
    found = []
    threads = [threading.Thread(target=lambda: found.append(cluster.pod("default", "web", soon(), "u1")))
               for _ in range(20)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.uid for each in found] == ["u1"] * 20
    assert len(server.asked("get")) == 1


def test_none_is_said_only_when_the_server_says_404(server, cluster):
    synchronised(cluster)
    assert cluster.pod("default", "gone", soon(), "u1") is None
    server.forbidden.add(("get", "pods"))
    with pytest.raises(TryAgain, match="pod default/gone is not known yet: the API server refuses it: 403"):
        cluster.pod("default", "gone", soon(), "u1")
    server.stop()
    with pytest.raises(TryAgain, match="Connection refused"):
        cluster.pod("default", "gone", soon(), "u1")


def test_the_deadline_ends_the_question(server, cluster):
    synchronised(cluster)
    server.faults.append(Fault(path="/pods/slow", delay=1.0))
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="pod default/slow is not known yet"):
        cluster.pod("default", "slow", began + 0.5, "u1")
    assert time.monotonic() - began < 5


def test_a_pod_made_again_under_the_same_name_is_told_from_its_predecessor(server, cluster):
    server.put(PODS, pod("web-0", node="n1", uid="u1"))
    synchronised(cluster)
    assert cluster.pod("default", "web-0", soon(), "u1").uid == "u1"
    server.delete(PODS, "default", "web-0")
    server.put(PODS, pod("web-0", node="n1", uid="u2", networks="b"))
    found = cluster.pod("default", "web-0", soon(), "u2")
    assert (found.uid, found.annotations["k8s.v1.cni.cncf.io/networks"]) == ("u2", "b")
    assert server.asked("get") == []
    # the old one's call comes late: the API server is asked, and what it has is handed out for comparison
    assert cluster.pod("default", "web-0", soon(), "u1").uid == "u2"
    assert len(server.asked("get")) == 1


def test_an_old_question_does_not_answer_for_a_new_pod(server, cluster):
    """web-0 is deleted, its call asks and is told 404 slowly; meanwhile web-0 is made again elsewhere in the cache."""
    synchronised(cluster)
    server.faults.append(Fault(path="/pods/web-0", delay=0.5))
    old = []
    thread = threading.Thread(target=lambda: old.append(cluster.pod("default", "web-0", soon(), "u1")))
    thread.start()
    assert until(lambda: server.asked("get"))
    server.put(PODS, pod("web-0", node="", uid="u2"))
    assert cluster.pod("default", "web-0", soon(), "u2").uid == "u2"
    thread.join()


def test_a_static_pod_is_known_by_its_mirrors_mark(server, cluster):
    marks = {"kubernetes.io/config.mirror": HASH, "kubernetes.io/config.source": "file"}
    server.put(PODS, pod("proxy-n1", node="n1", annotations=marks))
    synchronised(cluster)
    found = cluster.pod("default", "proxy-n1", soon(), HASH)
    assert found.static
    assert found.uid != HASH
    assert server.asked("get") == []


def test_a_static_pod_without_its_mirror_is_not_taken_for_deleted(server, cluster):
    synchronised(cluster)
    with pytest.raises(TryAgain, match="static pod default/proxy-n1 has no mirror"):
        cluster.pod("default", "proxy-n1", soon(), HASH)


def test_a_network_that_is_none_is_asked_for_once_and_heard_of_when_it_is_made(server, cluster):
    synchronised(cluster)
    for _ in range(5):
        assert cluster.network("kube-system", "file-name", soon()) is None
    assert len(server.asked("get")) == 1
    server.put(NETWORKS, network("file-name", {"type": "macvlan"}, namespace="kube-system"))
    assert until(lambda: cluster.network("kube-system", "file-name", soon()))
    server.delete(NETWORKS, "kube-system", "file-name")
    assert until(lambda: cluster.network("kube-system", "file-name", soon()) is None)


def test_a_name_that_no_object_can_have_is_not_asked_for(server, cluster):
    synchronised(cluster)
    assert cluster.network("kube-system", "../../etc", soon()) is None
    assert cluster.pod("Default", "web", soon()) is None
    assert server.asked("get") == []


def test_before_the_first_list_nothing_is_claimed(server, benches):
    server.stop()
    cluster = benches.make(server)
    with pytest.raises(NotAvailable, match="nothing is known of the cluster's objects yet"):
        cluster.check()
    assert until(lambda: "Connection refused" in cluster.fault())
    with pytest.raises(TryAgain, match="network default/a is not known yet"):
        cluster.network("default", "a", soon())
    server.put(NETWORKS, network("a", {}))
    server.start()
    synchronised(cluster)
    assert cluster.network("default", "a", soon()) is not None


def test_a_look_up_waits_for_the_first_list(server, benches):
    server.put(NETWORKS, network("a", {}))
    server.put(PODS, pod("web", node="n1", uid="u1"))
    server.faults += [Fault(path="/pods", watch=False, delay=0.1), Fault(path="/network", watch=False, delay=0.1)]
    cluster = benches.make(server)
    assert cluster.network("default", "a", soon()) is not None
    assert cluster.pod("default", "web", soon(), "u1") is not None
    assert server.asked("get") == []


def test_a_cluster_without_the_definitions_crd_says_so(server, benches):
    server.faults.append(Fault(path="/network-attachment", times=1000, status=404))
    cluster = benches.make(server)
    assert until(lambda: "has no network-attachment-definitions" in cluster.fault()), cluster.fault()
    assert cluster.network("default", "a", soon()) is None
    assert len(server.asked("list", "network-attachment-definitions")) < 50


def test_the_source_stops_within_a_moment(server, benches):
    cluster = benches.make(server, timing=QUICK)
    synchronised(cluster)
    began = time.monotonic()
    benches.close()
    assert time.monotonic() - began < 5
    assert [each.name for each in threading.enumerate() if each.name.startswith(("watch-", "publisher"))] == []


def test_a_burst_of_new_pods_is_answered_by_the_watch_alone(server, benches):
    cluster = benches.make(server, timing=Timing(patience=10, first=0.02, most=0.1))
    synchronised(cluster)
    found = []

    def add(number):
        found.append(cluster.pod("default", f"web-{number}", soon(20), f"u{number}").uid)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(100)]
    for thread in threads:
        thread.start()
    for number in reversed(range(100)):
        server.put(PODS, pod(f"web-{number}", node="n1", uid=f"u{number}"))
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(f"u{number}" for number in range(100))
    assert server.asked("get") == []
