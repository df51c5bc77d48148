"""What a changed annotation means, as a pure function: which NICs go, which come, under which names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from underlay.delegate.attachment import Attachment
from underlay.multus.annotations import parse
from underlay.multus.changes import BY_ANNOTATION, BY_CONFIGURATION, Attached
from underlay.multus.devices import INFO_FILE, Wanted

FIXED = Attachment("cluster-net", b"", "eth0", by=BY_CONFIGURATION)
A = Attachment("default/a", b"", "net1", by=BY_ANNOTATION)


def attached(*each: str, fixed: tuple[str, ...] = ()) -> Attached:
    """Of "net1 default/a", after eth0; ``fixed`` likewise, of the configuration."""
    nics = [
        Attachment(network, b"", ifname, by=by)
        for by, some in ((BY_CONFIGURATION, fixed), (BY_ANNOTATION, each))
        for ifname, network in (one.split() for one in some)
    ]
    return Attached((FIXED, *nics))


def settle(have: Attached, annotation: str) -> list[str]:
    """The NICs as "net1 default/a"."""
    settled = have.settled(parse(annotation, "default"))
    return [f"{each.interface} {each.shown}" for each in settled]


@pytest.mark.parametrize(
    ("have", "annotation", "names"),
    [
        ((), "a,b", ["net1 default/a", "net2 default/b"]),
        (("net1 default/a", "net2 default/b"), "b", ["net2 default/b"]),
        (("net1 default/a", "net2 default/b"), "b,a", ["net2 default/b", "net1 default/a"]),
        (("net1 default/a", "net2 default/b"), "b,c", ["net2 default/b", "net1 default/c"]),
        (("net1 default/a", "net2 default/b"), "c,a,d", ["net2 default/c", "net1 default/a", "net3 default/d"]),
        (("net1 default/a", "net2 default/a"), "a", ["net1 default/a"]),
        (("net1 default/a",), "a,a", ["net1 default/a", "net2 default/a"]),
        (("fast0 default/a",), "a", ["fast0 default/a"]),
        (("net1 default/a",), "a@fast0", ["fast0 default/a"]),
        (("net1 default/a", "net2 default/a"), "a,a@net1", ["net2 default/a", "net1 default/a"]),
        (("net1 default/a",), "b@net1,a", ["net1 default/b", "net1 default/a"]),
        (("net1 default/a",), "other/a", ["net1 other/a"]),
    ],
)  # fmt: skip
def test_a_nic_that_stays_keeps_its_name_and_a_new_one_takes_the_lowest_that_is_free(have, annotation, names):
    assert settle(attached(*have), annotation) == names


def test_names_of_nics_that_no_annotation_asked_for_are_taken():
    have = attached(fixed=("net1 kube-system/default", "net2 side"))
    assert settle(have, "a,b") == ["net3 default/a", "net4 default/b"]
    assert not have.changes([each.attachment for each in have.fixed()])


def test_whose_a_nic_is_does_not_depend_on_its_network_or_its_name():
    have = attached("net2 default/a", fixed=("net1 default/a",))
    assert settle(have, "a") == ["net2 default/a"]
    assert [each.attachment.ifname for each in have.fixed()] == ["eth0", "net1"]
    (gone,) = have.changes([FIXED]).remove
    assert gone.ifname == "net2"


def test_who_asked_for_what_an_earlier_version_attached_is_not_known():
    assert attached("net1 default/a").known
    assert not Attached((FIXED, Attachment("default/a", b"", "net1"))).known


@pytest.mark.parametrize(
    "changed",
    [
        {"runtime": {"mac": "02:00:00:00:00:01"}},
        {"runtime": {"ips": ("10.0.0.1/24",)}},
        {"runtime": {"deviceID": "0000:3b:02.2", "pciBusID": "0000:3b:02.2"}},
        {"cni_args": {"a": {"b": 1}}},
        {"default_gateways": ("10.0.0.254",)},
    ],
)
def test_one_whose_arguments_have_changed_goes_and_comes_again(changed):
    have = A
    wanted = replace(have, **changed)
    found = Attached((FIXED, have)).changes([FIXED, wanted])
    assert (found.remove, found.add) == ((have,), (wanted,))
    assert not Attached((FIXED, wanted)).changes([FIXED, wanted])


def test_what_json_made_of_the_arguments_and_the_nodes_own_part_are_no_change():
    have = replace(A, runtime={"ips": ["10.0.0.1/24"], INFO_FILE: "/before"}, cni_args={"a": [{"b": [1]}]})
    wanted = replace(have, runtime={"ips": ("10.0.0.1/24",)}, cni_args={"a": ({"b": (1,)},)})
    assert not Attached((FIXED, have)).changes([FIXED, wanted])


def test_a_network_that_is_defined_otherwise_by_now_is_no_change():
    have = replace(A, conf=b"{}")
    assert not Attached((FIXED, have)).changes([FIXED, replace(have, conf=b'{"mtu": 9000}')])


def test_a_nic_that_stays_keeps_its_device():
    have = replace(A, runtime={"deviceID": "0000:3b:02.1"})
    asked = [
        Wanted(Attachment("default/a", b"", "net1"), "intel.com/sriov"),
        Wanted(Attachment("default/a", b"", "net2"), "intel.com/sriov"),
        Wanted(Attachment("default/a", b"", "net1"), "intel.com/sriov", "0000:3b:02.7"),
    ]
    devices = [each.device for each in Attached((FIXED, have)).with_devices(asked)]
    assert devices == ["0000:3b:02.1", "", "0000:3b:02.7"]


NETWORKS = st.lists(st.sampled_from(["a", "b", "c", "a@x0", "b@x1", "other/a"]), max_size=6)


@given(NETWORKS, NETWORKS)
def test_whatever_was_and_is_asked_for_names_are_told_apart_and_applying_it_twice_changes_nothing(before, after):
    def applied(have: Attached, asked: list[str]) -> tuple[Attached, list[Attachment]]:
        settled = have.settled(parse(",".join(asked), "default"))
        wanted = [FIXED, *(Attachment(each.shown, b"", each.interface, by=BY_ANNOTATION) for each in settled)]
        found = have.changes(wanted)
        left = [each for each in have.attachments if each not in found.remove]
        return Attached((*left, *found.add)), wanted

    for asked in (before, after):  # a name that is asked for twice is refused elsewhere
        if len({each for each in asked if "@" in each}) < len([each for each in asked if "@" in each]):
            return
    have, _ = applied(Attached((FIXED,)), before)
    now, wanted = applied(have, after)
    names = [each.ifname for each in now.attachments]
    assert len(names) == len(set(names)) == len(after) + 1
    assert {(each.network, each.ifname) for each in now.attachments} == {(each.network, each.ifname) for each in wanted}
    again, _ = applied(now, after)
    assert again.attachments == now.attachments
