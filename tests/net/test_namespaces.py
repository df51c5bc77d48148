import os
import threading

import pytest

from underlay.errors import KernelError, NamespaceGone
from underlay.net import link, netns, sysctl
from underlay.net.netns import Namespace, ThreadLost


def own():
    return os.stat("/proc/thread-self/ns/net").st_ino


def descriptors():
    # without the one that listed them
    return {fd for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")}


def test_a_namespace_is_opened_without_moving_the_thread(uplink, pod):
    before = own()
    with Namespace.open(uplink.path) as ns:
        assert own() == before
        assert {each.name for each in link.dump(ns.rtnl)} == {"lo", "eth0"}
        assert ns.path == uplink.path
    with Namespace.open(pod.path) as ns:
        assert {each.name for each in link.dump(ns.rtnl)} == {"lo"}


def test_each_namespace_has_its_cookie(host, pod):
    with Namespace.open(host.path) as one, Namespace.open(pod.path) as two, Namespace.open(pod.path) as same:
        assert one.cookie != two.cookie == same.cookie
        assert one.cookie > 0


def test_the_threads_own_namespace_is_current(host):
    with host.entered(), Namespace.current() as current, Namespace.open(host.path) as same:
        assert current.cookie == same.cookie


def test_entering_moves_this_thread_alone_and_back(host):
    before, seen = own(), []
    entered = threading.Event()
    thread = threading.Thread(target=lambda: entered.wait(60) and seen.append(own()))
    thread.start()
    with Namespace.open(host.path) as ns, ns.entered():
        assert own() == os.stat(host.path).st_ino
        entered.set()
        thread.join()
    assert seen == [before]
    assert own() == before


def test_an_exception_inside_still_brings_the_thread_back(host):
    before = own()
    with Namespace.open(host.path) as ns, pytest.raises(RuntimeError, match="inside"), ns.entered():
        raise RuntimeError("inside")
    assert own() == before


def test_a_thread_comes_back_to_a_home_that_is_known(host, pod):
    with host.entered(), Namespace.current() as home:
        before, open_before = own(), descriptors()
        with Namespace.open(pod.path, home) as ns:
            for _ in range(2):
                with ns.entered():
                    assert own() == os.stat(pod.path).st_ino
                assert own() == before
        assert descriptors() == open_before


def test_a_thread_that_cannot_come_back_is_lost(host):
    before, told = own(), []

    def lose():
        visit = ns.entered()
        try:
            with visit, open(os.devnull) as no_namespace:
                os.dup2(no_namespace.fileno(), visit._home)
        except ThreadLost as error:
            told.append(str(error))

    with Namespace.open(host.path) as ns:
        thread = threading.Thread(target=lose)
        thread.start()
        thread.join()
    assert told == [f"cannot come back from {host.path}: Invalid argument"]
    assert not issubclass(ThreadLost, Exception)
    assert own() == before


@pytest.mark.parametrize("make", ["missing", "file", "directory", "fifo", "other namespace", "nul"])
def test_what_is_no_network_namespace_is_gone(make, tmp_path):
    path = str(tmp_path / "ns")
    if make == "file":
        open(path, "w").close()
    elif make == "directory":
        os.mkdir(path)
    elif make == "fifo":
        os.mkfifo(path)
    elif make == "other namespace":
        path = "/proc/self/ns/mnt"
    elif make == "nul":
        path = "a\0b"
    before, inode = descriptors(), own()
    with pytest.raises(NamespaceGone):
        Namespace.open(path)
    assert descriptors() == before
    assert own() == inode


def test_nothing_is_left_open_after_closing(host):
    before = descriptors()
    for _ in range(3):
        ns = Namespace.open(host.path)
        ns.close()
        ns.close()
    with host.entered():
        Namespace.current().close()
    assert descriptors() == before


def test_descriptors_are_not_inherited(host):
    before = descriptors()
    with Namespace.open(host.path):
        new = descriptors() - before
        assert len(new) == 2
        assert not any(os.get_inheritable(int(fd)) for fd in new)


def test_no_descriptor_is_left_where_the_socket_cannot_be_made(host, monkeypatch):
    def refuse():
        raise OSError(24, "Too many open files")

    before, inode = descriptors(), own()
    monkeypatch.setattr(netns, "connect", refuse)
    with pytest.raises(KernelError, match=f"open an rtnetlink socket in {host.path}: Too many open files"):
        Namespace.open(host.path)
    assert descriptors() == before
    assert own() == inode


def test_a_namespace_stays_open_after_its_name_is_gone(new_netns):
    import subprocess

    gone = new_netns("gone")
    with Namespace.open(gone.path) as ns:
        subprocess.run(["ip", "netns", "del", gone.name], check=True)
        subprocess.run(["ip", "netns", "add", gone.name], check=True)  # the fixture deletes it again
        assert link.index_of(ns.rtnl, "lo") == 1


def test_settings_are_those_of_the_entered_namespace(host, pod):
    path = "net/ipv4/conf/lo/rp_filter"
    with Namespace.open(pod.path) as ns:
        with ns.entered():
            assert sysctl.write(path, 2)
            assert not sysctl.write(path, "2")
            assert sysctl.read(path) == "2"
        assert sysctl.write_all([(path, 2), ("net/ipv4/conf/all/rp_filter", 1)], ns=ns) == [
            "net/ipv4/conf/all/rp_filter"
        ]
    assert pod.run("cat", f"/proc/sys/{path}").stdout == "2\n"
    assert host.run("cat", f"/proc/sys/{path}").stdout == "0\n"


def test_a_setting_that_does_not_exist_or_takes_no_such_value_is_named(pod):
    with Namespace.open(pod.path) as ns:
        with pytest.raises(KernelError, match="set sysctl net/ipv4/conf/nope/rp_filter to 1: No such file"):
            sysctl.write_all([("net/ipv4/conf/nope/rp_filter", 1)], ns=ns)
        with pytest.raises(KernelError, match="set sysctl net/ipv4/conf/lo/rp_filter to many: Invalid argument"):
            sysctl.write_all([("net/ipv4/conf/lo/rp_filter", "many")], ns=ns)
