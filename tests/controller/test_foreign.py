"""What Spiderpool itself has given to pods is neither overwritten nor passed over, before anybody has adopted it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.controller.pictures import endpoint, lease, picture, pod, pool

from underlay.controller import foreign, upkeep, views
from underlay.controller.view_writes import of_views
from underlay.ipam.pools.lease import HELD, KEPT
from underlay.multus import lint_pools
from underlay.multus.findings import Subject

THEIRS = "spiderpool.spidernet.io"


def allocated(**entries: tuple[str, str]) -> dict[str, Any]:
    """A status as Spiderpool writes it: ``_10`` is 10.0.0.10, of pod "namespace/name" and UID."""
    told = {f"10.0.0.{key[1:]}": {"pod": name, "podUid": uid} for key, (name, uid) in entries.items()}
    return {"allocatedIPCount": len(told), "totalIPCount": 10, "allocatedIPs": json.dumps(told)}


def an_endpoint(name: str, uid: str, *ips: str, kind: str = "Pod", finalizer: str = THEIRS, **metadata: Any) -> Any:
    nics = [{"interface": "net1", "ipv4": f"{ip}/24", "ipv4Pool": "p", "vlan": 0, "cleanGateway": False} for ip in ips]
    status = {"current": {"uid": uid, "node": "n1", "ips": nics}, "ownerControllerType": kind,
              "ownerControllerName": name}  # fmt: skip
    return endpoint(name, status, finalizers=[finalizer] if finalizer else [], **metadata)


WEB = (pool(status=allocated(_10=("default/web", "uid-web"))), pod("web"))


def shown(known: Any) -> dict[str, dict[str, str]]:
    return json.loads(views.pool_statuses(known)["p"].get("allocatedIPs", "{}"))


def test_what_a_living_pod_holds_stays_in_the_status_beside_ours():
    known = picture(*WEB, lease("10.0.0.11", pod="default/ours"))
    assert shown(known) == {
        "10.0.0.10": {"pod": "default/web", "podUid": "uid-web"},
        "10.0.0.11": {"pod": "default/ours", "podUid": "uid-ours", "state": "held"},
    }
    assert views.pool_statuses(known)["p"]["allocatedIPCount"] == 2


def test_what_is_written_is_read_again_as_what_it_was():
    known = picture(*WEB, lease("10.0.0.11", pod="default/ours"))
    again = picture(pool(status=views.pool_statuses(known)["p"]), *WEB[1:], lease("10.0.0.11", pod="default/ours"))
    assert again.foreign == known.foreign
    assert [one for one in of_views(again) if one.thing.plural == "spiderippools"] == []


def test_what_is_ours_and_has_been_given_back_is_not_taken_for_theirs():
    before = picture(pool(), pod("web"), lease("10.0.0.10"))
    after = picture(pool(status=views.pool_statuses(before)["p"]), pod("web"))
    assert after.foreign == frozenset()
    assert shown(after) == {}


@pytest.mark.parametrize("pods", [[], [pod("web", uid="another")]])
def test_a_pod_that_is_gone_holds_nothing(pods):
    known = picture(WEB[0], *pods)
    assert known.foreign == frozenset()
    assert shown(known) == {}


def test_a_static_pod_is_known_by_its_name_whichever_mirror_it_has():
    """The kubelet makes the mirror anew, under another UID, and the containers run on."""
    mirror = pod("web", uid="another", annotations={"kubernetes.io/config.mirror": "hash"})
    (found,) = picture(WEB[0], mirror).foreign
    assert (found.shown, found.uid, found.keeper) == ("10.0.0.10", "hash", "Pod/default/web/hash")


def test_without_a_uid_the_name_has_to_do():
    told = '{"10.0.0.10": {"pod": "default/web"}, "10.0.0.11": {"pod": "default/gone", "podUid": null}}'
    (found,) = picture(pool(status={"allocatedIPs": told}), pod("web")).foreign
    assert (found.shown, found.uid, found.keeper) == ("10.0.0.10", "uid-web", "Pod/default/web/uid-web")


def test_what_a_block_says_counts_and_nothing_else():
    known = picture(*WEB, lease("10.0.0.10", node="", container_id="", keeper="Pod/default/web/uid-web"))
    assert known.foreign == frozenset()
    assert list(shown(known)) == ["10.0.0.10"]


def test_it_is_written_only_while_nobody_else_writes_and_never_cut(monkeypatch):
    known = picture(*WEB, *(lease(f"10.0.0.{n}") for n in range(11, 19)))
    (write,) = [one for one in of_views(known) if one.thing.plural == "spiderippools"]
    assert json.loads(write.body)["metadata"]["resourceVersion"] == "1"
    monkeypatch.setattr(views, "LISTED_BYTES", 120)
    assert list(shown(known)) == ["10.0.0.10"]


@pytest.mark.parametrize(("kind", "keeper"), [
    ("StatefulSet", "StatefulSet/default/db-0"),
    ("VirtualMachineInstance", "VirtualMachine/default/db-0"),  # as Spiderpool calls a machine's
])  # fmt: skip
def test_a_set_or_a_machine_whose_pod_is_away_keeps_its_endpoint_and_its_address(kind, keeper):
    kept = an_endpoint("db-0", "old", "10.0.0.12", kind=kind)
    known = picture(pool(status=allocated(_12=("default/db-0", "old"))), kept)
    (found,) = known.foreign
    assert (found.shown, found.state, found.keeper, found.ifname) == (
        "10.0.0.12", KEPT, keeper, "net1",
    )  # fmt: skip
    assert [one for one in of_views(known) if one.thing.plural == "spiderendpoints"] == []
    assert list(shown(known)) == ["10.0.0.12"]


def test_an_endpoint_alone_says_it_while_theirs_is_not_done_with_it():
    said = picture(pool(), pod("web"), an_endpoint("web", "uid-web", "10.0.0.10"))
    (found,) = said.foreign
    assert (found.shown, found.pool, found.state, found.ifname) == ("10.0.0.10", "p", HELD, "net1")
    assert found.keeper == "Pod/default/web/uid-web"
    assert picture(pool(), pod("web"), an_endpoint("web", "uid-web", "10.0.0.10", finalizer="")).foreign == frozenset()


def test_an_endpoint_of_what_nodes_report_by_now_is_theirs_no_more():
    """Or what the pod gives back would be taken for something that another IPAM holds."""
    theirs = an_endpoint("web", "uid-web", "10.0.0.10")
    known = picture(pool(), pod("web"), theirs, lease("10.0.0.10"))
    (write,) = [one for one in of_views(known) if one.thing.plural == "spiderendpoints"]
    body = json.loads(write.body)
    assert body["metadata"] == {"finalizers": None, "uid": "uid-web", "resourceVersion": "1"}
    ours = endpoint("web", views.endpoints(known)["default", "web"])
    again = picture(pool(), pod("web"), ours, lease("10.0.0.10"))
    assert [one for one in of_views(again) if one.thing.plural == "spiderendpoints"] == []
    assert picture(pool(), pod("web"), ours).foreign == frozenset()


def test_the_endpoint_of_a_pod_that_has_gone_goes():
    known = picture(pool(status=allocated(_10=("default/web", "uid-web"))), an_endpoint("web", "uid-web", "10.0.0.10"))
    assert [one.thing.plural for one in of_views(known)] == ["spiderippools", "spiderendpoints"]


def test_the_pool_says_that_nodes_do_not_know_of_it():
    known = picture(*WEB)
    (write,) = [one for one in upkeep.Upkeep().writes(known) if one.thing.part == "condition"]
    (condition,) = json.loads(write.body)["status"]["conditions"]
    assert (condition["status"], condition["reason"]) == ("True", "Doubtful")
    assert "10.0.0.10 of default/web were given out by another IPAM" in condition["message"]
    assert "underlay ipam adopt --apply" in condition["message"]


def test_a_pool_of_theirs_in_use_is_not_deleted_and_keeps_its_finalizer():
    going = pool(status=allocated(_10=("default/web", "uid-web")),
                 metadata={"finalizers": [THEIRS], "deletionTimestamp": "2026-01-01T00:00:00Z"})  # fmt: skip
    known = picture(going, pod("web"))
    (finding,) = lint_pools.without(Subject("", "SpiderIPPool", "p"), known.pool("p"), upkeep.around(known))
    assert "10.0.0.10" in finding.message
    keeping = upkeep.Upkeep(grace=0.0)
    assert [one for one in keeping.writes(known) if one.thing.part == "metadata"] == []
    assert [one for one in keeping.writes(picture(going)) if one.thing.part == "metadata"]


def test_what_a_node_has_given_to_another_pod_meanwhile_is_found():
    told = pool(status=allocated(_10=("default/web", "uid-web"), _11=("default/gone", "uid-gone"),
                                 _12=("default/db-0", "old"), _13=("default/same", "uid-same"),
                                 _14=("default/same", "uid-same")))  # fmt: skip
    ours = [lease("10.0.0.10", pod="default/other"), lease("10.0.0.11", pod="default/other"),
            lease("10.0.0.12", pod="default/db-0", uid="new", keeper="StatefulSet/default/db-0"),
            lease("10.0.0.13", pod="default/same"),
            lease("10.0.0.14", pod="", state=KEPT, keeper="Reserved/")]  # fmt: skip
    kept = an_endpoint("db-0", "old", "10.0.0.12", kind="StatefulSet")
    known = picture(told, pod("web"), pod("other"), pod("same"), kept, *ours)
    assert known.foreign == frozenset()
    assert [(one.shown, one.pod, other.pod) for one, other in foreign.given_again(known)] == [
        ("10.0.0.10", "default/web", "default/other"),
    ]  # fmt: skip


KEYS = st.text(max_size=5) | st.just("10.0.0.10")
LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
JUNK = st.recursive(
    LEAVES, lambda one: st.lists(one, max_size=2) | st.dictionaries(KEYS, one, max_size=2), max_leaves=5
)


@given(JUNK, st.text(max_size=20), JUNK)
def test_no_status_is_too_strange(junk, text, current):
    told = [pool("a", {"allocatedIPs": text}), pool("b", {"allocatedIPs": json.dumps(junk)}), pool("c", junk)]
    strange = [endpoint("x", junk, finalizers=[THEIRS]), endpoint("y", {"current": current}, finalizers=[THEIRS])]
    known = picture(*told, *strange, pod("web"))
    assert foreign.leases(known) == frozenset()
    list(of_views(known))
