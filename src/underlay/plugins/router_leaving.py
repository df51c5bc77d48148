"""What router takes away where no ledger says what it made (``underlay plugin router``, a lost ledger)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from underlay.cni import config
from underlay.errors import UnderlayError
from underlay.net import neigh, replay, route, route_copy
from underlay.net.netlink import NLM_F_CREATE
from underlay.net.undo import DropIdleRule
from underlay.plugins import chained, chained_nic, nic_table, pod_view, wiring

if TYPE_CHECKING:
    from underlay.net.netlink import Message
    from underlay.net.netns import Namespace
    from underlay.plugins.context import Call, Context
    from underlay.plugins.pod_view import PodView

_DEFAULT_HOST_TABLE = 500


class _Table(msgspec.Struct, frozen=True):
    """The one key that counts here: the others may be wrong."""

    host_rule_table: int | None = None


def leave(call: Call, ctx: Context) -> None:
    """Remove what is ours and belongs to the NIC; what cannot be read or is gone already is no fault."""
    try:
        addresses = {chained.host_text(one) for one in chained.find(call.conf.prev, "router").addresses}
    except UnderlayError:
        addresses = set(chained_nic.present_addresses(call, ctx))
    try:
        table = config.decode(call.conf.raw, _Table).host_rule_table or _DEFAULT_HOST_TABLE
    except UnderlayError:
        table = _DEFAULT_HOST_TABLE
    _leave_host(addresses, table, ctx.host)
    if ctx.pod is not None:
        _leave_pod(call.ifname, ctx.pod)


def _leave_host(addresses: set[str], table: int, host: Namespace) -> None:
    routes = [
        one
        for one in route.dump(host.rtnl, family=0, table=table)
        if one.protocol == route.PROTOCOL and one.dst.partition("/")[0] in addresses
    ]
    devices = {one.dev for one in routes}
    entries = [
        one
        for one in neigh.dump(host.rtnl)
        if one.permanent
        and one.address in addresses
        and (
            one.index in devices or one.protocol == route.PROTOCOL
        )  # there is no route to a subnet that is not the node's
    ]
    host.rtnl.batch(
        [*map(route_copy.remove, routes), *(neigh.delete(one.index, one.address) for one in entries)],
        tolerate=wiring.MISSING,
    )
    idle: list[msgspec.Struct] = [DropIdleRule("host", family, table, wiring.NODE_RULE) for family in (4, 6)]
    replay.replay(idle, host=host, pod=None)


def _leave_pod(ifname: str, pod: Namespace) -> None:
    """Empty the NIC's table, putting a default route that was moved there back into main."""
    table = nic_table.of_name(ifname)
    if table is None:
        return
    view = pod_view.read(pod, (4, 6))
    rules = [one for family in (4, 6) for one in view.ours(family) if one.table == table]
    pod.rtnl.batch([*wiring.rule_deletions(rules), *_emptying(view, table)], tolerate=wiring.MISSING)


def _emptying(view: PodView, table: int) -> list[Message]:
    messages: list[Message] = []
    for routes in view.routes.values():
        for one in routes:
            if one.table != table or one.protocol != route.PROTOCOL:
                continue
            if one.is_default:
                back = route_copy.copy(one, table=route.MAIN)
                messages.append(msgspec.structs.replace(back, flags=NLM_F_CREATE))  # beside that of the NIC that leaves
            messages.append(route_copy.remove(one))
    return messages
