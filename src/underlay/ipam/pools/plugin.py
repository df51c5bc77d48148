"""The IPAM plugin ``spiderpool``: one address of each family that the pod's pools are of.

    ADD   section ─▶ pod, pools ─▶ choose ─▶ take (memory) ─▶ probe (optional) ─▶ record ─▶ confirm (disk) ─▶ result

The undo entry is in the ledger before the lease is on the disk, and that before anybody hears of the address: whatever
the moment of a crash, the address is taken back once. An ADD for a NIC that holds addresses already returns those.
Budget: 150 µs without the probe, however many addresses are taken.
"""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Final, Protocol

from underlay.cni.address import Address, parse
from underlay.cni.result import IPConfig, Result, Route
from underlay.errors import (
    AddressInUse,
    CheckFailed,
    GatewaySilent,
    NoAddressLeft,
    NotAvailable,
    PoolMissing,
    StateUnwritable,
    TryAgain,
)
from underlay.ipam.pools import section as sections
from underlay.ipam.pools.choose import Ask, choose
from underlay.ipam.pools.cuts import Cuts
from underlay.ipam.pools.intervals import holds
from underlay.ipam.pools.lease import CLAIM, HELD, Lease
from underlay.ipam.pools.surroundings import Subject
from underlay.ipam.section import check_count
from underlay.ipam.undo import Release

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from underlay.cni.config import PluginConfig
    from underlay.ipam.allocator import Holder, Keep
    from underlay.ipam.pools.applications import ApplicationPools
    from underlay.ipam.pools.choose import Choice
    from underlay.ipam.pools.journal import Journal
    from underlay.ipam.pools.leases import Leases
    from underlay.ipam.pools.objects import Pool
    from underlay.ipam.pools.section import Section
    from underlay.ipam.pools.surroundings import Catalogue, Surroundings

CLAIM_ARG: Final = "ipam-claim-reference"
CONFLICT: Final = "IPConflict"  # the Event's reason
_ASIDE_SECONDS: Final = 600.0
_CONFLICTS: Final = 8  # addresses set aside for one ADD, before it gives up
_NO_POD: Final = Subject("", "", known=False)
_NOBODY: Final = Address(0, 0)
_DEFAULT: Final = {4: "0.0.0.0/0", 6: "::/0"}


class Wire(Protocol):
    """Asks the hosts on the wire that a configuration's NIC is on."""

    def conflicts(self, conf: PluginConfig, addresses: Sequence[str], deadline: float) -> Mapping[str, str]:
        """Those of ``addresses`` that another host uses, with its MAC. Both families at once, 120 ms at most."""

    def silent(self, conf: PluginConfig, gateways: Sequence[str], deadline: float) -> Sequence[str]:
        """Those of ``gateways`` that do not answer. Both families at once, 120 ms at most."""


class Teller(Protocol):
    """Tells a pod's owner what happened. Returns at once, and raises nothing."""

    def __call__(self, pod: str, uid: str, reason: str, message: str, /) -> None:
        """``pod`` is "namespace/name", ``uid`` its UID or ""; ``reason`` is one CamelCase word."""


def nobody(_pod: str, _uid: str, _reason: str, _message: str, /) -> None:
    """A Teller where pods have no owner that could be told."""


class Spiderpool(sections.Parsing):
    """The plugin. Thread-safe. ``log(level, event, **fields)``, with ``to=LogOptions`` into that file as well; ``tell``
    tells the pod's owner of addresses that the network's hosts have taken without asking; ``applications`` is where
    pools of applications' own come from, which this node cuts itself otherwise.
    """

    def __init__(
        self,
        leases: Leases,
        journal: Journal,
        surroundings: Surroundings,
        *,
        boot: str,
        log: Callable[..., None],
        wire: Wire | None = None,
        tell: Teller = nobody,
        applications: ApplicationPools | None = None,
    ) -> None:
        self.leases = leases
        self.surroundings = surroundings
        self.cuts: ApplicationPools = applications or Cuts(journal)
        self._journal = journal
        self._boot = boot
        self._log = log
        self._wire = wire
        self._tell = tell
        self._following = threading.Lock()

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
        """Hold one address of each family.

        Raises PoolMissing, NoAddressLeft, InvalidConfig, InvalidAnnotation, StateUnwritable, TryAgain, AddressInUse,
        GatewaySilent.
        """
        section = sections.read(conf)
        catalogue = self.follow()
        subject = self._subject(args, deadline)
        first = not self.leases.other_nics(*holder)
        choice = choose(Ask(subject, holder.ifname, first, network, section.v4, section.v6), catalogue)
        held = self.leases.of(*holder)
        if not held:
            who = self._who(conf, holder, subject, args)
            pools, pending, catalogue = self._pending(choice, subject, who, catalogue, conf, deadline)
            held = self._hold(pending, who, pools, conf, section, record, deadline)
            shown = {lease.shown: lease.pool for lease in held}
            self._log("info", "addresses held", to=section.log, pod=subject.shown, container=holder.container_id,
                      ifname=holder.ifname, rule=choice.rule, addresses=shown)  # fmt: skip
        return self._result(held, choice, catalogue)

    def check(self, conf: PluginConfig, holder: Holder, args: Mapping[str, str]) -> None:
        """Raise CheckFailed unless prevResult says what the NIC holds, with its pools' prefix and gateway."""
        catalogue = self.follow()
        held = self.leases.of(*holder)
        if not held:
            raise CheckFailed(f"container {holder.container_id} holds no address of a pool for {holder.ifname}")
        if conf.prev is None:
            return
        listed = {ip.address: ip for ip in conf.prev.ips}
        for lease in held:
            pool = self._pool_of(lease, catalogue)
            if pool is None:
                raise CheckFailed(f"{lease.shown} is of pool {lease.pool!r}, which does not exist any more")
            ip = listed.get(f"{lease.shown}/{pool.subnet.length}")
            if ip is None:
                raise CheckFailed(f"prevResult does not list {lease.shown}/{pool.subnet.length} of pool {pool.name!r}")
            if ip.gateway != pool.gateway and parse(ip.gateway) != parse(pool.gateway):
                raise CheckFailed(f"prevResult has gateway {ip.gateway!r}, pool {pool.name!r} has {pool.gateway!r}")

    def delete(self, conf: PluginConfig, holder: Holder, *, deadline: float) -> None:
        """Give back what the container's NIC holds. Raises StateUnwritable."""
        self._released(self.leases.release(*holder), "DEL")

    def release(self, entry: Release, *, deadline: float) -> None:
        """Carry an undo entry out: of its addresses, those that the NIC still holds. Raises StateUnwritable."""
        addresses = frozenset(address for one in entry.addresses if (address := parse(one)) is not None)
        self._released(self.leases.release(entry.container_id, entry.ifname, addresses), "undo")

    def status(self, conf: PluginConfig) -> None:
        """Raise NotAvailable where no pool that the configuration or the cluster names has room for a pod."""
        section = sections.read(conf)
        catalogue = self.follow()
        names: Sequence[str] = list(catalogue.pools)  # pods and namespaces may name any
        named = bool(section.v4 or section.v6)
        if named:
            try:
                choice = choose(Ask(_NO_POD, "eth0", True, "", section.v4, section.v6), catalogue)
            except PoolMissing as error:
                raise NotAvailable(error.message, hint=error.hint) from error
            names = [name for family in choice.pools.values() for name in family]
        usable = [pool for name in names if not (pool := catalogue.pools[name]).disabled and not pool.terminating]
        if not usable and not catalogue.subnets:
            unread = f"; not read: {catalogue.faults[0]}" if catalogue.faults else ""
            raise NotAvailable(f"there is no address pool that can be used{unread}", hint="Create a SpiderIPPool.")
        more = bool(catalogue.subnets) and not named  # pools may yet be cut; those of applications may well be full
        if usable and not more and not any(self.leases.room(pool) for pool in usable):
            full = ", ".join(repr(pool.name) for pool in usable)
            raise NotAvailable(f"no address is free in {full}", hint="Enlarge a pool, or delete pods.")

    def gc(self, conf: PluginConfig, keep: Keep, *, deadline: float) -> None:
        """Give back what containers of this network hold that ``keep`` does not list."""
        network = conf.name
        gone = self.leases.release_all(
            lambda lease: lease.network == network and (lease.container_id, lease.ifname) not in keep
        )
        self._released(gone, "GC")

    # -- for the daemon ------------------------------------------------------------------------------------------------

    def follow(self) -> Catalogue:
        """Have the leases follow the pools as they are now; returns those."""
        catalogue = self.surroundings.catalogue()
        if not self.leases.follows(catalogue):
            with self._following:
                catalogue = self.surroundings.catalogue()  # another thread may follow newer ones by now
                self.cuts.follow(catalogue, self.leases)
        return catalogue

    def after_reboot(self, keep: frozenset[tuple[str, str]]) -> None:
        """Give back what containers of an earlier boot held, but for ``keep`` (container id, interface)."""
        gone = self.leases.release_all(
            lambda lease: lease.boot != self._boot and (lease.container_id, lease.ifname) not in keep
        )
        self._released(gone, "earlier boot")

    def restore(self, leases: Sequence[Lease]) -> None:
        """Hold what the attachments' ledger knows to be held and our own file does not, which was damaged or lost."""
        catalogue = self.follow()
        pools = [*catalogue.pools.values(), *self.cuts.pools(catalogue)]

        def pool_of(lease: Lease) -> str:
            fits = (one.name for one in pools if one.family == lease.family and holds(one.ranges, lease.value))
            return next(fits, "")

        for lease in self.leases.restore([lease._replace(pool=pool_of(lease)) for lease in leases]):
            self._log("warn", "address held by a pod was not in the pools' file", address=lease.shown, pod=lease.pod,
                      container=lease.container_id)  # fmt: skip

    def close(self) -> None:
        """Close the file."""
        self._journal.close()

    def tidy(self) -> None:
        """What is kept for pods that are gone becomes free, pools of applications that are gone end."""
        catalogue = self.follow()
        self._journal.checkpoint()
        try:
            for lease in self.leases.tidy(self.surroundings.wanted):
                self._log("info", "kept address freed", address=lease.shown, pool=lease.pool, keeper=lease.keeper)
            for name in self.cuts.tidy(self.leases, catalogue):
                self._log("info", "application's pool ended", pool=name)
        except StateUnwritable as error:
            self._log("warn", "pools cannot be tidied", error=error.message)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _subject(self, args: Mapping[str, str], deadline: float) -> Subject:
        namespace, name = args.get("K8S_POD_NAMESPACE", ""), args.get("K8S_POD_NAME", "")
        if not namespace or not name:
            return _NO_POD
        return self.surroundings.subject(namespace, name, args.get("K8S_POD_UID", ""), deadline)

    def _who(self, conf: PluginConfig, holder: Holder, subject: Subject, args: Mapping[str, str]) -> Lease:
        claim = conf.cni_args.get(CLAIM_ARG)
        keeper = f"{CLAIM}/{subject.namespace}/{claim}" if claim else subject.keeper
        uid = args.get("K8S_POD_UID", "") or subject.uid
        return Lease(_NOBODY, "", HELD, uid, holder.container_id, holder.ifname, subject.shown, keeper, conf.name,
                     self._boot, time.time_ns())  # fmt: skip

    def _pending(
        self, choice: Choice, subject: Subject, who: Lease, catalogue: Catalogue, conf: PluginConfig, deadline: float
    ) -> tuple[Mapping[int, Sequence[Pool]], list[Lease], Catalogue]:
        """Pools, an address of each family, and the catalogue that they are of. A pool of the application's own that
        others make, or make larger, is waited for.
        """
        patience = min(deadline, time.monotonic() + self.cuts.patience) if choice.subnets else 0.0
        while True:
            last = time.monotonic() >= patience
            try:
                with self.cuts.choosing() if choice.subnets else nullcontext():
                    pools = self._pools(choice, subject, who, catalogue)
                    check_count(conf.version, list(pools))
                    return pools, self._take(who, pools, deadline, patient=last), catalogue
            except (TryAgain, NoAddressLeft):
                if last:
                    raise
            self.cuts.pause()
            catalogue = self.follow()

    def _pools(
        self, choice: Choice, subject: Subject, who: Lease, catalogue: Catalogue
    ) -> Mapping[int, Sequence[Pool]]:
        if choice.subnets:
            return self.cuts.serve(choice, subject, who, catalogue, self.leases)
        return {family: [catalogue.pools[name] for name in names] for family, names in choice.pools.items()}

    def _take(self, who: Lease, pools: Mapping[int, Sequence[Pool]], deadline: float, *, patient: bool) -> list[Lease]:
        pending: list[Lease] = []
        try:
            for family in sorted(pools):
                pending.append(self.leases.take(pools[family], who, deadline, patient=patient))  # noqa: PERF401 - one may fail
        except BaseException:
            self.leases.abandon(pending)
            raise
        return pending

    def _hold(
        self, pending: list[Lease], who: Lease, pools: Mapping[int, Sequence[Pool]], conf: PluginConfig,
        section: Section, record: Callable[[Release], None], deadline: float,
    ) -> list[Lease]:  # fmt: skip
        try:
            if self._wire is not None and (section.detect_conflict or section.detect_gateway):
                self._probe(pending, who, pools, conf, section, deadline)
            addresses = tuple(lease.shown for lease in pending)
            record(Release(self.name, "", "", who.container_id, who.ifname, addresses))
        except BaseException:
            self.leases.abandon(pending)
            raise
        self.leases.confirm(pending)
        return pending

    def _probe(
        self, pending: list[Lease], who: Lease, pools: Mapping[int, Sequence[Pool]], conf: PluginConfig,
        section: Section, deadline: float,
    ) -> None:  # fmt: skip
        """Replace what others use by the next address; changes ``pending``."""
        assert self._wire is not None
        by_name = {pool.name: pool for several in pools.values() for pool in several}
        if section.detect_gateway:
            gateways = sorted({gateway for lease in pending if (gateway := by_name[lease.pool].gateway)})
            silent = self._wire.silent(conf, gateways, deadline)
            if silent:
                raise GatewaySilent(f"gateway {silent[0]} does not answer on the wire of network {conf.name!r}")
        unasked = list(pending) if section.detect_conflict else []
        aside = 0
        while unasked:
            found = self._wire.conflicts(conf, [lease.shown for lease in unasked], deadline)
            unasked = []
            for n, lease in enumerate(pending):
                mac = found.get(lease.shown)
                if mac is None:
                    continue
                aside += 1
                self._log("warn", "address in use by a host outside", to=section.log, address=lease.shown, mac=mac,
                          pool=lease.pool, pod=lease.pod)  # fmt: skip
                last = aside > _CONFLICTS
                if not last:
                    self.leases.set_aside(lease, mac, _ASIDE_SECONDS)
                if lease.pod:
                    self._tell(lease.pod, lease.uid, CONFLICT, _conflict(lease, mac, last=last))
                if last:
                    raise AddressInUse(f"{lease.shown} is used by {mac}, and so were {_CONFLICTS} addresses before it")
                pending[n] = self.leases.take(pools[lease.family], who, deadline)
                unasked.append(pending[n])

    def _result(self, held: Sequence[Lease], choice: Choice, catalogue: Catalogue) -> Result:
        ips: list[IPConfig] = []
        routes: dict[str, Route] = {}
        families = {lease.family for lease in held}
        for route in choice.routes:
            if (6 if ":" in route.dst else 4) in families:
                routes.setdefault(route.dst, route)
        for lease in held:
            pool = self._pool_of(lease, catalogue)
            if pool is None:
                raise TryAgain(f"pool {lease.pool!r} has gone since {lease.shown} was taken from it")
            gateway = str(parse(pool.gateway) or "")
            ips.append(IPConfig(f"{lease.shown}/{pool.subnet.length}", gateway))
            for route in pool.routes:
                routes.setdefault(route.dst, route)
            if gateway and not choice.clean_gateway:
                routes.setdefault(_DEFAULT[lease.family], Route(_DEFAULT[lease.family], gateway))
        return Result(ips=tuple(ips), routes=tuple(routes.values()))

    def _pool_of(self, lease: Lease, catalogue: Catalogue) -> Pool | None:
        found = catalogue.pools.get(lease.pool)
        return found or next((pool for pool in self.cuts.pools(catalogue) if pool.name == lease.pool), None)

    def _released(self, leases: Sequence[Lease], why: str) -> None:
        for lease in leases:
            self._log("debug", "address given back", address=lease.shown, pool=lease.pool, pod=lease.pod, why=why,
                      kept_for=lease.keeper)  # fmt: skip


def _conflict(lease: Lease, mac: str, *, last: bool) -> str:
    """``last``: no further address is tried."""
    then = (
        f"so were {_CONFLICTS} addresses before it; no further one is tried"
        if last
        else f"is set aside for {_ASIDE_SECONDS / 60:.0f} minutes; the next address is tried"
    )
    what = f"{lease.shown} of pool {lease.pool!r} is in use by {mac} outside, and {then}."
    return f"{what} Find that host, or exclude the address."
