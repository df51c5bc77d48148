"""Settings of the IP stacks that attachments need: rp_filter, disable_ipv6, accept_ra.

Source: the kernel's Documentation/networking/ip-sysctl.rst.

rp_filter is read by one netlink dump for all interfaces and written only where it differs. A new interface starts with
the namespace's ``default``, so that is set before interfaces are made.
"""

from __future__ import annotations

import errno
import os
from functools import partial
from typing import TYPE_CHECKING, Final

from underlay.errors import KernelError
from underlay.net import link, remembered, sysctl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from underlay.net.netconf import Key
    from underlay.net.netns import Namespace
    from underlay.net.undo import UndoLog


_IPV6: Final = "/proc/sys/net/ipv6/conf"


def set_rp_filter(ns: Namespace, value: int, undo: UndoLog) -> None:
    """Set net.ipv4.conf.*.rp_filter for ``all``, ``default`` and every interface of the namespace.

    The old values come back only when the request fails: others may rely on the new ones by the time of DEL.
    """
    other = remembered.rp_filter_other_than(ns, value)
    if not other:
        return
    paths = [(f"net/ipv4/conf/{name}/rp_filter", old) for name, old in _named(ns, other)]
    undo.on_rollback(partial(_write_existing, ns, paths))
    _write_existing(ns, [(path, value) for path, _ in paths])


def differing_rp_filter(ns: Namespace, value: int) -> list[str]:
    """The interfaces (or "all", "default") of the namespace whose rp_filter is another."""
    other = remembered.rp_filter_other_than(ns, value)
    return [name for name, _ in _named(ns, other)]


def enable_ipv6(ns: Namespace, names: Sequence[str], undo: UndoLog) -> None:
    """Set disable_ipv6 to 0 for these interfaces of the namespace; "all" sets every existing one.

    The old values come back when the request fails.
    """
    with ns.entered():
        if all(_ipv6_disabled(name) == "0" for name in names):
            return
        old = {name: _ipv6_disabled(name) for name in (os.listdir(_IPV6) if "all" in names else names)}
        undo.on_rollback(partial(_disable_ipv6, ns, old))
        for name in names:
            sysctl.write(f"net/ipv6/conf/{name}/disable_ipv6", 0)


def _ipv6_disabled(name: str) -> str:
    return sysctl.read(f"net/ipv6/conf/{name}/disable_ipv6")


def _disable_ipv6(ns: Namespace, old: dict[str, str]) -> None:
    """Put values back. "all" would take the addresses of every interface, so it only is where every one was off."""
    if any(value == "0" for value in old.values()):
        old = {name: value for name, value in old.items() if name != "all"}
    _write_existing(ns, [(f"net/ipv6/conf/{name}/disable_ipv6", int(value)) for name, value in old.items()])


def refuse_advertisements(ns: Namespace, name: str) -> None:
    """Ignore router advertisements on an interface, to be called before it is up (CVE-2020-10749).

    Whoever can send on the wire could otherwise become its default router. What is not accepted configures no address
    either, so autoconf can stay as it is. A kernel without IPv6 has nothing to set.
    """
    try:
        with ns.entered():
            sysctl.write_new(f"net/ipv6/conf/{name}/accept_ra", 0)
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise


def _named(ns: Namespace, values: dict[Key, int]) -> list[tuple[str, int]]:
    """The values by interface name. Interfaces that went away meanwhile are left out."""
    named: list[tuple[str, int]] = [(key, old) for key, old in values.items() if isinstance(key, str)]
    for key, old in values.items():
        found = link.get_index(ns.rtnl, key) if isinstance(key, int) else None
        if found is not None:
            named.append((found.name, old))
    return named


def _write_existing(ns: Namespace | None, settings: Sequence[tuple[str, int]]) -> None:
    """Write settings, but not those of interfaces that are gone."""
    if ns is not None:
        with ns.entered():
            _write_existing(None, settings)
        return
    for path, value in settings:
        try:
            sysctl.write(path, value)
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
