"""The tests' own API server does as the Kubernetes API concepts say; asked by urllib, not by our client."""

from __future__ import annotations

import json
import ssl
import threading
import urllib.error
import urllib.request

import pytest
from tests.kube.api_objects import BLOCKS
from tests.kube.api_server import EVENTS, NETWORKS, PODS, ApiServer, Fault, network, pod
from tests.kube.authority import Authority

NADS = "/apis/k8s.cni.cncf.io/v1/network-attachment-definitions"
STATUS = "/api/v1/namespaces/default/pods/web/status"


def ask(server, path, *, method="GET", body=None, context=None, headers=None):
    kind = {"Content-Type": "application/merge-patch+json"} if method == "PATCH" else {}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, {**kind, **(headers or {})}, method=method)
    with urllib.request.urlopen(request, timeout=10, context=context) as answer:
        return json.load(answer)


def refusal(server, path, **more):
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(server, path, **more)
    with caught.value as answer:
        return answer.code, json.load(answer)["reason"], answer.headers


def events(server, path, count):
    with urllib.request.urlopen(server.url + path, timeout=10) as stream:
        return [json.loads(stream.readline()) for _ in range(count)]


def test_a_list_comes_in_pages_of_one_version(server):
    for number in range(5):
        server.put(NETWORKS, network(f"n{number}", {}))
    first = ask(server, f"{NADS}?limit=2")
    server.put(NETWORKS, network("later", {}))
    second = ask(server, f"{NADS}?limit=2&continue={first['metadata']['continue']}")
    third = ask(server, f"{NADS}?limit=2&continue={second['metadata']['continue']}")
    names = [each["metadata"]["name"] for page in (first, second, third) for each in page["items"]]
    assert names == ["n0", "n1", "n2", "n3", "n4"]
    assert first["metadata"]["resourceVersion"] == third["metadata"]["resourceVersion"]
    assert "continue" not in third["metadata"]


def test_a_watch_tells_what_comes_to_and_leaves_the_selection(server):
    version = ask(server, "/api/v1/pods")["metadata"]["resourceVersion"]
    server.put(PODS, pod("elsewhere", node="n2"))
    server.put(PODS, pod("web", node=""))
    server.put(PODS, pod("web", node="n1"))
    server.put(PODS, pod("web", node="n1"))
    server.delete(PODS, "default", "web")
    found = events(server, f"/api/v1/pods?watch=1&fieldSelector=spec.nodeName%3Dn1&resourceVersion={version}", 3)
    assert [(each["type"], each["object"]["metadata"]["name"]) for each in found] == [
        ("ADDED", "web"),
        ("MODIFIED", "web"),
        ("DELETED", "web"),
    ]


def test_a_quiet_watch_gets_bookmarks_that_move_on(server):
    server.bookmark_every = 0.05
    server.put(PODS, pod("web", node="n1"))
    path = f"{NADS}?watch=1&allowWatchBookmarks=true&resourceVersion={server.objects.version - 1}"
    (bookmark,) = events(server, path, 1)
    assert bookmark["type"] == "BOOKMARK"
    assert bookmark["object"]["metadata"]["resourceVersion"] == str(server.objects.version)


def test_a_lost_history_is_410_before_and_an_error_event_in_the_stream(server):
    version = server.objects.version
    timer = threading.Timer(0.1, server.objects.lose_history)
    timer.start()
    (error,) = events(server, f"{NADS}?watch=1&resourceVersion={version}", 1)
    assert (error["type"], error["object"]["code"]) == ("ERROR", 410)
    assert refusal(server, f"{NADS}?watch=1&resourceVersion={version}")[:2] == (410, "Expired")


def test_a_patch_of_another_uid_is_a_conflict_and_of_nothing_not_found(server):
    uid = server.put(PODS, pod("web", node="n1"))["metadata"]["uid"]
    patch = {"metadata": {"uid": uid, "annotations": {"a": "b"}}, "spec": {"nodeName": "n9"}}
    assert ask(server, STATUS, method="PATCH", body=patch)["metadata"]["annotations"]["a"] == "b"
    assert server.get(PODS, "default", "web")["spec"]["nodeName"] == "n1"
    patch["metadata"]["uid"] = "another"
    assert refusal(server, STATUS, method="PATCH", body=patch)[:2] == (409, "Conflict")
    server.delete(PODS, "default", "web")
    assert refusal(server, STATUS, method="PATCH", body=patch)[:2] == (404, "NotFound")


def test_an_object_is_created_once(server):
    path = "/api/v1/namespaces/default/events"
    ask(server, path, method="POST", body={"metadata": {"name": "e"}})
    assert refusal(server, path, method="POST", body={"metadata": {"name": "e"}})[:2] == (409, "AlreadyExists")
    assert len(server.objects.all(EVENTS)) == 1


BLOCK = "/apis/underlay.io/v1alpha1/underlayipblocks"


def test_a_replacement_of_another_version_is_a_conflict(server):
    made = ask(server, BLOCK, method="POST", body={"metadata": {"name": "b"}, "spec": {"a": 1, "b": 1}})
    assert "namespace" not in made["metadata"]
    replaced = ask(server, f"{BLOCK}/b", method="PUT", body={**made, "spec": {"a": 2}})
    assert (replaced["spec"], replaced["metadata"]["uid"]) == ({"a": 2}, made["metadata"]["uid"])
    assert refusal(server, f"{BLOCK}/b", method="PUT", body=made)[:2] == (409, "Conflict")
    assert refusal(server, BLOCK, method="POST", body=made)[:2] == (400, "BadRequest")
    assert refusal(server, f"{BLOCK}/c", method="PUT", body={"metadata": {"name": "c"}})[:2] == (404, "NotFound")


def test_a_patch_of_another_version_is_a_conflict_and_one_that_names_none_is_not(server):
    made = server.put(BLOCKS, {"metadata": {"name": "b"}, "spec": {"a": {"x": 1}, "b": 1}})
    version = made["metadata"]["resourceVersion"]
    first = {"metadata": {"resourceVersion": version}, "spec": {"a": {"y": 2}, "b": None}}
    assert ask(server, f"{BLOCK}/b", method="PATCH", body=first)["spec"] == {"a": {"x": 1, "y": 2}}
    assert refusal(server, f"{BLOCK}/b", method="PATCH", body=first)[:2] == (409, "Conflict")
    assert ask(server, f"{BLOCK}/b", method="PATCH", body={"spec": {"b": 3}})["spec"]["b"] == 3


def test_what_a_watch_has_yet_to_tell_is_as_it_was(server):
    made = server.put(BLOCKS, {"metadata": {"name": "b"}, "spec": {"a": 1}})
    patched = ask(server, f"{BLOCK}/b", method="PATCH", body={"spec": {"a": 2}})
    version = int(made["metadata"]["resourceVersion"]) - 1
    found = events(server, f"{BLOCK}?watch=1&resourceVersion={version}", 2)
    assert [each["object"] for each in found] == [made, patched]


def test_what_is_not_served_is_not_found(server):
    server.unserved.add(BLOCKS)
    assert refusal(server, BLOCK)[:2] == (404, "NotFound")


def test_metadata_alone_is_served_where_it_is_asked_for(server):
    server.put(PODS, pod("web", node="n1"))
    accept = {"Accept": "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"}
    listed = ask(server, "/api/v1/pods", headers=accept)
    assert listed["kind"] == "PartialObjectMetadataList"
    assert set(listed["items"][0]) == {"apiVersion", "kind", "metadata"}


def test_faults_are_met_as_often_as_wanted(server):
    server.faults.append(Fault(path="/pods", status=429, retry_after=7, times=1))
    code, _, headers = refusal(server, "/api/v1/pods")
    assert (code, headers["Retry-After"]) == (429, "7")
    ask(server, "/api/v1/pods")
    server.faults.append(Fault(cut=0))
    with pytest.raises(ConnectionError):
        ask(server, "/api/v1/pods")
    server.forbidden.add(("list", "pods"))
    assert refusal(server, "/api/v1/pods")[:2] == (403, "Forbidden")
    assert [each.verb for each in server.requests] == ["list"] * 4


def test_it_goes_away_and_comes_back_at_the_same_port(server):
    server.put(PODS, pod("web", node="n1"))
    server.stop()
    with pytest.raises(urllib.error.URLError):
        ask(server, "/api/v1/pods")
    server.start()
    assert len(ask(server, "/api/v1/pods")["items"]) == 1


def test_tls_tokens_and_client_certificates_tell_users_apart(tmp_path):
    authority = Authority(tmp_path)
    with ApiServer(authority=authority, tokens={"t1": "by-token"}) as server:
        context = ssl.create_default_context(cafile=authority.ca_file)
        assert refusal(server, "/api/v1/pods", context=context)[0] == 401
        ask(server, "/api/v1/pods", context=context, headers={"Authorization": "Bearer t1"})
        context.load_cert_chain(*authority.client("by-certificate"))
        ask(server, "/api/v1/pods", context=context)
        assert [each.user for each in server.requests] == ["by-token", "by-certificate"]
