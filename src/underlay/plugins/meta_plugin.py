"""What veth and router are alike: chained behind the plugin that made a NIC, they make the node's and the pod's ways to
and from it.

    parse ─▶ the NIC in prevResult ─▶ its hardware address ─▶ survey ─▶ conflicts ─▶ announced ─▶ sysctls ─▶ lay
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, TypeVar

from msgspec.structs import replace

from underlay.cni.result import Result
from underlay.errors import CheckFailed
from underlay.plugins import chained, chained_nic, hijack, ip_stack

if TYPE_CHECKING:
    import msgspec

    from underlay.cni.result import Interface
    from underlay.ipam.allocator import Keep
    from underlay.plugins.chained import Chained
    from underlay.plugins.context import Call, Context
    from underlay.plugins.hijack import Hijack

S = TypeVar("S")


class MetaPlugin(ABC, Generic[S]):
    """One of them; ``S`` is what it knows of node and pod before it makes its ways."""

    name: str
    keys: type[msgspec.Struct] = hijack.Keys
    chained = True

    @abstractmethod
    def survey(self, settings: Hijack, nic: Chained, ctx: Context) -> S:
        """Read node and pod. Raises InvalidConfig or NotAvailable where no way can be made."""

    @abstractmethod
    def lay(self, settings: Hijack, nic: Chained, site: S, call: Call, ctx: Context) -> tuple[Interface, ...]:
        """Make the ways, their undoing recorded; returns the interfaces that were made for them."""

    @abstractmethod
    def look(self, settings: Hijack, nic: Chained, call: Call, ctx: Context) -> None:
        """Raise CheckFailed where a way is lost."""

    def parse(self, call: Call) -> Hijack:
        """The settings of a call; see :func:`hijack.parse`."""
        return hijack.parse(call.conf, self.name)

    def add(self, call: Call, ctx: Context) -> Result:
        """Make the ways, and return prevResult with the NIC as it is now."""
        settings = self.parse(call)
        nic = chained.find(call.conf.prev, self.name)
        if settings.skip:
            return call.conf.prev or Result()
        with chained_nic.faults_told(settings, self.name, call, ctx):
            return self._add(settings, nic, call, ctx)

    def _add(self, settings: Hijack, nic: Chained, call: Call, ctx: Context) -> Result:
        found = chained_nic.find(nic, ctx)
        mac = chained_nic.set_mac(settings, nic, found, ctx)
        result = chained_nic.result(call.conf.prev, nic, found, mac)
        if settings.only_mac:
            chained_nic.tell_mac(nic, found, mac, ctx)
            return result
        chained.require_addresses(nic, self.name)
        site = self.survey(settings, nic, ctx)
        chained_nic.refuse_conflicts(settings, nic, found.index, mac, ctx)
        chained_nic.tell_mac(nic, found, mac, ctx)
        chained_nic.set_sysctls(settings, nic, ctx)
        made = self.lay(settings, nic, site, call, ctx)
        return replace(result, interfaces=result.interfaces + made) if made else result

    def check(self, call: Call, ctx: Context) -> None:
        """Look for the ways, and the sysctls."""
        settings = self.parse(call)
        nic = chained.find(call.conf.prev, self.name)
        if settings.skip or settings.only_mac:
            return
        self.look(settings, nic, call, ctx)
        other = ip_stack.differing_rp_filter(ctx.sandbox(), settings.rp_filter.value)
        if other:
            raise CheckFailed(f"rp_filter of {', '.join(other)} in the pod is not {settings.rp_filter.value}")

    def gc(self, call: Call, ctx: Context, keep: Keep) -> None:
        """Nothing: the ledger knows every interface, rule, route and neighbour."""
