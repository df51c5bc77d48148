"""deploy/blocks-policy.yaml: a node's token takes what is free and gives away what its node owns, and nothing else.

Evaluated by an implementation of the Common Expression Language of others' making, as tests/kube/test_rbac.py does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cel
import pytest
import yaml

FILE = Path(__file__).parents[2] / "deploy" / "blocks-policy.yaml"
DOCUMENTS = list(yaml.safe_load_all(FILE.read_text()))
POLICIES = {each["metadata"]["name"]: each["spec"] for each in DOCUMENTS if "Binding" not in each["kind"]}
USER = "system:serviceaccount:kube-system:underlay"
A, B = "10.6.168.17", "10.6.168.18"


def judged(
    before: Any, after: Any, *, policy: str = "underlay-blocks", node: str | None = "n1", user: str = USER,
    part: str = "owned",
) -> str:  # fmt: skip
    """The message of the first validation that fails, "" where the request is let through."""
    info: dict[str, Any] = {"username": user}
    if node is not None:
        info["extra"] = {"authentication.kubernetes.io/node-name": [node]}
    objects = [None if said is None else {"spec": {part: said} if said else {}} for said in (before, after)]
    given: dict[str, Any] = {"request": {"userInfo": info}, "oldObject": objects[0], "object": objects[1]}
    spec = POLICIES[policy]
    if not all(cel.evaluate(each["expression"], given) for each in spec.get("matchConditions", ())):
        return ""
    given["variables"] = {}
    for each in spec.get("variables", ()):
        given["variables"] = {**given["variables"], each["name"]: cel.evaluate(each["expression"], given)}
    failed = (each["message"] for each in spec["validations"] if not cel.evaluate(each["expression"], given))
    return next(failed, "")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, {A: "n1"}), ({}, {A: "n1"}), ({B: "n2"}, {A: "n1", B: "n2"}), ({A: "n1"}, {}),
        ({A: "n1"}, {A: "n2"}), ({A: "n1", B: "n2"}, {B: "n2"}), ({A: "n2"}, {A: "n2"}),
    ],
)  # fmt: skip
def test_what_a_node_may_do(before: Any, after: Any) -> None:
    assert judged(before, after) == ""


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (None, {A: "n2"}, "taken for this node alone"), ({}, {A: "n2"}, "taken for this node alone"),
        ({A: "n2"}, {A: "n1"}, "only where it is free"), ({A: "n2"}, {A: "n3"}, "only where it is free"),
        ({A: "n2"}, {}, "given back by its owner alone"),
    ],
)  # fmt: skip
def test_what_a_node_may_not(before: Any, after: Any, words: str) -> None:
    assert words in judged(before, after)
    assert judged(before, after, user="system:serviceaccount:kube-system:underlay-controller", node=None) == ""


def test_a_token_that_names_no_node_may_do_nothing() -> None:
    assert "not bound" in judged({}, {A: "n1"}, node=None)


def test_a_block_that_has_owners_is_not_deleted() -> None:
    assert "two of them" in judged({A: "n1"}, None, policy="underlay-blocks-kept", user="admin", node=None)
    assert judged({}, None, policy="underlay-blocks-kept", user="admin", node=None) == ""


def test_a_block_with_what_is_set_aside_is_not_deleted() -> None:
    kept = {A: {"state": "kept", "keeper": "StatefulSet/shop/db-0"}}
    words = judged(kept, None, policy="underlay-blocks-kept", user="admin", node=None, part="leases")
    assert "set aside for pods" in words


def test_every_policy_is_bound_and_denies() -> None:
    bound = {each["spec"]["policyName"]: each["spec"] for each in DOCUMENTS if "Binding" in each["kind"]}
    assert {name: spec["validationActions"] for name, spec in bound.items()} == {name: ["Deny"] for name in POLICIES}
