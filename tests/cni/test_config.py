"""Network configurations: what is taken, what is refused and with which words, what is handed on."""

from __future__ import annotations

import json

import msgspec
import pytest
from msgspec.structs import replace

from underlay.cni.config import (
    decode,
    inject,
    parse_network,
    parse_plugin,
    unknown_fields,
    valid_attachments,
    with_runtime,
)
from underlay.cni.result import DNS, Interface, IPConfig, Result, Route
from underlay.errors import DecodeFailure, IncompatibleVersion, InvalidConfig

PLUGIN = {
    "cniVersion": "1.0.0",
    "name": "net",
    "type": "macvlan",
    "master": "eth0",
    "capabilities": {"mac": True, "ips": False},
    "runtimeConfig": {"mac": "02:00:00:00:00:09"},
    "args": {"cni": {"ips": ["10.1.0.9"]}, "other": 1},
    "ipam": {"type": "host-local", "subnet": "10.1.0.0/16"},
    "dns": {"nameservers": ["10.1.0.2"]},
    "prevResult": {
        "cniVersion": "0.3.1",
        "interfaces": [{"name": "eth0", "sandbox": "/run/netns/pod"}],
        "ips": [{"version": "4", "address": "10.1.0.9/16", "interface": 0}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}],
        "dns": {},
    },
}
PREV = Result(
    interfaces=(Interface("eth0", sandbox="/run/netns/pod"),),
    ips=(IPConfig("10.1.0.9/16", interface=0),),
    routes=(Route("0.0.0.0/0", "10.1.0.1"),),
)


def raw(value: object = None, **changes: object) -> bytes:
    return json.dumps({**PLUGIN, **changes} if value is None else value).encode()


def test_a_direct_call_is_taken_apart():
    conf = parse_plugin(raw())
    assert (conf.version, conf.name, conf.type, conf.ipam_type) == ("1.0.0", "net", "macvlan", "host-local")
    assert conf.raw == raw()
    assert conf.runtime == {"mac": "02:00:00:00:00:09"}
    assert conf.cni_args == {"ips": ["10.1.0.9"]}
    assert conf.capabilities == {"mac": True, "ips": False}
    assert conf.dns == DNS(nameservers=("10.1.0.2",))
    assert conf.prev == PREV


def test_members_may_be_null_or_absent():
    empty = dict.fromkeys(("capabilities", "runtimeConfig", "args", "ipam", "dns", "prevResult", "cniVersion"))
    conf = parse_plugin(raw(None, **empty))
    assert conf == replace(parse_plugin(raw({"name": "net", "type": "macvlan"})), raw=conf.raw)
    assert conf.version == "0.1.0"
    assert conf.prev is None


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (b"", DecodeFailure, "not JSON"),
        (b"{", DecodeFailure, "not JSON"),
        (b"{} {}", DecodeFailure, "not JSON"),
        (b"[]", DecodeFailure, "no JSON object"),
        (b"null", DecodeFailure, "no JSON object"),
        (b"3", DecodeFailure, "no JSON object"),
        (b'"x"', DecodeFailure, "no JSON object"),
        (b"\0", DecodeFailure, "not JSON"),
        (b"\xef\xbb\xbf{}", DecodeFailure, "not JSON"),
        (b'{"name":"\xff"}', DecodeFailure, "UTF-8"),
        (b'{"name":"net","unknown":"\xff"}', DecodeFailure, "UTF-8"),
        (b'{"name":"\\ud800"}', DecodeFailure, "not JSON"),
        (b'{"x":' + b"[" * 100_000, DecodeFailure, "nested"),
        (b'{"runtimeConfig":{"x":' + b'{"a":' * 100_000, DecodeFailure, "nested"),
        (b'{"runtimeConfig":{"x":1e999}}', InvalidConfig, "runtimeConfig"),
        (b'{"runtimeConfig":{"x":' + b"9" * 9999 + b"}}", InvalidConfig, "runtimeConfig"),
        (raw(cniVersion="9.9.9"), IncompatibleVersion, "9.9.9"),
        (raw(cniVersion=1), InvalidConfig, '"cniVersion": expected string'),
        (raw(name=""), InvalidConfig, '"name" is missing'),
        (raw(name=["x"]), InvalidConfig, '"name": expected string'),
        (raw(name="a b/.."), InvalidConfig, '"name" '),
        (raw(name="../x"), InvalidConfig, '"name" '),
        (raw(name="n" * 256), InvalidConfig, '"name" '),
        (raw(type="../../bin/sh"), InvalidConfig, '"type" '),
        (raw(type=".."), InvalidConfig, '"type" '),
        (raw(type="a\0b"), InvalidConfig, '"type" '),
        (raw(type="t" * 256), InvalidConfig, '"type" '),
        (raw(ipam="static"), InvalidConfig, '"ipam": expected object'),
        (raw(ipam={"type": 3}), InvalidConfig, '"ipam.type": expected string'),
        (raw(ipam={"type": "/bin/sh"}), InvalidConfig, '"ipam.type" '),
        (raw(capabilities={"mac": "yes"}), InvalidConfig, '"capabilities'),
        (raw(args={"cni": []}), InvalidConfig, '"args.cni": expected object'),
        (raw(dns={"search": "x"}), InvalidConfig, '"dns.search": expected array'),
        (raw(prevResult={"cniVersion": "7"}), IncompatibleVersion, "7"),
        (raw(prevResult={"ips": [{"address": 1}]}), InvalidConfig, '"prevResult.ips\\[0\\].address": expected string'),
        (raw(prevResult={"ips": [{}]}), InvalidConfig, '"prevResult.ips\\[0\\].address" is missing'),
        (raw(prevResult={"ips": [{"address": "x"}]}), InvalidConfig, '"prevResult.ips\\[0\\].address" '),
        (raw(prevResult={"routes": [{"dst": "10.0.0.0"}]}), InvalidConfig, '"prevResult.routes\\[0\\].dst" '),
    ],
)
def test_a_wrong_configuration_names_the_field(text, error, words):
    with pytest.raises(error, match=words) as caught:
        parse_plugin(text)
    assert caught.value.hint


def test_a_wrong_field_inside_a_list_is_named_with_its_place():
    broken = raw({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "a"}, {"type": "b", "ipam": 1}]})
    with pytest.raises(InvalidConfig, match=r'"plugins\[1\]\.ipam": expected object'):
        parse_network(broken)
    with pytest.raises(InvalidConfig, match=r'"plugins\[0\]\.type" is missing'):
        parse_network(raw({"cniVersion": "1.0.0", "name": "n", "plugins": [{}]}))
    with pytest.raises(InvalidConfig, match=r'"plugins" is an empty list'):
        parse_network(raw({"cniVersion": "1.0.0", "name": "n", "plugins": []}))
    with pytest.raises(InvalidConfig, match=r'"plugins": expected array'):
        parse_network(raw({"cniVersion": "1.0.0", "name": "n", "plugins": {}}))
    with pytest.raises(InvalidConfig, match=r'"plugins\[0\]": expected object'):
        parse_network(raw({"cniVersion": "1.0.0", "name": "n", "plugins": ["macvlan"]}))


def test_plugins_of_a_list_inherit_name_and_version():
    text = '{"cniVersion": "0.3.1", "name": "net", "plugins": [{"type": "macvlan", "x" : 1 }, {"type":"veth"}]}'
    network = parse_network(text.encode())
    assert [(one.version, one.name, one.type) for one in network.plugins] == [
        ("0.3.1", "net", "macvlan"),
        ("0.3.1", "net", "veth"),
    ]
    assert network.plugins[0].raw == b'{"type": "macvlan", "x" : 1 }'


def test_a_single_configuration_is_a_list_of_one():
    network = parse_network(raw())
    assert len(network.plugins) == 1
    assert network.plugins[0].raw == raw()


def test_a_name_and_a_version_may_come_from_outside():
    network = parse_network(raw({"type": "macvlan"}), name="from-the-object", version="1.0.0")
    assert (network.name, network.version) == ("from-the-object", "1.0.0")
    listed = parse_network(raw({"plugins": [{"type": "macvlan"}]}), name="from-the-object", version="1.0.0")
    assert (listed.name, listed.plugins[0].name, listed.version) == ("from-the-object", "from-the-object", "1.0.0")


@pytest.mark.parametrize(
    ("listed", "own", "chosen"),
    [
        (["0.3.1", "1.0.0"], "0.4.0", "1.0.0"),
        (["0.3.1", "9.0.0"], "0.4.0", "0.4.0"),
        (["1.1.0", "2.0.0"], None, "1.1.0"),
        ([], "0.4.0", "0.4.0"),
        (["1.1.0"], "9.9.9", "1.1.0"),
    ],
)
def test_the_highest_version_that_both_speak_is_chosen(listed, own, chosen):
    text = raw({"cniVersion": own, "cniVersions": listed, "name": "n", "plugins": [{"type": "a"}]})
    assert parse_network(text).version == chosen


def test_versions_of_another_time_are_refused():
    with pytest.raises(IncompatibleVersion):
        parse_network(raw({"cniVersions": ["2.0.0"], "name": "n", "plugins": [{"type": "a"}]}))


def test_the_switches_of_a_list_are_read():
    text = {"cniVersion": "1.1.0", "name": "n", "plugins": [{"type": "a"}]}
    network = parse_network(raw({**text, "disableGC": True, "disableCheck": "True", "loadOnlyInlinedPlugins": True}))
    assert (network.disable_gc, network.disable_check, network.inlined_only) == (True, True, True)
    plain = parse_network(raw(text))
    assert (plain.disable_gc, plain.disable_check, plain.inlined_only) == (False, False, False)
    with pytest.raises(InvalidConfig, match="disableCheck"):
        parse_network(raw({**text, "disableCheck": "perhaps"}))
    with pytest.raises(InvalidConfig, match="disableGC"):
        parse_network(raw({**text, "disableGC": 1}))


def test_runtime_arguments_go_to_declared_capabilities_only():
    conf = parse_plugin(raw())
    assert with_runtime(conf, {"mac": "x", "ips": ["y"], "portMappings": []}).runtime == {"mac": "x"}
    assert with_runtime(conf, {"ips": ["y"]}) is conf


def test_an_executed_plugin_gets_everything_it_was_configured_with():
    conf = replace(parse_plugin(raw()), version="0.4.0", name="other", runtime={"mac": "x"}, cni_args={"k": "v"})
    given = json.loads(inject(conf))
    assert given["cniVersion"] == "0.4.0"
    assert given["name"] == "other"
    assert given["master"] == "eth0"
    assert given["runtimeConfig"] == {"mac": "x"}
    assert given["args"] == {"cni": {"k": "v"}, "other": 1}
    assert given["prevResult"]["cniVersion"] == "0.4.0"
    assert given["prevResult"]["ips"] == [{"version": "4", "address": "10.1.0.9/16", "interface": 0}]
    assert parse_plugin(inject(conf)).prev == PREV


def test_what_is_not_there_is_not_handed_on():
    conf = replace(parse_plugin(raw(args=None)), prev=None, runtime={}, cni_args={})
    given = json.loads(inject(conf))
    assert "prevResult" not in given
    assert "runtimeConfig" not in given


def test_keys_of_an_executed_plugin_keep_their_spelling():
    text = b'{"name":"n","type":"x","big":12345678901234567890123,"float":1.10,"s":"\\u00e4"}'
    given = inject(parse_plugin(text))
    assert b'"big":12345678901234567890123,"float":1.10,"s":"\\u00e4"' in given


def test_gc_lists_what_is_alive():
    pair = {"containerID": "c1", "ifname": "eth0"}
    assert valid_attachments(raw({"cni.dev/valid-attachments": [pair]})) == {("c1", "eth0")}
    assert valid_attachments(raw({"cni.dev/attachments": [pair]})) == {("c1", "eth0")}
    assert valid_attachments(raw({"cni.dev/valid-attachments": []})) == frozenset()


def test_gc_without_a_list_is_refused_before_it_takes_all_for_garbage():
    with pytest.raises(InvalidConfig, match="valid-attachments"):
        valid_attachments(raw())
    with pytest.raises(InvalidConfig, match=r"valid-attachments\[0\]"):
        valid_attachments(raw({"cni.dev/valid-attachments": [{"containerID": 1, "ifname": "eth0"}]}))


class Section(msgspec.Struct, frozen=True):
    type: str = ""
    subnet: str = ""


class Keys(msgspec.Struct, frozen=True):
    master: str = ""
    ipam: Section | None = None
    items: list[Section] = []


def test_unknown_fields_are_listed_with_their_path():
    text = raw(mastre="eth0", ipam={"type": "x", "subnett": "y"}, items=[{}, {"typ": "z"}])
    assert unknown_fields(text, Keys) == ("ipam.subnett", "mastre", "items[1].typ")


def test_a_plugins_own_keys_are_decoded_with_the_path_of_a_wrong_one():
    assert decode(raw(), Keys).ipam == Section("host-local", "10.1.0.0/16")
    with pytest.raises(InvalidConfig, match=r'"ipam\.subnet": expected string, got integer'):
        decode(raw(ipam={"subnet": 3}), Keys)
    with pytest.raises(InvalidConfig, match=r'"ipam\.subnet": expected string'):
        decode(b'{"subnet":3}', Section, at="ipam")
