"""Finalizers, derived fields and the condition, of pictures of a cluster."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.controller.pictures import lease, picture, pool, reserved, subnet

from underlay.controller.upkeep import Upkeep
from underlay.ipam.pools.lease import KEPT

F = "spiderpool.spidernet.io"
DRESSED = {"finalizers": [F], "labels": {"ipam.spidernet.io/ippool-cidr": "10-0-0-0-24"}}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def shown(known: Any, upkeep: Upkeep | None = None) -> dict[str, Any]:
    return {str(each.thing): json.loads(each.body) for each in (upkeep or Upkeep()).writes(known)}


def condition(known: Any, thing: str = "spiderippools/p/condition") -> dict[str, Any]:
    body = shown(known)[thing]
    assert body["metadata"]["resourceVersion"] == "1"
    return body["status"]["conditions"][-1]


def test_a_pool_is_given_its_finalizer_its_label_and_its_family():
    body = shown(picture(pool(metadata={"finalizers": ["x/y"], "labels": {"a": "b"}})))["spiderippools/p/metadata"]
    assert body == {
        "metadata": {"finalizers": ["x/y", F], "labels": {"ipam.spidernet.io/ippool-cidr": "10-0-0-0-24"},
                     "uid": "uid-p", "resourceVersion": "1"},
        "spec": {"ipVersion": 4},
    }  # fmt: skip
    six = pool(subnet="fd00:31::/64", ips=["fd00:31::10"], ipVersion=6)
    body = shown(picture(six))["spiderippools/p/metadata"]
    assert body["metadata"]["labels"] == {"ipam.spidernet.io/ippool-cidr": "fd00-31---64"}
    assert "spec" not in body


def test_a_reservation_is_given_its_family_where_it_has_one():
    body = shown(picture(reserved("10.0.0.1")))["spiderreservedips/r/metadata"]
    assert (body["spec"], "finalizers" in body["metadata"]) == ({"ipVersion": 4}, False)
    assert "spiderreservedips/r/metadata" not in shown(picture(reserved("10.0.0.1", "fd00::1")))


def test_what_is_dressed_is_left_alone_and_so_is_what_cannot_be_read():
    assert "spiderippools/p/metadata" not in shown(picture(pool(metadata=DRESSED, ipVersion=4)))
    assert list(shown(picture(pool(ips=["x"])))) == ["spiderippools/p/condition"]


def test_a_pool_in_deletion_goes_when_it_is_empty_and_its_grace_is_over():
    clock = Clock()
    upkeep = Upkeep(grace=10, monotonic=clock)
    going = pool(metadata={**DRESSED, "deletionTimestamp": "2026-01-01T00:00:00Z"})
    thing = "spiderippools/p/metadata"
    kept = lease("10.0.0.10", pod="", state=KEPT, keeper="StatefulSet/default/db-0")
    assert thing not in shown(picture(going), upkeep)
    clock.now += 9
    assert thing not in shown(picture(going), upkeep)  # a node may have handed something out, and not said so yet
    clock.now += 1
    assert thing not in shown(picture(going, lease("10.0.0.10")), upkeep)
    assert thing not in shown(picture(going, kept), upkeep)
    assert shown(picture(going, lease("10.0.0.10", "other")), upkeep)[thing] == {
        "metadata": {"finalizers": None, "uid": "uid-p", "resourceVersion": "1"}
    }


def test_a_pool_that_was_made_anew_has_a_grace_of_its_own():
    clock = Clock()
    upkeep = Upkeep(grace=10, monotonic=clock)
    going = {**DRESSED, "deletionTimestamp": "2026-01-01T00:00:00Z"}
    shown(picture(pool(metadata=going)), upkeep)
    clock.now += 60
    assert "spiderippools/p/metadata" not in shown(picture(pool(metadata={**going, "uid": "new"})), upkeep)


def test_a_subnet_goes_when_no_pool_of_it_is_left():
    clock = Clock()
    upkeep = Upkeep(grace=0, monotonic=clock)
    going = subnet(metadata={**DRESSED, "deletionTimestamp": "2026-01-01T00:00:00Z"})
    assert "spidersubnets/s/metadata" not in shown(picture(going, pool()), upkeep)
    assert "spidersubnets/s/metadata" in shown(picture(going, pool(subnet="10.1.0.0/24", ips=[])), upkeep)


def test_a_sound_pool_is_said_to_be():
    told = condition(picture(pool()))
    assert (told["type"], told["status"], told["reason"], told["message"]) == ("Valid", "True", "Valid", "")
    assert told["lastTransitionTime"].endswith("Z")


@pytest.mark.parametrize(("things", "words"), [
    ([pool(ips=["10.9.0.1"])], "spec.ips[0]"),
    ([pool(), pool("q", ips=["10.0.0.19-10.0.0.30"])], "overlap those of SpiderIPPool 'q'"),
    ([pool(), subnet(ips=["10.0.0.15-10.0.0.99"])], "SpiderSubnet 's' does not list 10.0.0.10-10.0.0.14"),
])  # fmt: skip
def test_what_slipped_past_the_webhook_is_said_on_the_object(things, words):
    told = condition(picture(*things))
    assert (told["status"], told["reason"]) == ("False", "Invalid")
    assert words in told["message"]


def test_what_is_merely_doubtful_does_not_make_it_invalid():
    told = condition(picture(pool(), lease("10.0.0.99")))
    assert (told["status"], told["reason"]) == ("True", "Doubtful")
    assert "does not list addresses in use: 10.0.0.99 is held by pod default/web" in told["message"]
    taken = picture(pool(), lease("10.0.0.15"), reserved("10.0.0.10-10.0.0.20"))
    told = condition(taken, "spiderreservedips/r/condition")
    assert told["reason"] == "Doubtful"


def test_a_condition_is_written_once_and_others_are_left():
    first = condition(picture(pool()))
    other = {"type": "Other", "status": "True"}
    again = pool(status={"conditions": [first, other]}, metadata=DRESSED, ipVersion=4)
    assert shown(picture(again)) == {}
    worse = pool(status={"conditions": [first, other]}, ips=["x"])
    body = shown(picture(worse))["spiderippools/p/condition"]
    assert [each["type"] for each in body["status"]["conditions"]] == ["Other", "Valid"]


def test_the_time_of_a_condition_is_that_of_its_last_change():
    old = {**condition(picture(pool())), "lastTransitionTime": "2020-01-01T00:00:00Z"}
    status = {"conditions": [old]}
    assert condition(picture(pool(status=status), lease("10.0.0.99")))["lastTransitionTime"][:4] == "2020"
    assert condition(picture(pool(status=status, ips=["x"])))["lastTransitionTime"][:4] != "2020"
