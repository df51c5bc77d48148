"""Whether a network would work on this node: what STATUS of its plugins says, as far as it takes no root."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from underlay.delegate.exec import find
from underlay.net.netns import Namespace
from underlay.net.undo import UndoLog
from underlay.plugins.context import Context

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    import msgspec

    from underlay.cni.result import Result
    from underlay.ipam.allocator import Keep
    from underlay.plugins.context import Call, Plugin

_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class ThisNode:
    """Asks built-in plugins for STATUS and looks for the executables of the others."""

    plugins: Mapping[str, Plugin]
    allocators: Mapping[str, object]
    bin_dirs: tuple[str, ...]

    def __call__(self, call: Call) -> None:
        """Raise what ADD would meet here: a missing parent NIC, executable or address of the node."""
        plugin = self.plugins.get(call.conf.type)
        ipam = _ExecutablesOnly(self.allocators, self.bin_dirs)
        if plugin is None:
            find(call.conf.type, self.bin_dirs)
            if call.conf.ipam_type:
                ipam.status(call)
            return
        if call.conf.type in self.allocators:
            return
        with Namespace.current() as host:
            deadline = time.monotonic() + _SECONDS
            undo = UndoLog(_keep_nothing)
            context = Context(
                host=host, pod=None, undo=undo, ipam=ipam, devices=_Untouched(), deadline=deadline, log=_quiet
            )
            plugin.status(call, context)


class _Untouched:
    """The ``Devices`` of a look that changes nothing."""

    def claiming(self, device: str) -> AbstractContextManager[None]:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class _ExecutablesOnly:
    """The ``Ipam`` of a look that changes nothing; what a built-in one needs, a directory to write, only root sees."""

    allocators: Mapping[str, object]
    bin_dirs: tuple[str, ...]

    def add(self, call: Call) -> Result:
        raise NotImplementedError

    def check(self, call: Call) -> None:
        raise NotImplementedError

    def delete(self, call: Call) -> None:
        raise NotImplementedError

    def gc(self, call: Call, keep: Keep) -> None:
        raise NotImplementedError

    def status(self, call: Call) -> None:
        """Raise PluginMissing for an executable that is not there."""
        if call.conf.ipam_type not in self.allocators:
            find(call.conf.ipam_type, self.bin_dirs)


def _keep_nothing(_entries: Sequence[msgspec.Struct]) -> None:
    """Nothing is done, so there is nothing to take back."""


def _quiet(_level: str, _event: str, **_fields: object) -> None:
    """What is wrong is raised."""
