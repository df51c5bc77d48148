"""What a pod's namespace holds when a meta-plugin is called: read once, decided upon, then changed."""

from __future__ import annotations

from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Final

import msgspec

from underlay.net import addr, link, route, rule

if TYPE_CHECKING:
    from collections.abc import Collection

    from underlay.net.link import Link
    from underlay.net.netns import Namespace
    from underlay.net.route import Route
    from underlay.net.rule import Rule

FAMILIES: Final = {4: AF_INET, 6: AF_INET6}


class PodView(msgspec.Struct, frozen=True):
    """Links by name, global addresses by link name (with their lengths), routes of all tables and rules by family."""

    links: dict[str, Link]
    addresses: dict[str, list[str]]
    routes: dict[int, list[Route]]
    rules: dict[int, list[Rule]]

    def tables(self) -> set[int]:
        """The tables that hold routes, or that rules point to."""
        used = {one.table for routes in self.routes.values() for one in routes}
        return used | {one.table for rules in self.rules.values() for one in rules}

    def main(self, family: int, dev: int) -> list[Route]:
        """The routes of table main that leave by the device, each next hop of an IPv6 multipath route as one."""
        return [
            single
            for one in self.routes[family]
            if one.table == route.MAIN
            for single in _singles(one)
            if single.dev == dev and all(hop.dev == dev for hop in single.nexthops)
        ]

    def ours(self, family: int) -> list[Rule]:
        """The rules that this program made."""
        return [one for one in self.rules[family] if one.protocol == route.PROTOCOL]

    def of_family(self, name: str, family: int) -> list[str]:
        """A link's global addresses of one family, with their lengths."""
        return [one for one in self.addresses.get(name, ()) if (":" in one) == (family == 6)]


def read(pod: Namespace, families: Collection[int]) -> PodView:
    """Read the namespace; raises KernelError."""
    links = {one.name: one for one in link.dump(pod.rtnl)}
    names = {one.index: name for name, one in links.items()}
    addresses: dict[str, list[str]] = {}
    for family in families:
        for each in addr.dump(pod.rtnl, family=FAMILIES[family], scope=addr.SCOPE_GLOBAL):
            addresses.setdefault(names.get(each.index, ""), []).append(each.address)
    return PodView(
        links=links,
        addresses=addresses,
        routes={family: route.dump(pod.rtnl, family=FAMILIES[family]) for family in families},
        rules={family: rule.dump(pod.rtnl, family) for family in families},
    )


def _singles(one: Route) -> list[Route]:
    """An IPv6 multipath route as the routes that the kernel keeps it as; any other as it is.

    IPv6 deletes and adds single next hops (ip6_route_del), IPv4 only the whole.
    """
    if not one.nexthops or one.family != AF_INET6:
        return [one]
    return [
        route.parse(
            route.add(
                one.dst,
                dev=hop.dev,
                via=hop.gateway,
                table=one.table,
                priority=one.priority,
                mtu=one.mtu,
                advmss=one.advmss,
                protocol=one.protocol,
            ).body
        )
        for hop in one.nexthops
    ]
