"""veth: the pod's way to its node when an underlay NIC is its first (chained behind macvlan or SR-IOV).

         pod                                  node
    ┌──────────────┐                   ┌────────────────────┐
    │ eth0 macvlan ┼── the LAN         │ its addresses,     │
    │              │                   │ kube-proxy's rules │
    │ veth0        ┼───────────────────┼ vethCONTAINER-ID   │
    └──────────────┘                   └────────────────────┘

The kernel keeps a macvlan from talking to its own parent. So what goes to the node or into the cluster's subnets takes
veth0, and the node reaches the NIC's addresses by the other end; everything else stays on the NIC.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from underlay.cni.result import Interface, Result
from underlay.errors import CheckFailed, InterfaceExists, InvalidConfig, KernelError, LimitedConnectivity, UnderlayError
from underlay.net import link, neigh, replay, route, route_copy
from underlay.net.undo import DropLink, DropNeighbour, DropRoute, DropRule
from underlay.net.veth import create as create_veth
from underlay.plugins import chained, chained_nic, migrate, nic_table, node_address, pod_view, wiring
from underlay.plugins.meta_plugin import MetaPlugin
from underlay.plugins.migrate import Migration
from underlay.plugins.node_address import NodeAddresses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from underlay.net.netlink import Message
    from underlay.net.netns import Namespace
    from underlay.plugins.chained import Chained
    from underlay.plugins.context import Call, Context, Plugin
    from underlay.plugins.hijack import Hijack
    from underlay.plugins.wiring import Piece

POD_END: Final = "veth0"
MTU: Final = 1500


class Pair(msgspec.Struct, frozen=True):
    """Both ends: the node's name, indexes and hardware addresses. ``made`` when this call makes it."""

    host_name: str
    host_index: int
    host_mac: str
    pod_index: int
    pod_mac: str
    made: bool


class Veth(MetaPlugin[NodeAddresses]):
    """The plugin."""

    name = "veth"

    def survey(self, settings: Hijack, nic: Chained, ctx: Context) -> NodeAddresses:
        """The node's addresses for the pod to go through. Raises InvalidConfig for a family in which it has none."""
        node = _node_addresses(nic, ctx)
        _require_node_addresses(node, nic)
        return node

    def lay(
        self, settings: Hijack, nic: Chained, site: NodeAddresses, call: Call, ctx: Context
    ) -> tuple[Interface, ...]:
        """Make the pair, or find it, and the NIC's paths over it."""
        pair = _pair(call, ctx)
        _lay(settings, nic, site, pair, ctx)
        ctx.log("debug", "veth added", to=settings.log, container=call.container_id, nic=nic.name, pair=pair.host_name)
        return _ends(pair, call) if pair.made else ()

    def look(self, settings: Hijack, nic: Chained, call: Call, ctx: Context) -> None:
        """For the pair, and the NIC's routes and neighbours."""
        pod = ctx.sandbox()
        pair = _existing(call, ctx)
        if pair is None:
            raise CheckFailed(f"the pod has no {POD_END} any more")
        lost = wiring.missing(_host_pieces(nic, pair), ctx.host, {pair.host_name: pair.host_index})
        if lost:
            raise CheckFailed(f"the node has lost {lost}")
        devices = {POD_END: pair.pod_index}
        node = _as_laid(_node_addresses(nic, ctx), pod, pair)
        lost_by_table = [
            wiring.missing([*_neighbours(node, pair), *rules, *_routes(settings, nic, node, table)], pod, devices)
            for table, rules in _tables(call, nic, pod)
        ]
        if all(lost_by_table):
            raise CheckFailed(f"the pod has lost {lost_by_table[0]}")

    def delete(self, call: Call, ctx: Context) -> None:
        """Take the NIC's paths away, and the pair once no other NIC of the pod uses it."""
        host_end = link.get(ctx.host.rtnl, host_name(call.container_id))
        if host_end is None or host_end.kind != "veth":
            return
        mine = _addresses(call, ctx)
        entries = [one for one in neigh.dump(ctx.host.rtnl, index=host_end.index) if one.permanent]
        if not mine or all(one.address in mine for one in entries):
            link.delete_group(ctx.host.rtnl, [host_end.index])
        else:
            gone: list[msgspec.Struct] = [
                DropNeighbour("host", one.address, host_end.name, one.mac) for one in entries if one.address in mine
            ]
            replay.replay([*gone, *_host_routes(mine, host_end.name)], host=ctx.host, pod=None)
        if ctx.pod is not None:
            _leave_pod(mine, call.ifname, ctx.pod)

    def status(self, call: Call, ctx: Context) -> None:
        """Raise LimitedConnectivity where the node has no address of a family that the cluster uses."""
        settings = self.parse(call)
        families = sorted({one.family for one in settings.cluster})
        node = node_address.find(ctx.host, (), families)
        for family in families:
            if family not in node.towards:
                raise LimitedConnectivity(f"the node has no global IPv{family} address for pods to go through")


def host_name(container_id: str) -> str:
    """The node's end, 15 characters at most (IFNAMSIZ)."""
    return f"veth{container_id[:11]}"


def _node_addresses(nic: Chained, ctx: Context) -> NodeAddresses:
    return node_address.find(ctx.host, [chained.host_text(one) for one in nic.addresses], nic.families)


def _require_node_addresses(node: NodeAddresses, nic: Chained) -> None:
    for family in nic.families:
        if family not in node.towards:
            raise InvalidConfig(
                f"{nic.name} has an IPv{family} address, but the node has none for the pod to go through",
                hint=f"Give the node a global IPv{family} address, or the network addresses of the other family only.",
            )


def _pair(call: Call, ctx: Context) -> Pair:
    """The pod's pair, or the plan of a new one."""
    existing = _existing(call, ctx)
    if existing is not None:
        return existing
    return Pair(
        host_name=host_name(call.container_id),
        host_index=link.random_index(),
        host_mac=link.random_mac(),
        pod_index=link.random_index(),
        pod_mac=link.random_mac(),
        made=True,
    )


def _existing(call: Call, ctx: Context) -> Pair | None:
    """The pod's pair; None when it has none. Raises InvalidConfig where veth0 is something else."""
    pod_end = link.get(ctx.sandbox().rtnl, POD_END)
    if pod_end is None:
        return None
    # by its name: indexes alone are small numbers, and those of another namespace's ends fit by chance
    host_end = link.get(ctx.host.rtnl, host_name(call.container_id))
    if host_end is None or (host_end.index, pod_end.index) != (pod_end.parent, host_end.parent):
        raise InvalidConfig(
            f"the pod's {POD_END} is not the end of a pair with this node",
            hint=f"Give the NIC that another plugin calls {POD_END} another name.",
        )
    return Pair(host_end.name, host_end.index, host_end.mac, pod_end.index, pod_end.mac, made=False)


def _lay(settings: Hijack, nic: Chained, node: NodeAddresses, pair: Pair, ctx: Context) -> None:
    """Everything on the node in one batch, then everything in the pod."""
    pod = ctx.sandbox()
    on_host = _host_pieces(nic, pair)
    devices = {pair.host_name: pair.host_index, POD_END: pair.pod_index}
    if pair.made:
        in_pod = [*_neighbours(node, pair), *_routes(settings, nic, node, route.MAIN)]
        # the node's end goes with the pod's, but not while somebody keeps a namespace alive that has lost its name
        ends = (DropLink("host", pair.host_name, mac=pair.host_mac), DropLink("pod", POD_END, mac=pair.pod_mac))
        ctx.undo.record(*ends, *on_host, *in_pod)
        try:
            wiring.lay(on_host, ctx.host, devices, before=[_creation(pair, pod)])
        except KernelError as error:
            raise _explained(error, pair, ctx.host) from error
        wiring.lay(in_pod, pod, devices, before=[link.change(index=pair.pod_index, up=True)])
        return
    routes, migration = _further(settings, nic, node, pod)
    known = {one.address for one in neigh.dump(pod.rtnl, index=pair.pod_index) if one.permanent}
    in_pod = [*(one for one in _neighbours(node, pair) if one.dst not in known), *routes]  # of a family new to the pod
    ctx.undo.record(*on_host, *in_pod, *migration.entries)
    wiring.lay(on_host, ctx.host, devices)
    pod.rtnl.batch([*wiring.messages(in_pod, devices), *migration.messages])


def _explained(error: KernelError, pair: Pair, host: Namespace) -> UnderlayError:
    """The kernel's refusal, or what stands in the pair's way."""
    if error.errno != errno.EEXIST or link.get(host.rtnl, pair.host_name) is None:
        return error
    return InterfaceExists(
        f"the node already has an interface {pair.host_name}, of another container",
        hint="If no container uses it, delete it by ip link del.",
    )


def _creation(pair: Pair, pod: Namespace) -> Message:
    return create_veth(
        name=pair.host_name,
        mac=pair.host_mac,
        index=pair.host_index,
        peer_name=POD_END,
        peer_mac=pair.pod_mac,
        peer_index=pair.pod_index,
        peer_netns_fd=pod.fd,
        mtu=MTU,
    )


def _further(settings: Hijack, nic: Chained, node: NodeAddresses, pod: Namespace) -> tuple[list[Piece], Migration]:
    """A further NIC of the pod: its hijack routes in a table of its own, and its own routes there too."""
    view = pod_view.read(pod, nic.families)
    table = nic_table.choose(nic.name, view.tables())
    first = min((name for name in view.links if name not in (nic.name, "lo", POD_END)), key=nic_table.order, default="")
    migration = Migration()
    if first and migrate.wanted(settings.migrate, nic.name, first):
        addresses = [chained.as_destination(chained.host_text(one)) for one in nic.addresses]
        migration = migrate.plan(view, nic.name, table, addresses)
    return list(_routes(settings, nic, node, table)), migration


def _host_pieces(nic: Chained, pair: Pair) -> list[Piece]:
    addresses = [chained.host_text(one) for one in nic.addresses]
    neighbours = [DropNeighbour("host", one, pair.host_name, pair.pod_mac) for one in addresses]
    return [*neighbours, *_host_routes(addresses, pair.host_name)]


def _host_routes(addresses: Sequence[str], dev: str) -> list[DropRoute]:
    return [DropRoute("host", chained.as_destination(one), route.MAIN, dev) for one in addresses]


def _neighbours(node: NodeAddresses, pair: Pair) -> list[DropNeighbour]:
    return [DropNeighbour("pod", one, POD_END, pair.host_mac) for one in node.addresses]


def _as_laid(node: NodeAddresses, pod: Namespace, pair: Pair) -> NodeAddresses:
    """The node as ADD saw it, by the pod's gateways: now that it reaches the pod by the pair, a node with several
    addresses uses another towards it.
    """
    gateways = {one.gateway for one in route.dump(pod.rtnl, family=0) if one.dev == pair.pod_index}
    used = {6 if ":" in each else 4: each for each in node.addresses if each in gateways}
    return replace(node, towards={**node.towards, **used})


def _routes(settings: Hijack, nic: Chained, node: NodeAddresses, table: int) -> list[Piece]:
    """To the node, and by way of it into the hijacked subnets of the NIC's families."""
    to_node: list[Piece] = [DropRoute("pod", chained.as_destination(one), table, POD_END) for one in node.addresses]
    return to_node + [
        DropRoute("pod", str(one), table, POD_END, node.towards[one.family])
        for one in (*settings.cluster, *settings.additional)
        if one.family in nic.families and one.family in node.towards
    ]


def _tables(call: Call, nic: Chained, pod: Namespace) -> list[tuple[int, list[DropRule]]]:
    """For CHECK: the tables that may hold the NIC's paths, with the rules that belong to each. At least one.

    It is main's for the NIC that came with the pair, and then the one that the NIC's own routes were moved to; those of
    a NIC that kept its routes in main may lie in any other.
    """
    prev = call.conf.prev or Result()
    if any(one.name == POD_END and one.sandbox for one in prev.interfaces):
        return [(route.MAIN, [])]
    view = pod_view.read(pod, nic.families)
    sources = [chained.as_destination(chained.host_text(one)) for one in nic.addresses]
    index = view.links[nic.name].index if nic.name in view.links else 0
    moved = {one.table for family in nic.families for one in view.ours(family) if one.src in sources}
    moved |= {
        one.table
        for routes in view.routes.values()
        for one in routes
        if one.dev == index and one.protocol == route.PROTOCOL and one.table != route.MAIN
    }
    moved -= {one.table for one in prev.routes}
    if moved:
        return [(table, migrate.rules(sources, table)) for table in sorted(moved)]
    others = sorted(view.tables() - {route.MAIN}) or [nic_table.of_name(nic.name) or nic_table.FIRST]
    return [(table, []) for table in others]


def _ends(pair: Pair, call: Call) -> tuple[Interface, ...]:
    return (
        Interface(name=POD_END, mac=pair.pod_mac, sandbox=call.netns),
        Interface(name=pair.host_name, mac=pair.host_mac),
    )


def _addresses(call: Call, ctx: Context) -> list[str]:
    """The NIC's addresses by prevResult, or, where that says nothing, by the pod."""
    try:
        return [chained.host_text(one) for one in chained.find(call.conf.prev, "veth").addresses]
    except UnderlayError:
        return chained_nic.present_addresses(call, ctx)


def _leave_pod(addresses: Sequence[str], ifname: str, pod: Namespace) -> None:
    """Without a ledger: drop the rules and routes of ours in the NIC's table, found by its addresses or its name."""
    sources = {chained.as_destination(one) for one in addresses}
    view = pod_view.read(pod, (4, 6))
    rules = [one for family in (4, 6) for one in view.ours(family) if one.src in sources]
    tables: set[int | None] = {one.table for one in rules} or {nic_table.of_name(ifname)}
    routes = [
        one
        for family in (4, 6)
        for one in view.routes[family]
        if one.table in tables and one.protocol == route.PROTOCOL
    ]
    pod.rtnl.batch([*wiring.rule_deletions(rules), *map(route_copy.remove, routes)], tolerate=wiring.MISSING)


PLUGIN: Plugin = Veth()
