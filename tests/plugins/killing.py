"""A process that is killed after its n-th act, for every n: whoever comes after it leaves all as it was."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tests.crash import faults
from tests.plugins.conftest import make_engine

from underlay.delegate.ledger import Ledger
from underlay.delegate.reclaim import Reclaimer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Netns
    from tests.plugins.conftest import Conf, Node


def outlive_kills(node: Node, pod: Netns, verb: str, conf: Conf, state: Callable[[], Any]) -> int:
    """ADD or DEL of eth0, killed ever later until it comes to its end; returns after how many acts that is."""
    before = state()
    for limit in itertools.count(1):
        if verb == "DEL":
            node.add(pod, "eth0", conf)
        killed = _killed_at(limit, node, (lambda n: n.add(pod, "eth0", conf)) if verb == "ADD" else
                            (lambda n: n.delete(pod, "eth0")))  # fmt: skip
        Reclaimer(node.engine).at_start()
        assert node.delete(pod, "eth0") == [], limit
        assert state() == before, limit
        assert pod.link("eth0") is None, limit
        if not killed:
            return limit
    raise AssertionError


def _killed_at(limit: int, node: Node, work: Callable[[Node], object]) -> bool:
    """Whether the work, in a process of its own, was killed after that many acts."""
    node.ledger.close()  # it has one owner at a time
    child = os.fork()
    if not child:
        try:
            faults.lay(faults.Fuse(limit, lambda: True))
            own = replace(node, ledger=Ledger(node.ledger.path, node.log))
            work(replace(own, engine=make_engine(own.ledger, node.log)))
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])
