"""The socket: batches, errors, dumps. Real kernel, but for what a kernel does not do on demand: losing answers."""

import contextlib
import errno
import os
import struct
import threading

import pytest

from underlay.errors import KernelError
from underlay.net import addr, link, netlink, route, veth
from underlay.net.netlink import HEADER, Message
from underlay.net.netns import Namespace
from underlay.net.rtnl import Rtnl


@pytest.fixture
def node(uplink):
    with Namespace.open(uplink.path) as ns:
        yield ns


def test_a_batch_is_carried_out_and_read_back(uplink, node):
    index = link.index_of(node.rtnl, "eth0")
    node.rtnl.batch([addr.add(index, "10.1.0.1/24"), route.add("10.2.0.0/16", dev=index, via="10.1.0.2")])
    assert "10.2.0.0/16" in {each["dst"] for each in uplink.ip("route", "show")}


def test_the_first_failure_is_raised_and_the_rest_is_carried_out(uplink, node):
    index = link.index_of(node.rtnl, "eth0")
    with pytest.raises(KernelError) as raised:
        node.rtnl.batch(
            [
                route.add("10.2.0.0/16", dev=index, via="192.0.2.9"),
                route.add("10.3.0.0/16", dev=index),
                route.delete("10.4.0.0/16", dev=index),
            ]
        )
    error = raised.value
    assert error.errno == errno.ENETUNREACH
    assert error.extack == "Nexthop has invalid gateway"
    assert error.message == (
        "add route 10.2.0.0/16 via 192.0.2.9 dev eth0: Network is unreachable: Nexthop has invalid gateway"
    )
    assert "10.3.0.0/16" in {each["dst"] for each in uplink.ip("route", "show")}


def test_failures_are_told_by_their_place_in_the_batch(node):
    index = link.index_of(node.rtnl, "eth0")
    failed = node.rtnl.failures(
        [route.delete("10.4.0.0/16"), route.add("10.3.0.0/16", dev=index), addr.delete(index, "10.9.9.9/32")]
    )
    assert {place: error.errno for place, error in failed.items()} == {0: errno.ESRCH, 2: errno.EADDRNOTAVAIL}


def test_tolerated_failures_are_not_raised(node):
    node.rtnl.batch([route.delete("10.4.0.0/16")], tolerate=frozenset((errno.ESRCH,)))


def test_an_empty_batch_does_nothing(node):
    node.rtnl.batch([])
    assert node.rtnl.requests([]) == []


def test_a_batch_larger_than_the_buffers_is_split(uplink, node):
    index = link.index_of(node.rtnl, "eth0")
    wanted = {f"10.{high}.{low}.0/24" for high in range(10, 18) for low in range(250)}
    node.rtnl.batch([route.add(dst, dev=index) for dst in wanted])
    assert wanted <= {each["dst"] for each in uplink.ip("route", "show")}
    # and the other extreme: every message is answered by an error with a text
    failed = node.rtnl.failures([route.add("10.200.0.0/16", dev=index, via="192.0.2.9")] * 2000)
    assert len(failed) == 2000
    assert {error.extack for error in failed.values()} == {"Nexthop has invalid gateway"}


def test_many_gets_are_answered_in_order(node):
    answers = node.rtnl.requests([link.get_message(name) for name in ["eth0", "nope", "lo"] * 50])
    names = [link.parse(each).name if isinstance(each, bytes) else each.errno for each in answers]
    assert names == ["eth0", errno.ENODEV, "lo"] * 50


def test_a_change_among_gets_is_carried_out_before_the_next_get(uplink, node):
    made = link.make(
        node.rtnl,
        veth.create(
            name="a0", mac=link.random_mac(), peer_name="a1", peer_mac=link.random_mac(), mtu=1400, peer_netns_fd=None
        ),
        "a0",
    )
    assert (made.name, made.mtu) == ("a0", 1400)
    assert made.parent == uplink.link("a1")["ifindex"]


def test_a_strict_kernel_refuses_a_get_it_does_not_understand(node):
    # an unknown attribute of a dump: ignored without NETLINK_GET_STRICT_CHK
    message = Message(link.RTM_GETLINK, 0, bytes(16) + netlink.attribute_u32(61, 1), "list links oddly")
    with pytest.raises(KernelError, match="list links oddly") as raised:
        node.rtnl.dump(message)
    assert raised.value.errno == errno.EINVAL
    assert raised.value.extack


def test_a_dump_while_the_routes_change_misses_and_doubles_nothing(uplink, node):
    index = link.index_of(node.rtnl, "eth0")
    steady = {f"10.{high}.{low}.0/24" for high in range(20, 24) for low in range(250)}
    node.rtnl.batch([route.add(dst, dev=index) for dst in steady])
    stop = threading.Event()

    def churn():
        with Namespace.open(uplink.path) as other:
            while not stop.is_set():
                other.rtnl.batch([route.add("10.19.0.0/24", dev=index), route.add("10.99.0.0/24", dev=index)])
                other.rtnl.batch([route.delete("10.19.0.0/24"), route.delete("10.99.0.0/24")])

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(20):
            found = [each.dst for each in route.dump(node.rtnl, family=2, table=254)]
            assert steady <= set(found)
            assert len(found) == len(set(found))
    finally:
        stop.set()
        thread.join()


def test_after_a_failed_dump_the_socket_goes_on(node):
    with contextlib.suppress(KernelError):
        node.rtnl.dump(Message(link.RTM_GETLINK, 0, bytes(16) + netlink.attribute_u32(61, 1), "list links oddly"))
    assert {each.name for each in link.dump(node.rtnl)} == {"lo", "eth0"}


def test_a_dump_that_was_broken_off_does_not_hinder_the_next(node):
    index = link.index_of(node.rtnl, "eth0")
    node.rtnl.batch([route.add(f"10.{high}.{low}.0/24", dev=index) for high in range(20, 24) for low in range(250)])
    head = HEADER.pack(28, route.RTM_GETROUTE, netlink.NLM_F_REQUEST | netlink.NLM_F_DUMP, 0, 0)
    node.rtnl._socket.send(head + bytes((2, *bytes(11))))
    assert len(route.dump(node.rtnl, family=2)) > 1000


def test_a_closed_socket_is_an_error_with_the_acts_name(uplink):
    node = Namespace.open(uplink.path)
    node.close()
    with pytest.raises(KernelError, match="list links: Bad file descriptor"):
        link.dump(node.rtnl)


class Script:
    """A kernel that answers from a list: bytes are received, numbers are errnos, {seq} of the request is filled in."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.sent = []

    def send(self, data):
        self.sent.append(data)
        return len(data)

    def recv(self, size, flags):
        if not self.answers:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        answer = self.answers.pop(0)
        if isinstance(answer, int):
            raise OSError(answer, os.strerror(answer))
        return b"".join(part(HEADER.unpack_from(self.sent[-1])[3]) for part in answer)

    def close(self):
        self.answers.clear()


def told(kind, body, flags=2, shift=0):
    padding = bytes(-len(body) % 4)
    return lambda sequence: HEADER.pack(16 + len(body), kind, flags, (sequence + shift) % 2**32, 0) + body + padding


def done(number=0, shift=0):
    return told(netlink.NLMSG_DONE, struct.pack("=i", -number), shift=shift)


DUMP = Message(link.RTM_GETLINK, 0, bytes(16), "list links")


def test_a_dump_starts_over_when_the_kernel_flags_an_interruption():
    kernel = Script(
        [told(16, b"old1", flags=2 | netlink.NLM_F_DUMP_INTR)],
        [told(16, b"old2"), done()],
        [told(16, b"new1"), told(16, b"new2"), done()],
    )
    assert Rtnl(kernel).dump(DUMP) == [(16, b"new1"), (16, b"new2")]
    assert len(kernel.sent) == 2


def test_a_dump_starts_over_when_its_end_says_eintr():
    kernel = Script([told(16, b"old1"), done(errno.EINTR)], [told(16, b"new1"), done()])
    assert Rtnl(kernel).dump(DUMP) == [(16, b"new1")]


def test_a_dump_starts_over_when_answers_were_lost():
    kernel = Script([told(16, b"old1")], errno.ENOBUFS, [told(16, b"old3"), done()], [told(16, b"new1"), done()])
    assert Rtnl(kernel).dump(DUMP) == [(16, b"new1")]
    lost_end = Script([told(16, b"old1")], errno.ENOBUFS, errno.EAGAIN, [told(16, b"new1"), done()])
    assert Rtnl(lost_end).dump(DUMP) == [(16, b"new1")]


def test_a_dump_that_is_interrupted_for_ever_gives_up():
    class Restless(Script):
        def recv(self, size, flags):
            self.answers = [[told(16, b"x"), done(errno.EINTR)]]
            return super().recv(size, flags)

    with pytest.raises(KernelError, match=r"list links: .*changed during each of"):
        Rtnl(Restless()).dump(DUMP)


def test_an_error_at_a_dumps_end_is_raised():
    with pytest.raises(KernelError, match="list links: Operation not permitted"):
        Rtnl(Script([told(16, b"x"), done(errno.EPERM)])).dump(DUMP)


def test_answers_to_another_exchange_are_passed_over():
    kernel = Script([told(16, b"stale", shift=-1), done(shift=-1)], [told(16, b"new1"), done()])
    assert Rtnl(kernel).dump(DUMP) == [(16, b"new1")]
    stale_ack = told(netlink.NLMSG_ERROR, struct.pack("=i", -errno.EPERM) + bytes(16), shift=-7)
    ack = told(netlink.NLMSG_ERROR, bytes(20))
    Rtnl(Script([stale_ack], [ack])).batch([DUMP])


@pytest.mark.parametrize("fault", [errno.ENOBUFS, errno.EAGAIN])
def test_a_lost_acknowledgement_is_an_error_not_a_wait(fault):
    with pytest.raises(KernelError, match=r"delete route 10.0.0.0/8: .*answer was lost") as raised:
        Rtnl(Script(fault)).batch([route.delete("10.0.0.0/8")])
    assert raised.value.errno == errno.ENOBUFS
    with pytest.raises(KernelError, match="answer was lost"):
        Rtnl(Script(fault)).request(DUMP)


def test_garbage_from_the_kernel_is_a_named_error():
    with pytest.raises(netlink.Malformed):
        Rtnl(Script([lambda _: HEADER.pack(400, 16, 0, 1, 0)])).dump(DUMP)
