from __future__ import annotations

import json
import os
import threading
import time
from typing import Any

import pytest

from underlay.errors import NotAvailable, StateUnwritable, TryAgain
from underlay.kube.inotify import Watch, wait_for_file
from underlay.kube.manifests import Manifests

NEVER = float("inf")
NETWORK = """
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: NAME, namespace: kube-system}
spec:
  config: |-
    {"type": "macvlan", "mtu": MTU}
"""


class Lines(list[tuple[str, str, dict[str, Any]]]):
    """A log that keeps its lines."""

    def __call__(self, level: str, event: str, /, **fields: Any) -> None:
        self.append((level, event, fields))


@pytest.fixture
def log() -> Lines:
    return Lines()


@pytest.fixture(params=["told by the kernel", "looked at"])
def source(request, tmp_path, log):
    (tmp_path / "m").mkdir()
    manifests = Manifests(str(tmp_path / "m"), log, watch=request.param == "told by the kernel")
    yield manifests
    manifests.close()


def network(name: str, mtu: int = 1500) -> str:
    return NETWORK.replace("NAME", name).replace("MTU", str(mtu))


def pod(name: str, **metadata: object) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **metadata}})


def put(source: Manifests, name: str, text: str) -> str:
    path = os.path.join(source.directory, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)
    return path


def mtu(source: Manifests, name: str) -> int | None:
    found = source.network("kube-system", name, NEVER)
    return json.loads(found.config)["mtu"] if found else None


def test_an_empty_directory_holds_nothing_and_says_so(source):
    assert source.pod("default", "web", NEVER) is None
    assert source.network("kube-system", "a", NEVER) is None
    source.check()


def test_objects_of_several_documents_files_and_directories_are_found(source):
    put(source, "nets.yaml", network("a") + "---\n# only a comment\n---" + network("b", 9000))
    put(source, "pods/deep/web.json", pod("web", annotations={"k": "v"}, uid="u1"))
    assert mtu(source, "a") == 1500
    assert mtu(source, "b") == 9000
    web = source.pod("default", "web", NEVER)
    assert (web.namespace, web.name, web.uid, web.annotations, web.static) == (
        "default",
        "web",
        "u1",
        {"k": "v"},
        False,
    )


def test_lists_are_taken_apart_and_other_kinds_passed_over(source):
    other = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}}
    alien = {"apiVersion": "example.com/v1", "kind": "NetworkAttachmentDefinition", "metadata": {"name": "alien"}}
    items = [
        json.loads(pod("one")),
        other,
        alien,
        {"apiVersion": "v1", "kind": "List", "items": [json.loads(pod("two"))]},
    ]
    put(source, "list.json", json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    put(
        source,
        "pods.json",
        json.dumps({"apiVersion": "v1", "kind": "PodList", "items": [{"metadata": {"name": "three"}}]}),
    )
    assert [bool(source.pod("default", name, NEVER)) for name in ("one", "two", "three", "web")] == [
        True,
        True,
        True,
        False,
    ]
    assert source.network("default", "alien", NEVER) is None


def test_a_network_without_config_and_its_resource_are_kept(source):
    definition = {
        "apiVersion": "k8s.cni.cncf.io/v1",
        "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": "vf", "annotations": {"k8s.v1.cni.cncf.io/resourceName": "example.com/vf"}},
    }
    put(source, "vf.json", json.dumps(definition))
    found = source.network("default", "vf", NEVER)
    assert (found.config, found.resource_name) == (None, "example.com/vf")


@pytest.mark.parametrize(
    ("annotations", "static"),
    [
        ({}, False),
        ({"kubernetes.io/config.mirror": "hash"}, True),
        ({"kubernetes.io/config.source": "file"}, True),
        ({"kubernetes.io/config.source": "api"}, False),
    ],
)
def test_a_static_pod_is_known_by_its_annotations(source, annotations, static):
    put(source, "web.json", pod("web", annotations=annotations))
    assert source.pod("default", "web", NEVER).static is static


def test_each_kind_of_change_is_seen_at_once(source):
    path = put(source, "a.yaml", network("a", 1))
    assert mtu(source, "a") == 1
    for value in range(2, 30):  # same size, within one tick of the clock, in place
        put(source, "a.yaml", network("a", value % 10))
        assert mtu(source, "a") == value % 10
    put(source, "sub/b.yaml", network("b", 5))
    assert mtu(source, "b") == 5
    put(source, "sub/.c.yaml", network("c", 6))
    assert mtu(source, "c") is None
    os.rename(os.path.join(source.directory, "sub/.c.yaml"), os.path.join(source.directory, "sub/c.yaml"))
    assert mtu(source, "c") == 6
    os.rename(os.path.join(source.directory, "sub"), os.path.join(source.directory, "sub2"))
    assert mtu(source, "c") == 6
    put(source, "sub2/c.yaml", network("c", 7))
    assert mtu(source, "c") == 7
    os.unlink(path)
    assert mtu(source, "a") is None
    assert mtu(source, "b") == 5


def test_a_mounted_config_map_is_followed_when_it_is_swapped(source):
    for generation, value in (("..2024_1", 1), ("..2024_2", 2)):
        put(source, f"{generation}/nets.yaml", network("a", value))
    data = os.path.join(source.directory, "..data")
    os.symlink("..2024_1", data)
    os.symlink("..data/nets.yaml", os.path.join(source.directory, "nets.yaml"))
    assert mtu(source, "a") == 1
    os.symlink("..2024_2", data + "_tmp")
    os.rename(data + "_tmp", data)
    assert mtu(source, "a") == 2


def test_only_changed_files_are_parsed_again(source):
    for number in range(20):
        put(source, f"{number}.yaml", network(f"n{number}"))
    time.sleep(0.03)  # until file times are older than a tick of the clock
    before = [source.network("kube-system", f"n{number}", NEVER) for number in range(20)]
    put(source, "3.yaml", network("n3", 9))
    os.utime(os.path.join(source.directory, "4.yaml"))
    after = [source.network("kube-system", f"n{number}", NEVER) for number in range(20)]
    assert [number for number in range(20) if after[number] is not before[number]] == [3]


@pytest.mark.parametrize(
    ("name", "text", "cause"),
    [
        ("x.yaml", "a: [", "no YAML"),
        ("x.yaml", "a: !!bool x", "no YAML"),
        ("x.yaml", "a: !!int ''", "no YAML"),
        ("x.yaml", "a: !!timestamp x", "no YAML"),
        ("x.yaml", "", "empty"),
        ("x.yaml", "- 1", "apiVersion"),
        ("x.yaml", "a: 1", "kind"),
        ("x.yaml", "kind: Pod\napiVersion: v1\nmetadata: {name: web, annotations: {a: 1}}", "Expected `str`"),
        ("x.yaml", "kind: Pod\napiVersion: v1\nmetadata: {namespace: a}", "name"),
        ("x.json", pod("../../etc/passwd"), "no object's name"),
        ("x.json", pod("web", namespace="a.b"), "no namespace"),
        ("x.json", pod("web") + "}", "no JSON"),
        ("x.json", "[" * 100000, "no JSON"),
        ("x.yaml", network("a").split("|-")[0] + "7", "config"),
    ],
)
def test_a_broken_file_is_named_and_the_others_stay_in_force(source, log, name, text, cause):
    put(source, "good.yaml", network("good"))
    put(source, name, pod("web") if name.endswith("json") else network("web"))
    assert mtu(source, "good") == 1500
    path = put(source, name, text)
    assert mtu(source, "good") == 1500
    for lookup in (source.pod, source.network):  # the last good state is not in force, and absence is not claimed
        with pytest.raises(TryAgain, match=r"web.*1 cannot be read") as caught:
            lookup("kube-system", "web", NEVER)
        assert path in caught.value.message
    with pytest.raises(NotAvailable, match=cause):
        source.check()
    errors = [fields for level, _, fields in log if level == "error"]
    assert [(line["path"], line["objects_lost"]) for line in errors] == [(path, 1)]
    os.unlink(path)
    assert source.network("kube-system", "web", NEVER) is None


def test_a_mended_file_is_in_force_again_and_said_to_be(source, log):
    put(source, "x.yaml", "a: [")
    with pytest.raises(TryAgain):
        mtu(source, "a")
    put(source, "x.yaml", network("a", 3))
    assert mtu(source, "a") == 3
    assert log[-1][:2] == ("info", "manifest is in force again")


def test_a_missing_directory_is_a_fault_until_it_is_there(tmp_path, log):
    source = Manifests(str(tmp_path / "later"), log)
    with pytest.raises(TryAgain, match="later: No such file"):
        source.pod("default", "web", NEVER)
    put(source, "web.json", pod("web"))
    assert source.pod("default", "web", NEVER) is not None
    assert [line[1] for line in log] == ["manifest directory cannot be read"]
    source.close()


def test_a_pipe_among_the_manifests_does_not_hang_the_node(source):
    os.mkfifo(os.path.join(source.directory, "x.yaml"))
    with pytest.raises(TryAgain, match="not a regular file"):
        mtu(source, "a")


def test_of_an_object_defined_twice_the_first_by_path_counts_and_both_are_named(source, log):
    second = put(source, "b.yaml", network("a", 2))
    first = put(source, "a.yaml", network("a", 1) + "---" + network("a", 3))
    assert mtu(source, "a") == 1
    named = sorted(fields["object"] for level, event, fields in log if event == "object is defined twice")
    assert named == [f"network kube-system/a: {first} counts, {path} does not" for path in (first, second)]
    put(source, "c.yaml", network("c"))
    assert mtu(source, "c")
    assert len([line for line in log if line[1] == "object is defined twice"]) == 2


def test_network_status_lies_beside_the_pods_manifest_and_is_no_manifest(source):
    put(source, "pods/web.json", pod("web", namespace="shop"))
    found = source.pod("shop", "web", NEVER)
    source.write_status(found, b'[{"name": "a"}]')
    path = os.path.join(source.directory, "pods/shop.web.network-status.json")
    with open(path) as file:
        assert file.read() == '[{"name": "a"}]'
    assert sorted(os.listdir(os.path.dirname(path))) == ["shop.web.network-status.json", "web.json"]
    source.check()
    source.drop_status("shop", "web", "")
    source.drop_status("shop", "web", "")
    assert os.listdir(os.path.dirname(path)) == ["web.json"]


def test_network_status_of_a_pod_whose_manifest_is_gone_is_dropped_too(source):
    path = put(source, "pods/web.json", pod("web"))
    source.write_status(source.pod("default", "web", NEVER), b"[]")
    os.unlink(path)
    assert source.pod("default", "web", NEVER) is None
    source.drop_status("default", "web", "")
    assert os.listdir(os.path.join(source.directory, "pods")) == []


def test_a_status_is_written_whole_whatever_the_file_held_before(source):
    for name in ("one", "two"):
        put(source, f"pods/{name}.json", pod(name))
    for status in (b'[{"name": "long"}]', b"[]", b"[1]"):
        for name in ("one", "two"):
            source.write_status(source.pod("default", name, NEVER), status)
        for name in ("one", "two"):
            with open(os.path.join(source.directory, f"pods/default.{name}.network-status.json"), "rb") as file:
                assert file.read() == status
            source.drop_status("default", name, "")
    assert sorted(os.listdir(os.path.join(source.directory, "pods"))) == ["one.json", "two.json"]
    source.close()
    Manifests(source.directory, Lines()).close()
    assert os.listdir(source.directory) == ["pods"]


def test_what_a_killed_daemon_left_of_spare_files_is_removed(source):
    put(source, ".spare-1-1.network-status.json", "[]")
    Manifests(source.directory, Lines()).close()
    assert os.listdir(source.directory) == []


def test_a_status_that_cannot_be_written_is_said(source):
    put(source, "web.json", pod("web"))
    found = source.pod("default", "web", NEVER)
    os.rename(source.directory, source.directory + "-away")
    with pytest.raises(StateUnwritable, match=r"pod default/web.*No such file"):
        source.write_status(found, b"[]")


def test_many_threads_see_every_file_that_was_there_before_they_asked(source):
    faults: list[str] = []

    def write_and_read(worker: int) -> None:
        for turn in range(10):
            name = f"n{worker}-{turn}"
            put(source, f"{name}.yaml", network(name))
            for _ in range(50):  # another worker's half-written file may be there meanwhile
                try:
                    if source.network("kube-system", name, NEVER) is None:
                        faults.append(name)
                    break
                except TryAgain:
                    continue

    threads = [threading.Thread(target=write_and_read, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_five_hundred_files_are_all_there(source):
    for number in range(500):
        put(source, f"{number % 7}/{number}.json", pod(f"p{number}"))
    assert all(source.pod("default", f"p{number}", NEVER) for number in range(500))


def test_waiting_for_a_file_ends_when_it_comes_or_at_the_deadline(tmp_path):
    path = str(tmp_path / "a" / "b" / "ready")
    assert not wait_for_file(path, time.monotonic() + 0.02)
    timer = threading.Timer(0.05, lambda: (os.makedirs(os.path.dirname(path)), open(path, "w").close()))
    timer.start()
    assert wait_for_file(path, time.monotonic() + 30)
    timer.join()
    assert wait_for_file(path, 0)


def test_a_watch_tells_ignored_names_from_others(tmp_path):
    watch = Watch(lambda name: name.startswith("."))
    watch.add(str(tmp_path))
    (tmp_path / ".x").write_text("a")
    assert not watch.changed()
    (tmp_path / "x").write_text("a")
    assert watch.changed()
    assert not watch.changed()
    watch.close()


def test_what_happens_to_the_node_is_a_line_of_the_log(source, log):
    source.node_event("Warning", "MultusConfigRestored", "words")
    assert log[-1] == ("warn", "event", {"reason": "MultusConfigRestored", "message": "words"})
