"""00-multus.conf of a running daemon: the kernel's news is enough, nothing is asked again and again."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.kube.api_server import EVENTS, ApiServer
from tests.multus.multus_node import Lines, ShimAndDaemon

from underlay.daemon import follower
from underlay.daemon.follower import Follower
from underlay.multus.autoconf import Autoconf
from underlay.multus.daemon_file import Generation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Netns

CALICO = {"cniVersion": "1.0.0", "name": "k8s-pod-network", "type": "calico"}
SECONDS = 20.0


def by_then(question: Callable[[], Any]) -> Any:
    """The answer, as soon as it is not false."""
    end = time.monotonic() + SECONDS
    while not (answer := question()) and time.monotonic() < end:
        time.sleep(0.005)
    assert answer
    return answer


class Counted(Autoconf):
    """Counts its looks."""

    looks = 0

    def look(self) -> float | None:
        self.looks += 1
        return super().look()


def test_it_follows_what_comes_goes_and_is_renamed_and_otherwise_sleeps(tmp_path: Path) -> None:
    log = Lines()
    directory = tmp_path / "made" / "net.d"  # not there yet
    written = directory / "00-multus.conf"
    autoconf = Counted(Generation(str(directory), str(directory)), log)
    following = Follower(autoconf, log)
    following.start()
    by_then(lambda: autoconf.looks and directory.is_dir())
    temporary = directory / ".10-calico.conf.tmp"
    temporary.write_text(json.dumps(CALICO))
    temporary.rename(directory / "10-calico.conf")
    by_then(written.exists)
    written.rename(f"{written}.cilium_bak")
    by_then(written.exists)
    (directory / "05-first.conf").write_text(json.dumps(CALICO))
    by_then(lambda: "/05-first.conf" in written.read_text())
    before = autoconf.looks
    assert not threading.Event().wait(0.3)
    assert autoconf.looks - before <= 3  # the news of its own rename
    following.stop()
    assert written.exists()


def test_without_a_watch_it_looks_from_time_to_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_ignore: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(follower, "_BLIND", 0.05)
    monkeypatch.setattr(follower, "Watch", lambda ignore: none_left(ignore))
    log = Lines()
    following = Follower(Autoconf(Generation(str(tmp_path), str(tmp_path)), log), log)
    following.start()
    by_then(lambda: any("waiting" in line["event"] for line in log))
    (tmp_path / "10-calico.conf").write_text(json.dumps(CALICO))
    by_then((tmp_path / "00-multus.conf").exists)
    following.stop()


@pytest.fixture
def theirs(tmp_path: Path) -> dict[str, Any]:
    """A daemon-config.json; paths are filled in by the test."""
    (tmp_path / "etc").mkdir()
    return {"cniConfigDir": str(tmp_path / "etc/net.d"), "logLevel": "debug", "namespaceIsolation": True,
            "metricsPort": 9091, "confDir": str(tmp_path / "conf")}  # fmt: skip


def test_a_daemon_with_multus_own_file_serves_pods_by_what_it_wrote(
    uplink: Netns, pod: Netns, tmp_path: Path, theirs: dict[str, Any]
) -> None:
    file = tmp_path / "daemon-config.json"
    file.write_text(json.dumps(theirs))
    (tmp_path / "d").mkdir()
    node = ShimAndDaemon(uplink, tmp_path / "d", "--multus-daemon-config", str(file))
    log = tmp_path / "d/daemon.log"
    net_d = tmp_path / "etc/net.d"
    try:
        by_then(lambda: '"ready"' in log.read_text())  # the socket does not wait for a cluster network
        overlay = {"cniVersion": "0.4.0", "name": "overlay", "type": "macvlan", "master": "eth0",
                   "capabilities": {"ips": True}, "ipam": {"type": "static", "addresses": []}}  # fmt: skip
        by_then(net_d.is_dir)
        (net_d / "10-overlay.conf").write_text(json.dumps(overlay))
        written = net_d / "00-multus.conf"
        by_then(written.exists)
        given = json.loads(written.read_text())
        assert (given["cniVersion"], given["capabilities"]) == ("0.4.0", {"ips": True})
        stdin = {**given, "runtimeConfig": {"ips": ["172.18.3.4/16"]}}
        ok, printed = node.call("ADD", stdin, netns=pod.path)
        assert ok, printed
        assert [each["address"] for each in printed["ips"]] == ["172.18.3.4/16"]
        node.network("other", "far", overlay)
        node.pod("default", "web", {"k8s.v1.cni.cncf.io/networks": "other/far"})
        args = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web"
        ok, printed = node.call("ADD", stdin, netns=pod.path, container="c2", args=args)
        assert not ok
        assert "namespaceIsolation" in printed["msg"]
        assert node.call("DEL", stdin, netns=pod.path) == (True, None)
        theirs_name = node.bin_dir / "multus-shim"  # files that Multus has written call it so
        theirs_name.hardlink_to(node.bin_dir / "multus")
        status = json.dumps({**given, "cniVersion": "1.1.0", "type": "multus-shim"})
        env = {"CNI_COMMAND": "STATUS", "CNI_PATH": node.path()}
        done = subprocess.run([theirs_name], env=env, input=status.encode(), capture_output=True, check=False)
        assert (done.returncode, done.stdout) == (0, b"")
    finally:
        node.close()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    warnings = [line["event"] for line in lines if line["level"] == "warn" and str(file) in line["event"]]
    assert warnings == [f'{file}: "metricsPort" has no effect: health_address is where the daemon listens for HTTP']
    assert written.exists()


def test_what_another_program_does_to_the_file_is_one_warning_where_there_is_no_api_server(
    uplink: Netns, tmp_path: Path
) -> None:
    net_d = tmp_path / "etc"
    net_d.mkdir()
    (net_d / "10-calico.conf").write_text(json.dumps(CALICO))
    file, log = tmp_path / "daemon-config.json", tmp_path / "log"
    file.write_text(json.dumps({"cniConfigDir": str(net_d), "logFile": str(log), "logToStderr": False}))
    node = ShimAndDaemon(uplink, tmp_path, "--multus-daemon-config", str(file))
    try:
        written = net_d / "00-multus.conf"
        by_then(written.exists)
        written.rename(f"{written}.cilium_bak")
        by_then(written.exists)
    finally:
        node.close()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    (warning,) = [line for line in lines if line["level"] == "warn"]
    assert warning["reason"] == "MultusConfigRestored"
    assert "cni-exclusive" in warning["message"]


def test_what_another_program_does_to_the_file_is_an_event_on_the_node(uplink: Netns, tmp_path: Path) -> None:
    def listen(host: str, port: int) -> socket.socket:
        with uplink.entered():
            return socket.create_server((host, port))

    net_d = tmp_path / "etc"
    net_d.mkdir()
    (net_d / "10-calico.conf").write_text(json.dumps(CALICO))
    file = tmp_path / "daemon-config.json"
    with ApiServer(listen=listen) as api:
        config = api.kubeconfig(tmp_path / "kubeconfig")
        file.write_text(json.dumps({"cniConfigDir": str(net_d), "kubeconfig": config}))
        flags = ("--node-name", "n1", "--multus-daemon-config", str(file))
        node = ShimAndDaemon(uplink, tmp_path, *flags)
        try:
            written = net_d / "00-multus.conf"
            by_then(written.exists)
            assert api.objects.all(EVENTS) == []
            written.rename(f"{written}.cilium_bak")
            (event,) = by_then(lambda: api.objects.all(EVENTS))
        finally:
            node.close()
    assert (event["type"], event["reason"]) == ("Warning", "MultusConfigRestored")
    assert "cni-exclusive" in event["message"]
    assert event["involvedObject"] == {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "n1"}
    assert event["metadata"]["namespace"] == "default"  # the API server takes no other for what has no namespace
    assert event["source"] == {"component": "underlay", "host": "n1"}
