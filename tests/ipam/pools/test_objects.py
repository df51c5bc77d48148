from __future__ import annotations

import re
from typing import Any

import pytest

from underlay.cni.address import parse, text
from underlay.errors import InvalidConfig
from underlay.ipam.pools import intervals
from underlay.ipam.pools.objects import Pool, Reserved, Subnet, overlaps, parse_object


def document(kind: str = "SpiderIPPool", name: str = "a", **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def pool(**spec: Any) -> Pool:
    made = parse_object(document(**{"subnet": "172.18.0.0/16", **spec}))
    assert isinstance(made, Pool)
    return made


def addresses(made: Pool | Subnet) -> list[str]:
    return [text(made.family, value) for start, end in made.ranges for value in range(start, end + 1)]


def test_a_pool_as_the_field_writes_it() -> None:
    made = pool(
        ipVersion=4,
        subnet="172.31.192.0/20",
        ips=["172.31.199.180-172.31.199.189", "172.31.199.205-172.31.199.209"],
        excludeIPs=["172.31.199.186-172.31.199.188", "172.31.199.207"],
        gateway="172.31.207.253",
        routes=[{"dst": "10.99.0.0/16", "gw": "172.31.192.2"}],
        default=True,
        disable=False,
        podAffinity={"matchLabels": {"app": "web"}},
    )
    assert (made.family, made.listed, made.default, made.gateway) == (4, 11, True, "172.31.207.253")
    assert addresses(made)[:2] == ["172.31.199.180", "172.31.199.181"]
    assert addresses(made)[-2:] == ["172.31.199.208", "172.31.199.209"]
    assert made.pod_affinity is not None
    assert made.pod_affinity.unmet({"app": "db"}) == "app=web"


def test_numbers_and_truth_values_may_be_strings() -> None:
    made = pool(ipVersion="4", default="true", disable="false", vlan="7", ips=["172.18.0.9"])
    assert (made.default, made.disabled, made.vlan) == (True, False, 7)


def test_deletion_makes_a_pool_terminating() -> None:
    one = document(subnet="172.18.0.0/16", ips=["172.18.0.9"])
    one["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    made = parse_object(one)
    assert isinstance(made, Pool)
    assert made.terminating


@pytest.mark.parametrize(
    ("subnet", "ips", "gateway", "usable"),
    [
        ("10.0.0.0/30", "10.0.0.0-10.0.0.3", "10.0.0.1", ["10.0.0.2"]),
        ("10.0.0.0/31", "10.0.0.0-10.0.0.1", None, ["10.0.0.0", "10.0.0.1"]),
        ("10.0.0.0/31", "10.0.0.0-10.0.0.1", "10.0.0.0", ["10.0.0.1"]),
        ("10.0.0.7/32", "10.0.0.7", None, ["10.0.0.7"]),
        ("fd00::/126", "fd00::-fd00::3", "fd00::1", ["fd00::2", "fd00::3"]),
        ("fd00::/127", "fd00::-fd00::1", None, ["fd00::", "fd00::1"]),
        ("fd00::5/128", "fd00::5", None, ["fd00::5"]),
    ],
)
def test_what_the_subnet_itself_needs_is_never_handed_out(
    subnet: str, ips: str, gateway: str | None, usable: list[str]
) -> None:
    assert addresses(pool(subnet=subnet, ips=[ips], gateway=gateway)) == usable


def test_a_huge_ipv6_range_is_one_interval() -> None:
    made = pool(subnet="fd00::/16", ips=["fd00::-fd00:ffff:ffff:ffff:ffff:ffff:ffff:ffff"])
    assert len(made.ranges) == 1
    assert intervals.size(made.ranges) == (1 << 112) - 1


@pytest.mark.parametrize(
    ("spec", "field", "fix"),
    [
        ({"subnet": "172.18.0.0"}, "spec.subnet", "CIDR|172.18.0.0/16"),
        ({"subnet": 7}, "spec.subnet", "Correct"),
        ({"subnet": None}, "spec.subnet", "Correct"),
        ({"ipVersion": 6}, "spec.ipVersion", "Write 4"),
        ({"ipVersion": "six"}, "spec.ipVersion", "Correct"),
        ({"ips": ["172.18.0.9-172.18.0.3"]}, r"spec.ips\[0\]", "172.18.0.3-172.18.0.9"),
        ({"ips": ["172.18.0.9", "10.0.0.1"]}, r"spec.ips\[1\]", "172.18.0.0 to 172.18.255.255"),
        ({"ips": ["fd00::1"]}, r"spec.ips\[0\]", "Keep to"),
        ({"ips": ["172.18.0.0/24"]}, r"spec.ips\[0\]", "172.18.40.10-"),
        ({"ips": "172.18.0.1"}, "spec.ips", "Correct"),
        ({"excludeIPs": ["x"]}, r"spec.excludeIPs\[0\]", "Write"),
        ({"gateway": "10.0.0.1"}, "spec.gateway", "inside the subnet"),
        ({"gateway": "172.18.0.1/16"}, "spec.gateway", "without a prefix"),
        ({"vlan": 4095}, "spec.vlan", "4094"),
        ({"routes": [{"dst": "fd00::/8", "gw": "172.18.0.1"}]}, r"spec.routes\[0\].dst", "CIDR|10.2.0.0"),
        ({"routes": [{"dst": "10.0.0.0/8", "gw": "no"}]}, r"spec.routes\[0\].gw", "next hop"),
        ({"routes": [{"dst": "10.0.0.0/8"}]}, r"spec.routes\[0\].gw", "Correct"),
        ({"podAffinity": {"matchExpressions": [{"key": "a", "operator": "In"}]}}, "spec.podAffinity", "values"),
        ({"podAffinity": {"matchExpressions": [{"key": "a", "operator": "Like"}]}}, "spec.podAffinity", "Correct"),
        ({"nodeAffinity": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}},
         "spec.nodeAffinity", "Remove"),
    ],
)  # fmt: skip
def test_each_fault_names_object_field_and_fix(spec: dict[str, Any], field: str, fix: str) -> None:
    with pytest.raises(InvalidConfig, match=field) as caught:
        pool(**spec)
    assert "SpiderIPPool 'a'" in caught.value.message
    assert re.search(fix, caught.value.hint)


def test_reserved_addresses_of_both_families() -> None:
    made = parse_object(document("SpiderReservedIP", ips=["172.18.0.5", "172.18.0.7-172.18.0.8", "fd00::1"]))
    assert isinstance(made, Reserved)
    assert intervals.size(made.v4) == 3
    assert intervals.size(made.v6) == 1
    with pytest.raises(InvalidConfig, match=r"SpiderReservedIP 'a'.*spec.ipVersion"):
        parse_object(document("SpiderReservedIP", ipVersion=6, ips=["172.18.0.5"]))


def test_a_subnet_has_the_checks_of_a_pool() -> None:
    spec = {"subnet": "172.22.0.0/16", "ips": ["172.22.40.1-172.22.40.9"], "gateway": "172.22.40.1"}
    made = parse_object(document("SpiderSubnet", **spec))
    assert isinstance(made, Subnet)
    assert addresses(made)[0] == "172.22.40.2"
    with pytest.raises(InvalidConfig, match=r"SpiderSubnet 'a'.*spec.ips"):
        parse_object(document("SpiderSubnet", subnet="172.22.0.0/16", ips=["10.0.0.1"]))


def test_overlapping_pools_are_told_with_the_first_common_address() -> None:
    def made(name: str, *ips: str) -> Pool:
        found = parse_object(document(name=name, subnet="172.18.0.0/16", ips=list(ips)))
        assert isinstance(found, Pool)
        return found

    pools = [made("a", "172.18.0.10-172.18.0.20"), made("b", "172.18.0.15-172.18.0.30"), made("c", "172.18.0.31")]
    shared = parse("172.18.0.15")
    assert shared is not None
    assert overlaps(pools) == [("a", "b", 4, shared.value)]
