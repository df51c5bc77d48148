"""Pools of applications: what is made, resized and removed, of pictures of a cluster that may be late."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.controller.pictures import Object, lease, picture, pod, pool, reserved, subnet

from underlay.controller.applications import APPLICATION, Applications, application_of
from underlay.controller.idle_pools import IdlePools
from underlay.controller.watched import Document
from underlay.ipam.pools.lease import KEPT
from underlay.ipam.pools.objects import Pool, overlaps, parse_object

P = "ipam.spidernet.io/"
WEB = ("ReplicaSet", "web-5d9f")
LABELS = {"pod-template-hash": "5d9f"}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def a_pod(number: int, app: str = "web", asks: str = '{"ipv4": ["s"]}', **annotations: str) -> Any:
    told = {f"{P}subnet": asks} | {f"{P}{key.replace('_', '-')}": value for key, value in annotations.items()}
    return pod(f"{app}-{number}", "shop", owner=("ReplicaSet", f"{app}-5d9f"), labels=LABELS, annotations=told)


def pods(number: int, **annotations: str) -> list[Any]:
    return [a_pod(n, **annotations) for n in range(number)]


def made(write: Any) -> Object:
    """The object as it is once it has been made."""
    body = json.loads(write.body)
    body["metadata"] |= {"uid": f"uid-{body['metadata']['name']}", "resourceVersion": "1"}
    return Object("SpiderIPPool", msgspec.convert(body, Document))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def planning(log, clock) -> Applications:
    return Applications(log, shrink=60, monotonic=clock)


def ips(write: Any) -> list[str]:
    return list(json.loads(write.body)["spec"]["ips"])


def test_a_pool_is_made_as_the_field_makes_it(planning):
    around = subnet(gateway="10.0.0.1", routes=[{"dst": "10.7.0.0/16", "gw": "10.0.0.2"}])
    (write,) = planning.plan(picture(around, *pods(2))).writes
    body = json.loads(write.body)
    name = body["metadata"]["name"]
    assert (write.method, name.startswith("auto4-web-eth0-")) == ("POST", True)
    assert body["metadata"] == {
        "name": name,
        "finalizers": ["spiderpool.spidernet.io"],
        "annotations": {APPLICATION: "Deployment/shop/web"},
        "labels": {
            f"{P}owner-application-gv": "apps_v1", f"{P}owner-application-kind": "Deployment",
            f"{P}owner-application-name": "web", f"{P}owner-application-namespace": "shop",
            f"{P}owner-spider-subnet": "s", f"{P}ippool-cidr": "10-0-0-0-24", f"{P}ippool-reclaim": "true",
            f"{P}ip-version": "IPv4", f"{P}interface": "eth0",
        },
    }  # fmt: skip
    assert body["spec"] == {
        "ipVersion": 4, "subnet": "10.0.0.0/24", "ips": ["10.0.0.10-10.0.0.12"], "vlan": 0, "gateway": "10.0.0.1",
        "routes": [{"dst": "10.7.0.0/16", "gw": "10.0.0.2"}], "default": False, "disable": False,
        "podAffinity": {"matchLabels": {
            f"{P}app-api-group": "apps", f"{P}app-api-version": "v1", f"{P}app-kind": "Deployment",
            f"{P}app-name": "web", f"{P}app-namespace": "shop",
        }},
    }  # fmt: skip
    assert isinstance(parse_object(body), Pool)


@pytest.mark.parametrize(("number", "count", "size"), [("3", 1, 3), ("3", 5, 3), ("+0", 4, 4), ("+2", 4, 6)])
def test_fixed_and_flexible_sizes(planning, number, count, size):
    (write,) = planning.plan(picture(subnet(), *pods(count, ippool_ip_number=number))).writes
    assert ips(write) == [f"10.0.0.10-10.0.0.{9 + size}"]


def test_both_families_and_several_nics_have_pools_of_their_own(planning):
    six = subnet("t", subnet="fd00::/64", ips=["fd00::10-fd00::99"])
    asks = '[{"interface": "net1", "ipv4": ["s"], "ipv6": ["t"]}, {"interface": "net2", "ipv4": ["s"]}]'
    web = pod("web-1", "shop", owner=WEB, labels=LABELS, annotations={f"{P}subnets": asks})
    writes = planning.plan(picture(subnet(), six, web)).writes
    assert sorted(ips(write)[0] for write in writes) == [
        "10.0.0.10-10.0.0.11", "10.0.0.12-10.0.0.13", "fd00::10-fd00::11",
    ]  # fmt: skip


def test_what_pools_list_reservations_have_and_leases_hold_is_not_cut(planning):
    around = [subnet(), pool(ips=["10.0.0.10"]), reserved("10.0.0.11"), lease("10.0.0.12", "gone")]
    (write,) = planning.plan(picture(*around, *pods(1))).writes
    assert ips(write) == ["10.0.0.13-10.0.0.14"]


def test_nothing_is_written_where_the_pool_fits(planning):
    (write,) = planning.plan(picture(subnet(), *pods(2))).writes
    assert planning.plan(picture(subnet(), *pods(2), made(write))).writes == []


def test_a_pool_grows_with_its_pods_and_shrinks_after_a_while(planning, clock):
    there = made(planning.plan(picture(subnet(), *pods(1))).writes[0])
    (write,) = planning.plan(picture(subnet(), *pods(3), there)).writes
    assert (write.method, ips(write)) == ("PATCH", ["10.0.0.10-10.0.0.13"])
    assert json.loads(write.body)["metadata"]["resourceVersion"] == "1"
    spec = {**there.document.spec, "ips": ips(write)}
    grown = Object("SpiderIPPool", msgspec.structs.replace(there.document, spec=spec))
    few = (subnet(), *pods(1), grown, lease("10.0.0.12", grown.document.name))
    assert planning.plan(picture(*few)).writes == []
    clock.now += 59
    assert planning.plan(picture(*few)).writes == []
    clock.now += 2
    (write,) = planning.plan(picture(*few)).writes
    assert ips(write) == ["10.0.0.10", "10.0.0.12"]  # what is in use stays


def test_the_next_subnet_serves_where_one_is_used_up(planning, log):
    small = subnet("small", ips=["10.0.0.200"])
    asks = '{"ipv4": ["small", "s"]}'
    writes = planning.plan(picture(small, subnet(), *[a_pod(n, asks=asks) for n in range(2)])).writes
    assert [ips(write) for write in writes] == [["10.0.0.200"], ["10.0.0.10-10.0.0.11"]]
    assert list(log) == []


def test_pods_that_begin_with_the_same_subnet_share_a_pool_whatever_else_they_list(planning):
    """A rollout that changes the annotation has both kinds for a while."""
    other = subnet("t", subnet="10.1.0.0/24", ips=["10.1.0.10-10.1.0.99"])
    mixed = [a_pod(1), a_pod(2, asks='{"ipv4": ["s", "t"]}'), a_pod(3, asks='{"ipv4": ["t"]}')]
    writes = planning.plan(picture(subnet(), other, *mixed)).writes
    assert [ips(write) for write in writes] == [["10.0.0.10-10.0.0.12"], ["10.1.0.10-10.1.0.11"]]
    there = [made(write) for write in writes]
    assert planning.plan(picture(subnet(), other, *mixed, *there)).writes == []


def test_nothing_is_cut_from_a_subnet_in_deletion(planning):
    going = subnet(metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"})
    assert planning.plan(picture(going, *pods(1))).writes == []


def test_that_a_subnet_is_used_up_is_said_once(planning, log):
    known = picture(subnet(ips=["10.0.0.10"]), *pods(3))
    planning.plan(known)
    planning.plan(known)
    assert [(event, fields) for _, event, fields in log] == [
        ("no address is left to cut for Deployment/shop/web from s", {"missing": 3})
    ]


def test_an_annotation_that_is_wrong_or_a_subnet_that_is_not_there_is_the_pods_affair(planning, log):
    assert planning.plan(picture(subnet(), a_pod(1, asks="["), a_pod(2, "api", asks='{"ipv4": ["x"]}'))).writes == []
    assert list(log) == []


def test_a_pool_that_nobody_needs_is_idle_unless_it_is_to_stay_or_something_is_held(planning):
    there = made(planning.plan(picture(subnet(), *pods(1))).writes[0])
    lasting = picture(subnet(), *pods(1, ippool_reclaim="false"))
    stays = made(Applications(lambda *_, **__: None).plan(lasting).writes[0])
    assert [each.name for each in planning.plan(picture(subnet(), there)).idle] == [there.document.name]
    assert planning.plan(picture(subnet(), stays)).idle == []
    assert planning.plan(picture(subnet(), there, *pods(1))).idle == []
    kept = lease("10.0.0.10", there.document.name, pod="", state=KEPT, keeper="StatefulSet/shop/db-0")
    assert planning.plan(picture(subnet(), there, kept)).idle == []
    theirs = {"allocatedIPs": '{"10.0.0.10":{"pod":"shop/web","podUid":"uid-web"}}'}
    adopting = Object("SpiderIPPool", msgspec.structs.replace(there.document, status=theirs))
    assert planning.plan(picture(subnet(), adopting, pod("web", namespace="shop"))).idle == []
    assert planning.plan(picture(subnet(), pool())).idle == []  # one that somebody wrote


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("pods"), st.sampled_from(["a", "b", "c"]), st.integers(0, 5)),
        st.tuples(st.just("wait"), st.just(""), st.integers(1, 40)),
    ),
    max_size=25,
)


@settings(max_examples=40)
@given(STEPS, st.integers(0, 4))
def test_pools_never_get_the_same_addresses_however_late_the_watch_is(steps, lag):
    clock = Clock()
    planning = Applications(lambda *_, **__: None, shrink=5, monotonic=clock)
    stored: dict[str, Object] = {}
    shown: deque[dict[str, Object]] = deque([{}] * (lag + 1), maxlen=lag + 1)
    count = {"a": 0, "b": 0, "c": 0}
    for what, app, number in steps:
        if what == "pods":
            count[app] = number
        else:
            clock.now += number / 10
        apps = [a_pod(n, name, ippool_ip_number="+0") for name, many in count.items() for n in range(many)]
        plan = planning.plan(picture(subnet(ips=["10.0.0.10-10.0.0.20"]), *shown[0].values(), *apps))
        for write in plan.writes:
            body = json.loads(write.body)
            if write.method == "POST":
                stored.setdefault(write.thing.name, made(write))  # 409 where it is there already
                continue
            old = stored[write.thing.name].document
            if old.metadata.resource_version == body["metadata"]["resourceVersion"]:
                version = str(int(old.metadata.resource_version) + 1)
                meta = msgspec.structs.replace(old.metadata, resource_version=version)
                new = msgspec.structs.replace(old, metadata=meta, spec={**old.spec, "ips": body["spec"]["ips"]})
                stored[write.thing.name] = Object("SpiderIPPool", new)
        shown.append(dict(stored))
        pools = [parse_object({"kind": "SpiderIPPool", "metadata": {"name": name}, "spec": one.document.spec})
                 for name, one in stored.items()]  # fmt: skip
        assert overlaps([one for one in pools if isinstance(one, Pool)]) == []


# -- which may go ------------------------------------------------------------------------------------------------------


def idle(kind: str = "Deployment") -> Document:
    return pool("auto", metadata={"annotations": {APPLICATION: f"{kind}/shop/web"}}).document


def test_the_application_is_read_off_the_pool():
    assert application_of(idle()) == ("Deployment", "shop", "web")


def test_a_pool_goes_when_the_api_server_says_that_the_application_is_gone(server, client, log):
    looking = IdlePools(client(), log, lambda: 1e12, again=0.0)
    server.put("deployments", {"metadata": {"name": "web", "namespace": "shop"}})
    looking.look([idle()])
    assert not looking.gone(idle())
    server.delete("deployments", "shop", "web")
    server.forbidden.add(("get", "deployments"))
    looking.look([idle()])
    assert not looking.gone(idle())
    server.forbidden.clear()
    looking.look([idle()])
    assert looking.gone(idle())
    looking.look([])
    assert not looking.gone(idle())


def test_of_a_kind_that_cannot_be_asked_about_the_pool_goes_after_a_while(server, client, log):
    clock = Clock()
    looking = IdlePools(client(), log, lambda: 1e12, again=0.0, monotonic=clock)
    looking.look([idle("CloneSet")])
    assert not looking.gone(idle())
    clock.now += 61
    looking.look([idle("CloneSet")])
    assert looking.gone(idle())
    assert server.requests == []
