"""The CustomResourceDefinitions: structural, with the field's names, of one mind with our reading of manifests."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import yaml

from underlay.cni.address import Address
from underlay.ipam.pools.block import Block, Key, Want
from underlay.ipam.pools.lease import KEPT, Lease
from underlay.ipam.pools.objects import KINDS, parse_object
from underlay.kube import block_objects

if TYPE_CHECKING:
    from collections.abc import Iterator

DIRECTORY = Path(__file__).resolve().parents[3] / "deploy" / "crds"
CRDS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(DIRECTORY.glob("*.yaml"))}
BY_KIND = {crd["spec"]["names"]["kind"]: crd for crd in CRDS.values()}
API = "spiderpool.spidernet.io/v2beta1"

POOL = {
    "ipVersion": 4, "subnet": "172.31.192.0/20", "gateway": "172.31.207.253", "default": True, "disable": False,
    "ips": ["172.31.199.180-172.31.199.189", "172.31.199.205"], "excludeIPs": ["172.31.199.186"], "vlan": 0,
    "routes": [{"dst": "10.99.0.0/16", "gw": "172.31.192.2"}], "namespaceName": ["shop"], "nodeName": ["node1"],
    "multusName": ["kube-system/macvlan"], "podAffinity": {"matchLabels": {"app": "web"}},
    "namespaceAffinity": {"matchExpressions": [{"key": "team", "operator": "In", "values": ["a"]}]},
    "nodeAffinity": {"matchExpressions": [{"key": "zone", "operator": "Exists"}]},
}  # fmt: skip
SPECS = {
    "SpiderIPPool": POOL,
    "SpiderSubnet": {key: POOL[key] for key in ("ipVersion", "subnet", "gateway", "ips", "excludeIPs", "routes")},
    "SpiderReservedIP": {"ipVersion": 6, "ips": ["fd00::1", "fd00::5-fd00::9"]},
}
ENDPOINT = {
    "ownerControllerType": "Pod", "ownerControllerName": "p",
    "current": {"uid": "u", "node": "n", "ips": [{
        "interface": "net1", "ipv4": "172.31.80.10/16", "ipv4Pool": "d4", "ipv4Gateway": "172.31.0.1", "vlan": 0,
        "cleanGateway": False, "routes": [{"dst": "10.99.0.0/16", "gw": "172.31.0.2"}],
    }]},
}  # fmt: skip


def schema(kind: str) -> dict[str, Any]:
    """The schema as the API server applies it: what it does not name is refused (kubectl's strict validation)."""
    made = copy.deepcopy(BY_KIND[kind]["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    for node in nodes(made):
        if "properties" in node:
            node.setdefault("additionalProperties", False)
    made["properties"]["metadata"] = {"type": "object"}
    return made


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Every schema inside a schema, itself first."""
    yield node
    for inner in node.get("properties", {}).values():
        yield from nodes(inner)
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            yield from nodes(node[key])


def document(kind: str, **changes: Any) -> dict[str, Any]:
    spec = {**SPECS[kind], **changes}
    return {"apiVersion": API, "kind": kind, "metadata": {"name": "a"}, "spec": spec}


@pytest.mark.parametrize(
    ("kind", "short", "scope", "columns"),
    [
        ("SpiderIPPool", "sp", "Cluster", ["VERSION", "SUBNET", "ALLOCATED-IP-COUNT", "TOTAL-IP-COUNT", "DEFAULT"]),
        ("SpiderSubnet", "ss", "Cluster", ["VERSION", "SUBNET", "ALLOCATED-IP-COUNT", "TOTAL-IP-COUNT"]),
        ("SpiderReservedIP", "sr", "Cluster", ["VERSION"]),
        ("SpiderEndpoint", "se", "Namespaced", ["INTERFACE", "IPV4POOL", "IPV4", "IPV6POOL", "IPV6", "NODE"]),
        ("UnderlayIPBlock", "uib", "Cluster", ["REVISION", "OWNED", "WANTED"]),
    ],
)
def test_names_and_printed_columns_are_the_fields(kind: str, short: str, scope: str, columns: list[str]) -> None:
    crd = BY_KIND[kind]
    (version,) = crd["spec"]["versions"]
    assert (crd["spec"]["names"]["shortNames"], crd["spec"]["scope"]) == ([short], scope)
    assert version["name"] == ("v2beta1" if crd["spec"]["group"] == "spiderpool.spidernet.io" else "v1alpha1")
    assert crd["metadata"]["name"] == f"{crd['spec']['names']['plural']}.{crd['spec']['group']}"
    assert [column["name"] for column in version["additionalPrinterColumns"]] == columns


@pytest.mark.parametrize("kind", sorted(BY_KIND))
def test_schemas_are_structural_and_printed_columns_exist(kind: str) -> None:
    """Rules of "Specifying a structural schema" in the documentation of CustomResourceDefinitions."""
    made = BY_KIND[kind]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    jsonschema.Draft4Validator.check_schema(made)
    for node in nodes(made):
        assert "type" in node
        assert not {"$ref", "definitions", "patternProperties", "allOf"} & set(node)
        assert not ("properties" in node and "additionalProperties" in node)
        for name in node.get("required", ()):
            assert name in node["properties"]
    for column in BY_KIND[kind]["spec"]["versions"][0].get("additionalPrinterColumns", ()):
        at = made
        for part in re.findall(r"\w+", column["jsonPath"].replace("[0]", "")):
            at = at["properties"][part]
            at = at.get("items", at)
        # There is no column type for a map: one of strings is printed as JSON.
        assert column["type"] == {"object": "string"}.get(at["type"], at["type"])
        assert column["type"] in ("integer", "number", "string", "boolean", "date")


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_manifests_of_the_field_apply_unchanged(kind: str) -> None:
    jsonschema.validate(document(kind), schema(kind))
    parse_object(document(kind))


def test_a_block_as_nodes_write_it_is_of_the_schema_and_has_no_status() -> None:
    key = Key(4, 0x0A06A810)
    first = key.first
    lease = Lease(Address(4, first), "a", KEPT, "u", "c", "eth0", "shop/db-0", "StatefulSet/shop/db-0", "net", "b", 1)
    wanted = {first: Want("n2"), first + 1: Want("n3", lease.keeper)}
    block = Block(key, 3, {first: "n1"}, wanted, {first + 2: 1_767_225_600_123_456_789}, {first: lease})
    made = schema("UnderlayIPBlock")
    check = jsonschema.Draft4Validator(made, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    check.validate(block_objects.encode(block))
    for wrong in ({"owned": {"10.6.168.16": ""}}, {"leases": {"10.6.168.16": {"state": "rest"}}}, {"revision": -1}):
        assert not check.is_valid({**block_objects.encode(block), "spec": wrong})
    (version,) = BY_KIND["UnderlayIPBlock"]["spec"]["versions"]
    assert "subresources" not in version
    group, api = block_objects.API_VERSION.split("/")
    assert (BY_KIND["UnderlayIPBlock"]["spec"]["group"], version["name"]) == (group, api)
    assert BY_KIND["UnderlayIPBlock"]["spec"]["names"]["plural"] == block_objects.PLURAL


def test_statuses_as_the_reference_writes_them() -> None:
    endpoint = {"apiVersion": API, "kind": "SpiderEndpoint", "metadata": {"name": "p"}, "status": ENDPOINT}
    jsonschema.validate(endpoint, schema("SpiderEndpoint"))
    pool = document("SpiderIPPool") | {"status": {"allocatedIPCount": 1, "totalIPCount": 9, "allocatedIPs": "{}"}}
    jsonschema.validate(pool, schema("SpiderIPPool"))


@pytest.mark.parametrize(
    "changes",
    [
        {"ipVersion": 5}, {"ips": "172.31.199.180"}, {"vlan": 5000}, {"default": "yes"}, {"subnett": "x"},
        {"routes": [{"dst": "10.0.0.0/8"}]}, {"subnet": None},
        {"podAffinity": {"matchExpressions": [{"key": "a", "operator": "Like"}]}},
    ],
)  # fmt: skip
def test_what_the_schema_alone_refuses(changes: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document("SpiderIPPool", **changes), schema("SpiderIPPool"))


def test_every_rule_speaks_of_fields_there_are_and_says_what_to_do() -> None:
    """The API server compiles the rules; here: brackets close, and every self.FIELD is one of the schema's."""
    seen = 0
    for crd in CRDS.values():
        for node in nodes(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]):
            for rule in node.get("x-kubernetes-validations", ()):
                seen += 1
                assert rule["message"]
                assert all(rule["rule"].count(a) == rule["rule"].count(b) for a, b in ("()", "[]"))
                fields = set(re.findall(r"(?:self|oldSelf)\.(\w+)(?!\w*\()", rule["rule"]))
                assert fields <= set(node.get("properties", {}))
                if "fieldPath" in rule:
                    assert rule["fieldPath"].strip(".") in node["properties"]
    assert seen >= 20
