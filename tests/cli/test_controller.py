"""``underlay controller`` as a process: ready, writing, judging, and ended by a signal."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import ssl
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.controller.at_the_server import a_pool, put_blocks, status
from tests.controller.pictures import a_node, lease
from tests.kube.api_objects import BLOCKS, LEASES
from tests.kube.api_server import ApiServer
from tests.kube.cluster_bench import until
from tests.webhook.test_server import make_certificate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server


class Process:
    def __init__(self, *flags: str) -> None:
        command = [sys.executable, "-m", "underlay", "controller", *flags]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stderr is not None
        self.lines = []
        while not self.lines or self.lines[-1]["event"] != "started":
            self.lines.append(json.loads(self.process.stderr.readline()))
        self.started = self.lines[-1]

    def probe(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.started["health_port"], timeout=30)
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def stop(self) -> tuple[int, list[dict[str, Any]]]:
        self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=30)
        assert out == b""
        return self.process.returncode, [*self.lines, *(json.loads(line) for line in err.splitlines())]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def test_it_leads_writes_judges_and_stops(server: ApiServer, tmp_path: Path) -> None:
    a_pool(server)
    server.put("nodes", {"metadata": {"name": "n1"}})
    put_blocks(server, lease("10.0.0.10"))
    cert, key = make_certificate(tmp_path, 1)
    config = server.kubeconfig(tmp_path / "kubeconfig")
    running = Process("--kubeconfig", config, "--identity", "pod-1", "--health-address", f"127.0.0.1:{free_port()}",
                      "--tls-cert", cert, "--tls-key", key, "--address", "127.0.0.1", "--port", "0")  # fmt: skip
    assert until(lambda: running.probe("/readyz") == (200, "ok\n"))
    assert running.probe("/healthz") == (200, "ok\n")
    assert until(lambda: status(server).get("allocatedIPCount") == 1)
    held = server.get(LEASES, "kube-system", "underlay-controller")
    assert held is not None
    assert held["spec"]["holderIdentity"].startswith("pod-1_")

    pool = server.get("spiderippools", "", "p")
    request = {"uid": "u", "kind": {"group": "spiderpool.spidernet.io", "version": "v2beta1", "kind": "SpiderIPPool"},
               "operation": "DELETE", "name": "p", "oldObject": pool}  # fmt: skip
    review = json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request})
    connection = http.client.HTTPSConnection(
        "127.0.0.1", running.started["port"], timeout=30, context=ssl.create_default_context(cafile=cert)
    )
    connection.request("POST", "/validate", review)
    response = json.loads(connection.getresponse().read())["response"]
    assert not response["allowed"]
    assert "10.0.0.10 is held by pod default/web" in response["status"]["message"]

    code, lines = running.stop()
    assert code == 0
    assert lines[-1]["event"] == "stopped"
    assert [line for line in lines if line["level"] in ("warn", "error")] == []
    held = server.get(LEASES, "kube-system", "underlay-controller")
    assert held is not None
    assert held["spec"]["holderIdentity"] == ""


@pytest.mark.parametrize(("flags", "owners"), [([], {"10.0.0.10": "n1"}), (["--reclaim-not-ready-after", "1"], None)])
def test_what_a_node_owns_that_is_not_ready_is_given_away_where_that_is_wanted(
    flags: list[str], owners: dict[str, str] | None, server: ApiServer, tmp_path: Path
) -> None:
    a_pool(server)
    server.put("nodes", a_node("n1", unready=600))
    put_blocks(server, lease("10.0.0.10"))
    config = server.kubeconfig(tmp_path / "kubeconfig")
    running = Process("--kubeconfig", config, "--health-address", f"127.0.0.1:{free_port()}", *flags)
    assert until(lambda: status(server).get("totalIPCount") == 10)
    time.sleep(2.0)
    assert until(lambda: server.objects.all(BLOCKS)[0]["spec"].get("owned") == owners, 15)
    code, lines = running.stop()
    assert code == 0
    warned = [line["event"] for line in lines if line["level"] == "warn" and "reclaim" in line["event"]]
    assert warned == (["--reclaim-not-ready-after 1 is less than 300 seconds"] if flags else [])


def test_while_the_api_server_is_away_it_is_alive_and_not_ready(tmp_path: Path) -> None:
    with ApiServer() as server:
        config = server.kubeconfig(tmp_path / "kubeconfig")
    running = Process("--kubeconfig", config, "--health-address", f"127.0.0.1:{free_port()}")
    code, why = running.probe("/readyz")
    assert code == 503
    assert why.startswith("kubernetes: spider")
    assert running.probe("/healthz") == (200, "ok\n")
    began = time.monotonic()
    assert running.stop()[0] == 0
    assert time.monotonic() - began < 15


@pytest.mark.parametrize(("flags", "words"), [
    (["--kubeconfig", "/nonexistent"], "/nonexistent"),
    (["--in-cluster"], "KUBERNETES_SERVICE_HOST"),
    (["--in-cluster", "--reclaim-not-ready-after", "0"], "is not within 1 and 604800 seconds"),
    (["--in-cluster", "--reclaim-not-ready-after", "nan"], "is not within 1 and 604800 seconds"),
])  # fmt: skip
def test_what_is_wrong_is_said_at_the_start(flags: list[str], words: str) -> None:
    command = [sys.executable, "-m", "underlay", "controller", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_certificate_and_key_go_together(server: ApiServer, tmp_path: Path) -> None:
    config = server.kubeconfig(tmp_path / "kubeconfig")
    command = [sys.executable, "-m", "underlay", "controller", "--kubeconfig", config, "--tls-cert", "/x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, "go together" in done.stderr) == (1, True)
