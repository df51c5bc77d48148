"""host-local: allocation, release, check, gc, and a directory that a crash left behind."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fcntl import LOCK_EX, flock
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.full_disk import file_size_limit
from tests.keep import Keep

from underlay.cni.config import parse_plugin
from underlay.cni.result import DNS, IPConfig, Result, Route
from underlay.errors import (
    CheckFailed,
    DeadlineExceeded,
    InvalidConfig,
    InvalidEnvironment,
    NoAddressLeft,
    NotAvailable,
    StateUnwritable,
    UnderlayError,
)
from underlay.ipam import store
from underlay.ipam.allocator import Holder
from underlay.ipam.host_local import HOST_LOCAL, read, read_resolv_conf, store_of
from underlay.ipam.undo import Release, release

if TYPE_CHECKING:
    from pathlib import Path


def soon() -> float:
    return time.monotonic() + 30


def test_addresses_come_one_after_another(net):
    assert [net.address(f"c{n}") for n in range(3)] == ["10.1.0.2", "10.1.0.3", "10.1.0.4"]
    assert net.reserved() == {f"10.1.0.{n + 2}": f"c{n}\r\neth0" for n in range(3)}
    assert (net.directory / "last_reserved_ip.0").read_text() == "10.1.0.4"


def test_a_released_address_rests_until_the_range_is_through(net):
    net.section = {"subnet": "10.1.0.0/29"}
    for n in range(3):
        net.add(f"c{n}")
    net.delete("c0")
    assert [net.address(f"d{n}") for n in range(3)] == ["10.1.0.5", "10.1.0.6", "10.1.0.2"]


def test_a_full_range_says_which_and_where(net):
    net.section = {"subnet": "10.1.0.0/30"}
    net.add("c1")
    with pytest.raises(NoAddressLeft, match=r'10\.1\.0\.1-10\.1\.0\.2.*"net"') as caught:
        net.add("c2")
    assert str(net.directory) in caught.value.hint
    assert net.reserved() == {"10.1.0.2": "c1\r\neth0"}


def test_every_set_gives_one_address(net):
    net.section = {"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]], "routes": [{"dst": "::/0"}]}
    assert net.add() == Result(
        ips=(IPConfig("10.1.0.2/24", "10.1.0.1"), IPConfig("fd00::2/64", "fd00::1")), routes=(Route("::/0"),)
    )
    assert set(net.reserved()) == {"10.1.0.2", "fd00::2"}
    assert (net.directory / "last_reserved_ip.1").read_text() == "fd00::2"


def test_a_full_set_takes_nothing_from_the_others(net):
    net.section = {"ranges": [[{"subnet": "fd00::/64"}], [{"subnet": "10.1.0.0/30"}]]}
    net.add("c1")
    with pytest.raises(NoAddressLeft, match="range set 1"):
        net.add("c2")
    assert set(net.reserved()) == {"fd00::2", "10.1.0.2"}


def test_how_to_give_back_is_recorded_before_anything_is_taken(net):
    seen = []

    def record(entry):
        seen.append((entry, set(net.reserved())))

    HOST_LOCAL.add(net.conf(), Holder("c1", "eth0"), {}, record=record, deadline=soon())
    assert seen == [(Release("host-local", str(net.data_dir), "net", "c1", "eth0", ("10.1.0.2",)), set())]


def test_nothing_is_taken_when_it_cannot_be_recorded(net):
    def record(entry):
        raise StateUnwritable("the disk is full")

    with pytest.raises(StateUnwritable):
        HOST_LOCAL.add(net.conf(), Holder("c1", "eth0"), {}, record=record, deadline=soon())
    assert net.reserved() == {}
    assert net.address() == "10.1.0.2"


def test_undoing_a_second_add_leaves_the_first_its_address(net):
    net.add("c1")
    net.add("c1")
    release(net.recorded[1])
    assert net.reserved() == {"10.1.0.2": "c1\r\neth0"}
    release(net.recorded[0])
    release(net.recorded[0])
    assert net.reserved() == {}


def test_undo_spares_an_address_that_another_container_got_meanwhile(net):
    net.add("c1")
    (net.directory / "10.1.0.2").write_text("c2\r\neth0")
    release(net.recorded[0])
    assert net.reserved() == {"10.1.0.2": "c2\r\neth0"}


def test_undo_without_addresses_gives_back_all_of_the_nic(net):
    net.section = {"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]}
    net.add("c1")
    net.add("c1", "net1")
    release(Release("host-local", str(net.data_dir), "net", "c1", "eth0"))
    assert set(net.reserved()) == {"10.1.0.3", "fd00::3"}


def test_undo_of_a_directory_that_is_gone_makes_none(net):
    release(Release("host-local", str(net.data_dir), "gone", "c1", "eth0", ("10.1.0.2",)))
    net.delete()
    assert not list(net.data_dir.iterdir())


def test_delete_gives_back_what_the_nic_holds_and_no_more(net):
    net.add("c1", "eth0")
    net.add("c1", "net1")
    net.add("c2", "eth0")
    net.delete("c1", "eth0")
    net.delete("c1", "eth0")
    assert net.reserved() == {"10.1.0.3": "c1\r\nnet1", "10.1.0.4": "c2\r\neth0"}


def test_delete_knows_reservations_without_an_interface(net):
    net.add("c1")
    (net.directory / "10.1.0.9").write_text("c1")
    net.delete("c1")
    assert net.reserved() == {"10.1.0.9": "c1"}
    net.delete("c1")
    assert net.reserved() == {}


def test_delete_works_with_a_section_that_add_would_refuse(net):
    net.add("c1")
    net.section = {"subnet": 3, "ranges": "x"}
    net.delete("c1")
    assert net.reserved() == {}


@pytest.mark.parametrize(
    ("more", "given"),
    [
        ({"args": {"IP": "10.1.0.77"}}, "10.1.0.77"),
        ({"args": {"IP": "10.1.0.77/24"}}, "10.1.0.77"),
        ({"runtimeConfig": {"ips": ["10.1.0.78/24"]}}, "10.1.0.78"),
        ({"runtimeConfig": {"ips": []}}, "10.1.0.2"),
    ],
)
def test_a_requested_address_is_given(net, more, given):
    assert net.address(**more) == given


def test_args_of_the_configuration_request_too(net):
    conf = parse_plugin(net.stdin(args={"cni": {"ips": ["10.1.0.79"]}}))
    result = HOST_LOCAL.add(conf, Holder("c1", "eth0"), {}, record=net.recorded.append, deadline=soon())
    assert result.ips == (IPConfig("10.1.0.79/24", "10.1.0.1"),)


def test_a_requested_address_that_is_taken_names_its_holder(net):
    net.add("c1", args={"IP": "10.1.0.77"})
    with pytest.raises(NoAddressLeft, match=r"10\.1\.0\.77 .*c1 \(eth0\)"):
        net.add("c2", args={"IP": "10.1.0.77"})


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"args": {"IP": "x"}}, InvalidEnvironment, "CNI_ARGS IP"),
        ({"args": {"IP": "10.9.0.1"}}, NoAddressLeft, r"10\.9\.0\.1"),
        ({"runtimeConfig": {"ips": ["x"]}}, InvalidConfig, r"runtimeConfig\.ips\[0\]"),
        ({"runtimeConfig": {"ips": [3]}}, InvalidConfig, r'"runtimeConfig\.ips\[0\]": expected string'),
        ({"runtimeConfig": {"ips": "10.1.0.3"}}, InvalidConfig, r'"runtimeConfig\.ips": expected array'),
        (
            {"runtimeConfig": {"ipRanges": [[{"subnet": "x"}]]}},
            InvalidConfig,
            r"runtimeConfig\.ipRanges\[0\]\[0\]\.subnet",
        ),
        ({"runtimeConfig": {"ipRanges": {}}}, None, ""),
        ({"runtimeConfig": {"ipRanges": 3}}, InvalidConfig, r"runtimeConfig\.ipRanges"),
    ],
)
def test_a_wrong_request_names_its_source(net, more, error, words):
    if error is None:
        net.add(**more)
        return
    with pytest.raises(error, match=words):
        net.add(**more)


def test_ranges_of_the_runtime_come_first(net):
    net.section = {"subnet": "10.1.0.0/24"}
    result = net.add(runtimeConfig={"ipRanges": [[{"subnet": "10.7.0.0/24"}]]})
    assert [ip.address for ip in result.ips] == ["10.7.0.2/24", "10.1.0.2/24"]


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({}, '"ipam" names no range'),
        ({"subnet": 3}, r'"ipam\.subnet": expected string'),
        ({"subnet": "x"}, r'"ipam\.subnet"'),
        ({"ranges": {}}, r'"ipam\.ranges": expected array'),
        ({"ranges": [{}]}, r'"ipam\.ranges\[0\]": expected array'),
        ({"ranges": [[{"subnet": "10.1.0.0/24", "rangeStart": 7}]]}, r'"ipam\.ranges\[0\]\[0\]\.rangeStart"'),
        ({"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "y"}]]}, r'"ipam\.ranges\[0\]\[1\]\.subnet"'),
        ({"ranges": [[]]}, r'"ipam\.ranges\[0\]" is an empty range set'),
        ({"subnet": "10.1.0.0/24", "dataDir": "relative"}, r'"ipam\.dataDir"'),
        ({"subnet": "10.1.0.0/24", "dataDir": "/a\0b"}, r'"ipam\.dataDir"'),
        ({"subnet": "10.1.0.0/24", "routes": [{"dst": "x"}]}, r'"ipam\.routes\[0\]\.dst"'),
        ({"subnet": "10.1.0.0/24", "routes": [{}]}, r'"ipam\.routes\[0\]\.dst" is missing'),
        ({"subnet": "10.1.0.0/24", "routes": [{"dst": "::/0", "gw": "10.1.0.1"}]}, r'"ipam\.routes\[0\]\.gw"'),
        ({"subnet": "10.1.0.0/24", "resolvConf": "/no/such/file"}, r'"ipam\.resolvConf" .*No such file'),
        ({"subnet": "10.1.0.0/24", "resolvConf": "/a\0b"}, r'"ipam\.resolvConf"'),
        ({"subnet": "10.1.0.0/24", "resolvConf": "/"}, r'"ipam\.resolvConf"'),
    ],
)
def test_a_wrong_section_names_the_field(net, section, words):
    net.section = section
    with pytest.raises(InvalidConfig, match=words) as caught:
        net.add()
    assert caught.value.hint
    assert not net.directory.exists()


def test_a_missing_section_is_named(net):
    with pytest.raises(InvalidConfig, match='"ipam" is missing'):
        read(parse_plugin(b'{"name":"net","cniVersion":"1.0.0"}'))


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_old_versions_have_no_room_for_two_addresses_of_a_family(net, version):
    net.section = {"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}]]}
    with pytest.raises(InvalidConfig, match=version):
        net.add(version=version)
    assert len(net.add(version="0.3.1").ips) == 2


def test_resolver_settings_come_from_the_named_file(net, tmp_path):
    resolv = tmp_path / "resolv.conf"
    resolv.write_text(
        "# comment\nnameserver 10.1.0.2\n nameserver fd00::2 # no comment here\n;x y\ndomain a.example\nsearch b c\n"
        "options ndots:1 timeout:2\nnameserver\n"
    )
    net.section["resolvConf"] = str(resolv)
    expected = DNS(("10.1.0.2", "fd00::2"), "a.example", ("b", "c"), ("ndots:1", "timeout:2"))
    assert net.add().dns == read_resolv_conf(str(resolv)) == expected


def test_check_finds_what_add_reserved(net):
    conf = replace(net.conf(), prev=net.add())
    HOST_LOCAL.check(conf, Holder("c1", "eth0"), {})
    HOST_LOCAL.check(net.conf(), Holder("c1", "eth0"), {})


def test_check_names_an_address_that_is_no_longer_held(net):
    conf = replace(net.conf(), prev=net.add())
    net.delete()
    with pytest.raises(CheckFailed, match=r"10\.1\.0\.2"):
        HOST_LOCAL.check(conf, Holder("c1", "eth0"), {})
    with pytest.raises(CheckFailed, match="c1"):
        HOST_LOCAL.check(net.conf(), Holder("c1", "eth0"), {})
    with pytest.raises(CheckFailed):
        HOST_LOCAL.check(replace(conf, prev=Result()), Holder("c1", "eth0"), {})


def test_gc_keeps_what_is_listed_and_removes_the_rest(net):
    for container, ifname in (("c1", "eth0"), ("c1", "net1"), ("c2", "eth0")):
        net.add(container, ifname)
    (net.directory / "10.1.0.50").write_text("c1")
    (net.directory / "10.1.0.51").write_text("c9")
    (net.directory / "10.1.0.52").write_text("")
    (net.directory / "10.1.0.53").write_bytes(b"\0" * 40)
    (net.directory / "notes").write_text("not ours")
    HOST_LOCAL.gc(net.conf(), Keep({("c1", "net1"), ("c3", "eth0")}), deadline=soon())
    assert set(net.reserved()) == {"10.1.0.3", "10.1.0.50", "notes"}


def test_status_asks_for_a_writable_directory(net):
    HOST_LOCAL.status(net.conf())
    net.section["dataDir"] = "/proc/sys/underlay"
    with pytest.raises(NotAvailable, match="/proc/sys"):
        HOST_LOCAL.status(net.conf())
    net.section = {}
    with pytest.raises(InvalidConfig):
        HOST_LOCAL.status(net.conf())


def test_the_directory_of_a_configuration_is_known_without_its_ranges(net):
    assert store_of(net.conf()) == str(net.directory)
    assert store_of(parse_plugin(b'{"name":"n","ipam":{}}')) == "/var/lib/cni/networks/n"


# A directory as a crash leaves it.


def test_an_empty_reservation_is_given_out_again(net):
    net.add("c1")
    (net.directory / "10.1.0.3").touch()
    assert net.address("c2") == "10.1.0.3"
    assert net.reserved()["10.1.0.3"] == "c2\r\neth0"


def test_an_empty_reservation_can_be_requested(net):
    net.add("c1")
    (net.directory / "10.1.0.9").touch()
    assert net.address("c2", args={"IP": "10.1.0.9"}) == "10.1.0.9"


@pytest.mark.parametrize("content", [b"", b"\0\0\0\0", b"10.1.0", b"\xff\xfe", b"10.1.0.9\nx"])
def test_a_cut_off_mark_of_the_last_address_begins_anew(net, content):
    net.add("c1")
    (net.directory / "last_reserved_ip.0").write_bytes(content)
    assert net.address("c2") == "10.1.0.3"
    assert (net.directory / "last_reserved_ip.0").read_text() == "10.1.0.3"


def test_a_longer_mark_leaves_no_tail(net):
    net.add("c1", args={"IP": "10.1.0.200"})
    net.add("c2", args={"IP": "10.1.0.9"})
    assert (net.directory / "last_reserved_ip.0").read_text() == "10.1.0.9"


def test_things_in_the_place_of_reservations_are_no_fault(net):
    net.add("c1")
    (net.directory / "10.1.0.3").mkdir()
    (net.directory / "10.1.0.4").symlink_to("/nowhere")
    os.mkfifo(net.directory / "10.1.0.5")
    (net.directory / "10.1.0.6").write_bytes(b"\xff" * 9000)
    assert net.address("c2") == "10.1.0.7"
    net.delete("c2")
    assert "10.1.0.7" not in {path.name for path in net.directory.iterdir()}


def test_reservations_of_an_earlier_boot_are_forgotten(net):
    for n in range(3):
        net.add(f"c{n}")
    for name in ("10.1.0.2", "10.1.0.3", "last_reserved_ip.0"):
        os.utime(net.directory / name, (1000, 1000))
    gone = store.release_before(str(net.directory), 2000, keep=frozenset({("c1", "eth0")}), deadline=soon())
    assert gone == ["10.1.0.2"]
    assert set(net.reserved()) == {"10.1.0.3", "10.1.0.4"}
    assert store.release_before(str(net.data_dir / "gone"), 2000, deadline=soon()) == []


def test_a_file_in_the_place_of_the_directory_is_a_clear_error(net):
    net.directory.write_text("")
    with pytest.raises(StateUnwritable, match="net"):
        net.add()
    net.delete()


def test_a_full_disk_leaves_no_half_reservation(net):
    net.section = {"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]}
    with file_size_limit(0), pytest.raises(StateUnwritable, match=r"10\.1\.0\.2"):
        net.add()
    assert net.reserved() == {}
    assert len(net.add().ips) == 2


def test_a_lock_that_stays_held_ends_with_the_deadline(net):
    net.add("c1")
    with open(net.directory / "lock") as held:
        flock(held, LOCK_EX)
        with pytest.raises(DeadlineExceeded, match="lock"):
            HOST_LOCAL.add(net.conf(), Holder("c2", "eth0"), {}, record=print, deadline=time.monotonic() + 0.05)
    assert net.address("c2") == "10.1.0.3"
    assert open_files(net.directory) == []


def open_files(directory: Path) -> list[str]:
    links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return [where for link in links if os.path.islink(link) and (where := os.readlink(link)).startswith(str(directory))]


def test_threads_never_get_the_same_address(net):
    net.section = {"ranges": [[{"subnet": "10.1.0.0/25"}], [{"subnet": "fd00::/64"}]]}
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda n: net.add(f"c{n}"), range(100)))
    addresses = [ip.address for result in results for ip in result.ips]
    assert len(set(addresses)) == 200
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(release, net.recorded[:50]))
        list(pool.map(lambda entry: net.delete(entry.container_id), net.recorded[50:]))
    assert net.reserved() == {}


def test_adds_and_deletes_at_the_same_time_leave_the_last_state(net):
    stop = threading.Event()

    def churn(worker: int) -> None:
        while not stop.is_set():
            net.add(f"w{worker}")
            net.delete(f"w{worker}")

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(churn, worker) for worker in range(4)]
        kept = {net.address(f"k{n}") for n in range(40)}
        stop.set()
        for future in futures:
            future.result()
    assert set(net.reserved()) == kept
    assert len(kept) == 40


def test_an_allocation_looks_at_no_other_reservation(net):
    net.section = {"subnet": "10.1.0.0/16"}
    for n in range(300):
        net.add(f"c{n}")
    for path in net.directory.glob("10.1.*"):
        path.chmod(0)
        path.unlink()
        path.symlink_to(path.name)  # reading one would fail
    assert net.address("one-more") == "10.1.1.46"


VALUE = (
    st.none() | st.integers() | st.text(max_size=12) | st.sampled_from(["10.1.0.0/24", "fd00::/64", "10.1.0.9", "/"])
)
RANGE = st.dictionaries(st.sampled_from(["subnet", "rangeStart", "rangeEnd", "gateway"]), VALUE, max_size=4)
SECTION = st.dictionaries(
    st.sampled_from(["subnet", "rangeStart", "rangeEnd", "gateway", "dataDir", "resolvConf"]), VALUE, max_size=4
).flatmap(
    lambda section: st.fixed_dictionaries(
        {},
        optional={
            "ranges": st.lists(st.lists(RANGE, max_size=2), max_size=3) | VALUE,
            "routes": st.lists(RANGE, max_size=2),
        },
    ).map(lambda more: {**section, **more})
)


@given(SECTION)
def test_any_section_is_read_or_refused_by_name(section):
    try:
        read(parse_plugin(json.dumps({"name": "net", "ipam": {"type": "host-local", **section}}).encode()))
    except UnderlayError as error:
        assert error.code == 7, error.message  # noqa: PT017


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=40))
def test_any_order_of_adds_and_deletes_keeps_addresses_apart(new_network, acts):
    net = new_network()
    net.section = {"subnet": "10.1.0.0/29"}
    held: dict[str, str] = {}
    for is_add, number in acts:
        container = f"c{number}"
        if is_add and container not in held:
            try:
                held[container] = net.address(container)
            except NoAddressLeft:
                assert len(held) == 5
        elif not is_add:
            net.delete(container)
            held.pop(container, None)
        if net.directory.exists():
            assert net.reserved() == {address: f"{name}\r\neth0" for name, address in held.items()}


def spares(net):
    return sorted(path for path in net.directory.iterdir() if path.name.startswith(".spare-"))


def test_the_file_of_a_former_reservation_is_used_again(net):
    net.add("c1")
    inode = (net.directory / "10.1.0.2").stat().st_ino
    net.delete("c1")
    (spare,) = spares(net)
    assert spare.read_bytes().strip() == b""  # no plugin takes it for somebody's
    assert net.address("c2", "net1") == "10.1.0.3"
    assert (net.directory / "10.1.0.3").stat().st_ino == inode
    assert net.reserved() == {"10.1.0.3": "c2\r\nnet1"}
    assert spares(net) == []


def test_a_shorter_holder_leaves_nothing_of_a_longer_one(net):
    net.add("a-long-name-of-a-container", "interface0")
    net.delete("a-long-name-of-a-container", "interface0")
    net.add("c", "e")
    assert (net.directory / "10.1.0.3").read_bytes() == b"c\r\ne"


def test_no_more_files_are_kept_than_a_node_soon_needs(net):
    for n in range(store._SPARES + 5):
        net.add(f"c{n}")
    for n in range(store._SPARES + 5):
        net.delete(f"c{n}")
    assert len(spares(net)) == store._SPARES
    assert net.reserved() == {}


def test_spare_files_that_somebody_removed_are_not_missed(net):
    for n in range(3):
        net.add(f"c{n}")
    for n in range(3):
        net.delete(f"c{n}")
    for path in spares(net)[1:]:
        path.unlink()
    assert [net.address(f"d{n}") for n in range(3)] == ["10.1.0.5", "10.1.0.6", "10.1.0.7"]
    assert len(net.reserved()) == 3


def test_a_spare_file_does_not_take_an_address_that_is_taken(net):
    net.add("c1")
    net.delete("c1")
    (net.directory / "10.1.0.3").write_text("other\r\neth0")
    assert net.address("c2") == "10.1.0.4"
    assert net.reserved() == {"10.1.0.3": "other\r\neth0", "10.1.0.4": "c2\r\neth0"}


def test_where_the_file_system_knows_no_such_rename_files_are_made_anew(net, monkeypatch):
    monkeypatch.setattr(store, "_renameat2", None)
    for n in range(3):
        net.add(f"c{n}")
        net.delete(f"c{n}")
    assert net.address("d") == "10.1.0.5"
    assert net.reserved() == {"10.1.0.5": "d\r\neth0"}


def test_a_spare_file_that_another_process_put_in_the_place_of_ours_leaves_nothing_behind(net):
    net.add("c1")
    net.delete("c1")
    (spare,) = spares(net)
    spare.unlink()
    spare.write_bytes(b"killed-before-it-was-blanked\r\neth0")
    assert net.address("c2") == "10.1.0.3"
    assert net.reserved() == {"10.1.0.3": "c2\r\neth0"}


@pytest.mark.parametrize("around", [(b"\n" * 99, b""), (b"", b"\0" * 99), (b"", b"\n" * 9000)])
def test_what_surrounds_a_holder_is_gone_with_it(net, around):
    net.add("c1")
    path = net.directory / "10.1.0.2"
    path.write_bytes(around[0] + b"c1\r\neth0" + around[1])
    net.delete("c1")
    (spare,) = spares(net)
    assert spare.read_bytes().strip(b" ") == b""
    net.add("c2")
    assert net.reserved() == {"10.1.0.3": "c2\r\neth0"}


def test_where_no_file_can_be_kept_an_address_is_given_back_all_the_same(net):
    net.add("c1")
    (net.directory / ".spare-0").mkdir()
    net.delete("c1")
    assert net.reserved() == {}
    assert store._spares.get(str(net.directory), []) == []


def test_a_spare_file_that_cannot_be_used_tells_of_no_holder(net, monkeypatch):
    net.add("c1")
    net.delete("c1")

    def refused(source, target):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), source, None, target)

    monkeypatch.setattr(store, "rename_new", refused)  # a file system that knows no RENAME_NOREPLACE
    assert net.address("c2") == "10.1.0.3"
    assert spares(net) == []


@pytest.mark.parametrize("content", [b" " * 12, b"\0" * 12])
def test_an_address_whose_holder_a_power_cut_took_away_is_free(net, content):
    net.add("c1")
    (net.directory / "10.1.0.3").write_bytes(content)
    assert net.address("c2") == "10.1.0.3"
    assert net.reserved()["10.1.0.3"] == "c2\r\neth0"


@pytest.mark.parametrize("how", ["collect", "release_before"])
def test_who_took_an_address_while_stale_ones_were_looked_for_keeps_it(net, monkeypatch, how):
    net.section = {"subnet": "10.1.0.0/30"}
    net.add("old")
    os.utime(net.directory / "10.1.0.2", (1000, 1000))
    enter = store.Store.__enter__

    def meanwhile(self):
        monkeypatch.setattr(store.Store, "__enter__", enter)
        net.delete("old")
        assert net.address("new") == "10.1.0.2"
        return enter(self)

    monkeypatch.setattr(store.Store, "__enter__", meanwhile)
    if how == "collect":
        gone = store.collect(str(net.directory), Keep(), deadline=soon())
    else:
        gone = store.release_before(str(net.directory), 2000, deadline=soon())
    assert gone == []
    assert net.reserved() == {"10.1.0.2": "new\r\neth0"}
