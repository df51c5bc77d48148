"""The CNI_* environment as a frozen value, or an error that names the variable."""

from __future__ import annotations

import pytest

from underlay.cni.request import Verb, parse, parse_args
from underlay.errors import InvalidEnvironment

WHOLE = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c0ffee01",
    "CNI_NETNS": "/run/netns/pod",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin:/usr/lib/cni",
    "CNI_ARGS": "IgnoreUnknown=true;K8S_POD_NAME=web",
}


def without(*names: str, **changes: str) -> dict[str, str]:
    return {key: value for key, value in {**WHOLE, **changes}.items() if key not in names}


def test_a_whole_call_is_taken_apart():
    request = parse("macvlan", WHOLE, b"{}")
    assert request.verb is Verb.ADD
    assert request.path == ("/opt/cni/bin", "/usr/lib/cni")
    assert request.args == {"IgnoreUnknown": "true", "K8S_POD_NAME": "web"}
    assert request.args_text == WHOLE["CNI_ARGS"]
    assert request.stdin == b"{}"


@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
@pytest.mark.parametrize("name", ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"])
def test_add_and_check_need_all_of_an_attachment(verb, name):
    with pytest.raises(InvalidEnvironment, match=name):
        parse("macvlan", without(name, CNI_COMMAND=verb), b"{}")


def test_every_missing_variable_is_named_at_once():
    with pytest.raises(InvalidEnvironment, match="CNI_CONTAINERID, CNI_NETNS"):
        parse("macvlan", without("CNI_CONTAINERID", "CNI_NETNS"), b"{}")


def test_del_needs_no_namespace():
    assert parse("macvlan", without("CNI_NETNS", CNI_COMMAND="DEL"), b"{}").netns == ""


@pytest.mark.parametrize("verb", ["GC", "STATUS"])
def test_gc_and_status_need_the_path_alone(verb):
    env = {"CNI_COMMAND": verb, "CNI_PATH": "/opt/cni/bin"}
    assert parse("macvlan", env, b"{}").container_id == ""
    with pytest.raises(InvalidEnvironment, match="CNI_PATH"):
        parse("macvlan", {"CNI_COMMAND": verb}, b"{}")


def test_version_needs_nothing():
    assert parse("macvlan", {"CNI_COMMAND": "VERSION"}, b"").verb is Verb.VERSION


@pytest.mark.parametrize("command", ["", "FROB", "add", "ADD "])
def test_an_unknown_verb_is_refused(command):
    with pytest.raises(InvalidEnvironment, match="CNI_COMMAND"):
        parse("macvlan", without(CNI_COMMAND=command), b"{}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CNI_CONTAINERID", "../x"),
        ("CNI_CONTAINERID", "a/b"),
        ("CNI_CONTAINERID", "-a"),
        ("CNI_CONTAINERID", "a\nb"),
        ("CNI_CONTAINERID", "a\n"),
        ("CNI_CONTAINERID", "a" * 256),
        ("CNI_IFNAME", "averyverylongname"),
        ("CNI_IFNAME", "äääääääää"),
        ("CNI_IFNAME", "a/b"),
        ("CNI_IFNAME", "a:b"),
        ("CNI_IFNAME", "a b"),
        ("CNI_IFNAME", "a\0b"),
        ("CNI_IFNAME", "."),
        ("CNI_IFNAME", ".."),
        ("CNI_NETNS", "/run/netns/\0"),
        ("CNI_PATH", "/opt\0"),
        ("CNI_ARGS", "A=\0"),
        ("CNI_ARGS", "K8S_POD_NAME"),
        ("CNI_ARGS", "=web"),
    ],
)
def test_a_malformed_variable_is_named(name, value):
    with pytest.raises(InvalidEnvironment, match=name):
        parse("macvlan", without(**{name: value}), b"{}")


def test_del_survives_malformed_args():
    assert parse("macvlan", without(CNI_COMMAND="DEL", CNI_ARGS="x;A=b"), b"{}").args == {"A": "b"}


def test_args_keep_later_equals_signs_and_the_last_of_two_values():
    assert parse_args("A=b=c;B=1;B=2;;") == {"A": "b=c", "B": "2"}
    assert parse_args("") == {}
