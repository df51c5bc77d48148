from __future__ import annotations

import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.delegate.conftest import ORIGIN, Bench, Log, make_engine, soon

from underlay.delegate import entries
from underlay.delegate.entries import ExecDelete
from underlay.delegate.ledger import Ledger, Row, signed
from underlay.errors import InterfaceExists, IOFailure, StateUnwritable
from underlay.ipam.undo import Release
from underlay.net.undo import DropLink, DropRoute
from underlay.state.ahead import Ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Netns

ROW = Row(
    id=0, owner="multus", container_id="c1", ifname="net1", network="default/a", origin_network="multus-net",
    origin_ifname="eth0", state="adding", netns="/run/netns/x", cookie=7, boot="b", created=1, conf=b'{"a": 1}',
    call=b"{}", pod_namespace="default", pod_name="web-0", pod_uid="u",
)  # fmt: skip
LINK = DropLink("pod", "net1", mac="02:00:00:00:00:01")
ROUTE = DropRoute("host", "10.0.0.0/8", 500)
RELEASE = Release("host-local", "/var/lib/cni/networks", "n", "c1", "net1", ("10.0.0.2",))
EXEC = ExecDelete("ptp", '{"cniVersion":\n"1.0.0"}', "1.0.0", "c1", "/run/netns/x", "eth0", path=("/opt/cni/bin",))


@pytest.fixture
def ledger(tmp_path: Path, log: Log) -> Iterator[Ledger]:
    made = Ledger(str(tmp_path / "state" / "ledger.db"), log)
    yield made
    made.close()


def filled(ledger: Ledger, count: int, prefix: str = "c") -> None:
    for number in range(count):
        row_id = ledger.begin(replace(ROW, container_id=f"{prefix}{number}", conf=b"x" * 900))
        ledger.record(row_id, [LINK])
        ledger.commit([(b"{}", row_id)])


def test_a_row_comes_back_as_it_was_written(ledger: Ledger, log: Log) -> None:
    row_id = ledger.begin(ROW)
    ledger.record(row_id, [LINK, ROUTE])
    ledger.record(row_id, [RELEASE])
    ledger.record(row_id, [EXEC])
    (row,) = ledger.find("c1", ORIGIN)
    assert replace(row, undo="") == replace(ROW, id=row_id)
    assert entries.decode(row.undo) == ([LINK, ROUTE, RELEASE, EXEC], [])
    ledger.commit([(b'{"ips":[]}', row_id)])
    (row,) = ledger.rows()
    assert (row.state, row.result) == ("added", b'{"ips":[]}')
    ledger.deleting([row_id])
    assert ledger.rows()[0].state == "deleting"
    ledger.forget([row_id])
    assert ledger.rows() == []
    assert log.lines == []


@given(st.integers(min_value=0, max_value=(1 << 64) - 1))
def test_every_cookie_fits_and_stays_distinct(cookie: int) -> None:
    assert -(1 << 63) <= signed(cookie) < 1 << 63
    assert signed(cookie) % (1 << 64) == cookie


def test_the_same_attachment_is_not_begun_twice(ledger: Ledger) -> None:
    ledger.begin(ROW)
    with pytest.raises(InterfaceExists, match="net1"):
        ledger.begin(ROW)
    ledger.begin(replace(ROW, owner="macvlan"))


def test_lines_that_nobody_understands_hide_none_of_the_others(ledger: Ledger) -> None:
    row_id = ledger.begin(ROW)
    ledger.record(row_id, [LINK])
    (row,) = ledger.rows()
    torn = row.undo + '[{"type":"of-tomorrow"}]\n[{"type":"li\n' + row.undo
    assert entries.decode(torn) == ([LINK, LINK], ['[{"type":"of-tomorrow"}]', '[{"type":"li'])


def test_what_a_killed_process_wrote_is_there(tmp_path: Path, log: Log) -> None:
    path = str(tmp_path / "ledger.db")
    child = os.fork()
    if not child:
        ledger = Ledger(path, log)
        ledger.record(ledger.begin(ROW), [LINK])
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    reborn = Ledger(path, log)
    assert entries.decode(reborn.rows()[0].undo) == ([LINK], [])
    reborn.close()


def test_many_threads_write_at_once(ledger: Ledger) -> None:
    def work(number: int) -> None:
        for turn in range(20):
            row_id = ledger.begin(replace(ROW, container_id=f"{number}-{turn}"))
            ledger.record(row_id, [LINK])
            ledger.commit([(b"{}", row_id)])
            if turn % 2:
                ledger.forget([row_id])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.rows()) == 80


@pytest.mark.parametrize("damage", ["garbage", "half", "middle", "header", "empty"])
def test_a_malformed_file_is_moved_aside_and_its_legible_rows_taken_over(tmp_path: Path, log: Log, damage: str) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger(str(path), log)
    filled(ledger, 200)
    ledger.remember_store("directory", "/data/n")
    ledger.close()
    content = path.read_bytes()
    middle = len(content) // 2 // 4096 * 4096
    path.write_bytes({
        "garbage": b"this is no database " * 100,
        "half": content[: len(content) // 2],
        "middle": content[:middle] + bytes(8192) + content[middle + 8192 :],
        "header": b"x" * 100 + content[100:],
        "empty": b"",
    }[damage])  # fmt: skip
    reborn = Ledger(str(path), log)
    kept = len(reborn.rows())
    assert kept >= {"half": 50, "middle": 150}.get(damage, 0)
    row_id = reborn.begin(replace(ROW, container_id="new"))
    assert reborn.rows()[-1].id == row_id
    reborn.close()
    if damage != "empty":
        assert any("malformed" in event for event in log.events())
        assert list(tmp_path.glob("ledger.db.broken-*"))


def test_a_file_that_breaks_while_it_is_open_is_replaced_and_del_goes_on(tmp_path: Path, log: Log) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger(str(path), log)
    filled(ledger, 300)
    ledger.checkpoint()
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(os.urandom(40 * 4096))
    ledger.close()  # the page cache forgets
    ledger.find("c299", ORIGIN)
    assert ledger.writable()
    ledger.begin(replace(ROW, container_id="new"))
    assert ledger.find("new", ORIGIN)
    ledger.close()


def test_a_ledger_of_a_newer_version_is_moved_aside_and_taken_over(tmp_path: Path, log: Log) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger(str(path), log)
    filled(ledger, 3)
    ledger.close()
    with sqlite3.connect(path, isolation_level=None) as db:
        db.execute("ALTER TABLE attachment ADD COLUMN mood TEXT DEFAULT 'good'")
        db.execute("PRAGMA user_version = 99")
    db.close()
    older = Ledger(str(path), log)
    assert len(older.rows()) == 3
    older.close()
    assert any("newer version" in str(fields) for _, _, fields in log.lines)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    return filler


def test_a_full_disk_refuses_add_lets_del_through_and_heals(small_disk: Path, log: Log) -> None:
    ledger = Ledger(str(small_disk / "ledger.db"), log)
    filled(ledger, 10)
    filler = fill(small_disk)
    with pytest.raises(StateUnwritable, match="full"):
        filled(ledger, 100, "more")
    assert not ledger.writable()
    (row,) = ledger.find("c3", ORIGIN)
    ledger.deleting([row.id])
    ledger.forget([row.id])
    assert ledger.find("c3", ORIGIN) == []
    filler.unlink()
    assert ledger.writable()
    again = ledger.begin(replace(ROW, container_id="c3"))
    assert [each.id for each in ledger.find("c3", ORIGIN)] == [again]
    ledger.close()


def test_a_disk_that_is_full_from_the_start_heals(small_disk: Path, log: Log) -> None:
    filler = fill(small_disk)
    ledger = Ledger(str(small_disk / "ledger.db"), log)
    with pytest.raises(StateUnwritable) as caught:
        ledger.begin(ROW)
    assert "disk space" in caught.value.hint
    assert ledger.find("c1", ORIGIN) == []
    filler.unlink()
    ledger.begin(ROW)
    assert ledger.find("c1", ORIGIN)
    ledger.close()


def test_a_read_only_disk_refuses_add_and_is_still_read(small_disk: Path, log: Log) -> None:
    path = str(small_disk / "ledger.db")
    ledger = Ledger(path, log)
    filled(ledger, 2)
    ledger.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    frozen = Ledger(path, log)
    assert all(frozen.may_know("c1") for _ in range(2))
    with pytest.raises(StateUnwritable, match="cannot be written"):
        frozen.begin(replace(ROW, container_id="new"))
    (row,) = frozen.find("c1", ORIGIN)
    frozen.deleting([row.id])
    frozen.forget([row.id])
    assert frozen.find("c1", ORIGIN) == []
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert frozen.writable()
    frozen.begin(replace(ROW, container_id="new"))
    assert [each.container_id for each in frozen.rows()] == ["c0", "new"]
    frozen.close()


def test_a_state_directory_that_cannot_be_made_refuses_add(tmp_path: Path, log: Log) -> None:
    (tmp_path / "state").write_text("a file is in the way")
    ledger = Ledger(str(tmp_path / "state" / "ledger.db"), log)
    with pytest.raises(StateUnwritable):
        ledger.begin(ROW)
    assert ledger.rows() == []
    (tmp_path / "state").unlink()
    ledger.begin(ROW)
    assert len(ledger.rows()) == 1
    ledger.close()


def test_add_on_a_full_disk_touches_nothing_and_del_of_an_earlier_pod_works(
    bench: Bench, pod: Netns, new_netns: object, small_disk: Path, log: Log
) -> None:
    ledger = Ledger(str(small_disk / "ledger.db"), log)
    engine = make_engine(ledger, log)
    with engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        session.add(bench.attachment())
    filler = fill(small_disk)
    big = bench.attachment(bench.macvlan("big", padding="x" * 100_000), "net2", "default/big")
    with pytest.raises(StateUnwritable), engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        session.add(big)
    assert pod.link("net2") is None
    assert bench.reserved("big") == []
    with engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        assert session.delete() == []
    assert pod.link("net1") is None
    assert bench.reserved() == []
    filler.unlink()
    with engine.session(bench.sandbox(pod), ORIGIN, soon()) as session:
        session.add(bench.attachment())
    engine.close()


def test_a_new_container_is_known_to_be_new(ledger: Ledger, tmp_path: Path, log: Log) -> None:
    assert not ledger.may_know("c1")
    row_id = ledger.begin(ROW)
    assert ledger.may_know("c1")
    assert not ledger.may_know("c2")
    ledger.close()
    again = Ledger(ledger.path, log)
    assert again.may_know("c1")
    assert not again.may_know("c2")
    again.forget([row_id])
    assert not again.may_know("c1")
    again.close()


def in_sqlite(ledger: Ledger) -> list[str]:
    """The containers that the SQLite file alone knows of."""
    with closing(sqlite3.connect(ledger.path)) as db:
        return [one for (one,) in db.execute("SELECT container_id FROM attachment ORDER BY id")]


def test_an_add_costs_no_transaction_and_whoever_reads_sees_it(ledger: Ledger) -> None:
    filled(ledger, 2)
    assert in_sqlite(ledger) == []
    assert [(row.container_id, row.state) for row in ledger.rows()] == [("c0", "added"), ("c1", "added")]
    assert in_sqlite(ledger) == ["c0", "c1"]


def test_a_nic_is_not_begun_twice_before_and_after_it_was_read(ledger: Ledger) -> None:
    ledger.begin(ROW)
    for _ in range(2):
        with pytest.raises(InterfaceExists):
            ledger.begin(ROW)
        ledger.rows()
    ledger.begin(replace(ROW, ifname="net2"))
    ledger.forget([row.id for row in ledger.rows()])
    ledger.begin(ROW)


def test_ids_are_not_used_again(ledger: Ledger) -> None:
    seen = []
    for _ in range(3):
        seen.append(ledger.begin(ROW))
        ledger.forget(seen[-1:])
    assert len(set(seen)) == 3


def test_what_was_written_before_the_disk_was_full_is_read_and_taken_back(small_disk: Path, log: Log) -> None:
    ledger = Ledger(str(small_disk / "ledger.db"), log)
    filled(ledger, 3)
    filler = fill(small_disk)
    assert [row.container_id for row in ledger.rows()] == ["c0", "c1", "c2"]
    (row,) = ledger.find("c1", ORIGIN)
    ledger.forget([row.id])
    assert [row.container_id for row in ledger.rows()] == ["c0", "c2"]
    filler.unlink()
    assert ledger.writable()
    ledger.begin(replace(ROW, container_id="c1"))
    assert [row.container_id for row in ledger.rows()] == in_sqlite(ledger) == ["c0", "c2", "c1"]
    ledger.close()


def test_what_a_killed_process_wrote_is_read_on_a_disk_that_is_read_only_since(small_disk: Path, log: Log) -> None:
    path = str(small_disk / "ledger.db")
    child = os.fork()
    if not child:
        filled(Ledger(path, log), 2)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    frozen = Ledger(path, log)
    assert [row.container_id for row in frozen.rows()] == ["c0", "c1"]
    with pytest.raises(StateUnwritable):
        frozen.begin(replace(ROW, container_id="new"))
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    frozen.begin(replace(ROW, container_id="new"))
    assert [row.container_id for row in frozen.rows()] == in_sqlite(frozen) == ["c0", "c1", "new"]
    frozen.close()


def test_another_process_looks_at_it_without_a_change(ledger: Ledger) -> None:
    filled(ledger, 1)
    for _ in range(2):
        assert [row.container_id for row in Ledger.look(ledger.path).rows()] == ["c0"]
        assert in_sqlite(ledger) == []
    filled(ledger, 1, "d")
    ledger.rows()
    assert [row.container_id for row in Ledger.look(ledger.path).rows()] == ["c0", "d0"]


def test_a_look_at_what_is_no_ledger_says_so(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"rubbish" * 1000)
    with pytest.raises(IOFailure, match="cannot be read"):
        Ledger.look(str(tmp_path / "ledger.db"))
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.db"]


def killed(act: Callable[[], None]) -> None:
    """Carry something out in a process that is killed after it."""
    child = os.fork()
    if not child:
        try:
            act()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def forgotten(path: str, log: Log) -> None:
    """A ledger of which nothing is left but the file of what was written ahead."""
    ledger = Ledger(path, log)
    filled(ledger, 3)
    ledger.forget([row.id for row in ledger.rows()])
    ledger.close()
    for suffix in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.unlink(path + suffix)


def test_what_was_taken_back_does_not_come_again_with_a_new_file(tmp_path: Path, log: Log) -> None:
    path = str(tmp_path / "ledger.db")
    forgotten(path, log)
    assert os.path.exists(f"{path}-ahead")
    reborn = Ledger(path, log)
    assert reborn.rows() == []
    reborn.close()


def test_a_look_at_a_ledger_that_is_not_there_makes_none(tmp_path: Path) -> None:
    with pytest.raises(IOFailure, match="cannot be read"):
        Ledger.look(str(tmp_path / "ledger?db"))
    assert list(tmp_path.iterdir()) == []


def test_what_was_taken_back_does_not_come_again_after_a_kill(tmp_path: Path, log: Log) -> None:
    path = str(tmp_path / "ledger.db")
    forgotten(path, log)
    killed(lambda: filled(Ledger(path, log), 1))
    reborn = Ledger(path, log)
    assert [row.container_id for row in reborn.rows()] == ["c0"]
    reborn.close()


def test_what_was_written_ahead_outlives_the_file_that_it_was_written_for(tmp_path: Path, log: Log) -> None:
    path = str(tmp_path / "ledger.db")
    killed(lambda: filled(Ledger(path, log), 2))
    (tmp_path / "ledger.db").write_bytes(b"this is no database " * 100)
    for suffix in ("-wal", "-shm"):
        os.unlink(path + suffix)

    def more() -> None:
        ledger = Ledger(path, log)
        assert len(ledger.rows()) == 2
        filled(ledger, 1, "d")

    killed(more)
    reborn = Ledger(path, log)
    assert [row.container_id for row in reborn.rows()] == ["c0", "c1", "d0"]
    assert all(row.undo.count("\n") == 1 for row in reborn.rows())
    reborn.close()


def test_a_file_that_is_replaced_while_it_is_open_loses_nothing_to_a_kill(tmp_path: Path, log: Log) -> None:
    path = tmp_path / "ledger.db"

    def act() -> None:
        ledger = Ledger(str(path), log)
        filled(ledger, 3)
        assert len(ledger.rows()) == 3
        ledger.checkpoint()
        with path.open("r+b") as file:
            file.write(b"x" * path.stat().st_size)
        ledger.close()
        ledger.rows()
        filled(ledger, 2, "d")

    killed(act)
    reborn = Ledger(str(path), log)
    assert [row.container_id for row in reborn.rows()] == ["d0", "d1"]
    reborn.close()


def test_a_change_that_was_refused_ahead_and_written_after_all_is_not_found_again(
    tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, pwrite = str(tmp_path / "ledger.db"), os.pwrite

    def act() -> None:
        ledger = Ledger(path, log)
        ledger.rows()
        # As if the last byte had not been written; what lay there before completes the frame.
        monkeypatch.setattr(os, "pwrite", lambda *args: pwrite(*args) - 1)
        row_id = ledger.begin(ROW)
        ledger.record(row_id, [LINK])
        ledger.begin(replace(ROW, container_id="c2"))
        ledger.forget([ledger._numbers["c2", "multus", "net1", "default/a"]])

    killed(act)
    reborn = Ledger(path, log)
    assert [(row.container_id, row.undo.count("\n")) for row in reborn.rows()] == [("c1", 1)]
    reborn.close()


def test_while_what_was_written_ahead_cannot_be_read_no_id_is_given_again(tmp_path: Path, log: Log) -> None:
    path = str(tmp_path / "ledger.db")
    killed(lambda: filled(Ledger(path, log), 1))
    ledger = Ledger(path, log)
    former = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, former[1]))
    try:
        with pytest.raises(StateUnwritable, match="ahead cannot be read"):
            ledger.begin(replace(ROW, container_id="new"))
        assert ledger.may_know("c0")
        assert not ledger.writable()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, former)
    ledger.begin(replace(ROW, container_id="new"))
    assert [(row.id, row.container_id) for row in ledger.rows()] == [(1, "c0"), (2, "new")]
    assert [row.state for row in ledger.rows()] == ["added", "adding"]
    ledger.close()


def test_a_nic_whose_removal_the_disk_refused_can_be_made_again(small_disk: Path, log: Log) -> None:
    ledger = Ledger(str(small_disk / "ledger.db"), log)
    row_id = ledger.begin(ROW)
    ledger.rows()
    ledger.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    ledger.forget([row_id])
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    ledger._file.close()  # as a fault would
    assert not ledger.may_know("c1")
    ledger.begin(ROW)
    assert len(ledger.rows()) == 1
    ledger.close()


def test_a_copy_that_cannot_be_made_is_as_if_nothing_had_been_read(
    small_disk: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(str(small_disk / "ledger.db"), log)
    filled(ledger, 3)
    filler = fill(small_disk)

    def refused(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patched:
        patched.setattr(Ahead, "show", refused)
        assert ledger.rows() == []
        assert ledger.holds("c7", "net1")
    assert len(ledger.rows()) == 3
    filler.unlink()
    ledger.close()


def test_a_look_at_a_ledger_on_a_disk_that_is_read_only(small_disk: Path, log: Log) -> None:
    ledger = Ledger(str(small_disk / "ledger.db"), log)
    filled(ledger, 2)
    ledger.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert [row.container_id for row in Ledger.look(ledger.path).rows()] == ["c0", "c1"]


def test_a_ledger_is_read_where_there_is_no_disk_at_all_that_can_be_written(small_disk: Path, log: Log) -> None:
    """As in a container whose root is read-only, on a node whose disk has become so."""
    ledger = Ledger(str(small_disk / "ledger.db"), log)
    filled(ledger, 2)
    ledger.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    sealed = 'for d in /tmp /var/tmp; do mount --rbind $d $d; mount -o remount,bind,ro $d; done; cd /proc; "$@"'
    read = """
import sys
from underlay.delegate.ledger import Ledger
for ledger in Ledger(sys.argv[1], lambda *_, **__: None), Ledger.look(sys.argv[1]):
    print([row.container_id for row in ledger.rows()])
"""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", sealed, "sh", sys.executable, "-c", read, ledger.path],
        env={key: value for key, value in os.environ.items() if key not in ("TMPDIR", "TEMP", "TMP")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout.splitlines(), done.stderr) == (["['c0', 'c1']"] * 2, "")
