"""One built-in plugin as a plain CNI process: the same code, with a ledger that is forgotten when the process ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from underlay.delegate.engine import Engine
from underlay.delegate.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from underlay.cni.request import Request
    from underlay.cni.result import Result
    from underlay.delegate.exec import Executor
    from underlay.ipam.allocator import Allocator
    from underlay.plugins.context import Plugin


def run(
    request: Request,
    deadline: float,
    *,
    plugins: Mapping[str, Plugin],
    allocators: Mapping[str, Allocator],
    executor: Executor,
    log: Callable[..., None],
) -> Result | None:
    """Carry out any verb but VERSION; ADD returns the result, and what it made is undone when it fails.

    DEL works from the configuration and prevResult alone. ``deadline`` is on the monotonic clock.
    """
    engine = Engine(ledger=Ledger(":memory:", log), executor=executor, plugins=plugins, allocators=allocators, log=log)
    try:
        return engine.run(request, deadline)
    finally:
        engine.close()
