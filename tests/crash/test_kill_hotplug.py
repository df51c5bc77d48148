"""kill -9 after every single act of a change of what a running pod is attached to."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace

import pytest
from tests.crash import faults
from tests.multus.multus_node import InProcess
from tests.multus.test_handler import args, conf
from tests.multus.test_hotplug import UNDERLAY, add, chain, change, wiring

from underlay.delegate.reclaim import Reclaimer

SHARE = 4
BEFORE = '[{"name": "b"}, {"name": "a", "default-route": ["172.18.0.1"]}, {"name": "c"}]'
AFTER = '[{"name": "a", "default-route": ["172.18.0.1"]}, {"name": "c"}, {"name": "d"}]'
ANEW = """[
    {"name": "a", "interface": "net2", "default-route": ["172.18.0.1"]},
    {"name": "c", "interface": "net3"},
    {"name": "d", "interface": "net1"}
]"""


@pytest.fixture
def node(uplink, tmp_path):
    made = InProcess(uplink, tmp_path)
    made.write("net.d/10-cluster.conflist", UNDERLAY)
    for number, name in enumerate("abcd", 1):
        made.network("default", name, chain(number, "veth"))
    yield made
    made.close()


def changed_by_a_process_of_its_own(node, limit: int) -> bool:
    """Whether it was killed by the fuse."""
    node.ledger.close()
    child = os.fork()
    if not child:
        status = 1
        try:
            faults.lay(faults.Fuse(limit, lambda: True))
            change(InProcess(node.ns, node.directory), AFTER)
            status = 0
        finally:
            os._exit(status)
    ended = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(ended) or os.WEXITSTATUS(ended) == 0
    return os.WIFSIGNALED(ended)


@pytest.mark.parametrize("share", range(SHARE))
def test_the_next_daemon_completes_the_change_whenever_the_process_is_killed(node, pod, snapshot, share):
    def state() -> list[object]:
        return [replace(snapshot(ns), sysctls=()) for ns in (node.ns, pod)]

    before = state()
    add(node, pod, ANEW)
    wanted = wiring(pod)
    assert node.call("DEL", conf(), netns=pod.path, args=args("web")) == (True, None)
    for limit in itertools.count(share + 1, SHARE):
        add(node, pod, BEFORE)
        killed = changed_by_a_process_of_its_own(node, limit)
        another = InProcess(node.ns, node.directory)
        with node.ns.entered():
            Reclaimer(another.engine).at_start()
        another.sweep()
        assert [set(wiring(pod)) - set(wanted), set(wanted) - set(wiring(pod))] == [set(), set()], limit
        assert another.call("DEL", conf(), netns=pod.path, args=args("web")) == (True, None)
        another.close()
        assert state() == before, limit
        assert node.ledger.rows() == [], limit
        if not killed:
            assert limit > 20
            return
