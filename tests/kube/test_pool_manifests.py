from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from underlay.errors import PodMismatch, TryAgain
from underlay.ipam.pools.surroundings import Owner
from underlay.kube.manifests import Manifests
from underlay.kube.pool_manifests import PoolManifests

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OBJECTS = """
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: a}
spec: {subnet: 10.1.0.0/16, ips: [10.1.0.10-10.1.0.19], ipVersion: "4"}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderReservedIP
metadata: {name: r}
spec: {ips: [10.1.0.11]}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderSubnet
metadata: {name: s}
spec: {subnet: 10.2.0.0/16, ips: [10.2.0.1-10.2.0.9]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: t1}, annotations: {x: y}}
---
apiVersion: v1
kind: Node
metadata: {name: node1, labels: {zone: z1}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: shop}
spec: {replicas: 2, ordinals: {start: 1}}
---
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: vm1, namespace: shop}
---
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
  uid: u1
  labels: {app: web, pod-template-hash: 5d9f}
  annotations: {k: v}
  ownerReferences:
    - {apiVersion: v1, kind: Node, name: other}
    - {apiVersion: apps/v1, kind: ReplicaSet, name: web-5d9f, uid: o1, controller: true}
"""


class Log(list[Any]):
    def __call__(self, level: str, event: str, /, **fields: Any) -> None:
        self.append((level, event, fields))


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def around(tmp_path: Path, log: Log) -> Iterator[PoolManifests]:
    (tmp_path / "all.yaml").write_text(OBJECTS)
    manifests = Manifests(str(tmp_path), log)
    yield PoolManifests(manifests, "node1", log)
    manifests.close()


def write(path: Path, content: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(content)
    temporary.rename(path)


def test_every_kind_is_read(around: PoolManifests) -> None:
    found = around.catalogue()
    assert (set(found.pools), set(found.subnets), [one.name for one in found.reserved]) == ({"a"}, {"s"}, ["r"])
    assert (found.node.name, dict(found.node.labels), found.faults) == ("node1", {"zone": "z1"}, ())


def test_without_a_change_the_same_catalogue_is_handed_out(around: PoolManifests, tmp_path: Path) -> None:
    first = around.catalogue()
    assert around.catalogue() is first
    write(tmp_path / "pod.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\n")
    assert around.catalogue() is first  # no pool has changed
    write(tmp_path / "b.yaml", OBJECTS.split("---")[0].replace("name: a", "name: b"))
    assert set(around.catalogue().pools) == {"a", "b"}


def test_a_thread_that_is_slow_puts_nothing_old_in_the_place_of_news(
    around: PoolManifests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, seen, go_on = around._manifests.surrounding, threading.Event(), threading.Event()

    def slowly() -> Any:
        found = look()
        monkeypatch.setattr(around._manifests, "surrounding", look)
        seen.set()
        assert go_on.wait(10)
        return found

    monkeypatch.setattr(around._manifests, "surrounding", slowly)
    slow = threading.Thread(target=around.catalogue)
    slow.start()
    assert seen.wait(10)
    write(tmp_path / "all.yaml", OBJECTS.replace("{team: t1}", "{team: t2}"))
    catalogue = around.catalogue

    def overtaken() -> Any:
        found = catalogue()
        go_on.set()
        slow.join()
        return found

    monkeypatch.setattr(around, "catalogue", overtaken)
    assert around.subject("shop", "web", "u1", 0.0).namespace_labels == {"team": "t2"}


def test_a_pod_with_its_namespace_and_its_controller(around: PoolManifests) -> None:
    found = around.subject("shop", "web", "u1", 0.0)
    assert (found.labels["app"], found.annotations, found.owner) == (
        "web", {"k": "v"}, Owner("ReplicaSet", "web-5d9f", "o1"),
    )  # fmt: skip
    assert (found.namespace_labels, found.namespace_annotations) == ({"team": "t1"}, {"x": "y"})
    assert found.application == ("Deployment", "web")
    with pytest.raises(PodMismatch):
        around.subject("shop", "web", "u2", 0.0)


def test_a_pod_without_a_manifest_is_known_by_its_namespace_alone(around: PoolManifests) -> None:
    found = around.subject("shop", "nobody", "u9", 0.0)
    assert (found.known, found.uid, found.namespace_labels) == (False, "u9", {"team": "t1"})


def test_who_is_wanted(around: PoolManifests, tmp_path: Path) -> None:
    wanted = {name: around.wanted(f"StatefulSet/shop/{name}") for name in ("db-0", "db-1", "db-2", "db-3", "web")}
    assert wanted == {"db-0": False, "db-1": True, "db-2": True, "db-3": False, "web": True}
    assert around.wanted("VirtualMachine/shop/vm1")
    assert around.wanted("VirtualMachine/shop/vm2") is False
    assert around.wanted("IPAMClaim/shop/c")
    launcher = """
        {apiVersion: v1, kind: Pod, metadata: {name: virt-launcher-vm2-x, namespace: shop, ownerReferences:
        [{kind: VirtualMachineInstance, name: vm2, controller: true}]}}"""
    write(tmp_path / "vm2.yaml", launcher)
    assert around.wanted("VirtualMachine/shop/vm2")


def test_where_pods_are_known_elsewhere_only_a_set_says_who_is_not_wanted(tmp_path: Path, log: Log) -> None:
    (tmp_path / "all.yaml").write_text(OBJECTS)
    (tmp_path / "elsewhere").mkdir()
    manifests, pods = Manifests(str(tmp_path), log), Manifests(str(tmp_path / "elsewhere"), log)
    around = PoolManifests(manifests, "node1", log, pods)
    assert not around.subject("shop", "web", "u1", 0.0).known
    names = ("StatefulSet/shop/db-1", "StatefulSet/shop/db-3", "StatefulSet/shop/web", "VirtualMachine/shop/vm2")
    assert [around.wanted(each) for each in names] == [True, False, None, None]
    assert around.wanted("Pod/shop/web/u1") is False  # adopted, when this node was a cluster's
    assert around.wanted("x") is None
    for each in (manifests, pods):
        each.close()


def test_a_broken_file_is_named_and_nothing_is_decided_by_its_absence(
    around: PoolManifests, tmp_path: Path, log: Log
) -> None:
    write(tmp_path / "b.yaml", OBJECTS.split("---")[0].replace("10.1.0.10-10.1.0.19", "10.9.0.10"))
    (fault,) = around.catalogue().faults
    assert "b.yaml" in fault
    assert "spec.ips[0]" in fault
    assert "Keep to 10.1.0.0 to 10.1.255.255" in fault
    assert around.wanted("StatefulSet/shop/db-3") is None
    with pytest.raises(TryAgain, match=r"b\.yaml"):
        around.subject("shop", "nobody", "", 0.0)


def test_pools_that_overlap_are_told_once(around: PoolManifests, tmp_path: Path, log: Log) -> None:
    write(tmp_path / "b.yaml", OBJECTS.split("---")[0].replace("name: a", "name: b"))
    around.catalogue()
    write(tmp_path / "c.yaml", OBJECTS.split("---")[0].replace("name: a", "name: c").replace("10.1.", "10.7."))
    around.catalogue()
    told = [fields["pools"] for level, event, fields in log if "same addresses" in event]
    assert told == [("a", "b")]
