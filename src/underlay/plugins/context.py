"""What a built-in plugin is handed: the call, and the only ways in which it may touch the world.

delegate (or `underlay plugin NAME`)
    │  call = Call(...)            what is asked
    │  ctx  = Context(...)         what may be used
    ▼
plugin.add(call, ctx) -> Result
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from underlay.errors import NamespaceGone

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from underlay.cni.config import PluginConfig
    from underlay.cni.result import Result
    from underlay.ipam.allocator import Keep
    from underlay.net.link import Link
    from underlay.net.netns import Namespace
    from underlay.net.undo import UndoLog


class Call(msgspec.Struct, frozen=True):
    """One plugin call: the plugin's configuration and for which NIC of which container.

    ``netns`` is the CNI_NETNS path ("" on a DEL whose namespace is gone), ``args`` the parsed CNI_ARGS, ``network`` the
    network as people know it ("namespace/name" of a NetworkAttachmentDefinition).
    """

    conf: PluginConfig
    container_id: str
    netns: str
    ifname: str
    args: Mapping[str, str]
    network: str = ""


class Ipam(Protocol):
    """Runs the ``ipam`` section of a call's configuration, in process or by exec. The caller does not care which."""

    def add(self, call: Call) -> Result:
        """Allocate; records how to give back before it returns."""

    def check(self, call: Call) -> None:
        """Raise CheckFailed unless the addresses of prevResult are still held."""

    def delete(self, call: Call) -> None:
        """Give back; of what was never held: nothing."""

    def status(self, call: Call) -> None:
        """Raise NotAvailable where the IPAM plugin could not serve ADD."""

    def gc(self, call: Call, keep: Keep) -> None:
        """Give back whatever is held by none of ``keep``."""


class Devices(Protocol):
    """Who has which of the node's devices, as the undo entries in the ledger tell."""

    def claiming(self, device: str) -> AbstractContextManager[None]:
        """A block that records an undo entry of the device, which nobody else has then, and nobody else is claiming.

        Raises DeviceInUse naming the holder, TryAgain where another call does not end claiming it in time.
        """


class Context(msgspec.Struct, frozen=True):
    """The world as one call may touch it.

    ``host`` is the node's namespace, ``pod`` the container's (None on a DEL where it is gone); ``undo`` takes
    every entry before its act; ``devices`` keeps two pods from one device; ``deadline`` is on the ``time.monotonic``
    clock, seconds.
    ``made`` are the links in the pod that plugins of this chain have made, as the last of them left each; empty when
    an executable has run since. ``announcements`` are for the wire, by the link's index in the pod. ``mtus``, by name,
    are those of the NICs that main plugins of this chain have put into the pod: no result of theirs says it.
    ``log(level, event, **fields)`` writes one structured line, level being "debug", "info", "warn" or "error"; with
    ``to=LogOptions`` into a plugin's own file as well.
    """

    host: Namespace
    pod: Namespace | None
    undo: UndoLog
    ipam: Ipam
    devices: Devices
    deadline: float
    log: Callable[..., None]
    made: dict[str, Link] = msgspec.field(default_factory=dict)
    announcements: dict[int, tuple[str, Sequence[str]]] = msgspec.field(default_factory=dict)
    mtus: dict[str, int] = msgspec.field(default_factory=dict)

    def announce(self, index: int, mac: str, addresses: Sequence[str]) -> None:
        """Tell the wire of the MAC that a link's addresses have, once all is done; of several the last counts."""
        self.announcements[index] = (mac, addresses)

    def sandbox(self) -> Namespace:
        """The pod's namespace, for verbs that cannot do without; raises NamespaceGone."""
        if self.pod is None:
            raise NamespaceGone("the container's network namespace is gone")
        return self.pod


class Plugin(Protocol):
    """One CNI plugin.

    ``add`` returns the whole result, prevResult's part included, and on an error leaves its undoing to the caller,
    which holds the undo log. ``delete`` works without a ledger, from the configuration and prevResult alone, and never
    raises for what is missing.
    """

    @property
    def name(self) -> str:
        """The type that configurations call it by."""

    def add(self, call: Call, ctx: Context) -> Result:
        """CNI ADD."""

    def check(self, call: Call, ctx: Context) -> None:
        """CNI CHECK: raise CheckFailed naming the first difference."""

    def delete(self, call: Call, ctx: Context) -> None:
        """CNI DEL where no ledger row says what to undo."""

    def status(self, call: Call, ctx: Context) -> None:
        """CNI STATUS: raise NotAvailable or LimitedConnectivity."""

    def gc(self, call: Call, ctx: Context, keep: Keep) -> None:
        """CNI GC of what the plugin alone knows of (IPAM stores); attachments are the ledger's affair."""
