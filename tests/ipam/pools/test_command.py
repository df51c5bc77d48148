"""`underlay ipam`, the shim named spiderpool and `underlay plugin spiderpool`, with a daemon and without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

UNDERLAY = (sys.executable, "-m", "underlay")
POOLS = """
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: a}
spec: {subnet: 10.1.0.0/16, ips: [10.1.0.10-10.1.0.19], gateway: 10.1.0.1, default: true}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: web}
spec: {subnet: 10.2.0.0/16, ips: [10.2.0.10], podAffinity: {matchLabels: {app: web}}}
---
apiVersion: v1
kind: Pod
metadata:
  name: w
  labels: {app: web}
  annotations: {ipam.spidernet.io/ippool: '{"ipv4": ["web", "a"]}'}
---
apiVersion: v1
kind: Pod
metadata: {name: other, annotations: {ipam.spidernet.io/ippool: '{"ipv4": ["web"]}'}}
"""


@dataclass
class Place:
    """A daemon's directories."""

    root: Path

    def underlay(self, *argv: str, check: bool = True, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([*UNDERLAY, *argv], capture_output=True, text=True, check=False, **kwargs)
        assert not check or done.returncode == 0, done.stderr + done.stdout
        return done

    def ipam(self, act: str, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.underlay("ipam", act, *argv, "--config", str(self.root / "underlay.json"), check=check)

    def call(self, program: list[str], verb: str, container: str = "c1", **conf: Any) -> tuple[int, Any]:
        """One CNI call of the type spiderpool by its executable, as another plugin would make it."""
        env = {
            "CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_NETNS": "/run/netns/none", "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.root / "bin"), "PATH": os.environ["PATH"],
            "CNI_ARGS": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=w;K8S_POD_UID=u1",
        }  # fmt: skip
        stdin = {"cniVersion": "1.1.0", "name": "n", "type": "ipvlan", "ipam": {"type": "spiderpool"}, **conf}
        done = subprocess.run(program, env=env, input=json.dumps(stdin).encode(), capture_output=True, check=False)
        return done.returncode, json.loads(done.stdout) if done.stdout else None

    def daemon(self) -> subprocess.Popen[bytes]:
        with (self.root / "log").open("ab") as log:
            started = subprocess.Popen(
                [*UNDERLAY, "daemon", "--config", str(self.root / "underlay.json")], stdout=log, stderr=log
            )
        until = time.monotonic() + 20
        while not (self.root / "run" / "underlay.sock").exists():
            assert started.poll() is None, (self.root / "log").read_text()
            assert time.monotonic() < until
            time.sleep(0.005)
        return started


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path)
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "pools.yaml").write_text(POOLS)
    directories = {"run_dir": "run", "state_dir": "state", "manifest_dir": "manifests", "conf_dir": "conf"}
    settings = {key: str(tmp_path / name) for key, name in directories.items()}
    (tmp_path / "underlay.json").write_text(json.dumps({**settings, "log": {"plugin_dir": str(tmp_path)}}))
    made.underlay("install", "--all", "--bin-dir", str(tmp_path / "bin"), "--run-dir", settings["run_dir"])
    return made


@pytest.fixture
def daemon(place: Place) -> Iterator[Place]:
    started = place.daemon()
    yield place
    started.terminate()
    started.wait(20)


def test_the_shim_named_spiderpool_serves_other_plugins_and_ipam_shows_it(daemon: Place) -> None:
    shim = [str(daemon.root / "bin" / "spiderpool")]
    status, result = daemon.call(shim, "ADD")
    assert (status, result["ips"]) == (0, [{"address": "10.2.0.10/16"}])
    assert "interfaces" not in result
    assert daemon.call(shim, "CHECK", prevResult=result) == (0, None)
    assert daemon.call(shim, "STATUS") == (0, None)
    listed = json.loads(daemon.ipam("list", "--json").stdout)["leases"]
    assert [(one["address"], one["pool"], one["pod"], one["container"]) for one in listed] == [
        ("10.2.0.10", "web", "default/w", "c1")
    ]
    who = daemon.ipam("who", "10.2.0.10").stdout
    assert "default/w" in who
    assert "held" in who
    refused = daemon.ipam("release", "10.2.0.10", check=False)
    assert refused.returncode == 1
    assert "held by pod default/w" in refused.stderr
    assert "--force" in refused.stderr
    assert daemon.call(shim, "DEL") == (0, None)
    assert daemon.ipam("who", "10.2.0.10", check=False).stdout == "10.2.0.10 is free\n"


def test_a_reservation_is_kept_over_a_restart_and_released(place: Place) -> None:
    assert "kept" in place.ipam("reserve", "10.1.0.10").stdout  # no daemon: in the state directory itself
    started = place.daemon()
    try:
        taken = place.ipam("reserve", "10.1.0.10", "--for", "default/x", check=False)
        assert taken.returncode == 1
        assert "kept for Reserved/" in taken.stderr
        for act in ("reserve", "who"):
            strange = place.ipam(act, "10.9.0.1", check=False)
            assert strange.returncode == 1
            assert "no pool hands 10.9.0.1 out\n  IPv4 pools there are: a, web.\n" in strange.stderr
        conf = {"ipam": {"type": "spiderpool"}}
        env_pod = place.call([str(place.root / "bin" / "spiderpool")], "ADD", "c9", **conf)
        assert env_pod[0] == 0
        assert place.ipam("release", "10.1.0.10").stdout.startswith("10.1.0.10 is released; it was\nADDRESS")
        assert place.ipam("release", "10.1.0.10").stdout == "10.1.0.10 is free\n"
        assert place.ipam("who", "10.1.0.10", check=False).returncode == 1
    finally:
        started.terminate()
        started.wait(20)


def test_what_a_reserved_ip_keeps_is_told_so(place: Place) -> None:
    (place.root / "manifests" / "reserved.yaml").write_text(
        "apiVersion: spiderpool.spidernet.io/v2beta1\nkind: SpiderReservedIP\nmetadata: {name: printers}\n"
        "spec: {ips: [10.1.0.12]}\n"
    )
    for act in ("reserve", "who"):
        refused = place.ipam(act, "10.1.0.12", check=False)
        assert refused.returncode == 1
        assert "no pod gets 10.1.0.12: SpiderReservedIP 'printers' keeps it" in refused.stderr


def test_a_pool_that_cannot_be_read_is_named_where_no_other_has_the_address(place: Place) -> None:
    (place.root / "manifests" / "broken.yaml").write_text("kind: [")
    refused = place.ipam("reserve", "10.9.0.1", check=False)
    assert "IPv4 pools there are: a, web. Not read: " in refused.stderr
    assert "broken.yaml" in refused.stderr


def test_explain_says_pool_by_pool_why(place: Place) -> None:
    told = place.ipam("explain", "default/w").stdout.splitlines()
    assert told[0] == "default/w, eth0: decided by ipam.spidernet.io/ippool"
    assert [line.split() for line in told[2:]] == [
        ["web", "IPv4", "1", "1.", "to", "be", "tried"], ["a", "IPv4", "10", "2.", "to", "be", "tried"],
    ]  # fmt: skip
    (first, second) = json.loads(place.ipam("explain", "default/w", "--json").stdout)["lines"]
    assert (first["pool"], first["place"], second["pool"], second["place"]) == ("web", 1, "a", 2)
    refused = place.ipam("explain", "default/other", check=False)
    assert refused.returncode == 1
    assert "the pod does not meet podAffinity app=web" in refused.stdout
    assert "is not known" in place.ipam("explain", "default/nobody").stdout


def test_explain_knows_what_is_free_now_and_what_the_network_names(daemon: Place) -> None:
    assert daemon.call([str(daemon.root / "bin" / "spiderpool")], "ADD")[0] == 0
    told = daemon.ipam("explain", "default/w").stdout
    assert [line.split()[:3] for line in told.splitlines()[2:]] == [["web", "IPv4", "0"], ["a", "IPv4", "10"]]
    config = {"type": "macvlan", "ipam": {"type": "spiderpool", "default_ipv4_ippool": ["web", "a"]}}
    kind = {"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition", "metadata": {"name": "n"}}
    network = {**kind, "spec": {"config": json.dumps(config)}}
    (daemon.root / "manifests" / "network.json").write_text(json.dumps(network))
    named = daemon.ipam("explain", "default/nobody", "--network", "default/n").stdout.splitlines()
    assert "nobody" in named[0]
    assert named[1].endswith("decided by ipam.default_ipv4_ippool")
    assert {line.split()[0]: "to be tried" in line for line in named[3:]} == {"web": False, "a": True}
    missing = daemon.ipam("explain", "default/w", "--network", "default/none", check=False)
    assert (missing.returncode, "default/none is not defined" in missing.stderr) == (1, True)


def test_explain_from_files_alone_takes_no_state_and_serves_for_another_node(place: Place) -> None:
    pool = "apiVersion: spiderpool.spidernet.io/v2beta1\nkind: SpiderIPPool\nmetadata: {name: far}\n"
    spec = "spec: {subnet: 10.3.0.0/16, ips: [10.3.0.1], default: true, nodeName: [n7]}\n"
    (place.root / "manifests" / "far.yaml").write_text(pool + spec)
    asked = ("ipam", "explain", "default/nobody", "--manifest-dir", str(place.root / "manifests"), "--node")
    here, there = (place.underlay(*asked, node).stdout.splitlines() for node in ("n1", "n7"))
    assert "far" in "".join(line for line in here if "nodeName does not list this node, 'n1'" in line)
    assert "far" in "".join(line for line in there if "1. to be tried" in line)
    assert not (place.root / "state").exists()


def test_as_a_plain_process_it_uses_the_same_state_and_refuses_while_a_daemon_has_it(place: Place) -> None:
    state, manifests = str(place.root / "state"), str(place.root / "manifests")
    plain = [*UNDERLAY, "plugin", "--state-dir", state, "--manifest-dir", manifests, "spiderpool"]
    status, result = place.call(plain, "ADD")
    assert (status, result["ips"]) == (0, [{"address": "10.2.0.10/16"}])
    started = place.daemon()
    try:
        assert "default/w" in place.ipam("who", "10.2.0.10").stdout
        status, error = place.call(plain, "ADD", "c2")
        assert status == 1
        assert "another daemon" in error["msg"]
    finally:
        started.terminate()
        started.wait(20)
    assert place.call(plain, "DEL") == (0, None)
    assert place.ipam("list").stdout == "no address is in use\n"
