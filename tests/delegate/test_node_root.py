"""Executables of a daemon in a container run in the node's root."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.delegate.conftest import ALLOCATORS, ORIGIN, PLUGINS, Bench, Log, soon
from tests.keep import Keep
from tests.node_root import NodeRoot

from underlay.cni.config import parse_plugin
from underlay.cni.request import Verb
from underlay.delegate.attachment import Attachment, Sandbox
from underlay.delegate.engine import Engine
from underlay.delegate.exec import Executor, Invocation
from underlay.errors import PluginMissing
from underlay.ipam.allocator import Holder
from underlay.ipam.host_local import HostLocal
from underlay.ipam.undo import Release, release
from underlay.kube.device_info import DeviceInfo
from underlay.net.host_root import HostRoot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Netns

PATH = ("/opt/none", "/opt/cni/bin")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeRoot]:
    root = NodeRoot(tmp_path / "node")
    yield root
    root.close()


@pytest.fixture
def executor(node: NodeRoot, log: Log) -> Executor:
    return Executor(log=log, environ={"PATH": "/bin"}, root=HostRoot(str(node.path)))


def call(name: str) -> Invocation:
    return Invocation(Verb.ADD, name, b'{"k":1}', PATH, "c1", "/var/run/netns/x", "net1")


def test_a_plugin_sees_the_nodes_files_and_its_directory_is_a_link(executor: Executor, node: NodeRoot) -> None:
    node.plugin("shows", "pwd; ls /; echo $CNI_NETNS $CNI_PATH; printf '%s' \"$conf\"")
    lines = executor.run(call("shows"), soon()).decode().splitlines()
    assert lines[0] == "/"
    assert lines[1:-2] == sorted(os.listdir(node.path))
    assert lines[-2:] == ["/var/run/netns/x /opt/none:/opt/cni/bin", '{"k":1}']
    assert Path(__file__).exists()


def test_a_plugin_of_the_container_is_not_one_of_the_node(executor: Executor, log: Log) -> None:
    assert Executor(log=log, environ={}).find("busybox", ("/bin",)) == "/bin/busybox"
    with pytest.raises(PluginMissing, match="'env' is not built in"):
        executor.find("env", ("/usr/bin",))
    assert executor.find("busybox", ("/bin",)) == "/bin/busybox"


def test_many_threads_start_plugins_at_once_and_none_is_left_in_the_nodes_root(
    executor: Executor, node: NodeRoot
) -> None:
    node.plugin("lists", "ls /")
    outside: list[bool] = []

    def work() -> None:
        for _ in range(10):
            assert b"seen" in executor.run(call("lists"), soon(30))
            outside.append(os.path.exists(__file__))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert outside == [True] * 80


def test_host_local_keeps_its_reservations_in_the_nodes_directory(node: NodeRoot) -> None:
    (node.path / "var/lib").mkdir()
    (node.path / "data").mkdir()
    (node.path / "var/lib/cni").symlink_to("/data")
    (node.path / "etc/resolv.conf").write_text("nameserver 192.0.2.53\n")
    root = HostRoot(str(node.path))
    plugin, holder, recorded = HostLocal(root.locate), Holder("c1", "eth0"), list[Release]()
    ipam = {"type": "host-local", "subnet": "10.9.0.0/24", "resolvConf": "/etc/resolv.conf"}
    conf = parse_plugin(json.dumps({"cniVersion": "1.0.0", "name": "n", "type": "x", "ipam": ipam}).encode())
    result = plugin.add(conf, holder, {}, record=recorded.append, deadline=soon())
    assert result.dns.nameservers == ("192.0.2.53",)
    assert (node.path / "data/networks/n/10.9.0.2").exists()
    assert recorded[0].data_dir == "/var/lib/cni/networks"
    assert not os.path.exists("/var/lib/cni/networks/n")
    plugin.status(conf)
    plugin.check(conf, holder, {})
    release(recorded[0], locate=root.locate)
    assert not (node.path / "data/networks/n/10.9.0.2").exists()
    plugin.add(conf, holder, {}, record=recorded.append, deadline=soon())
    plugin.delete(conf, holder, deadline=soon())
    plugin.add(conf, holder, {}, record=recorded.append, deadline=soon())
    plugin.gc(conf, Keep(), deadline=soon())
    assert sorted(os.listdir(node.path / "data/networks/n")) == [".spare-0", "last_reserved_ip.0", "lock"]


def test_device_information_files_are_the_nodes(bench: Bench, node: NodeRoot, pod: Netns, log: Log) -> None:
    node.bind("/run/netns", "run/sandboxes")
    executor = Executor(log=log, environ={}, root=HostRoot(str(node.path)))
    engine = Engine(ledger=bench.ledger, executor=executor, plugins=PLUGINS, allocators=ALLOCATORS, log=log)
    bench.engines.append(engine)
    sandbox = Sandbox("c1", f"/var/run/sandboxes/{pod.name}")
    attachment = Attachment("default/a", bench.macvlan(), "net1", info_file="/var/run/devinfo/cni/x", info=b"{}")
    with engine.session(sandbox, ORIGIN, soon()) as session:
        session.add(attachment)
    assert (node.path / "run/devinfo/cni/x").read_bytes() == b"{}"
    read = DeviceInfo(log, "/var/run/devinfo", locate=executor.root.locate).read("/var/run/devinfo/cni/x")
    assert read == {}
    with engine.session(sandbox, ORIGIN, soon()) as session:
        assert session.delete() == []
    assert not (node.path / "run/devinfo/cni/x").exists()
    assert pod.link("net1") is None
