"""Moving a NIC's default route out of table main: its routes go into a table of their own, which its addresses use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from underlay.net import route, route_copy
from underlay.net.undo import DropRoute, DropRule, PutRoute
from underlay.plugins import hijack, nic_table, wiring

if TYPE_CHECKING:
    from collections.abc import Iterable

    from underlay.net.netlink import Message
    from underlay.net.route import Route
    from underlay.plugins.pod_view import PodView

_LINK_LOCAL = "fe80::/64"


class Migration(msgspec.Struct):
    """The undo entries, and the messages that carry the migration out, in order."""

    entries: list[msgspec.Struct] = msgspec.field(default_factory=list)
    messages: list[Message] = msgspec.field(default_factory=list)


def wanted(setting: int, name: str, before: str, overlay: str = "") -> bool:
    """Whether ``migrate_route`` asks for it: by name, a NIC's routes give way to those of one that comes after it."""
    if setting == hijack.MIGRATE_BY_NAME:
        return nic_table.order(before, overlay) < nic_table.order(name, overlay)
    return setting == hijack.MIGRATE_ALWAYS


def rules(addresses: Iterable[str], table: int) -> list[DropRule]:
    """From each of the addresses (CIDR of one host) to the table."""
    return [DropRule("pod", 6 if ":" in one else 4, table, src=one, priority=wiring.FROM_ADDRESS) for one in addresses]


def plan(view: PodView, name: str, table: int, addresses: Iterable[str], families: Iterable[int] = (4, 6)) -> Migration:
    """Move the NIC ``name``: rules from its ``addresses`` (CIDR of one host) to ``table``, its routes of main copied
    there, its default routes taken out of main.
    """
    migration = Migration()
    for rule in rules(addresses, table):
        migration.entries.append(rule)
        migration.messages += wiring.messages((rule,), {})
    for family in view.routes.keys() & families:
        for one in view.main(family, view.links[name].index):
            if one.type == route.TYPE_UNICAST and one.dst != _LINK_LOCAL:
                _copy(migration, one, name, table)
    return migration


def _copy(migration: Migration, one: Route, name: str, table: int) -> None:
    migration.entries.append(DropRoute("pod", one.dst, table, name, one.gateway))
    migration.messages.append(route_copy.copy(one, table=table))
    if one.is_default:
        migration.entries.append(PutRoute("pod", one.raw.hex(), name))
        migration.messages.append(route_copy.remove(one))
