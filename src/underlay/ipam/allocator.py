"""What every IPAM plugin of this package offers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import msgspec

    from underlay.cni.config import PluginConfig
    from underlay.cni.result import Result
    from underlay.ipam.undo import Release


class Holder(NamedTuple):
    """Who holds an address: one NIC of one container."""

    container_id: str
    ifname: str


class Keep(Protocol):
    """What GC is to keep: NICs, each (container id, interface name). It grows while GC runs: a NIC that is attached
    meanwhile is in it before anything is held for it.
    """

    def __contains__(self, nic: object, /) -> bool:
        """Whether a NIC is kept, as of now; to be asked after what it holds was found."""

    def listed(self) -> frozenset[tuple[str, str]]:
        """All of them, as of now; to be asked after what is held was found, or right before an executable is called.

        Raises IOFailure where that cannot be read.
        """


def as_written(path: str) -> str:
    """Where a path of the node is, for a process whose own root is the node's."""
    return path


class Allocator(Protocol):
    """One IPAM plugin. ``conf`` is the configuration of the plugin that asks, whole; its "ipam" section is read.

    ``deadline`` is on the ``time.monotonic`` clock, seconds.
    """

    @property
    def name(self) -> str:
        """As in "ipam.type"."""

    def add(
        self,
        conf: PluginConfig,
        holder: Holder,
        args: Mapping[str, str],
        *,
        record: Callable[[Release], None],
        deadline: float,
        network: str = "",
    ) -> Result:
        """Choose and hold addresses. ``args`` is CNI_ARGS; ``record`` hears, before that, what gives them back;
        ``network`` is the network as people know it ("namespace/name" of a NetworkAttachmentDefinition).
        """

    def check(self, conf: PluginConfig, holder: Holder, args: Mapping[str, str]) -> None:
        """Raise CheckFailed unless what prevResult says is still held."""

    def delete(self, conf: PluginConfig, holder: Holder, *, deadline: float) -> None:
        """Give back everything of the holder; of what was never held: nothing."""

    def release(self, entry: Release, *, deadline: float) -> None:
        """Carry out what ``record`` heard: give back what it names and the NIC still holds. Once more: no change."""

    def status(self, conf: PluginConfig) -> None:
        """Raise NotAvailable where ``add`` could not work."""

    def gc(self, conf: PluginConfig, keep: Keep, *, deadline: float) -> None:
        """Give back whatever is held by none of ``keep``."""


@runtime_checkable
class Parsed(Protocol):
    """What an IPAM plugin offers beside its verbs, so that lint refuses what ADD would refuse, by the same code."""

    @property
    def keys(self) -> type[msgspec.Struct]:
        """The JSON keys {"ipam": …} of its section."""

    def parse(self, conf: PluginConfig, args: Mapping[str, str]) -> object:
        """The section and the addresses asked for, the first thing that ADD does. Raises what ADD raises for them."""
