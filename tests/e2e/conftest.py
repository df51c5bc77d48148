"""``node_of(setup)``: a node that runs pods by containerd."""

from __future__ import annotations

import contextlib
import itertools
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.e2e import node
from tests.e2e.networks import Setup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Netns
    from tests.e2e.node import Node

_COUNTER = itertools.count()


def pytest_make_parametrize_id(val: object) -> str | None:
    """A test's name says which setup and which signal it has."""
    return val.name if isinstance(val, Setup | signal.Signals) else None


@pytest.fixture
def node_of(uplink: Netns) -> Iterator[Callable[[Setup], Node]]:
    """Makes the node, in place of ``host``; when the test ends, everything is gone."""
    with contextlib.ExitStack() as stack:

        def make(setup: Setup) -> Node:
            # a short path: below it lie sockets, whose names have a limit of 107 bytes
            return stack.enter_context(node.running(uplink, Path(f"/run/e2e-{next(_COUNTER)}"), setup))

        yield make
