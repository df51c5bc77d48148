"""The host-local IPAM plugin: addresses out of ranges, reserved in files of this node.

One ADD: check the section, choose a free address of every range set under the lock, write down how to give them back,
reserve them. Budget: 120 µs, of which the files take a third.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import msgspec

from underlay.cni.address import Address, parse_prefix, text
from underlay.cni.config import decode
from underlay.cni.result import DNS, NO_DNS, IPConfig, Result, Route
from underlay.errors import CheckFailed, InvalidConfig, NoAddressLeft, NotAvailable
from underlay.ipam import requested, store, undo
from underlay.ipam.allocate import assign, candidates
from underlay.ipam.allocator import as_written
from underlay.ipam.ranges import RangeSection, parse_sets, show
from underlay.ipam.section import check_count, check_routes
from underlay.ipam.undo import Release

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from underlay.cni.config import PluginConfig
    from underlay.ipam.allocator import Holder, Keep
    from underlay.ipam.ranges import Range, RangeSet

DATA_DIR: Final = "/var/lib/cni/networks"
_RANGE_SETS = list[list[RangeSection]]


class _Section(RangeSection, frozen=True, rename="camel"):
    ranges: list[list[RangeSection]] | None = None
    routes: tuple[Route, ...] | None = None
    data_dir: str | None = None
    resolv_conf: str | None = None


class _Keys(msgspec.Struct, frozen=True):
    ipam: _Section


class _Place(msgspec.Struct, frozen=True, rename="camel"):
    data_dir: str | None = None


class _PlaceKeys(msgspec.Struct, frozen=True):
    ipam: _Place


class Pool(msgspec.Struct, frozen=True):
    """A checked section: the directory of the network and what may be given out of it."""

    data_dir: str
    network: str
    sets: tuple[RangeSet, ...]
    routes: tuple[Route, ...]
    resolv_conf: str

    @property
    def directory(self) -> str:
        """Where the network's reservations are."""
        return f"{self.data_dir}/{self.network}"


class _Choice(msgspec.Struct, frozen=True):
    index: int
    range: Range
    address: str


def read(conf: PluginConfig) -> Pool:
    """The "ipam" section of a configuration, checked. Raises InvalidConfig naming the field."""
    if conf.runtime.get("ipRanges"):
        given = requested.convert(conf.runtime["ipRanges"], _RANGE_SETS, "runtimeConfig.ipRanges")
        written = [(f"runtimeConfig.ipRanges[{n}]", one) for n, one in enumerate(given)]
        return _read(conf.raw, conf.version, conf.name, written)
    return _read_again(conf.raw, conf.version, conf.name)


@lru_cache(maxsize=64)
def _read_again(raw: bytes, version: str, name: str) -> Pool:
    """Pods come with the same configuration again and again; checking it is a fifth of an ADD's time here."""
    return _read(raw, version, name, [])


def _read(raw: bytes, version: str, name: str, written: list[tuple[str, list[RangeSection]]]) -> Pool:
    section = decode(raw, _Keys).ipam
    if section.subnet:
        written.append(("ipam", [section]))
    written += ((f"ipam.ranges[{n}]", one) for n, one in enumerate(section.ranges or ()))
    if not written:
        raise InvalidConfig(
            '"ipam" names no range of addresses', hint='Give "ipam.subnet" or "ipam.ranges", such as "10.1.0.0/16".'
        )
    sets, routes = parse_sets(written), section.routes or ()
    check_routes(routes)
    check_count(version, [ranges[0].family for ranges in sets])
    return Pool(data_dir(section.data_dir), name, sets, routes, section.resolv_conf or "")


def data_dir(written: str | None) -> str:
    """The checked "dataDir" of a section: the directory that holds one of every network."""
    path = written or DATA_DIR
    if not path.startswith("/") or "\0" in path:
        raise InvalidConfig(f'"ipam.dataDir" {path[:60]!r} is no absolute path')
    return path.rstrip("/")


def store_of(conf: PluginConfig) -> str:
    """The directory of the reservations that a configuration makes; nothing else of its section needs to be right."""
    return f"{data_dir(decode(conf.raw, _PlaceKeys).ipam.data_dir)}/{conf.name}"


class HostLocal:
    """The plugin; holds no state, all of it is in the files.

    ``locate`` says where a path of the node is for this process, whose own root may be a container's.
    """

    name: Final = "host-local"
    keys: Final = _Keys

    def __init__(self, locate: Callable[[str], str] = as_written) -> None:
        self._locate = locate

    def parse(self, conf: PluginConfig, args: Mapping[str, str]) -> Pool:
        """The checked section, its range sets known to serve every address that is asked for."""
        return _plan(conf, args)[0]

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
        """Reserve one address of every range set.

        Raises NoAddressLeft, InvalidConfig, StateUnwritable, DeadlineExceeded.
        """
        pool, wanted = _plan(conf, args)
        dns = read_resolv_conf(self._locate(pool.resolv_conf)) if pool.resolv_conf else NO_DNS
        with store.Store(self._locate(pool.directory), deadline) as locked:
            surely = False  # to look costs 30 us, and the next address in turn is rarely taken
            while True:
                choices = [_choose(pool, locked, n, one, surely=surely) for n, one in enumerate(wanted)]
                addresses = tuple(choice.address for choice in choices)
                record(Release(self.name, pool.data_dir, pool.network, *holder, addresses))
                if _reserve(locked, choices, holder):
                    break
                surely = True
        ips = tuple(
            IPConfig(f"{choice.address}/{choice.range.length}", text(choice.range.family, choice.range.gateway))
            for choice in choices
        )
        return Result(ips=ips, routes=pool.routes, dns=dns)

    def check(self, conf: PluginConfig, holder: Holder, args: Mapping[str, str]) -> None:
        """Raise CheckFailed unless every address of prevResult that lies in our ranges is still held, one at least."""
        pool = read(conf)
        directory = self._locate(pool.directory)
        ours = [ip.address.partition("/")[0] for ip in (conf.prev.ips if conf.prev else ()) if _in_pool(ip, pool)]
        for address in ours:
            if not store.holds(directory, holder, address):
                raise CheckFailed(f"{pool.directory}: {address} is not reserved for container {holder.container_id}")
        if not ours and (conf.prev is not None or not store.held(directory, holder)):
            raise CheckFailed(f"{pool.directory}: no address is reserved for container {holder.container_id}")

    def delete(self, conf: PluginConfig, holder: Holder, *, deadline: float) -> None:
        """Give back everything of the holder."""
        store.release(self._locate(store_of(conf)), holder, deadline=deadline)

    def release(self, entry: Release, *, deadline: float) -> None:
        """Give back the reservations that the entry names."""
        undo.release(entry, deadline=deadline, locate=self._locate)

    def status(self, conf: PluginConfig) -> None:
        """Raise NotAvailable where the directory cannot be written, InvalidConfig for a wrong section."""
        path = self._locate(read(conf).directory)
        while not os.path.isdir(path) and path not in ("", "/"):
            path = os.path.dirname(path)
        if not os.access(path, os.W_OK):
            raise NotAvailable(f"host-local cannot write {path}")

    def gc(self, conf: PluginConfig, keep: Keep, *, deadline: float) -> None:
        """Give back the network's reservations that none of ``keep`` (container id, interface name) holds."""
        store.collect(self._locate(store_of(conf)), keep, deadline=deadline)


HOST_LOCAL: Final = HostLocal()


def _plan(conf: PluginConfig, args: Mapping[str, str]) -> tuple[Pool, list[tuple[Range, Address] | None]]:
    """What may be given out, and for every range set the address asked for. Raises InvalidConfig, NoAddressLeft."""
    pool = read(conf)
    wishes = (*requested.from_args(args, "IP"), *requested.from_cni_args(conf), *requested.from_runtime(conf))
    return pool, assign(pool.sets, [wish.address() for wish in wishes])


def _choose(
    pool: Pool, locked: store.Store, index: int, wanted: tuple[Range, Address] | None, *, surely: bool
) -> _Choice:
    """A free address of range set ``index``: the wanted one, or the next, unless ``surely`` without a look at it."""
    if wanted is not None:
        address = str(wanted[1])
        if locked.is_free(address):
            return _Choice(index, wanted[0], address)
        raise NoAddressLeft(
            f'the requested address {address} of network "{pool.network}" is taken by '
            + store.holder_of(locked.directory, address),
            hint="Request another address, or delete the container that holds it.",
        )
    for one, value in candidates(pool.sets[index], locked.last(index)):
        address = text(one.family, value)
        if not surely or locked.is_free(address):
            return _Choice(index, one, address)
    raise NoAddressLeft(
        f'no free address in range set {index} ({show(pool.sets[index])}) of network "{pool.network}"',
        hint=f"Enlarge the range, or free addresses of containers that are gone: {pool.directory} lists the holders.",
    )


def _reserve(locked: store.Store, choices: Sequence[_Choice], holder: Holder) -> bool:
    """Take all addresses or none; False where one of them is taken."""
    taken: list[str] = []
    try:
        for choice in choices:
            if not locked.reserve(choice.address, holder):
                return False
            taken.append(choice.address)
    finally:
        if len(taken) < len(choices):
            locked.give_back(taken, holder)
    for choice in choices:
        locked.remember(choice.index, choice.address)
    return True


def _in_pool(ip: IPConfig, pool: Pool) -> bool:
    prefix = parse_prefix(ip.address)
    if prefix is None:
        return False
    address = Address(prefix.family, prefix.value)
    return any(one.holds(address) for ranges in pool.sets for one in ranges)


def read_resolv_conf(path: str) -> DNS:
    """The resolver settings of a file in the form of resolv.conf(5). Raises InvalidConfig."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [words for line in file if (words := _words(line))]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise InvalidConfig(f'"ipam.resolvConf" {path[:120]!r}: {reason}') from error
    domain = [words[1] for words in lines if words[0] == "domain"]
    return DNS(
        nameservers=tuple(words[1] for words in lines if words[0] == "nameserver"),
        domain=domain[-1] if domain else "",
        search=tuple(name for words in lines if words[0] == "search" for name in words[1:]),
        options=tuple(option for words in lines if words[0] == "options" for option in words[1:]),
    )


def _words(line: str) -> list[str]:
    words = line.split()
    return words if len(words) > 1 and words[0][0] not in "#;" else []
