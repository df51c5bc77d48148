"""The daemon itself beside a cluster of 5,000 pods and 500 networks, and beside no API server at all."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from tests.kube.api_server import NETWORKS, PODS, ApiServer, network, pod
from tests.kube.cluster_bench import NODE, OWN_PODS, fill, until
from tests.kube.pool_nodes import WATCHED

UNDERLAY = [sys.executable, "-m", "underlay"]
MOST_MIB = 90


class Daemon:
    """`underlay daemon` in this test's network namespace, listening to a server."""

    def __init__(self, server, directory):
        self.directory = directory
        self._flags = ["--run-dir", str(directory / "run")]
        self._log = (directory / "log").open("ab")
        self.process = subprocess.Popen(
            [*UNDERLAY, "daemon", *self._flags, "--state-dir", str(directory / "state"),
             "--kubeconfig", server.kubeconfig(directory / "kubeconfig"), "--node-name", NODE],
            stderr=self._log,
        )  # fmt: skip

    def status(self):
        done = subprocess.run([*UNDERLAY, "status", "--json", *self._flags], capture_output=True, check=False)
        return json.loads(done.stdout) if done.stdout.strip() else {}

    def memory(self, field="VmRSS"):
        """MiB."""
        with open(f"/proc/{self.process.pid}/status") as file:
            return next(int(line.split()[1]) / 1024 for line in file if line.startswith(f"{field}:"))

    def events(self):
        return [json.loads(line) for line in (self.directory / "log").read_text().splitlines()]

    def heard(self, event, **fields):
        return [each for each in self.events() if each.get("msg", each.get("event")) == event
                and all(each.get(key) == value for key, value in fields.items())]  # fmt: skip

    def close(self):
        self.process.terminate()
        assert self.process.wait(30) == 0
        self._log.close()


@pytest.fixture
def daemon_of(tmp_path):
    running = []

    def start(server):
        running.append(Daemon(server, tmp_path))
        return running[-1]

    yield start
    for each in running:
        each.close()


def test_a_large_cluster_costs_a_node_bounded_memory_and_few_requests(daemon_of):
    with ApiServer() as server:
        fill(server)
        daemon = daemon_of(server)
        assert until(lambda: len(daemon.heard("listed")) == WATCHED, 30), daemon.events()
        assert daemon.heard("listed", resource="pods", objects=OWN_PODS)
        assert daemon.heard("listed", resource=NETWORKS, objects=500)
        first = daemon.memory()
        for lists in (2, 3, 4):  # everything again: old and new list side by side, and every object told anew
            server.objects.lose_history()
            assert until(lambda lists=lists: len(daemon.heard("listed", resource=NETWORKS)) == lists, 30)
            for number in range(500):
                server.put(NETWORKS, network(f"net-{number}", {"type": "macvlan", "mtu": number}))
        print(f"RSS {first:.1f} MiB after the lists, {daemon.memory():.1f} MiB after three more, "
              f"at most {daemon.memory('VmHWM'):.1f} MiB; requests: {len(server.requests)}")  # fmt: skip
        assert daemon.memory("VmHWM") <= MOST_MIB
        assert len(server.asked("list")) <= 4 * (WATCHED + 1)  # networks come in two pages
        assert server.asked("get") == []


def test_without_the_server_the_daemon_serves_and_says_that_it_is_not_ready(daemon_of, tmp_path):
    with ApiServer() as server:
        server.stop()
        daemon = daemon_of(server)
        assert until(lambda: "Connection refused" in str(daemon.status().get("faults"))), daemon.status()
        assert daemon.status()["ready"] is False
        assert daemon.status()["alive"] is True
        server.start()
        assert until(lambda: daemon.status().get("ready"), 20), daemon.status()


def test_a_restart_without_the_server_is_ready_from_what_it_kept(daemon_of):
    with ApiServer() as server:
        server.put(PODS, pod("web", node=NODE))
        first = daemon_of(server)
        assert until(lambda: len(first.heard("listed")) == WATCHED), first.events()
        server.stop()
        first.process.kill()
        first.process.wait()
        first.close = lambda: first._log.close()
        second = daemon_of(server)
        assert until(lambda: second.status().get("ready"), 20), second.status()


def test_a_daemon_of_files_pays_nothing_for_the_api_server():
    script = "import sys, underlay.daemon.app; print('http.client' in sys.modules, 'ssl' in sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_kubeconfig_that_cannot_work_stops_the_daemon_with_words(tmp_path):
    (tmp_path / "k").write_text("kind: Config\n")
    done = subprocess.run(
        [*UNDERLAY, "daemon", "--run-dir", tmp_path / "run", "--state-dir", tmp_path / "state",
         "--kubeconfig", tmp_path / "k", "--node-name", "n1"],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode != 0
    assert 'there is no context ""' in done.stderr


def test_starting_is_not_slower_for_the_api_server(daemon_of):
    with ApiServer() as server:
        began = time.monotonic()
        daemon = daemon_of(server)
        assert until(lambda: daemon.heard("ready"))
        print(f"ready after {time.monotonic() - began:.2f} s, {daemon.memory():.1f} MiB")
