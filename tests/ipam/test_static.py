"""static: what the configuration says, and who may say otherwise."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.keep import Keep

from underlay.cni.config import PluginConfig, parse_plugin
from underlay.cni.result import DNS, IPConfig, Result, Route
from underlay.errors import CheckFailed, InvalidConfig, InvalidEnvironment, UnderlayError
from underlay.ipam.allocator import Holder
from underlay.ipam.static import STATIC, resolve

SECTION = {
    "addresses": [{"address": "10.1.0.9/16", "gateway": "10.1.0.1"}, {"address": "fd00::9/64"}],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.0.2"}],
    "dns": {"nameservers": ["10.1.0.2"]},
}


def conf(section: object = None, version: str = "1.0.0", **more: object) -> PluginConfig:
    ipam = {"type": "static", **(SECTION if section is None else section)}
    return parse_plugin(
        json.dumps({"cniVersion": version, "name": "n", "type": "macvlan", "ipam": ipam, **more}).encode()
    )


def test_the_section_is_the_result():
    assert resolve(conf(), {}) == Result(
        ips=(IPConfig("10.1.0.9/16", "10.1.0.1"), IPConfig("fd00::9/64")),
        routes=(Route("0.0.0.0/0"), Route("10.9.0.0/16", "10.1.0.2")),
        dns=DNS(nameservers=("10.1.0.2",)),
    )


def test_an_empty_section_gives_no_address():
    assert resolve(conf({}), {}) == Result()


def test_args_add_addresses_and_set_gateways():
    found = resolve(conf(), {"IP": "10.2.0.9/24, fd01::9/64", "GATEWAY": "10.2.0.1,fd01::1,fd00::1"})
    assert found.ips == (
        IPConfig("10.1.0.9/16", "10.1.0.1"),
        IPConfig("fd00::9/64", "fd00::1"),
        IPConfig("10.2.0.9/24", "10.2.0.1"),
        IPConfig("fd01::9/64", "fd01::1"),
    )


def test_the_ips_capability_counts_before_all_others():
    args = {"cni": {"ips": ["10.3.0.9/24"]}}
    assert resolve(conf(args=args), {"IP": "10.2.0.9/24"}).ips == (IPConfig("10.3.0.9/24"),)
    by_runtime = conf(args=args, runtimeConfig={"ips": ["10.4.0.9/24"]})
    assert resolve(by_runtime, {"GATEWAY": "10.4.0.1"}).ips == (IPConfig("10.4.0.9/24", "10.4.0.1"),)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"addresses": [{"address": "10.1.0.9"}]}, r'"ipam\.addresses\[0\]\.address" .*CIDR'),
        ({"addresses": [{"address": "10.1.0.9/16"}, {"address": "x/16"}]}, r'"ipam\.addresses\[1\]\.address"'),
        ({"addresses": [{"gateway": "10.1.0.1"}]}, r'"ipam\.addresses\[0\]\.address" is missing'),
        ({"addresses": [{"address": "10.1.0.9/16", "gateway": "x"}]}, r'"ipam\.addresses\[0\]\.gateway"'),
        ({"addresses": {}}, r'"ipam\.addresses": expected array'),
        ({"routes": [{"dst": "10.0.0.0"}]}, r'"ipam\.routes\[0\]\.dst"'),
        ({"routes": [{"dst": "10.0.0.0/8", "gw": "::1"}]}, r'"ipam\.routes\[0\]\.gw"'),
        ({"dns": []}, r'"ipam\.dns": expected object'),
    ],
)
def test_a_wrong_section_names_the_field(section, words):
    with pytest.raises(InvalidConfig, match=words):
        resolve(conf(section), {})


@pytest.mark.parametrize("args", [{"IP": "10.1.0.9"}, {"IP": "x"}, {"GATEWAY": "x"}, {"GATEWAY": "10.1.0.1/16"}])
def test_wrong_args_name_the_key(args):
    with pytest.raises(InvalidEnvironment, match=f"CNI_ARGS {next(iter(args))}"):
        resolve(conf(), args)


def test_old_versions_have_no_room_for_two_addresses_of_a_family():
    two = {"addresses": [{"address": "10.1.0.8/16"}, {"address": "10.1.0.9/16"}]}
    with pytest.raises(InvalidConfig, match=r"0\.2\.0"):
        resolve(conf(two, "0.2.0"), {})
    assert len(resolve(conf(two, "0.3.0"), {}).ips) == 2


def test_check_compares_with_the_previous_result():
    holder = Holder("c1", "eth0")
    STATIC.check(replace(conf(), prev=resolve(conf(), {})), holder, {})
    with pytest.raises(CheckFailed, match=r"10\.1\.0\.9/16"):
        STATIC.check(replace(conf(), prev=Result()), holder, {})


def test_nothing_is_recorded_and_nothing_kept():
    recorded = []
    STATIC.add(conf(), Holder("c1", "eth0"), {}, record=recorded.append, deadline=0)
    STATIC.delete(conf(), Holder("c1", "eth0"), deadline=0)
    STATIC.gc(conf(), Keep(), deadline=0)
    STATIC.status(conf())
    assert recorded == []


ANY = st.none() | st.integers() | st.text(max_size=9) | st.sampled_from(["10.1.0.9/16", "::1/64", "10.1.0.1"])
PART = st.lists(st.dictionaries(st.sampled_from(["address", "gateway", "dst", "gw"]), ANY, max_size=3), max_size=3)


@given(st.dictionaries(st.sampled_from(["addresses", "routes", "dns"]), PART | ANY), st.text(max_size=9))
def test_any_section_is_read_or_refused_by_name(section, words):
    try:
        resolve(conf(section), {"IP": words})
    except UnderlayError as error:
        assert error.code in (4, 7), error.message  # noqa: PT017
