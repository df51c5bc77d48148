"""What is on disk for a restart: right, bounded to this node, and never a reason not to run."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest
from tests.kube.api_server import NETWORKS, PODS, network, pod
from tests.kube.cluster_bench import soon, until

from underlay.errors import NotAvailable
from underlay.kube.objects import Pod


@pytest.fixture
def filled(server, benches):
    """A server with a pod and two networks, and a source that has heard of them and is closed again."""
    server.put(PODS, pod("web", node="n1", uid="u1", networks="a"))
    for name in ("a", "b"):
        server.put(NETWORKS, network(name, {"name": name}))
    cluster = benches.make(server)
    assert until(lambda: not cluster.fault())
    assert cluster.network("kube-system", "none", soon()) is None
    benches.close()
    server.stop()
    return benches


def file_of(benches):
    return Path(benches.directory) / "state" / "kube.db"


def test_a_restart_without_the_server_serves_what_was_known(server, filled):
    cluster = filled.make(server)
    cluster.check()
    web = cluster.pod("default", "web", soon(), "u1")
    assert (web.annotations["k8s.v1.cni.cncf.io/networks"], web.uid) == ("a", "u1")
    assert cluster.network("default", "b", soon()).config == '{"name": "b"}'
    # what the configuration calls "none" was no definition, and is still looked for among files
    assert cluster.network("kube-system", "none", soon()) is None


def test_what_has_gone_meanwhile_goes_with_the_first_list(server, filled):
    server.delete(NETWORKS, "default", "a")
    server.put(NETWORKS, network("none", {}, namespace="kube-system"))
    cluster = filled.make(server)
    server.start()
    assert until(lambda: cluster._networks.state == "watching")
    assert cluster.network("default", "a", soon()) is None
    assert cluster.network("kube-system", "none", soon()) is not None
    filled.close()
    server.stop()
    again = filled.make(server)
    assert again._networks.find(("default", "a")) is None
    assert again.network("kube-system", "none", soon()) is not None


def test_a_malformed_file_is_moved_aside(server, filled):
    with open(file_of(filled), "r+b") as file:
        file.write(b"no database at all")
    for suffix in ("-wal", "-shm"):
        Path(f"{file_of(filled)}{suffix}").unlink(missing_ok=True)
    cluster = filled.make(server)
    with pytest.raises(NotAvailable):
        cluster.check()
    server.start()
    assert until(lambda: not cluster.fault())
    assert "kept objects were malformed: moved aside, begun anew" in filled.log.events()
    assert [name for name in os.listdir(file_of(filled).parent) if ".broken-" in name]


def test_a_file_of_a_newer_version_is_moved_aside(server, filled):
    with sqlite3.connect(file_of(filled)) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    cluster = filled.make(server)
    assert cluster.fault()


def test_another_nodes_objects_are_not_ours(server, filled):
    with sqlite3.connect(file_of(filled)) as db:
        db.execute("UPDATE synchronised SET scope = 'another-node'")
    db.close()
    cluster = filled.make(server)
    assert cluster.fault()
    assert cluster._pods.find(("default", "web")) is None


def test_a_place_that_cannot_be_written_costs_the_restart_alone(server, benches):
    Path(benches.directory / "state").write_text("a file where a directory should be")
    server.put(PODS, pod("web", node="n1", uid="u1"))
    cluster = benches.make(server)
    assert until(lambda: not cluster.fault())
    cluster.write_status(cluster.pod("default", "web", soon(), "u1"), b"[]")
    assert until(lambda: cluster.waiting() == 0)
    assert len(server.asked("patch")) == 1
    assert benches.log.events().count("objects are not kept for a restart") == 1


def test_an_entry_that_is_illegible_is_left_out(server, filled):
    with sqlite3.connect(file_of(filled)) as db:
        db.execute("UPDATE object SET body = x'00' WHERE name = 'a'")
        db.execute("INSERT INTO outbox VALUES (1, x'00')")
    db.close()
    cluster = filled.make(server)
    assert cluster._networks.find(("default", "a")) is None
    assert cluster._networks.find(("default", "b")) is not None
    assert cluster.waiting() == 0


def test_a_killed_process_loses_no_status(server, benches, tmp_path):
    """The file as it is while the source runs, taken by another one: what a SIGKILL leaves."""
    cluster = benches.make(server, start=False)
    cluster.write_status(Pod("default", "web", "u1"), b"[]")
    copied = tmp_path / "copy" / "state"
    copied.mkdir(parents=True)
    for suffix in ("", "-wal"):
        (copied / f"kube.db{suffix}").write_bytes(Path(f"{file_of(benches)}{suffix}").read_bytes())
    benches.directory = tmp_path / "copy"
    assert benches.make(server, start=False).waiting() == 1
