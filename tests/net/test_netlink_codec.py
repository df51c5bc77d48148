import contextlib
import errno
import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from underlay.errors import KernelError
from underlay.net import addr, frames, link, neigh, netconf, netlink, route, route_copy, rule, vf

PARSERS = [addr.parse, link.parse, neigh.parse, netconf.parse, route.parse, rule.parse, vf.parse_vfs]

kinds = st.integers(0, 0x3FFF)
payloads = st.binary(max_size=70)
attribute_pairs = st.lists(st.tuples(st.integers(0, 60), payloads), max_size=12)


@pytest.mark.parametrize("parse", [*PARSERS, netlink.attribute_list, netlink.attributes, netlink.messages])
@given(data=st.binary(max_size=300))
def test_random_bytes_parse_or_raise_malformed(parse, data):
    with contextlib.suppress(netlink.Malformed):
        parse(data)


@pytest.mark.parametrize("parse", PARSERS)
@given(head=st.binary(min_size=16, max_size=16), pairs=attribute_pairs)
def test_random_attributes_parse_or_raise_malformed(parse, head, pairs):
    for size in (0, 4, 8, 12, 16):
        body = head[:size] + b"".join(netlink.attribute(kind, payload) for kind, payload in pairs)
        with contextlib.suppress(netlink.Malformed):
            parse(body)


@given(raw=st.binary(max_size=200), dev=st.integers(1, 2**31 - 1))
def test_random_bytes_are_put_back_as_a_route_or_refused(raw, dev):
    with contextlib.suppress(netlink.Malformed):
        route_copy.put(raw, dev)


@given(kind=st.sampled_from([netlink.NLMSG_ERROR, netlink.NLMSG_DONE]), flags=st.integers(0, 0xFFFF), body=st.binary())
def test_random_error_answers_parse_or_raise_malformed(kind, flags, body):
    try:
        number, text = netlink.error_answer(kind, flags, body)
    except netlink.Malformed:
        return
    assert number >= 0
    assert isinstance(text, str)


@given(frame=st.binary(max_size=120))
def test_random_frames_claim_something_or_nothing(frame):
    for claim in (frames.arp_claim(frame), frames.nd_claim(frame)):
        assert claim is None or len(claim.mac) == 6


@given(pairs=st.lists(st.tuples(kinds, payloads)))
def test_attributes_survive_packing(pairs):
    assert netlink.attribute_list(b"".join(netlink.attribute(*pair) for pair in pairs)) == pairs


@given(pairs=st.lists(st.tuples(kinds, payloads)))
def test_of_a_repeated_attribute_the_last_counts(pairs):
    assert netlink.attributes(b"".join(netlink.attribute(*pair) for pair in pairs)) == dict(pairs)


@given(kind=kinds, value=st.integers(0, 2**32 - 1), inner=st.lists(st.tuples(kinds, payloads)))
def test_numbers_and_nests_survive_packing(kind, value, inner):
    packed = netlink.nest(kind, b"".join(netlink.attribute(*pair) for pair in inner)) if inner else b""
    packed += netlink.attribute_u32(kind, value)
    found = netlink.attribute_list(packed)
    assert netlink.integer(found[-1][1]) == value
    if inner:
        assert found[0][0] == kind
        assert netlink.attribute_list(found[0][1]) == inner


@given(kind=kinds, value=st.integers(0, 255), text=st.text(st.characters(exclude_characters="\0", codec="utf-8")))
def test_bytes_and_texts_survive_packing(kind, value, text):
    found = netlink.attribute_list(netlink.attribute_u8(kind, value) + netlink.attribute_text(kind, text))
    assert netlink.integer(found[0][1]) == value
    assert netlink.text(found[1][1]) == text


@given(parts=st.lists(st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.integers(0, 2**32 - 1), payloads)))
def test_messages_survive_packing(parts):
    data = b""
    for kind, flags, sequence, body in parts:
        data += netlink.HEADER.pack(16 + len(body), kind, flags, sequence, 0) + body + bytes(-len(body) % 4)
    assert netlink.messages(data) == parts


@given(address=st.ip_addresses())
def test_addresses_survive_packing(address):
    family, packed = netlink.pack_address(str(address))
    assert (family == 2) == (address.version == 4)
    assert packed == address.packed
    assert netlink.pack_address(netlink.unpack_address(packed)) == (family, packed)


@given(address=st.ip_addresses(), data=st.data())
def test_a_destination_has_no_host_bits(address, data):
    length = data.draw(st.integers(0, address.max_prefixlen))
    _, packed, found = netlink.pack_cidr(f"{address}/{length}")
    assert found == length
    expected = ipaddress.ip_network(f"{address}/{length}", strict=False).network_address.packed
    assert netlink.network(packed, length) == expected


@pytest.mark.parametrize(
    "cidr", ["", "/", "10.0.0.1/33", "fd00::/129", "10.0.0.1/", "10.0.0.1/-1", "10.0.0.1/x", "10.0.0/8", "fd00:::/64"]
)
def test_what_is_no_cidr_is_refused_by_name(cidr):
    with pytest.raises(ValueError, match=r"is no IP address|has no prefix length"):
        netlink.pack_cidr(cidr)


@pytest.mark.parametrize("mac", ["", "02:00:00:00:00", "02:00:00:00:00:00:01", "zz:00:00:00:00:01"])
def test_what_is_no_mac_is_refused_by_name(mac):
    with pytest.raises(ValueError, match="is no MAC address"):
        netlink.pack_mac(mac)


@given(st.data())
def test_random_macs_are_local_and_unicast(data):
    first = int(link.random_mac()[:2], 16)
    assert first & 0b11 == 0b10


def test_a_cut_off_message_is_malformed():
    data = netlink.HEADER.pack(40, 16, 0, 1, 0) + bytes(8)
    with pytest.raises(KernelError, match="claims 40 bytes of 24") as raised:
        netlink.messages(data)
    assert raised.value.errno == errno.EBADMSG


def test_an_error_without_text_names_the_missing_attribute():
    missing = netlink.attribute_u32(netlink.NLMSGERR_ATTR_MISS_TYPE, 3)
    body = struct.pack("=i", -errno.EINVAL) + bytes(16) + missing
    flags = netlink.NLM_F_ACK_TLVS | netlink.NLM_F_CAPPED
    assert netlink.error_answer(netlink.NLMSG_ERROR, flags, body) == (errno.EINVAL, "attribute 3 is missing")


def test_an_uncapped_error_repeats_the_request_before_its_text():
    request = netlink.HEADER.pack(24, 16, 5, 1, 0) + b"reqreq\0\0"
    text = netlink.attribute_text(netlink.NLMSGERR_ATTR_MSG, "no such thing")
    body = struct.pack("=i", -errno.ENOENT) + request + text
    assert netlink.error_answer(netlink.NLMSG_ERROR, netlink.NLM_F_ACK_TLVS, body) == (errno.ENOENT, "no such thing")


def vf_info(*parts):
    return netlink.nest(1, b"".join(parts))


def test_virtual_functions_are_read_with_all_their_settings():
    # linux/if_link.h: each part starts with the VF's number
    full = vf_info(
        netlink.attribute(1, struct.pack("=I32s", 3, bytes.fromhex("020304050607"))),
        netlink.attribute(2, struct.pack("=III", 3, 100, 5)),
        netlink.attribute(4, struct.pack("=II", 3, 1)),
        netlink.attribute(5, struct.pack("=II", 3, 2)),
        netlink.attribute(6, struct.pack("=III", 3, 10, 200)),
        netlink.attribute(9, struct.pack("=II", 3, 0)),
        netlink.nest(12, netlink.attribute(1, struct.pack("=III", 3, 100, 5) + b"\x88\xa8\0\0")),
    )
    sparse = vf_info(
        netlink.attribute(1, struct.pack("=I32s", 4, b"")), netlink.attribute(9, struct.pack("=II", 4, 0xFFFFFFFF))
    )
    assert vf.parse_vfs(full + sparse) == (
        vf.Vf(3, "02:03:04:05:06:07", 100, 5, "802.1ad", True, False, "disable", 10, 200),
        vf.Vf(4, "00:00:00:00:00:00"),
    )


def test_a_virtual_function_is_set_as_the_kernel_reads_it():
    settings = vf.VfSettings(
        mac="02:03:04:05:06:07", vlan=7, qos=2, spoofchk=False, trust=True, link_state="enable", max_tx_rate=9
    )
    message = vf.change(pf=5, number=2, settings=settings)
    assert message.type == link.RTM_SETLINK
    assert struct.unpack_from("=i", message.body, 4)[0] == 5
    listed = netlink.attributes(message.body, 16)[link.IFLA_VFINFO_LIST]
    assert vf.parse_vfs(listed) == (vf.Vf(2, "02:03:04:05:06:07", 7, 2, "802.1q", False, True, "enable", 0, 9),)
    tagged = vf.change(pf=5, number=2, settings=vf.VfSettings(vlan=7, vlan_proto="802.1ad"))
    found = vf.parse_vfs(netlink.attributes(tagged.body, 16)[link.IFLA_VFINFO_LIST])
    assert (found[0].vlan, found[0].vlan_proto) == (7, "802.1ad")


def test_an_impossible_setting_of_a_virtual_function_is_refused_by_name():
    with pytest.raises(ValueError, match="'up' is no link state"):
        vf.change(pf=5, number=2, settings=vf.VfSettings(link_state="up"))
    with pytest.raises(ValueError, match=r"'802.1x' is no VLAN protocol"):
        vf.change(pf=5, number=2, settings=vf.VfSettings(vlan=1, vlan_proto="802.1x"))
