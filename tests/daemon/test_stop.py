"""What a daemon waits for when it stops."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import msgspec

from underlay.daemon.app import Daemon
from underlay.daemon.config import LogSettings, Settings
from underlay.daemon.lock import Lock, private_directory
from underlay.daemon.log import Logs

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def made(tmp_path: Path) -> Daemon:
    places = {name: str(tmp_path / name) for name in ("state_dir", "run_dir", "conf_dir", "manifest_dir")}
    settings = msgspec.structs.replace(Settings(), **places, log=LogSettings(file=str(tmp_path / "log")))
    for place in places.values():
        private_directory(place)
    return Daemon(settings, Logs(settings.log), Lock(settings.run_dir))


def test_a_sweep_under_way_is_waited_for_and_has_its_ledger_until_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = made(tmp_path)
    sweeping, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def sweep() -> int:
        sweeping.set()
        assert may_end.wait(30)
        ended.set()
        return 0

    monkeypatch.setattr(daemon._spool, "work_off", sweep)
    monkeypatch.setattr(daemon._server, "reachable", lambda: True)
    close = daemon._ledger.close
    closed: list[bool] = []
    monkeypatch.setattr(daemon._ledger, "close", lambda: (closed.append(ended.is_set()), close())[1])
    daemon._maintains.start()
    assert sweeping.wait(30)
    assert not daemon.stop(time.monotonic() + 0.1)
    assert closed == []
    may_end.set()
    assert daemon.stop(time.monotonic() + 30)
    assert closed == [True]
    daemon._run_lock.release()
