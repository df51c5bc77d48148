"""Whatever comes in, a value or a named error comes out."""

from __future__ import annotations

import json
from contextlib import suppress

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from underlay.cni import config, versions
from underlay.cni.address import parse as parse_address
from underlay.cni.address import parse_prefix, text
from underlay.cni.request import parse, parse_args
from underlay.cni.result import DNS, Interface, IPConfig, Result, Route
from underlay.errors import UnderlayError

KEYS = [
    *("cniVersion", "cniVersions", "name", "type", "plugins", "ipam", "args", "cni", "runtimeConfig", "capabilities"),
    *("prevResult", "dns", "ips", "interfaces", "routes", "ip4", "ip6", "ip", "address", "gateway", "interface", "dst"),
    *("gw", "nameservers", "mac", "mtu", "sandbox", "disableCheck", "disableGC", "subnet"),
]
VARIABLES = ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH", "CNI_ARGS"]
SETTINGS = st.sampled_from(["ADD", "DEL", "GC", "c1", "/n", "eth0", "A=b;C"]) | st.text(max_size=20)
WORDS = ["", "net", "macvlan", "1.0.0", "0.2.0", "10.1.0.9/16", "10.1.0.1", "fd00::/64", "../x", "\0", "ä", "eth0"]
ATOMS = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS) | st.text(max_size=8)
VALUES = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=6)
    ),
    max_leaves=25,
)
OBJECTS = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=8).map(lambda value: {"name": "net", **value})
JSON = (VALUES | OBJECTS).map(lambda value: json.dumps(value).encode())
BYTES = JSON | st.binary(max_size=200) | st.tuples(JSON, st.integers(0, 60), st.binary(max_size=3)).map(
    lambda t: t[0][: t[1]] + t[2] + t[0][t[1] :]
)  # fmt: skip


class Keys(msgspec.Struct, frozen=True):
    mtu: int = 0
    ipam: dict[str, str] | None = None


@given(BYTES)
def test_any_standard_input_gives_a_configuration_or_a_named_error(raw):
    for parser in (config.parse_plugin, config.parse_network, config.valid_attachments):
        with suppress(UnderlayError):
            parser(raw)
    with suppress(UnderlayError):
        config.decode(raw, Keys)
    with suppress(UnderlayError):
        config.unknown_fields(raw, Keys)


@given(BYTES)
def test_whatever_is_taken_can_be_handed_on_in_every_version(raw):
    try:
        conf = config.parse_plugin(raw)
    except UnderlayError:
        return
    try:
        again = config.parse_plugin(config.inject(conf))
    except UnderlayError:  # a lone surrogate in an unknown key, which the first look passes over
        assert b"\\u" in raw
        return
    for version in versions.SUPPORTED:
        assert (again.name, again.type, again.runtime, again.prev is None) == (
            conf.name, conf.type, conf.runtime, conf.prev is None,
        )  # fmt: skip
        if conf.prev is not None:
            json.loads(versions.encode(conf.prev, version))


@given(BYTES)
def test_any_output_of_a_plugin_gives_a_result_or_a_named_error(raw):
    try:
        result = versions.decode(raw)
    except UnderlayError as error:
        json.loads(versions.encode_error(error))
        return
    for version in versions.SUPPORTED:
        versions.decode(versions.encode(result, version))


@given(st.dictionaries(st.sampled_from(VARIABLES), SETTINGS))
def test_any_environment_gives_a_call_or_a_named_error(env):
    with suppress(UnderlayError):
        parse("macvlan", env, b"")


@given(st.text())
def test_any_args_give_pairs_or_a_named_error(words):
    with suppress(UnderlayError):
        parse_args(words)
    assert all(parse_args(words, tolerant=True))


WORD = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
V4 = st.integers(0, 2**32 - 1).map(lambda value: text(4, value))
V6 = st.integers(2**33, 2**128 - 1).filter(lambda value: value >> 32 != 0xFFFF).map(lambda value: text(6, value))
CIDR = st.tuples(V4, st.integers(0, 32)).map(lambda t: f"{t[0]}/{t[1]}") | st.tuples(V6, st.integers(0, 128)).map(
    lambda t: f"{t[0]}/{t[1]}"
)
NUMBER = st.integers(0, 2**31)
RESULTS = st.builds(
    Result,
    interfaces=st.lists(st.builds(Interface, WORD, WORD, NUMBER, WORD, WORD, WORD), min_size=1, max_size=3).map(tuple),
    ips=st.lists(st.builds(IPConfig, CIDR, st.just("") | V4 | V6, st.none() | st.just(0)), max_size=4).map(tuple),
    routes=st.lists(
        st.builds(Route, CIDR, st.just("") | V4, NUMBER, NUMBER, NUMBER, st.none() | NUMBER), max_size=4
    ).map(tuple),
    dns=st.builds(DNS, st.lists(WORD, max_size=2).map(tuple), WORD),
)


@given(RESULTS)
def test_every_result_survives_the_latest_version(result):
    assert versions.decode(versions.encode(result, versions.LATEST)) == result


@given(RESULTS, st.sampled_from(versions.SUPPORTED))
def test_every_version_is_stable_after_one_conversion(result, version):
    once = versions.encode(result, version)
    assert versions.encode(versions.decode(once), version) == once


@given(st.integers(0, 2**128 - 1), st.sampled_from([4, 6]))
def test_the_text_of_an_address_gives_the_address(value, family):
    number = value & 0xFFFFFFFF if family == 4 else value
    if family == 6 and number >> 32 == 0xFFFF:
        family, shown = 4, text(6, number)
        assert parse_address(shown) == (4, number & 0xFFFFFFFF)
        return
    assert parse_address(text(family, number)) == (family, number)


@given(st.text())
def test_any_text_is_an_address_or_none(words):
    parse_address(words)
    parse_prefix(words)
    parse_prefix(words + "/24")
