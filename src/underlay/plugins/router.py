"""router: the cluster's traffic keeps the overlay NIC, all else takes the underlay NIC that it is chained to.

         pod                                    node
    ┌──────────────────┐                 ┌──────────────────────┐
    │ eth0 overlay NIC ┼─────────────────┼ its host end         │
    │                  │                 │                      │
    │ net1 macvlan     ┼── the LAN       │ table 500: pod → end │
    └──────────────────┘                 └──────────────────────┘

Rules in the pod send the overlay's and the services' subnets to a table that holds the overlay NIC's routes; main's
default route is the newest NIC's. The node reaches the underlay address by the overlay NIC, as the kernel keeps a
macvlan from talking to its own parent.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from underlay.cni import address
from underlay.errors import CheckFailed, InvalidConfig, NotAvailable
from underlay.net import link, route, rule
from underlay.net.undo import DropIdleRule, DropNeighbour, DropRoute, DropRule
from underlay.plugins import chained, migrate, nic_table, node_address, pod_view, wiring
from underlay.plugins.meta_plugin import MetaPlugin
from underlay.plugins.migrate import Migration
from underlay.plugins.router_leaving import leave

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from underlay.cni.result import Interface
    from underlay.net.link import Link
    from underlay.net.netns import Namespace
    from underlay.plugins.chained import Chained
    from underlay.plugins.context import Call, Context, Plugin
    from underlay.plugins.hijack import Hijack
    from underlay.plugins.node_address import NodeAddresses
    from underlay.plugins.pod_view import PodView
    from underlay.plugins.wiring import Piece


class Site(msgspec.Struct, frozen=True):
    """Where a call finds itself.

    ``overlay`` is the cluster network's NIC in the pod, ``host_end`` its end on the node (None for ``sriov``, which
    needs none); ``previous`` names, by family, the NIC whose routes give way, ``table`` is theirs from now on;
    ``first`` holds the families in which no underlay NIC of the pod has had its ways made yet.
    """

    view: PodView
    overlay: Link
    host_end: Link | None
    node: NodeAddresses
    previous: Mapping[int, str]
    table: int
    first: frozenset[int]


class Router(MetaPlugin[Site]):
    """The plugin."""

    name = "router"

    def survey(self, settings: Hijack, nic: Chained, ctx: Context) -> Site:
        """Raises InvalidConfig where there is no overlay NIC."""
        return _survey(settings, nic, ctx)

    def lay(self, settings: Hijack, nic: Chained, site: Site, call: Call, ctx: Context) -> tuple[Interface, ...]:
        """Make the node's paths to the NIC, and the pod's rules."""
        _lay(settings, nic, site, ctx)
        ctx.log("debug", "router added", to=settings.log, container=call.container_id, nic=nic.name, table=site.table)
        return ()

    def look(self, settings: Hijack, nic: Chained, call: Call, ctx: Context) -> None:
        """For the node's paths and the pod's rules."""
        site = _survey(settings, nic, ctx)
        on_host = _on_host(settings, nic, site)
        shared = [DropRule("host", one.family, one.table) for one in _host_rules(settings, on_host)]
        lost = wiring.missing([*on_host, *shared], ctx.host, _host_devices(site))
        if lost:
            raise CheckFailed(f"the node has lost {lost}")
        lost = _lost_in_pod(settings, nic, site, ctx.sandbox())
        if lost:
            raise CheckFailed(f"the pod has lost {lost}")

    def delete(self, call: Call, ctx: Context) -> None:
        """Take away what is found of the NIC's rules, routes and neighbours."""
        leave(call, ctx)

    def status(self, call: Call, ctx: Context) -> None:
        """Raise NotAvailable where the node has no address that pods could be sent to."""
        settings = self.parse(call)
        if not settings.sriov and not node_address.find(ctx.host, (), (4, 6)).addresses:
            raise NotAvailable("the node has no global address for pods to reach it by")


def _survey(settings: Hijack, nic: Chained, ctx: Context) -> Site:
    """Read pod and node; raises InvalidConfig where there is no overlay NIC."""
    pod = ctx.sandbox()
    view = pod_view.read(pod, nic.families)
    overlay = view.links.get(settings.overlay)
    if overlay is None or overlay.name == nic.name:
        raise InvalidConfig(
            f'"overlay_interface" {settings.overlay[:60]!r} is not in the pod',
            hint="router needs the cluster network's NIC besides the underlay one; for a pod without it use veth.",
        )
    overlay_addresses = [one.partition("/")[0] for one in view.addresses.get(overlay.name, ())]
    own = [chained.host_text(one) for one in nic.addresses]
    node = node_address.find(ctx.host, [*own, *overlay_addresses], nic.families)
    host_end = None if settings.sriov else _host_end(overlay, overlay_addresses, node, ctx.host)
    first = frozenset(family for family in nic.families if not _is_begun(family, settings, view, overlay, node))
    before = _previous(view, nic, overlay.name)
    return Site(
        view=view,
        overlay=overlay,
        host_end=host_end,
        node=node,
        previous={family: overlay.name if family in first else before for family in nic.families},
        table=nic_table.choose(nic.name, view.tables()),
        first=first,
    )


def _is_begun(family: int, settings: Hijack, view: PodView, overlay: Link, node: NodeAddresses) -> bool:
    """Whether an earlier NIC has brought the cluster's rules of the family, or routes by way of the overlay NIC."""
    cluster = {str(one) for one in settings.cluster}
    to_node = {chained.as_destination(one) for one in node.addresses}
    return any(one.dst in cluster for one in view.ours(family)) or any(
        one.protocol == route.PROTOCOL and (one.table != route.MAIN or one.dst in to_node)
        for one in view.routes[family]
        if one.dev == overlay.index
    )


def _host_end(overlay: Link, overlay_addresses: Sequence[str], node: NodeAddresses, host: Namespace) -> Link:
    """The overlay NIC's end on the node: its veth peer, or else the device by which the node reaches its addresses."""
    peer = link.get_index(host.rtnl, overlay.parent or 0) if overlay.kind == "veth" else None
    if peer is not None and peer.kind == "veth" and peer.parent == overlay.index:
        return peer
    for each in overlay_addresses:
        found = link.get_index(host.rtnl, node.devices.get(each, 0))
        if found is not None:
            return found
    raise InvalidConfig(
        f'"overlay_interface" {overlay.name} has no end on this node',
        hint='Name the cluster network\'s NIC in "overlay_interface".',
    )


def _previous(view: PodView, nic: Chained, overlay: str) -> str:
    """The NIC whose routes give way: the last one by name before this, or the overlay's."""
    mine = nic_table.order(nic.name, overlay)
    before = [name for name in view.addresses if name not in ("lo", nic.name) and nic_table.order(name, overlay) < mine]
    return max(before, key=lambda name: nic_table.order(name, overlay), default=overlay)


def _lay(settings: Hijack, nic: Chained, site: Site, ctx: Context) -> None:
    """Everything on the node in one batch, then everything in the pod."""
    on_host = _on_host(settings, nic, site)
    in_pod, migration = _in_pod(settings, nic, site)
    rules = _host_rules(settings, on_host)
    ctx.undo.record(*rules, *on_host, *in_pod, *migration.entries)
    wiring.lay(on_host, ctx.host, _host_devices(site))
    # shared by all pods, and after the route: see DropIdleRule
    ctx.host.rtnl.batch(
        [rule.add(family=one.family, table=one.table, priority=one.priority) for one in rules],
        tolerate=frozenset({errno.EEXIST}),
    )
    devices = {name: one.index for name, one in site.view.links.items()}
    ctx.sandbox().rtnl.batch([*wiring.messages(in_pod, devices), *migration.messages])


def _host_devices(site: Site) -> dict[str, int]:
    return {site.host_end.name: site.host_end.index} if site.host_end else {}


def _on_host(settings: Hijack, nic: Chained, site: Site) -> list[Piece]:
    """The chained addresses behind the overlay NIC; a route only to those the node would look for on its own wire."""
    if site.host_end is None:
        return []
    end = site.host_end.name
    node = [found for found in map(address.parse, site.node.addresses) if found is not None]
    pieces: list[Piece] = []
    for one in nic.addresses:
        text = chained.host_text(one)
        pieces.append(DropNeighbour("host", text, end, site.overlay.mac))
        if any(one.holds(each) for each in node):
            pieces.append(DropRoute("host", chained.as_destination(text), settings.host_table, end))
    return pieces


def _host_rules(settings: Hijack, on_host: Sequence[Piece]) -> list[DropIdleRule]:
    families = {6 if ":" in piece.dst else 4 for piece in on_host}
    return [DropIdleRule("host", one, settings.host_table, wiring.NODE_RULE) for one in sorted(families)]


def _in_pod(settings: Hijack, nic: Chained, site: Site) -> tuple[list[Piece], Migration]:
    migration = Migration()
    pieces: list[Piece] = []
    for family in nic.families:
        previous = site.previous[family]
        pieces += _to_node(site, family)
        if not migrate.wanted(settings.migrate, nic.name, previous, site.overlay.name):
            continue
        if family in site.first:  # the routes to the node are about to be made, so the plan cannot see them
            pieces += [replace(one, table=site.table) for one in _new_routes(site, family, route.MAIN)]
        addresses = [chained.as_destination(one.partition("/")[0]) for one in site.view.of_family(previous, family)]
        moved = migrate.plan(site.view, previous, site.table, addresses, (family,))
        migration.entries += moved.entries
        migration.messages += moved.messages
    copied = {one.dst for one in migration.entries if isinstance(one, DropRoute)}
    pieces = [
        one for one in pieces if not (isinstance(one, DropRoute) and one.table == site.table and one.dst in copied)
    ]
    return [*pieces, *_rules(settings, nic, site)], migration


def _to_node(site: Site, family: int) -> list[Piece]:
    """The node's addresses of one family by way of the overlay NIC."""
    if site.host_end is None:
        return []
    if family not in site.first:
        return list(_new_routes(site, family, site.table))
    return [*_neighbours(site, family), *_new_routes(site, family, route.MAIN)]


def _neighbours(site: Site, family: int) -> list[DropNeighbour]:
    if site.host_end is None:
        return []
    return [
        DropNeighbour("pod", one, site.overlay.name, site.host_end.mac)
        for one in _of_family(site.node.addresses, family)
    ]


def _new_routes(site: Site, family: int, table: int) -> list[DropRoute]:
    """Routes to the node's addresses that the pod does not have already, from its cluster network."""
    if site.host_end is None:
        return []
    there = {(one.dst, one.table) for one in site.view.routes[family]}
    wanted = (chained.as_destination(one) for one in _of_family(site.node.addresses, family))
    return [DropRoute("pod", one, table, site.overlay.name) for one in wanted if (one, table) not in there]


def _rules(settings: Hijack, nic: Chained, site: Site) -> list[DropRule]:
    """The first NIC of a family brings the rules to the cluster's subnets, a further one those to its predecessor's."""
    to_cluster = [one for one in settings.cluster if one.family in site.first]
    to_cluster += _of_families(settings.additional, nic)
    own = [
        one
        for family in nic.families
        if family not in site.first
        for one in site.view.of_family(site.previous[family], family)
    ]
    return [
        DropRule("pod", 6 if ":" in one else 4, site.table, dst=one, priority=priority)
        for priority, texts in ((wiring.TO_CLUSTER, map(str, to_cluster)), (wiring.TO_SUBNET, own))
        for one in texts
    ]


def _lost_in_pod(settings: Hijack, nic: Chained, site: Site, pod: Namespace) -> str:
    """For CHECK: the first of the pod's ways to the node and the cluster that is missing, in words; "" for none."""
    view = site.view
    neighbours = [one for family in nic.families for one in _neighbours(site, family)]
    lost = wiring.missing(neighbours, pod, {site.overlay.name: site.overlay.index})
    if lost:
        return lost
    present = {one.dst for routes in view.routes.values() for one in routes}
    for wanted in (chained.as_destination(one.dst) for one in neighbours):
        if wanted not in present:
            return f"the route to {wanted} by {site.overlay.name}"
    subnets = _of_families((*settings.cluster, *settings.additional), nic)
    for subnet in subnets:
        if all(one.dst != str(subnet) for one in view.ours(subnet.family)):
            return f"the rule to {subnet}"
    # where the overlay's routes were moved, the rules above lead to them: the kernel itself is asked where to
    sources = {chained.as_destination(one.partition("/")[0]) for one in view.addresses.get(site.overlay.name, ())}
    moved = {family for family in nic.families if any(one.src in sources for one in view.ours(family))}
    led = [one for one in subnets if one.family in moved]
    ways = route.lookups(pod.rtnl, [address.text(one.family, one.network) for one in led])
    for subnet, way in zip(led, ways, strict=True):
        if way is None or way.dev != site.overlay.index:
            return f"the route to {subnet} by {site.overlay.name}"
    return ""


def _of_family(addresses: Sequence[str], family: int) -> list[str]:
    return [one for one in addresses if (":" in one) == (family == 6)]


def _of_families(subnets: Sequence[address.Prefix], nic: Chained) -> list[address.Prefix]:
    return [one for one in subnets if one.family in nic.families]


PLUGIN: Plugin = Router()
