"""The composition root: every part of the daemon is made here and handed to the others.

    locks ─▶ ledger ─▶ reclaim (what crashed or died) ─▶ spool (what was deleted meanwhile) ─▶ socket ─▶ ready
    SIGTERM ─▶ no new connections ─▶ requests in flight end ─▶ exit 0

Start to ready: 0.3 s, most of it the interpreter's start and the imports.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import sys
import threading
import time
import traceback
from functools import partial
from typing import TYPE_CHECKING

from underlay import __version__
from underlay.cni import shapes
from underlay.daemon import builtin, config, health, pool_desk
from underlay.daemon import pools as address_pools
from underlay.daemon.departures import Departures
from underlay.daemon.handler import Handler
from underlay.daemon.health import Health, Probes
from underlay.daemon.lock import Lock, private_directory
from underlay.daemon.log import Logs
from underlay.daemon.server import Server
from underlay.daemon.spool import Spool
from underlay.daemon.workers import Workers
from underlay.delegate.engine import Engine
from underlay.delegate.exec import Executor
from underlay.delegate.ledger import Ledger
from underlay.delegate.reclaim import Reclaimer
from underlay.errors import StateUnwritable, UnderlayError
from underlay.kube.device_info import DeviceInfo
from underlay.kube.manifests import Manifests
from underlay.kube.pod_resources import PodResources
from underlay.multus.handler import Multus
from underlay.multus.hotplug import HotPlug
from underlay.net.host_root import HostRoot
from underlay.net.remembered import Memory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from types import FrameType

    import msgspec

    from underlay.daemon.cluster_pools import ClusterPools
    from underlay.daemon.config import Settings
    from underlay.daemon.follower import Follower
    from underlay.daemon.frame import Call
    from underlay.kube.access import Access
    from underlay.kube.cluster import Cluster
    from underlay.kube.source import Source

    Blocking = Callable[[], AbstractContextManager[None]]

_SPOOL_SECONDS = _HOTPLUG_SECONDS = 1.0
_SETTLE_SECONDS = 1.0  # that the API server has to say which addresses are this node's, before the socket opens
_M_ARENA_MAX = -8
# Threads that stand in for those that wait for other plugins' processes or slow clients.
_SPARE = 64


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status. Raises UnderlayError when it cannot start."""
    _tune()
    logs = Logs(settings.log)
    private_directory(settings.run_dir)
    run_lock = Lock(settings.run_dir)
    locks = [run_lock, *_state_lock(settings, logs)]
    daemon = Daemon(settings, logs, run_lock)
    signals = _Signals()
    daemon.start()
    logs("info", "ready", run_dir=settings.run_dir, version=__version__, ms=round(_process_age() * 1e3))
    while (number := signals.wait()) == signal.SIGHUP:
        logs.reopen()
        logs("info", "log files reopened")
    signals.exit_on_next()
    logs("info", "stopping", signal=signal.Signals(number).name)
    clean = daemon.stop(time.monotonic() + settings.stop_deadline)
    logs("info" if clean else "warn", "stopped", clean=clean)
    for lock in locks:
        lock.release()
    sys.stdout.flush()
    # Whatever still runs holds nothing that the ledger does not know; the interpreter would wait for it.
    os._exit(0)


class Daemon:
    """All parts together. Used by one thread."""

    def __init__(self, settings: Settings, logs: Logs, run_lock: Lock) -> None:
        self._settings = settings
        self._run_lock = run_lock
        self._log = logs
        self._stopping = threading.Event()
        self._health = Health(__version__)
        self._ledger = Ledger(f"{settings.state_dir}/ledger.db", logs)
        self._workers = Workers(lambda: self._server.serve_one(), size=settings.workers, spare=_SPARE)
        root = HostRoot(settings.chroot_dir)
        manifests = Manifests(settings.manifest_dir, logs)
        access = _access(settings, logs)
        self._cluster = _cluster(access, settings, logs, self._workers.lend)
        source = self._cluster or manifests
        self._cluster_pools = _cluster_pools(access, self._cluster, manifests, settings, logs, self._workers.lend)
        self._pools = self._cluster_pools.plugin if self._cluster_pools else address_pools.embedded(
            settings.state_dir, manifests, logs, rest=settings.pool_rest, node=settings.kube.node_name,
            pods=self._cluster,
        )  # fmt: skip
        engine = self._engine_at(root)
        multus = self._multus(engine, source, root)
        self._reclaimer = Reclaimer(engine)
        departed = self._cluster.departed if self._cluster else tuple
        self._departures = Departures(departed, self._ledger, self._reclaimer.sweep)
        self._hotplug = HotPlug(multus, engine, source, logs)
        self._maintains = threading.Thread(target=self._maintain, name="maintenance", daemon=True)
        self._keeps_pools = threading.Thread(target=self._keep_pools, name="pool-upkeep", daemon=True)
        self._follows_pods = threading.Thread(target=self._follow_pods, name="hotplug", daemon=True)
        self._handler = Handler(
            engine=engine,
            multus=multus,
            builtin=engine.plugins,
            bin_dir=settings.bin_dir,
            health=self._health,
            log=logs,
            desks={pool_desk.PLUGIN: partial(pool_desk.serve, self._pools, source, self._cluster_pools)},
        )
        self._server = Server(
            f"{settings.run_dir}/underlay.sock",
            backlog=settings.queue,
            deadline=settings.deadline,
            handler=self._handler,
            log=logs,
        )
        self._spool = Spool(f"{settings.run_dir}/spool", self._deliver, logs)
        self._probes: Probes | None = None

    def start(self) -> None:
        """Bring the node into the state that the ledger and the spool say, then serve. Raises UnderlayError."""
        shapes.make_ready()
        if self._settings.health_address:
            self._probes = Probes(*config.split_address(self._settings.health_address), self._health.status)
        if self._cluster is not None:
            self._cluster.start()  # its first list arrives while the ledger is gone through
        if self._cluster_pools is not None:
            self._cluster_pools.start()
        private_directory(f"{self._settings.run_dir}/spool")
        self._reclaimer.at_start()
        if self._cluster_pools is not None:
            self._cluster_pools.settle(time.monotonic() + _SETTLE_SECONDS)
        address_pools.reconcile(self._pools, self._ledger, self._log)
        self._health.spooled = self._spool.work_off()
        self._check_ledger()
        self._check_cluster()
        gc.collect()
        gc.freeze()  # what lives now lives as long as the daemon: no collection looks at it again
        self._server.listen(self._workers.lend)
        self._workers.start()
        self._maintains.start()
        if self._cluster_pools is not None:
            self._keeps_pools.start()
        if self._settings.hotplug:
            self._follows_pods.start()
        if self._follower is not None:
            self._follower.start()
        self._health.state = "ready"
        health.notify("READY=1", os.environ.get("NOTIFY_SOCKET"))

    def stop(self, deadline: float) -> bool:
        """Take no new requests and wait for those in flight; whether all of them ended by the deadline."""
        self._health.state = "stopping"
        health.notify("STOPPING=1", os.environ.get("NOTIFY_SOCKET"))
        self._stopping.set()
        if self._follower is not None:
            self._follower.stop()
        self._workers.stop()
        self._server.close()
        clean = self._workers.join(deadline)
        for thread in (self._maintains, self._follows_pods):
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))
            clean = clean and not thread.is_alive()
        if self._probes is not None:
            self._probes.close()
        if self._cluster_pools is not None:
            self._cluster_pools.stop()
            self._keeps_pools.join(max(0.0, deadline - time.monotonic()))
            clean = clean and not self._keeps_pools.is_alive()
        if self._cluster is not None:
            self._cluster.close()
        if clean:
            self._server.release()
            self._ledger.checkpoint()
            self._ledger.close()
            self._pools.close()
        return clean

    def _engine_at(self, root: HostRoot) -> Engine:
        return Engine(
            ledger=self._ledger,
            executor=Executor(
                log=self._log,
                environ=os.environ,
                blocking=self._workers.lend,
                limit=self._settings.delegate_limit,
                root=root,
            ),
            plugins=builtin.plugins(self._pools),
            allocators=builtin.allocators(self._pools, root.locate),
            log=self._log,
            blocking=self._workers.lend,
            memory=Memory(),
        )

    def _multus(self, engine: Engine, source: Source, root: HostRoot) -> Multus:
        settings = self._settings
        return Multus(
            engine,
            source,
            self._log,
            devices=PodResources(
                socket=settings.pod_resources_socket,
                checkpoint=settings.device_checkpoint,
                blocking=self._workers.lend,
            ),
            info=DeviceInfo(self._log, settings.device_info_dir, locate=root.locate),
            conf_dir=settings.conf_dir,
            overrides=self._follow(settings.multus_daemon_config, source),
            hotplug=settings.hotplug,
        )

    def _follow(self, path: str, source: Source) -> Mapping[str, msgspec.Raw] | None:
        """What a file of Multus' own daemon says for every call; makes the thread that keeps 00-multus.conf."""
        self._follower: Follower | None = None
        if not path:
            return None
        from underlay.daemon.follower import Follower  # most daemons have no such file
        from underlay.multus import autoconf, daemon_file, laid

        theirs = daemon_file.load(path)
        for warning in theirs.warnings:
            self._log("warn", f"{path}: {warning}")
        ours, notify = laid.Laid(self._settings.state_dir), partial(source.node_event, "Warning")
        self._follower = Follower(autoconf.Autoconf(theirs.generation, self._log, laid=ours, notify=notify), self._log)
        return theirs.overrides

    def _deliver(self, call: Call, spooled_at: int) -> None:
        self._handler.deliver(call, spooled_at, time.monotonic() + self._settings.deadline)

    def _maintain(self) -> None:
        """What nobody asks for: socket and spool every second, dead sandboxes and the ledger's file every interval."""
        next_sweep = time.monotonic() + self._settings.reclaim_interval
        while not self._stopping.wait(_SPOOL_SECONDS):
            try:
                if not self._server.reachable():
                    self._reappear()
                self._health.spooled = self._spool.work_off()
                self._check_cluster()
                self._departures.look()
                if time.monotonic() >= next_sweep:
                    self._reclaimer.sweep()
                    self._check_ledger()
                    self._ledger.checkpoint()
                    self._pools.tidy()
                    next_sweep = time.monotonic() + self._settings.reclaim_interval
            except Exception:  # the loop is the node's self-healing: it goes on, and the log has the bug
                self._log("error", "maintenance failed", traceback=traceback.format_exc())

    def _keep_pools(self) -> None:
        """What this node owns of address pools."""
        assert self._cluster_pools is not None, "the thread is started with it alone"
        while not self._stopping.is_set():
            try:
                self._cluster_pools.keep(self._stopping.is_set)
            except Exception:  # as above
                self._log("error", "upkeep of address pools failed", traceback=traceback.format_exc())
                self._stopping.wait(_SPOOL_SECONDS)

    def _follow_pods(self) -> None:
        """What a pod's owner changes in its networks annotation while it runs."""
        while not self._stopping.wait(_HOTPLUG_SECONDS):
            try:
                self._hotplug.sweep()
            except Exception:  # as above
                self._log("error", "hot-plug failed", traceback=traceback.format_exc())

    def _reappear(self) -> None:
        """Somebody has removed the run directory, or the socket: without it no shim finds the daemon."""
        try:
            private_directory(self._settings.run_dir)
            self._run_lock.renew()
            private_directory(f"{self._settings.run_dir}/spool")
            self._server.listen(self._workers.lend)
        except UnderlayError as error:
            self._health.fault("socket", error.message)
            self._log("error", "socket is gone", path=self._server.path, error=error.message, hint=error.hint)
        else:
            self._health.fault("socket", "")
            self._log("warn", "socket was gone, made anew", path=self._server.path)

    def _check_ledger(self) -> None:
        self._health.fault("ledger", "" if self._ledger.writable() else f"{self._ledger.path} cannot be written")

    def _check_cluster(self) -> None:
        if self._cluster is not None:
            self._health.fault("kubernetes", self._cluster.fault())


class _Signals:
    """SIGTERM, SIGINT and SIGHUP as numbers to wait for; no handler does any work of its own."""

    def __init__(self) -> None:
        self._pipe, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, _nothing)

    def wait(self) -> int:
        """The next signal's number."""
        return os.read(self._pipe, 1)[0]

    def exit_on_next(self) -> None:
        """A second SIGTERM or SIGINT ends the process at once; the ledger bears it."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _exit_now)


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """Only the number in the pipe counts."""


def _exit_now(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)


def _state_lock(settings: Settings, log: Logs) -> list[Lock]:
    """The state directory's lock, where it can be had: one that cannot be written stops ADD, not the daemon."""
    try:
        private_directory(settings.state_dir)
        return [Lock(settings.state_dir)]
    except StateUnwritable as error:
        log("error", "state directory", error=error.message, hint=error.hint)
        return []


def _access(settings: Settings, log: Logs) -> Access | None:
    """The way to the API server, where one is configured. Raises InvalidConfig or IOFailure for what cannot work."""
    kube = settings.kube
    if not kube.used:
        return None
    from underlay.kube.access import InCluster  # HTTP and TLS are 6 MiB that a daemon of files does not pay for
    from underlay.kube.kubeconfig import Kubeconfig

    return InCluster(os.environ, log) if kube.in_cluster else Kubeconfig(kube.kubeconfig, log, kube.context)


def _cluster(access: Access | None, settings: Settings, log: Logs, blocking: Blocking) -> Cluster | None:
    """The API server's objects."""
    if access is None:
        return None
    from underlay.kube.cluster import Cluster

    return Cluster(access, config.node_name(settings.kube), f"{settings.state_dir}/kube.db", log, blocking=blocking)


def _cluster_pools(
    access: Access | None, pods: Cluster | None, manifests: Manifests, settings: Settings, log: Logs, blocking: Blocking
) -> ClusterPools | None:
    """The address pools of the API server, where those count."""
    if access is None or pods is None or not address_pools.in_cluster(settings, manifests):
        return None
    from underlay.daemon.cluster_pools import ClusterPools

    node, rest = config.node_name(settings.kube), settings.pool_rest
    return ClusterPools(access, settings.state_dir, node, log, rest=rest, pods=pods, blocking=blocking)


def _tune() -> None:
    """Few malloc arenas, since every thread would get 64 MiB of address space and its own garbage; many descriptors."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none, and needs none
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _process_age() -> float:
    """Seconds since the kernel started this process (proc(5), stat field 22)."""
    with open("/proc/self/stat", "rb") as file:
        ticks = int(file.read().rpartition(b")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
