"""The rules by which pools are chosen, as a table: what there is, what is asked, what comes of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from underlay.cni.result import Route
from underlay.errors import InvalidAnnotation, PoolMissing
from underlay.ipam.pools.choose import Ask, choose
from underlay.ipam.pools.objects import Pool, Subnet, parse_object
from underlay.ipam.pools.surroundings import Catalogue, Node, Subject
from underlay.ipam.pools.wishes import Number

if TYPE_CHECKING:
    from collections.abc import Mapping

P = "ipam.spidernet.io/"


def pool(name: str, **spec: Any) -> Pool:
    v6 = name.startswith("six")
    place = {"subnet": "fd00::/64", "ips": ["fd00::10"]} if v6 else {"subnet": "10.0.0.0/8", "ips": ["10.0.0.9"]}
    deleted = spec.pop("deleted", False)
    metadata = {"name": name} | ({"deletionTimestamp": "now"} if deleted else {})
    made = parse_object({"kind": "SpiderIPPool", "metadata": metadata, "spec": {**place, **spec}})
    assert isinstance(made, Pool)
    return made


def subnet(name: str) -> Subnet:
    place = {"subnet": "fd00::/64", "ips": ["fd00::10"]} if "six" in name else {"subnet": "10.0.0.0/8"}
    made = parse_object({"kind": "SpiderSubnet", "metadata": {"name": name}, "spec": place})
    assert isinstance(made, Subnet)
    return made


def labels(**wanted: str) -> dict[str, Any]:
    return {"matchLabels": wanted}


POOLS = (
    pool("default", default=True), pool("six-default", default=True),
    pool("a"), pool("b"), pool("six"),
    pool("web", podAffinity=labels(app="web")), pool("web-blue", podAffinity=labels(app="web", tint="blue")),
    pool("web-here", nodeName=["node1"]), pool("web-there", nodeName=["node2"], nodeAffinity=labels(zone="z1")),
    pool("web-zone", nodeAffinity=labels(zone="z1")),
    pool("web-shop", namespaceName=["shop"], namespaceAffinity=labels(x="y")),
    pool("web-team", namespaceAffinity=labels(team="t1")), pool("web-net", multusName=["kube-system/macvlan"]),
    pool("web-bare", multusName=["macvlan"]), pool("web-other", multusName=["kube-system/other"]),
    pool("gone", deleted=True), pool("off", disable=True),
)  # fmt: skip
NODE = Node("node1", {"zone": "z1"})
CATALOGUE = Catalogue({each.name: each for each in POOLS}, subnets={n: subnet(n) for n in ("s", "s-six")}, node=NODE)
FOUR_SIX = {4: ("a",), 6: ("six",)}


@dataclass
class Case:
    title: str
    pools: Mapping[int, tuple[str, ...]]
    rule: str
    annotations: dict[str, Any] = field(default_factory=dict)
    namespace: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    ifname: str = "eth0"
    first: bool = True
    v4: tuple[str, ...] = ()
    v6: tuple[str, ...] = ()


def ask(case: Case, network: str = "kube-system/macvlan") -> Ask:
    def text(values: dict[str, Any]) -> dict[str, str]:
        return {P + key: one if isinstance(one, str) else json.dumps(one) for key, one in values.items()}

    subject = Subject("shop", "web-0", "uid", case.labels, text(case.annotations), {"team": "t1"}, text(case.namespace))
    return Ask(subject, case.ifname, case.first, network, case.v4, case.v6)


ON_NET1 = {"ippools": [{"interface": "net1", "ipv4": ["a"], "ipv6": ["six"], "cleangateway": True}]}
CASES = (
    Case("nothing is said: the default pools of both families", {4: ("default",), 6: ("six-default",)},
         "pools with default: true"),
    Case("the configuration's pools", FOUR_SIX, "ipam.default_ipv4_ippool", v4=("a",), v6=("six",)),
    Case("the configuration names one family: the other goes without", {6: ("six",)}, "ipam.default_ipv6_ippool",
         v6=("six",)),
    Case("the namespace before the configuration", {4: ("b",)}, P + "default-ipv4-ippool",
         namespace={"default-ipv4-ippool": ["b"]}, v4=("a",), v6=("six",)),
    Case("the pod before the namespace", FOUR_SIX, P + "ippool", {"ippool": {"ipv4": ["a"], "ipv6": ["six"]}},
         namespace={"default-ipv4-ippool": ["b"]}),
    Case("ippools before ippool", FOUR_SIX, P + "ippools[0]", {**ON_NET1, "ippool": {"ipv4": ["b"]}}, ifname="net1"),
    Case("ippools of another NIC say nothing, ippool does", {4: ("b",)}, P + "ippool",
         {**ON_NET1, "ippool": {"ipv4": ["b"]}}),
    Case("ippool is for the first NIC alone", {4: ("default",), 6: ("six-default",)}, "pools with default: true",
         {"ippool": {"ipv4": ["b"]}}, ifname="net2", first=False),
    Case("a list of one needs no interface", {4: ("a",)}, P + "ippools[0]", {"ippools": [{"ipv4": ["a"]}]},
         ifname="net7"),
    Case("the second pool is the fallback of the first, whatever demands they make", {4: ("b", "web", "a")},
         P + "ippool", {"ippool": {"ipv4": ["b", "web", "a", "b"]}}, labels={"app": "web"}),
    Case("a disabled and a terminating pool are passed over", {4: ("a",)}, P + "ippool",
         {"ippool": {"ipv4": ["off", "gone", "a"]}}),
    Case("a pattern's pools in the order of their demands, those that do not suit left out",
         {4: ("web-blue", "web", "web-here", "web-zone", "web-shop", "web-team", "web-bare", "web-net")}, P + "ippool",
         {"ippool": {"ipv4": ["web*"]}}, labels={"app": "web", "tint": "blue"}),
    Case("a pattern after a name does not name it again", {4: ("web-team", "web-here", "web-zone", "web-shop",
         "web-bare", "web-net")}, P + "ippool", {"ippool": {"ipv4": ["web-team", "web-*"]}}),
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case.title for case in CASES])
def test_the_rules(case: Case) -> None:
    made = choose(ask(case), CATALOGUE)
    assert (made.rule, made.pools) == (case.rule, case.pools)
    assert made.clean_gateway == ("ippools" in case.annotations and case.ifname == "net1")
    assert {verdict.pool for verdict in made.verdicts} == set(CATALOGUE.pools)
    chosen = {name for names in made.pools.values() for name in names}
    assert all(bool(verdict.objection) == (verdict.pool not in chosen) for verdict in made.verdicts)


@pytest.mark.parametrize(
    ("name", "objection"),
    [
        ("web", "podAffinity app=web"), ("web-there", "nodeName does not list this node, 'node1'"),
        ("web-other", "multusName does not list the network 'kube-system/macvlan'"),
        ("gone", "being deleted"), ("off", "disabled"), ("a", '"ipam.spidernet.io/ippool" does not name it'),
    ],
)  # fmt: skip
def test_every_pool_left_out_says_why(name: str, objection: str) -> None:
    case = Case("", {}, "", {"ippool": {"ipv4": ["b", "web*", "gone", "off"]}})
    (verdict,) = (one for one in choose(ask(case), CATALOGUE).verdicts if one.pool == name)
    assert objection in verdict.objection


def test_names_of_node_and_namespace_stand_before_labels() -> None:
    case = Case("", {}, "", {"ippool": {"ipv4": ["web-there"]}})
    with pytest.raises(PoolMissing, match="nodeName does not list"):  # its nodeAffinity would fit
        choose(ask(case), CATALOGUE)
    assert choose(ask(Case("", {}, "", {"ippool": {"ipv4": ["web-shop"]}})), CATALOGUE).pools == {4: ("web-shop",)}


def test_a_family_without_a_default_pool_that_suits_goes_without() -> None:
    pools = {each.name: each for each in (pool("four", default=True), pool("six-x", default=True, nodeName=["other"]))}
    made = choose(ask(Case("", {}, "")), Catalogue(pools, node=NODE))
    assert made.pools == {4: ("four",)}


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        ({"ippool": {"ipv4": ["nope"]}}, r"SpiderIPPool 'nope', named by \"ipam.spidernet.io/ippool\", does not exist"),
        ({"ippool": {"ipv4": ["nope-*"]}}, "like 'nope-"),
        ({"ippool": {"ipv4": ["six"]}}, "IPv6, not IPv4"),
        ({"ippool": {"ipv4": ["off"]}}, r"no IPv4 pool of .* suits: off: it is disabled"),
        ({"subnet": {"ipv4": ["nope"]}}, "SpiderSubnet 'nope'"),
    ],
)
def test_what_is_named_and_is_not_there(annotations: dict[str, Any], words: str) -> None:
    with pytest.raises(PoolMissing, match=words):
        choose(ask(Case("", {}, "", annotations)), CATALOGUE)


def test_a_pool_that_is_missing_may_be_in_a_file_that_cannot_be_read() -> None:
    broken = Catalogue(CATALOGUE.pools, faults=("pools.yaml: no YAML",))
    with pytest.raises(PoolMissing, match=r"1 cannot be read: pools.yaml"):
        choose(ask(Case("", {}, "", {"ippool": {"ipv4": ["nope"]}})), broken)


def test_without_any_default_pool_the_message_says_what_to_do() -> None:
    with pytest.raises(PoolMissing, match="no pool has default: true") as caught:
        choose(ask(Case("", {}, "")), Catalogue({"a": pool("a")}))
    assert "default_ipv4_ippool" in caught.value.hint


@pytest.mark.parametrize(
    ("annotations", "words", "fix"),
    [
        ({"ippool": "{"}, r'annotation "ipam.spidernet.io/ippool": its value is not JSON', 'Write {"ipv4"'),
        ({"ippool": {}}, "names nothing", 'Give "ipv4" or "ipv6"'),
        ({"ippool": {"ipv4": "a"}}, r"ippool\.ipv4.*array", 'Write {"ipv4"'),
        (
            {"ippools": [{"ipv4": ["a"]}, {"interface": "net1"}]},
            r"ippools\[0\].interface\" is missing",
            "each names its NIC",
        ),
        ({"routes": [{"dst": "x", "gw": "10.0.0.1"}]}, r"routes\[0\].dst", "Write it as"),
        ({"routes": [{"dst": "10.0.0.0/8", "gw": "fd00::1"}]}, r"routes\[0\].gw", "next hop"),
        ({"subnet": {"ipv4": ["s"]}, "ippool-ip-number": "many"}, "ippool-ip-number", "for a fixed number"),
        ({"subnet": {"ipv4": ["s"]}, "ippool-reclaim": "maybe"}, "ippool-reclaim", '"true" or "false"'),
    ],
)
def test_a_wrong_annotation_names_itself_the_field_and_the_fix(
    annotations: dict[str, Any], words: str, fix: str
) -> None:
    with pytest.raises(InvalidAnnotation, match=words) as caught:
        choose(ask(Case("", {}, "", annotations)), CATALOGUE)
    assert fix in caught.value.hint


def test_the_pods_own_routes() -> None:
    annotations = {"routes": [{"dst": "10.9.0.0/16", "gw": "10.0.0.1"}]}
    assert choose(ask(Case("", {}, "", annotations)), CATALOGUE).routes == (Route("10.9.0.0/16", "10.0.0.1"),)


@pytest.mark.parametrize(
    ("extra", "number", "reclaim"),
    [({}, Number(1, True), True), ({"ippool-ip-number": "3", "ippool-reclaim": "false"}, Number(3, False), False)],
)
def test_the_subnet_annotation_stands_before_everything(extra: dict[str, Any], number: Number, reclaim: bool) -> None:
    annotations = {"subnet": {"ipv4": ["s"], "ipv6": ["s-six"]}, "ippool": {"ipv4": ["a"]}, **extra}
    made = choose(ask(Case("", {}, "", annotations)), CATALOGUE)
    assert (made.subnets, made.pools) == ({4: ("s",), 6: ("s-six",)}, {})
    assert (made.number, made.reclaim) == (number, reclaim)
    annotations = {"subnets": [{"interface": "net1", "ipv4": ["s"]}], **extra}
    assert choose(ask(Case("", {}, "", annotations, ifname="net1")), CATALOGUE).subnets == {4: ("s",)}
