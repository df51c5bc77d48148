"""One directory, two programs: the upstream host-local plugin (Debian's containernetworking-plugins) and this one."""

from __future__ import annotations

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from underlay.errors import NoAddressLeft
from underlay.ipam import store
from underlay.ipam.allocator import Holder

UPSTREAM = "/usr/lib/cni/host-local"


def upstream(net, verb, container, ifname="eth0", **env):
    done = subprocess.run(
        [UPSTREAM],
        input=net.stdin(),
        capture_output=True,
        check=False,
        env={
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": "/proc/self/ns/net",
            "CNI_IFNAME": ifname,
            "CNI_PATH": os.path.dirname(UPSTREAM),
            **env,
        },
    )
    answer = json.loads(done.stdout) if done.stdout else {}
    assert done.returncode == 0, answer
    return answer


def address_of(answer):
    return answer["ips"][0]["address"].partition("/")[0]


def test_both_write_the_same_files(net):
    theirs = net.__class__(net.data_dir / "theirs", net.section)
    upstream(theirs, "ADD", "c1")
    net.add("c1")
    names = {path.name for path in net.directory.iterdir()}
    assert names == {path.name for path in theirs.directory.iterdir()}
    for name in names:
        assert (net.directory / name).read_bytes() == (theirs.directory / name).read_bytes(), name


def test_each_goes_on_where_the_other_stopped(net):
    taken = [
        net.address("a"),
        address_of(upstream(net, "ADD", "b")),
        net.address("c"),
        address_of(upstream(net, "ADD", "d")),
    ]
    assert taken == [f"10.1.0.{n}" for n in (2, 3, 4, 5)]


def test_each_wraps_around_after_the_other(net):
    net.section = {"subnet": "10.1.0.0/29"}
    for n in range(5):
        net.add(f"c{n}")
    upstream(net, "DEL", "c1")
    assert net.address("d") == "10.1.0.3"
    net.delete("c3")
    assert address_of(upstream(net, "ADD", "e")) == "10.1.0.5"
    with pytest.raises(NoAddressLeft):
        net.add("f")


def test_each_releases_what_the_other_reserved(net):
    net.add("a")
    upstream(net, "ADD", "b")
    upstream(net, "DEL", "a")
    net.delete("b")
    assert net.reserved() == {}


def test_each_sees_what_the_other_reserved_by_request(net):
    upstream(net, "ADD", "a", CNI_ARGS="IP=10.1.0.99")
    with pytest.raises(NoAddressLeft, match=r"a \(eth0\)"):
        net.add("b", args={"IP": "10.1.0.99"})
    assert (net.directory / "last_reserved_ip.0").read_text() == "10.1.0.99"
    net.add("c", args={"IP": "10.1.0.50"})
    assert address_of(upstream(net, "ADD", "d")) == "10.1.0.51"


def test_ipv6_addresses_are_spelt_alike(net):
    net.section = {"subnet": "fd00:0:0:1::/64", "rangeStart": "fd00:0:0:1:0:0:0:fffe"}
    taken = [
        net.address("a"),
        address_of(upstream(net, "ADD", "b")),
        net.address("c"),
        address_of(upstream(net, "ADD", "d")),
    ]
    assert taken == ["fd00:0:0:1::fffe", "fd00:0:0:1::ffff", "fd00::1:0:0:1:0", "fd00::1:0:0:1:1"]
    assert set(net.reserved()) == set(taken)


def test_many_of_both_at_once_never_take_an_address_twice(net):
    net.section = {"subnet": "10.1.0.0/24"}
    with ThreadPoolExecutor(12) as pool:
        ours = [pool.submit(net.address, f"ours{n}") for n in range(100)]
        theirs = [pool.submit(upstream, net, "ADD", f"theirs{n}") for n in range(40)]
        taken = [each.result() for each in ours] + [address_of(each.result()) for each in theirs]
    assert len(set(taken)) == 140
    assert set(net.reserved()) == set(taken)
    with ThreadPoolExecutor(12) as pool:  # and crosswise back again
        ended = [pool.submit(net.delete, f"theirs{n}") for n in range(40)]
        ended += [pool.submit(upstream, net, "DEL", f"ours{n}") for n in range(40)]
        ended += [pool.submit(net.delete, f"ours{n}") for n in range(40, 100)]
        for each in ended:
            each.result()
    assert net.reserved() == {}


def test_files_that_are_used_again_are_nobodys_between_two_programs(net):
    net.section = {"subnet": "10.1.0.0/28"}  # 13 addresses: each turn takes what another just gave back

    def turn(n):
        container = f"c{n}" * (1 + n % 5)  # of different lengths
        adds, deletes = (net.add, upstream_add), (net.delete, upstream_delete)
        adds[n % 2](container)
        assert len(store.held(str(net.directory), Holder(container, "eth0"))) == 1
        deletes[n // 2 % 2](container)

    def upstream_add(container):
        upstream(net, "ADD", container)

    def upstream_delete(container):
        upstream(net, "DEL", container)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(turn, range(120)))
    assert net.reserved() == {}
