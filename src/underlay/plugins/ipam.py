"""An IPAM plugin as a CNI plugin: the same verbs, without the kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from underlay.ipam.allocator import Holder

if TYPE_CHECKING:
    from underlay.cni.result import Result
    from underlay.ipam.allocator import Allocator, Keep
    from underlay.plugins.context import Call, Context


class IpamPlugin:
    """Hands a call on to an :class:`Allocator`; keeps nothing itself."""

    def __init__(self, allocator: Allocator) -> None:
        self.name = allocator.name
        self._allocator = allocator

    def add(self, call: Call, ctx: Context) -> Result:
        """CNI ADD: the addresses alone; an IPAM plugin's result has no interfaces."""
        return self._allocator.add(
            call.conf, _holder(call), call.args, record=ctx.undo.record, deadline=ctx.deadline, network=call.network
        )

    def check(self, call: Call, ctx: Context) -> None:
        """CNI CHECK: raise CheckFailed unless the addresses of prevResult are still held."""
        self._allocator.check(call.conf, _holder(call), call.args)

    def delete(self, call: Call, ctx: Context) -> None:
        """CNI DEL where no ledger row says what to undo: give back all of this NIC."""
        self._allocator.delete(call.conf, _holder(call), deadline=ctx.deadline)

    def status(self, call: Call, ctx: Context) -> None:
        """CNI STATUS: raise NotAvailable where ADD could not work."""
        self._allocator.status(call.conf)

    def gc(self, call: Call, ctx: Context, keep: Keep) -> None:
        """CNI GC: give back what none of ``keep`` holds."""
        self._allocator.gc(call.conf, keep, deadline=ctx.deadline)


def _holder(call: Call) -> Holder:
    return Holder(call.container_id, call.ifname)
