"""A plugin whose configuration can be looked through without a kernel: by ADD, and before any pod asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import msgspec

    from underlay.plugins.context import Call


@runtime_checkable
class Parsed(Protocol):
    """What a plugin offers beside its verbs, so that lint refuses what ADD would refuse, by the same code."""

    @property
    def keys(self) -> type[msgspec.Struct]:
        """The JSON keys of its configuration, the protocol's own left out."""

    @property
    def chained(self) -> bool:
        """Whether it works on the NIC of the plugin before it (a meta-plugin)."""

    def parse(self, call: Call) -> object:
        """What ADD reads first. Raises InvalidConfig or DecodeFailure naming the key."""
