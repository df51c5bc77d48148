from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.delegate.conftest import ALLOCATORS, PLUGINS, Bench, soon

from underlay.cni import versions
from underlay.cni.request import Request, Verb
from underlay.delegate import plain
from underlay.delegate.report import Report
from underlay.errors import IncompatibleVersion, InterfaceExists, InvalidConfig, PluginMissing, UnderlayError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Netns, State


def request(
    bench: Bench, verb: Verb, netns: str, conf: dict[str, Any] | bytes, plugin: str = "macvlan", container: str = "c1"
) -> Request:
    stdin = conf if isinstance(conf, bytes) else json.dumps(conf).encode()
    return Request(verb, plugin, container, netns, "net1", (str(bench.bin_dir),), stdin)


def single(bench: Bench, version: str = "1.0.0", **keys: Any) -> dict[str, Any]:
    first = json.loads(bench.macvlan())["plugins"][0]
    return {"cniVersion": version, "name": "underlay-a", **first, **keys}


def test_add_check_del_of_one_plugin(bench: Bench, pod: Netns, snapshot: Callable[[Netns], State]) -> None:
    before = snapshot(bench.node), snapshot(pod)
    conf = single(bench)
    result = bench.engine.run(request(bench, Verb.ADD, pod.path, conf), soon())
    assert result is not None
    prev = {"prevResult": json.loads(versions.encode(result, "1.0.0"))}
    assert bench.engine.run(request(bench, Verb.CHECK, pod.path, conf | prev), soon()) is None
    with pytest.raises(InterfaceExists):
        bench.engine.run(request(bench, Verb.ADD, pod.path, conf), soon())
    assert bench.engine.run(request(bench, Verb.DEL, pod.path, conf | prev), soon()) is None
    assert (snapshot(bench.node), snapshot(pod)) == before
    assert bench.reserved() == []


@pytest.mark.parametrize("stdin", [b"{", b"{}", b"", b'{"cniVersion":"9"}'])
def test_del_succeeds_whatever_the_configuration_says(bench: Bench, pod: Netns, stdin: bytes) -> None:
    bench.engine.run(request(bench, Verb.ADD, pod.path, single(bench)), soon())
    report = Report()
    bench.engine.run(request(bench, Verb.DEL, pod.path, stdin), soon(), report)
    assert pod.link("net1") is None
    assert bench.reserved() == []
    bench.engine.run(request(bench, Verb.DEL, pod.path, stdin), soon(), report)
    assert report.faults


def test_a_spooled_del_leaves_a_later_attachment_alone(bench: Bench, pod: Netns) -> None:
    bench.engine.run(request(bench, Verb.ADD, pod.path, single(bench)), soon())
    (row,) = bench.ledger.rows()
    spooled = request(bench, Verb.DEL, pod.path, single(bench))
    bench.engine.delete_spooled(spooled, row.created - 1, soon())
    assert pod.link("net1")
    bench.engine.delete_spooled(spooled, row.created + 1, soon())
    assert pod.link("net1") is None


def test_an_ipam_plugin_is_called_by_its_name_with_its_callers_configuration(bench: Bench) -> None:
    conf = single(bench)
    add = request(bench, Verb.ADD, "/run/netns/somewhere-else", conf, plugin="host-local")
    result = bench.engine.run(add, soon())
    assert result is not None
    assert [ip.address for ip in result.ips] == ["172.18.9.1/16"]
    assert result.interfaces == ()
    bench.engine.run(request(bench, Verb.DEL, "", conf, plugin="host-local"), soon())
    assert bench.reserved() == []


def test_verbs_that_a_version_does_not_have_are_refused(bench: Bench, pod: Netns) -> None:
    for verb, version in ((Verb.CHECK, "0.3.1"), (Verb.GC, "1.0.0"), (Verb.STATUS, "1.0.0")):
        with pytest.raises(IncompatibleVersion):
            bench.engine.run(request(bench, verb, pod.path, single(bench, version)), soon())


def test_check_needs_prevresult(bench: Bench, pod: Netns) -> None:
    with pytest.raises(InvalidConfig, match="prevResult"):
        bench.engine.run(request(bench, Verb.CHECK, pod.path, single(bench)), soon())


def test_gc_and_status_of_one_plugin(bench: Bench, new_netns: Callable[[str], Netns]) -> None:
    pods = {name: new_netns("pod") for name in ("kept", "stale")}
    conf = single(bench, "1.1.0")
    for name, pod in pods.items():
        bench.engine.run(request(bench, Verb.ADD, pod.path, conf, container=name), soon())
    valid = {"cni.dev/valid-attachments": [{"containerID": "kept", "ifname": "net1"}]}
    bench.engine.run(request(bench, Verb.GC, "", conf | valid, container=""), soon())
    assert pods["kept"].link("net1")
    assert pods["stale"].link("net1") is None
    assert len(bench.reserved()) == 1
    bench.engine.run(request(bench, Verb.STATUS, "", conf, container=""), soon())


def test_a_plugin_that_is_not_built_in_is_named(bench: Bench, pod: Netns) -> None:
    with pytest.raises(PluginMissing, match="nonesuch"):
        bench.engine.run(request(bench, Verb.ADD, pod.path, single(bench), plugin="nonesuch"), soon())


def run_plainly(bench: Bench, call: Request) -> Any:
    return plain.run(
        call, soon(), plugins=PLUGINS, allocators=ALLOCATORS, executor=bench.engine.executor, log=bench.log
    )


def test_a_plain_process_adds_and_deletes_without_a_ledger(
    bench: Bench, pod: Netns, snapshot: Callable[[Netns], State]
) -> None:
    before = snapshot(bench.node), snapshot(pod)
    conf = single(bench)
    result = run_plainly(bench, request(bench, Verb.ADD, pod.path, conf))
    assert pod.link("net1")
    assert bench.ledger.rows() == []
    prev = {"prevResult": json.loads(versions.encode(result, "1.0.0"))}
    run_plainly(bench, request(bench, Verb.CHECK, pod.path, conf | prev))
    run_plainly(bench, request(bench, Verb.DEL, pod.path, conf | prev))
    assert (snapshot(bench.node), snapshot(pod)) == before
    assert bench.reserved() == []


def test_a_plain_process_undoes_what_it_made_when_it_fails(bench: Bench, pod: Netns) -> None:
    conf = single(bench, ipam={"type": "static", "addresses": [{"address": "not an address"}]})
    with pytest.raises(UnderlayError):
        run_plainly(bench, request(bench, Verb.ADD, pod.path, conf))
    assert pod.link("net1") is None
