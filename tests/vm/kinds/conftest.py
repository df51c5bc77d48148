"""Kinds of links that the tests' own machine may not have, in throw-away namespaces of the virtual one.

What plugins do is tested as in tests/plugins: a node whose eth0 is joined to a LAN, and pods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.plugins.conftest import node, overlay, wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Netns

__all__ = ["node", "overlay", "pod2", "wire"]


@pytest.fixture
def pod2(new_netns: Callable[[str], Netns]) -> Netns:
    return new_netns("pod2")
