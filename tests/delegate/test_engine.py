from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest
from tests.delegate.conftest import ORIGIN, Bench, make_engine, soon

from underlay.delegate import entries
from underlay.delegate.attachment import Attachment, Origin
from underlay.delegate.ledger import Ledger
from underlay.errors import (
    DelegateFailed,
    InterfaceExists,
    InvalidConfig,
    NamespaceGone,
    NotAvailable,
    ParentMissing,
    PluginMissing,
    TryAgain,
    UnknownContainer,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Netns, State

ECHO = """
[ $CNI_COMMAND = ADD ] && printf '%s' "$conf" | python3 -c '
import json, sys
conf = json.load(sys.stdin)
result = conf.get("prevResult", {"cniVersion": conf["cniVersion"]})
result.setdefault("interfaces", []).append({"name": "echo0"})
print(json.dumps(result))'
exit 0
"""
FAILING = """
[ $CNI_COMMAND = ADD ] && { printf '{"code":123,"msg":"no luck","details":"buy a ticket"}'; exit 1; }
exit 0
"""


def add(bench: Bench, pod: Netns, *attachments: Attachment, then: Callable[[], object] = list) -> None:
    """One session that adds all of them, and does something else before it ends."""
    with bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        for attachment in attachments:
            session.add(attachment)
        then()


def test_add_attaches_and_del_leaves_the_node_and_the_pod_as_they_were(
    bench: Bench, pod: Netns, snapshot: Callable[[Netns], State]
) -> None:
    before = snapshot(bench.node), snapshot(pod)
    with bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        result = session.add(bench.attachment())
    assert result.interfaces[0].name == "net1"
    assert [each["local"] for each in pod.ip("-4", "addr", "show", "dev", "net1")[0]["addr_info"]] == ["172.18.9.1"]
    assert [row.state for row in bench.ledger.rows()] == ["added"]
    with bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        assert session.delete() == []
    assert (snapshot(bench.node), snapshot(pod)) == before
    assert bench.ledger.rows() == []
    assert bench.reserved() == []


def test_two_networks_of_a_session_are_undone_together_when_the_second_fails(
    bench: Bench, pod: Netns, snapshot: Callable[[Netns], State]
) -> None:
    before = snapshot(bench.node), snapshot(pod)
    second = bench.attachment(bench.macvlan("b", master="eth9"), "net2", "default/b")
    with pytest.raises(ParentMissing):
        add(bench, pod, bench.attachment(), second)
    assert (snapshot(bench.node), snapshot(pod)) == before
    assert bench.ledger.rows() == []
    assert bench.reserved() == bench.reserved("b") == []


def test_a_fault_of_the_caller_after_add_undoes_the_session(bench: Bench, pod: Netns) -> None:
    with pytest.raises(ZeroDivisionError):
        add(bench, pod, bench.attachment(), then=lambda: 1 // 0)
    assert pod.link("net1") is None
    assert bench.ledger.rows() == []
    assert bench.reserved() == []


def test_a_second_add_of_a_whole_attachment_is_refused_and_the_first_stays_whole(
    bench: Bench, pod: Netns, snapshot: Callable[[Netns], State]
) -> None:
    with bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        session.add(bench.attachment())
    whole = snapshot(pod)
    with pytest.raises(InterfaceExists), bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        session.add(bench.attachment())
    assert snapshot(pod) == whole
    assert bench.reserved() == ["172.18.9.1"]
    with bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        session.check()


def test_an_attachment_of_an_earlier_sandbox_of_that_id_is_undone_before_add(
    bench: Bench, pod: Netns, new_netns: Callable[[str], Netns]
) -> None:
    with bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        session.add(bench.attachment())
    later = new_netns("pod")
    with bench.engine.session(bench.sandbox(later), ORIGIN, soon()) as session:
        session.add(bench.attachment())
    assert len(bench.ledger.rows()) == 1
    assert len(bench.reserved()) == 1
    assert later.link("net1")


def test_what_a_crashed_call_left_is_undone_before_add(bench: Bench, pod: Netns) -> None:
    child = os.fork()
    if not child:
        with make_engine(Ledger(bench.ledger.path, bench.log), bench.log).session(
            bench.sandbox(pod), ORIGIN, soon()
        ) as session:
            session.add(bench.attachment())
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert [row.state for row in bench.ledger.rows()] == ["adding"]
    assert pod.link("net1")
    reborn = bench.another_engine()
    with reborn.session(bench.sandbox(pod), ORIGIN, soon()) as again:
        again.add(bench.attachment())
    assert [row.state for row in bench.ledger.rows()] == ["added"]
    assert len(bench.reserved()) == 1


def test_add_to_a_namespace_that_is_gone_says_so_and_writes_nothing(bench: Bench) -> None:
    with (
        pytest.raises(NamespaceGone),
        bench.engine.session(bench.sandbox("/run/netns/nowhere"), ORIGIN, soon()) as session,
    ):
        session.add(bench.attachment())
    assert bench.ledger.rows() == []


def test_del_after_the_sandbox_has_gone_still_gives_the_address_back(
    bench: Bench, new_netns: Callable[[str], Netns]
) -> None:
    pod = new_netns("pod")
    with bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        session.add(bench.attachment())
    for netns in ("", "/run/netns/nowhere"):
        with bench.engine.session(bench.sandbox(netns), ORIGIN, soon()) as session:
            assert session.delete() == []
    assert bench.reserved() == []
    assert pod.link("net1") is None  # it was still there: the ledger knows where


def test_del_of_what_was_never_added_works_from_the_configuration(bench: Bench, pod: Netns) -> None:
    with bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        assert session.delete([bench.attachment()]) == []
        (fault,) = session.delete([bench.attachment(b"{no JSON")])
    assert "JSON" in fault.message


def test_del_with_a_spool_time_leaves_later_attachments_alone(bench: Bench, pod: Netns) -> None:
    with bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        session.add(bench.attachment())
    (row,) = bench.ledger.rows()
    with bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        assert session.delete(before=row.created - 1) == []
    assert pod.link("net1")
    with bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        assert session.delete(before=row.created) == []
    assert pod.link("net1") is None


def test_an_executed_plugin_sees_prevresult_at_add_and_the_result_at_del(bench: Bench, pod: Netns) -> None:
    bench.executable("echo", ECHO)
    conf = bench.macvlan("mixed", {"type": "echo", "colour": "red"})
    with bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        result = session.add(bench.attachment(conf))
    assert [each.name for each in result.interfaces] == ["net1", "echo0"]
    with bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        session.check()
        assert session.delete() == []
    add, check, delete = bench.calls("echo")
    assert (add[0], check[0], delete[0]) == ("ADD", "CHECK", "DEL")
    assert add[1] == delete[1] == pod.path
    assert add[2]["prevResult"]["interfaces"][0]["name"] == "net1"
    for later in (check, delete):
        assert [each["name"] for each in later[2]["prevResult"]["interfaces"]] == ["net1", "echo0"]
    assert (add[2]["name"], add[2]["cniVersion"], add[2]["colour"]) == ("mixed", "1.0.0", "red")


def test_a_failing_executable_is_given_del_and_the_rest_of_the_chain_is_undone(bench: Bench, pod: Netns) -> None:
    bench.executable("unlucky", FAILING)
    conf = bench.macvlan("mixed", {"type": "unlucky"})
    with (
        pytest.raises(DelegateFailed, match="no luck") as caught,
        bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session,
    ):
        session.add(bench.attachment(conf))
    assert (caught.value.code, caught.value.hint) == (123, "buy a ticket")
    assert [verb for verb, _, _ in bench.calls("unlucky")] == ["ADD", "DEL"]
    assert pod.link("net1") is None
    assert bench.reserved("mixed") == []


def test_a_plugin_that_is_nowhere_is_named_with_the_directories(bench: Bench, pod: Netns) -> None:
    conf = bench.macvlan("mixed", {"type": "nonesuch"})
    with (
        pytest.raises(PluginMissing, match=str(bench.bin_dir)),
        bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session,
    ):
        session.add(bench.attachment(conf))
    assert bench.ledger.rows() == []


def test_an_executed_ipam_is_asked_to_give_back_after_the_link_is_gone(bench: Bench, pod: Netns) -> None:
    script = f"""
    case $CNI_COMMAND in
    ADD) printf '{{"cniVersion":"0.4.0","ips":[{{"version":"4","address":"172.18.9.77/16"}}],"dns":{{}}}}' ;;
    DEL) ip -n {pod.name} -o link show net1 >{bench.bin_dir}/link-at-del 2>&1; exit 0 ;;
    esac
    """
    bench.executable("my-ipam", script)
    conf = bench.macvlan("external", ipam={"type": "my-ipam"})
    with bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        result = session.add(bench.attachment(conf))
    assert result.ips[0].address == "172.18.9.77/16"
    with bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        assert session.delete() == []
    assert [verb for verb, _, _ in bench.calls("my-ipam")] == ["ADD", "DEL"]
    assert "does not exist" in (bench.bin_dir / "link-at-del").read_text()


def test_one_broken_delegate_stops_no_other_and_its_row_stays_for_later(bench: Bench, pod: Netns) -> None:
    broken = bench.executable("broken", '[ $CNI_COMMAND = DEL ] && exit 3; printf \'{"cniVersion":"1.0.0"}\'')
    chained = bench.macvlan("mixed", {"type": "broken"})
    with bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        session.add(bench.attachment(network="default/a"))
        session.add(bench.attachment(chained, "net2", "default/b"))
    with bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        (fault,) = session.delete()
    assert "broken" in fault.message
    assert pod.link("net1") is None
    assert pod.link("net2") is None
    assert bench.reserved() == []
    assert [(row.network, row.state) for row in bench.ledger.rows()] == [("default/b", "deleting")]
    broken.write_text("#!/bin/sh\nexit 0\n")
    with bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        assert session.delete() == []
    assert bench.ledger.rows() == []
    assert bench.reserved("mixed") == []


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_of_what_was_taken_back_in_part_the_ledger_keeps_the_rest_alone(bench: Bench, pod: Netns, verb: str) -> None:
    script = f'[ $CNI_COMMAND = DEL -o {verb} = ADD ] && exit 3; printf \'{{"cniVersion":"1.0.0"}}\''
    bench.executable("broken", script)
    chained = bench.attachment(bench.macvlan("mixed", {"type": "broken"}))
    with (
        contextlib.suppress(DelegateFailed),
        bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session,
    ):
        session.add(chained)
    if verb == "DEL":
        with bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
            assert len(session.delete()) == 1
    assert pod.link("net1") is None
    (row,) = bench.ledger.rows()
    known, unknown = entries.decode(row.undo)
    assert (row.state, [type(entry).__name__ for entry in known], unknown) == (
        "deleting",
        ["Release", "ExecDelete"],
        [],
    )


def test_go_plugins_run_unchanged_as_delegates(bench: Bench, pod: Netns, snapshot: Callable[[Netns], State]) -> None:
    before = snapshot(bench.node), snapshot(pod)
    conf = json.dumps({
        "cniVersion": "0.4.0", "name": "overlay", "type": "ptp",
        "ipam": {"type": "host-local", "subnet": "10.244.7.0/24", "dataDir": str(bench.data_dir)},
    }).encode()  # fmt: skip
    with bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        result = session.add(bench.attachment(conf, "eth0", "overlay"))
    assert result.ips[0].address == "10.244.7.2/24"
    with bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        session.check()
        assert session.delete() == []
    assert (snapshot(bench.node).links, snapshot(pod)) == (before[0].links, before[1])
    assert bench.reserved("overlay") == []


def test_check_of_an_unknown_container_says_so(bench: Bench, pod: Netns) -> None:
    with (
        pytest.raises(UnknownContainer),
        bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session,
    ):
        session.check()


def test_check_fails_when_the_nic_is_gone(bench: Bench, pod: Netns) -> None:
    with bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        session.add(bench.attachment())
        pod.batch("link del net1")
    with pytest.raises(Exception, match="net1"), bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        session.check()


def test_gc_undoes_what_the_runtime_does_not_list(bench: Bench, new_netns: Callable[[str], Netns]) -> None:
    pods = {name: new_netns("pod") for name in ("kept", "stale")}
    for name, pod in pods.items():
        with bench.engine.session(bench.sandbox(pod, name), ORIGIN, soon()) as session:
            session.add(bench.attachment())
    with bench.engine.session(bench.sandbox(pods["stale"], "stale"), Origin("macvlan", "x", "e0"), soon()) as session:
        session.add(bench.attachment(bench.macvlan("x"), "e0", "x"))
    keep = frozenset({("kept", "eth0")})
    errors = bench.engine.gc(ORIGIN, keep, [bench.attachment()], bench.sandbox(""), soon())
    assert errors == []
    assert pods["kept"].link("net1")
    assert pods["stale"].link("net1") is None
    assert pods["stale"].link("e0")  # another owner's
    assert len(bench.reserved()) == 1


def test_gc_tells_executables_what_is_alive(bench: Bench, pod: Netns) -> None:
    bench.executable("echo", ECHO)
    conf = json.dumps({"cniVersion": "1.1.0", "name": "n", "plugins": [{"type": "echo"}]}).encode()
    with bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        session.add(bench.attachment(conf))
    keep = frozenset({("c1", "eth0")})
    assert bench.engine.gc(ORIGIN, keep, [bench.attachment(conf)], bench.sandbox(""), soon()) == []
    verb, _, stdin = bench.calls("echo")[-1]
    assert verb == "GC"
    listed = [(each["containerID"], each["ifname"]) for each in stdin["cni.dev/valid-attachments"]]
    assert listed == [("c1", "eth0"), ("c1", "net1")]


def test_an_executable_that_gc_calls_late_hears_of_who_came_since_it_began(
    bench: Bench, new_netns: Callable[[str], Netns], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.executable("echo", ECHO)
    conf = json.dumps({**json.loads(bench.macvlan("mixed", {"type": "echo"})), "cniVersion": "1.1.0"}).encode()
    macvlan = bench.engine.plugins["macvlan"]

    class AttachedMeanwhile:
        """Its GC takes so long that a pod comes."""

        def __getattr__(self, name: str) -> object:
            return getattr(macvlan, name)

        def gc(self, *given: Any) -> None:
            macvlan.gc(*given)
            with bench.engine.session(bench.sandbox(new_netns("pod"), "late"), ORIGIN, soon()) as session:
                session.add(bench.attachment())

    monkeypatch.setattr(bench.engine, "plugins", {**bench.engine.plugins, "macvlan": AttachedMeanwhile()})
    keep = frozenset({("c1", "eth0")})
    assert bench.engine.gc(ORIGIN, keep, [bench.attachment(conf)], bench.sandbox(""), soon()) == []
    verb, _, stdin = bench.calls("echo")[-1]
    assert verb == "GC"
    listed = [(each["containerID"], each["ifname"]) for each in stdin["cni.dev/valid-attachments"]]
    assert listed == [("c1", "eth0"), ("late", "net1")]


def test_gc_calls_no_executable_where_nobody_knows_what_is_alive(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.executable("echo", ECHO)
    conf = json.dumps({"cniVersion": "1.1.0", "name": "n", "plugins": [{"type": "echo"}]}).encode()
    monkeypatch.setattr(bench.ledger._file, "reading", lambda: contextlib.nullcontext(None))
    (error,) = bench.engine.gc(ORIGIN, frozenset(), [bench.attachment(conf)], bench.sandbox(""), soon())
    assert "cannot be read" in error.message
    assert bench.calls("echo") == []


def test_status_of_a_network_whose_executable_is_missing_is_not_available(bench: Bench) -> None:
    conf = bench.macvlan("mixed", {"type": "nonesuch"})
    with pytest.raises(NotAvailable, match="nonesuch"):
        bench.engine.status([bench.attachment(conf)], bench.sandbox(""), soon())
    bench.engine.status([bench.attachment()], bench.sandbox(""), soon())


def test_calls_for_one_attachment_exclude_each_other(bench: Bench, pod: Netns) -> None:
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with bench.node.entered(), bench.engine.session(bench.sandbox(pod), ORIGIN, soon()):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(10)
    with (
        pytest.raises(TryAgain, match="has not ended yet"),
        bench.engine.session(bench.sandbox(pod), ORIGIN, soon(0.05)),
    ):
        pass
    with bench.engine.session(bench.sandbox(pod, "another"), ORIGIN, soon()):
        pass
    leave.set()
    with bench.engine.session(bench.sandbox(pod), ORIGIN, soon()):
        pass
    thread.join()


def test_capability_arguments_reach_only_plugins_that_declare_them(bench: Bench, pod: Netns) -> None:
    bench.executable("echo", ECHO)
    conf = bench.macvlan("mixed", {"type": "echo", "capabilities": {"portMappings": True}})
    attachment = Attachment(
        "default/a", conf, "net1", runtime={"mac": "02:00:00:00:00:01", "portMappings": [1]}, cni_args={"a": "b"}
    )
    with bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        session.add(attachment)
    stdin = bench.calls("echo")[0][2]
    assert stdin["runtimeConfig"] == {"portMappings": [1]}
    assert stdin["args"] == {"cni": {"a": "b"}}


def test_a_wrong_configuration_is_refused_before_the_ledger_hears_of_it(bench: Bench, pod: Netns) -> None:
    with pytest.raises(InvalidConfig), bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        session.add(bench.attachment(b'{"cniVersion": "1.0.0", "name": "n", "type": "../x"}'))
    assert bench.ledger.rows() == []


def test_the_report_names_networks_plugins_and_times(bench: Bench, pod: Netns) -> None:
    with bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        session.add(bench.attachment())
    assert session.report.networks == ["default/a"]
    assert [timing.plugin for timing in session.report.times] == ["macvlan"]
    assert bench.engine.pod_elsewhere("", "", "other")
    assert not bench.engine.pod_elsewhere("", "", "c1")
