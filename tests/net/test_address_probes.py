"""Conflict probes and announcements, on a real wire: node -- bridge -- further hosts."""

import socket
import subprocess
import threading
import time

import pytest

from underlay.errors import DeadlineExceeded, KernelError
from underlay.net import frames, link
from underlay.net.announce import announce
from underlay.net.conflict import Conflict, probe
from underlay.net.netlink import pack_address
from underlay.net.netns import Namespace

RIVAL = bytes.fromhex("020000000042")
PATIENT = {"interval": 0.05, "retries": 2, "deadline": None}


def joined(new_netns, lan, *addresses):
    """One more host on the wire, with these addresses, for as long as it takes to have a carrier."""
    ns = new_netns("other")
    ns.batch(
        f"link add eth0 type veth peer name {ns.name[-15:]} netns {lan.name}",
        "link set eth0 up",
        *(f"addr add {each} dev eth0" + (" nodad" if ":" in each else "") for each in addresses),
    )
    lan.batch(f"link set {ns.name[-15:]} master br0 up")
    assert _settles(lan)
    return ns


@pytest.fixture
def prober(uplink, lan, new_netns):
    """A host on the wire without addresses: its namespace, its link."""
    ns = joined(new_netns, lan)
    with Namespace.open(ns.path) as opened:
        nic = link.get(opened.rtnl, "eth0")
        assert nic.carrier
        yield opened, nic


def _settles(lan):
    """Whether all of the bridge's ports forward. A host's carrier comes before that: what it sends then is lost, and
    with that the one question of a probe that asks once.
    """
    end = time.monotonic() + 60
    while time.monotonic() < end:
        ports = lan.ip("-d", "link", "show", "master", "br0")
        if all(each["linkinfo"]["info_slave_data"]["state"] == "forwarding" for each in ports):
            return True
        time.sleep(0.01)
    return False


def test_free_addresses_are_free(prober):
    ns, nic = prober
    assert probe(ns, nic.index, nic.mac, ["172.18.9.9/16", "fd00:18::99/64", "10.1.1.1"], **PATIENT) is None
    assert probe(ns, nic.index, nic.mac, [], **PATIENT) is None


@pytest.mark.parametrize("address", ["172.18.0.11", "fd00:18::11"])
def test_an_address_in_use_is_told_with_its_mac(prober, uplink, address):
    ns, nic = prober
    found = probe(
        ns,
        nic.index,
        nic.mac,
        ["172.18.9.9/16", "fd00:18::99/64", f"{address}/16"],
        interval=30,
        retries=3,
        deadline=None,
    )
    assert found == Conflict(address, uplink.link("eth0")["address"])


def test_the_first_answer_ends_the_probe(prober):
    ns, nic = prober
    started = time.monotonic()
    assert probe(ns, nic.index, nic.mac, ["172.18.0.1"], interval=600, retries=9, deadline=None)
    assert time.monotonic() - started < 600


def test_our_own_tentative_address_is_no_conflict(prober, new_netns):
    ns, nic = prober
    with ns.entered():
        subprocess.run(["ip", "addr", "add", "172.18.9.9/16", "dev", "eth0"], check=True)
        subprocess.run(["ip", "addr", "add", "fd00:18::99/64", "dev", "eth0"], check=True)  # with DAD: tentative
    assert probe(ns, nic.index, nic.mac, ["172.18.9.9/16", "fd00:18::99/64"], **PATIENT) is None


@pytest.mark.parametrize("address", ["172.18.0.11", "fd00:18::11"])
def test_our_own_address_in_use_elsewhere_is_a_conflict(prober, uplink, address):
    ns, nic = prober
    with ns.entered():
        nodad = ["nodad"] if ":" in address else []
        subprocess.run(
            ["ip", "addr", "add", f"{address}/64" if nodad else f"{address}/16", "dev", "eth0", *nodad], check=True
        )
    found = probe(ns, nic.index, nic.mac, [address], interval=30, retries=1, deadline=None)
    assert found == Conflict(address, uplink.link("eth0")["address"])


def test_an_answer_comes_also_where_ipv6_is_off_on_our_side(prober, uplink):
    ns, nic = prober
    with ns.entered(), open("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "w") as setting:
        setting.write("1")
    found = probe(ns, nic.index, nic.mac, ["fd00:18::11"], interval=30, retries=1, deadline=None)
    assert found == Conflict("fd00:18::11", uplink.link("eth0")["address"])


@pytest.mark.parametrize(
    ("address", "ask"),
    [
        ("172.18.9.9", lambda mac, wanted: frames.arp(mac, sender=bytes(4), target=wanted)),
        ("fd00:18::99", frames.solicitation),
    ],
)
def test_another_hosts_probe_for_the_address_is_a_conflict(prober, lan, new_netns, address, ask):
    ns, nic = prober
    rival = joined(new_netns, lan)
    stop = threading.Event()
    frame = ask(RIVAL, pack_address(address)[1])

    def ask_on():
        with rival.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.bind(("eth0", 0))
            while not stop.wait(0.01):
                sock.send(frame)

    thread = threading.Thread(target=ask_on)
    thread.start()
    try:
        found = probe(ns, nic.index, nic.mac, [address], interval=0.1, retries=300, deadline=None)
    finally:
        stop.set()
        thread.join()
    assert found == Conflict(address, RIVAL.hex(":"))


def test_the_deadline_ends_a_probe(prober):
    ns, nic = prober
    with pytest.raises(DeadlineExceeded, match=r"probe for 172.18.9.9: no time left"):
        probe(ns, nic.index, nic.mac, ["172.18.9.9"], interval=60, retries=3, deadline=time.monotonic() + 0.05)


def test_a_link_that_is_down_or_missing_is_a_named_error(prober):
    ns, nic = prober
    ns.rtnl.batch([link.change(index=nic.index, up=False)])
    with pytest.raises(KernelError, match=r"probe for 172.18.9.9: Network is down"):
        probe(ns, nic.index, nic.mac, ["172.18.9.9"], **PATIENT)
    with pytest.raises(KernelError, match=r"announce 172.18.9.9: Network is down"):
        announce(ns, nic.index, nic.mac, ["172.18.9.9"])
    with pytest.raises(KernelError, match=r"probe for 172.18.9.9"):
        probe(ns, 9999, nic.mac, ["172.18.9.9"], **PATIENT)
    with pytest.raises(KernelError, match=r"announce 172.18.9.9"):
        announce(ns, 9999, nic.mac, ["172.18.9.9"])


def test_announcements_move_the_neighbours_entries(prober, uplink):
    ns, nic = prober
    # the neighbours hold an old MAC; only an unsolicited announcement can tell them of the new one
    uplink.batch(
        "neigh add 172.18.9.9 dev eth0 lladdr 02:00:00:00:00:77 nud stale",
        "neigh add fd00:18::99 dev eth0 lladdr 02:00:00:00:00:77 nud stale",
    )
    end = time.monotonic() + 60
    while time.monotonic() < end:
        # again and again: the bridge may not forward yet
        announce(ns, nic.index, nic.mac, ["172.18.9.9/16", "fd00:18::99/64"])
        shown = {each["dst"]: each.get("lladdr") for each in uplink.ip("neigh", "show", "dev", "eth0")}
        if (shown["172.18.9.9"], shown["fd00:18::99"]) == (nic.mac, nic.mac):
            return
    pytest.fail(f"not learnt: {shown}")


def test_announcing_nothing_does_nothing(prober):
    ns, nic = prober
    announce(ns, nic.index, nic.mac, [])


MAC = bytes.fromhex("020000000001")
V4, V6 = socket.inet_aton("10.0.0.1"), socket.inet_pton(socket.AF_INET6, "fd00::1")


def test_frames_claim_what_their_rfcs_say():
    probing = frames.arp(MAC, sender=bytes(4), target=V4)
    assert frames.arp_claim(probing) == frames.Claim(V4, MAC)
    asking = frames.arp(MAC, sender=socket.inet_aton("10.0.0.9"), target=V4)
    assert frames.arp_claim(asking).address == socket.inet_aton("10.0.0.9")
    assert frames.nd_claim(frames.solicitation(MAC, V6)) == frames.Claim(V6, MAC)
    assert frames.nd_claim(frames.advertisement(MAC, V6)) == frames.Claim(V6, MAC)
    forwarded = bytearray(frames.advertisement(MAC, V6))
    forwarded[21] = 64
    assert frames.nd_claim(bytes(forwarded)) is None
    assert frames.nd_claim(probing.ljust(120, b"\0")) is None
    assert frames.arp_claim(frames.advertisement(MAC, V6)) is None


def test_a_solicitation_goes_to_the_solicited_nodes_group():
    target = socket.inet_pton(socket.AF_INET6, "fd00::12:3456")
    assert socket.inet_ntop(socket.AF_INET6, frames.solicited_node(target)) == "ff02::1:ff12:3456"
    assert frames.multicast_mac(frames.solicited_node(target)).hex(":") == "33:33:ff:12:34:56"
    # the checksum over pseudo header and message comes out as zero with the sent one put in (RFC 4443 section 2.3)
    frame = frames.solicitation(MAC, target)
    pseudo = frame[22:54] + (24).to_bytes(4, "big") + bytes(3) + b"\x3a"
    words = memoryview(pseudo + frame[54:]).cast("B")
    total = sum(int.from_bytes(words[at : at + 2], "big") for at in range(0, len(words), 2))
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF
