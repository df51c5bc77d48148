"""kill -9 after every single act of ADD and DEL, with the engine alone."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace
from tests.crash import faults
from tests.delegate.conftest import ORIGIN, Bench, make_engine, soon

from underlay.delegate.ledger import Ledger
from underlay.delegate.reclaim import Reclaimer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Netns, State

    from underlay.delegate.session import Session

SHARE = 4


def attach(bench: Bench, session: Session) -> None:
    session.add(bench.attachment())
    second = bench.attachment(bench.macvlan("underlay-b"), "net2", "default/b")
    session.add(replace(second, info_file=str(info_files(bench) / "c1_net2"), info=b"{}"))


def info_files(bench: Bench) -> Path:
    return bench.data_dir / "devinfo" / "cni"


def in_a_process_of_its_own(bench: Bench, pod: Netns, limit: int, work: Callable[[Session], object]) -> bool:
    """Whether it was killed by the fuse."""
    bench.ledger.close()
    child = os.fork()
    if not child:
        try:
            faults.lay(faults.Fuse(limit, lambda: True))
            engine = make_engine(Ledger(bench.ledger.path, bench.log), bench.log)
            with engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
                work(session)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def delete(bench: Bench, pod: Netns) -> None:
    with bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        assert session.delete() == []


@pytest.mark.parametrize("share", range(SHARE))
@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_nothing_is_left_whenever_the_process_is_killed(
    bench: Bench, pod: Netns, snapshot: Callable[[Netns], State], verb: str, share: int
) -> None:
    before = snapshot(bench.node), snapshot(pod)
    for limit in itertools.count(share + 1, SHARE):
        if verb == "DEL":
            with bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
                attach(bench, session)
        work = (lambda session: attach(bench, session)) if verb == "ADD" else (lambda session: session.delete())
        killed = in_a_process_of_its_own(bench, pod, limit, work)
        Reclaimer(bench.another_engine()).at_start()
        whole = bench.ledger.rows()
        assert all(row.state == "added" for row in whole), limit
        assert len(whole) in (0, 2), limit
        if whole:
            delete(bench, pod)
        assert (snapshot(bench.node), snapshot(pod)) == before, limit
        assert bench.reserved() == bench.reserved("underlay-b") == [], limit
        assert [*info_files(bench).glob("*")] == [], limit
        delete(bench, pod)
        with bench.engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
            attach(bench, session)
        delete(bench, pod)
        assert (snapshot(bench.node), snapshot(pod)) == before, limit
        if not killed:
            assert limit > 5
            return
