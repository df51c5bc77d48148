"""Results in all seven versions, up and down, and errors as they are printed."""

from __future__ import annotations

import json

import pytest

from underlay.cni.request import Verb
from underlay.cni.result import DNS, Interface, IPConfig, Result, Route
from underlay.cni.versions import LATEST, SUPPORTED, check_verb, decode, encode, encode_error, encode_version
from underlay.errors import DecodeFailure, IncompatibleVersion, InvalidConfig, NoAddressLeft

RESULT = Result(
    interfaces=(
        Interface("eth0", "02:00:00:00:00:01", 1400, "/run/netns/pod", "/run/s", "0000:00:01.0"),
        Interface("veth0", "02:00:00:00:00:02"),
    ),
    ips=(IPConfig("10.1.0.9/16", "10.1.0.1", 0), IPConfig("10.1.0.8/16"), IPConfig("fd00::9/64", "fd00::1", 0)),
    routes=(Route("0.0.0.0/0", "10.1.0.1", 1300, 1260, 5, 100, 253), Route("::/0")),
    dns=DNS(("10.1.0.2",), "example.org", ("example.org",), ("ndots:1",)),
)
DNS_JSON = {
    "nameservers": ["10.1.0.2"],
    "domain": "example.org",
    "search": ["example.org"],
    "options": ["ndots:1"],
}


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_old_versions_have_one_address_of_each_family(version):
    assert json.loads(encode(RESULT, version)) == {
        "cniVersion": version,
        "ip4": {"ip": "10.1.0.9/16", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]},
        "ip6": {"ip": "fd00::9/64", "gateway": "fd00::1", "routes": [{"dst": "::/0"}]},
        "dns": DNS_JSON,
    }


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0"])
def test_middle_versions_say_the_family_of_an_address(version):
    assert json.loads(encode(RESULT, version)) == {
        "cniVersion": version,
        "interfaces": [
            {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/pod"},
            {"name": "veth0", "mac": "02:00:00:00:00:02"},
        ],
        "ips": [
            {"version": "4", "address": "10.1.0.9/16", "gateway": "10.1.0.1", "interface": 0},
            {"version": "4", "address": "10.1.0.8/16"},
            {"version": "6", "address": "fd00::9/64", "gateway": "fd00::1", "interface": 0},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "::/0"}],
        "dns": DNS_JSON,
    }


def test_1_0_0_leaves_out_what_1_1_0_brought():
    printed = json.loads(encode(RESULT, "1.0.0"))
    assert printed["interfaces"][0] == {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/pod"}
    assert printed["routes"][0] == {"dst": "0.0.0.0/0", "gw": "10.1.0.1"}
    assert printed["ips"][0] == {"address": "10.1.0.9/16", "gateway": "10.1.0.1", "interface": 0}


def test_1_1_0_says_everything():
    printed = json.loads(encode(RESULT, "1.1.0"))
    assert printed["interfaces"][0]["mtu"] == 1400
    assert printed["interfaces"][0]["socketPath"] == "/run/s"
    assert printed["interfaces"][0]["pciID"] == "0000:00:01.0"
    assert printed["routes"][0] == {
        "dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1300, "advmss": 1260, "priority": 5, "table": 100, "scope": 253,
    }  # fmt: skip


def test_table_and_scope_zero_are_said():
    assert json.loads(encode(Result(routes=(Route("::/0", table=0, scope=0),)), LATEST))["routes"] == [
        {"dst": "::/0", "table": 0, "scope": 0}
    ]


@pytest.mark.parametrize("version", SUPPORTED)
def test_an_empty_result_prints_dns_up_to_0_4_0(version):
    expected = {"cniVersion": version, **({} if version >= "1" else {"dns": {}})}
    assert json.loads(encode(Result(), version)) == expected
    assert json.loads(encode(Result(dns=DNS()), version)) == expected


def test_the_latest_version_loses_nothing_there_and_back():
    assert decode(encode(RESULT, LATEST)) == RESULT


@pytest.mark.parametrize("version", SUPPORTED)
def test_printing_what_was_read_changes_nothing(version):
    printed = encode(RESULT, version)
    assert encode(decode(printed), version) == printed
    assert decode(json.loads(printed)) == decode(printed)


@pytest.mark.parametrize("version", SUPPORTED)
@pytest.mark.parametrize("other", SUPPORTED)
def test_any_version_converts_into_any_other(version, other):
    assert json.loads(encode(decode(encode(RESULT, version)), other))["cniVersion"] == other


def test_a_result_without_a_version_is_of_the_given_one():
    assert decode(b'{"ip4":{"ip":"10.1.0.9/16"}}', "0.2.0").ips == (IPConfig("10.1.0.9/16"),)
    with pytest.raises(IncompatibleVersion):
        decode(b"{}", "3.0.0")


def test_null_members_are_taken_for_absent():
    assert decode(b'{"cniVersion":"1.0.0","ips":null,"routes":null,"interfaces":null,"dns":null}') == Result()


def test_an_index_without_an_interface_means_none():
    read = decode(b'{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.9/16","interface":0}]}')
    assert read.ips == (IPConfig("10.1.0.9/16"),)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"", DecodeFailure),
        (b"null", DecodeFailure),
        (b"[" * 100_000, DecodeFailure),
        (b'{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.9"}]}', InvalidConfig),
        (b'{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.9/33"}]}', InvalidConfig),
        (b'{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.9/16","gateway":"x"}]}', InvalidConfig),
        (b'{"cniVersion":"1.0.0","routes":[{"dst":"0.0.0.0/0","gw":"x"}]}', InvalidConfig),
        (b'{"cniVersion":"1.0.0","interfaces":[{}]}', InvalidConfig),
    ],
)
def test_a_wrong_result_is_refused(text, error):
    with pytest.raises(error):
        decode(text)


@pytest.mark.parametrize("version", SUPPORTED)
def test_verbs_exist_from_a_version_on(version):
    since = {Verb.CHECK: "0.4.0", Verb.GC: "1.1.0", Verb.STATUS: "1.1.0", Verb.ADD: "0.1.0", Verb.DEL: "0.1.0"}
    for verb, first in since.items():
        if SUPPORTED.index(version) >= SUPPORTED.index(first):
            check_verb(version, verb)
        else:
            with pytest.raises(IncompatibleVersion, match=str(verb)):
                check_verb(version, verb)


def test_an_error_says_code_sentence_and_next_step():
    printed = json.loads(encode_error(NoAddressLeft("no free address in 10.1.0.0/30"), "0.3.1"))
    assert printed["cniVersion"] == "0.3.1"
    assert printed["code"] == 105
    assert printed["msg"] == "no free address in 10.1.0.0/30"
    assert printed["details"]


def test_an_error_is_printed_whatever_its_words_hold():
    printed = json.loads(encode_error(InvalidConfig("\udcff\0\n\"'"), "9.9.9"))
    assert printed["cniVersion"] == "1.0.0"
    assert printed["msg"] == "\\udcff\0\n\"'"


def test_version_lists_all_versions():
    assert json.loads(encode_version()) == {"cniVersion": "1.1.0", "supportedVersions": list(SUPPORTED)}
