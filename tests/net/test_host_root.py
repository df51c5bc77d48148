from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from underlay.errors import InvalidConfig
from underlay.net.host_root import HostRoot


def test_without_a_directory_every_path_is_as_written() -> None:
    for path in ("", "/"):
        root = HostRoot(path)
        assert root.locate("/var/run/x") == "/var/run/x"
        with root.entered():
            assert Path(__file__).exists()


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=f"chroot_dir {tmp_path}/none: No such file"):
        HostRoot(f"{tmp_path}/none")
    (tmp_path / "file").touch()
    with pytest.raises(InvalidConfig, match="Not a directory"):
        HostRoot(f"{tmp_path}/file")


def test_a_visit_changes_the_root_of_one_thread_and_ends_where_it_began(tmp_path: Path) -> None:
    (tmp_path / "only-here").touch()
    root = HostRoot(str(tmp_path))
    inside, looked = threading.Event(), threading.Event()
    seen: list[bool] = []

    def visit() -> None:
        with root.entered():
            inside.set()
            assert looked.wait(10)
            seen.append(os.path.exists("/only-here") and os.getcwd() == "/")
        seen.append(os.path.exists(__file__) and os.getcwd() == here)

    here = os.getcwd()
    thread = threading.Thread(target=visit)
    thread.start()
    assert inside.wait(10)
    assert not os.path.exists("/only-here")
    assert os.getcwd() == here
    looked.set()
    thread.join()
    assert seen == [True, True]


def test_an_exception_inside_ends_the_visit_too(tmp_path: Path) -> None:
    root = HostRoot(str(tmp_path))
    with pytest.raises(ZeroDivisionError), root.entered():
        _ = 1 / 0
    assert Path(__file__).exists()


def test_absolute_links_of_the_node_lead_to_the_node(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/netns").mkdir()
    (tmp_path / "var").mkdir()
    (tmp_path / "var/run").symlink_to("/run")
    (tmp_path / "out").symlink_to("../../../../../../run")
    root = HostRoot(f"{tmp_path}/")
    assert root.locate("/var/run/netns/pod") == f"{tmp_path}/run/netns/pod"
    assert root.locate("/out/netns") == f"{tmp_path}/run/netns"
    assert root.locate("/no/such/../path") == f"{tmp_path}/no/path"


NAMES = st.sampled_from(["a", "b", "c", "..", "."])
PATHS = st.lists(NAMES, min_size=1, max_size=6).map("/".join)


@given(links=st.lists(st.tuples(st.sampled_from(["a", "b", "a/c", "b/c"]), PATHS, st.booleans()), max_size=4),
       asked=PATHS)  # fmt: skip
def test_no_path_leads_out_of_the_root(
    tmp_path_factory: pytest.TempPathFactory, links: list[tuple[str, str, bool]], asked: str
) -> None:
    top = tmp_path_factory.mktemp("root")
    for where, target, absolute in links:
        path = top / where
        if not os.path.lexists(path) and os.path.isdir(path.parent) and not path.parent.is_symlink():
            path.symlink_to("/" * absolute + target)
        elif not os.path.lexists(path.parent):
            path.parent.mkdir()
    found = HostRoot(str(top)).locate(f"/{asked}")
    assert found == f"{top}/" or os.path.normpath(found).startswith(f"{top}/")
