"""The `multus` plugin: a pod's NICs, all of them, or none.

    request ─▶ config ─▶ pod ─▶ plan ─▶ engine session: add, add, add, settle ─▶ network-status ─▶ the first's result

ADD decides everything before it touches anything. DEL, CHECK and GC work from the ledger alone: pod, networks and
configuration may be gone or changed since.

Budget of this layer's own share of an ADD (configuration and annotation seen before, pod and one network): 200 us.
"""

from __future__ import annotations

import threading
import time
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final

from underlay.cni import config as cni
from underlay.cni.request import Verb
from underlay.cni.result import Result
from underlay.cni.versions import check_verb
from underlay.delegate.attachment import Origin, Sandbox
from underlay.delegate.report import Report
from underlay.errors import (
    InvalidEnvironment,
    LimitedConnectivity,
    NotAvailable,
    PodMismatch,
    StateUnwritable,
    TryAgain,
    UnderlayError,
)
from underlay.kube.inotify import wait_for_file
from underlay.kube.objects import Pod
from underlay.multus import config as configuration
from underlay.multus import events, status
from underlay.multus.devices import PodDevices
from underlay.multus.networks import ConfigFiles, Networks
from underlay.multus.plan import configured, named, plan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import msgspec

    from underlay.cni.request import Request
    from underlay.delegate.attachment import Attachment
    from underlay.delegate.engine import Engine, Recorded, Session
    from underlay.kube.device_info import DeviceInfo
    from underlay.kube.devices import Devices
    from underlay.kube.source import Log, Source
    from underlay.multus.changes import Attached
    from underlay.multus.config import MultusConfig
    from underlay.multus.plan import Plan

OWNER: Final = "multus"
CONF_DIR: Final = "/etc/cni/multus/net.d"
_CONFIGS: Final = 64
_UNREADY_HINT: Final = "The cluster network's own daemon writes that file; see why it does not run on this node."
_READY_WAIT: Final = 10.0  # seconds; the runtime comes again
_LOOK_UP: Final = 1.0  # seconds for a network's name, where only the API server knows whether it is a definition
_READY_WAITERS: Final = 32  # calls at a time; every one is a thread, and the others find some left


class Multus:
    """All verbs of the plugin. Thread-safe. ``conf_dir`` counts where a configuration names none; ``devices`` are those
    of the node's pods, ``info`` the files about them; ``overrides``, keys of the multus configuration, count over those
    of every call; with ``hotplug`` the ledger keeps what :class:`~underlay.multus.hotplug.HotPlug` needs.
    """

    owner: Final = OWNER

    def __init__(
        self, engine: Engine, source: Source, log: Log, *, devices: Devices, info: DeviceInfo, conf_dir: str = CONF_DIR,
        overrides: Mapping[str, msgspec.Raw] | None = None, hotplug: bool = False,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._source = source
        self._log = log
        self._devices = devices
        self._info = info
        self._conf_dir = conf_dir
        self._hotplug = hotplug
        self._waiters = threading.BoundedSemaphore(_READY_WAITERS)
        self._files = ConfigFiles(log)
        self._parse = lru_cache(maxsize=_CONFIGS)(partial(configuration.parse, overrides=overrides or {}))
        self._warned: set[str] = set()

    def run(self, request: Request, deadline: float, report: Report | None = None) -> Result | None:
        """Serve a call, whatever its verb; ADD returns the result. ``deadline``: ``time.monotonic`` clock, seconds."""
        report = report or Report()
        if request.verb is Verb.ADD:
            return self.add(request, deadline, report)
        if request.verb is Verb.DEL:
            self.delete(request, deadline, report)
        elif request.verb is Verb.CHECK:
            self.check(request, deadline, report)
        elif request.verb is Verb.STATUS:
            self.status(request, deadline)
        elif request.verb is Verb.GC:
            self.gc(request, deadline, report)
        else:
            raise InvalidEnvironment(f"CNI_COMMAND {request.verb} is not for the daemon")
        return None

    def delete_spooled(self, request: Request, spooled_at: int, deadline: float, report: Report | None = None) -> None:
        """A DEL accepted at ``spooled_at`` (realtime ns): what was attached later is left alone."""
        self.delete(request, deadline, report or Report(), before=spooled_at)

    def add(self, request: Request, deadline: float, report: Report) -> Result:
        """Attach the pod to its networks; on the first fault everything is undone, newest first, and the fault raised.

        The result is the cluster network's. A pod that exists no more: an empty result.
        """
        config = self.config_of(request)
        namespace, name = _identity(request)
        pod = self._pod(request, namespace, name, deadline)
        if name and pod is None:
            self._log("info", "pod exists no more, nothing attached", pod=f"{namespace}/{name}")
            return Result()
        place = f"pod {namespace}/{name}" if pod else f"container {request.container_id}"
        adding = events.Adding(self._source, pod, place) if pod else None
        if adding is not None:
            report.afterwards.append(adding.tell)
        try:
            self._await_ready(config, deadline)
            attachments = self.plan_of(config, pod, request, deadline).attachments
            with self._session(request, config, deadline, report) as session:
                for attachment in attachments:
                    attach(session, attachment)
                results, mtus = session.settle(), session.mtus()
        except UnderlayError as error:
            raise named(error, place) from error
        if pod is not None and adding is not None:
            adding.attached(attachments, results)
            self.publish(pod, request.container_id, attachments, results, mtus)
        return results[0]

    def delete(self, request: Request, deadline: float, report: Report, *, before: int | None = None) -> None:
        """Take the pod off every network it was attached to, by the ledger; faults go into ``report``.

        Raises TryAgain only, when another call for the same container does not end by the deadline.
        """
        config = self._tolerant_config(request, report)
        namespace, name = _identity(request)
        with self._session(request, config, deadline, report) as session:
            recorded = session.recorded()
            if recorded and before is not None and recorded[-1].created_ns > before:
                session.delete(before=before)
                return
            if recorded:
                namespace, name = recorded[0].pod_namespace, recorded[0].pod_name
            faults = session.delete(() if recorded or config is None else self._given(config, request, deadline))
            left = session.recorded() if faults else []
        if left and name:
            report.afterwards.append(lambda _: self._tell_left(left, faults))
        if name and not self._engine.pod_elsewhere(namespace, name, request.container_id):
            self._source.drop_status(namespace, name, request.args.get("K8S_POD_UID", ""))

    def check(self, request: Request, deadline: float, report: Report) -> None:
        """Raise CheckFailed for the first attachment that is not as ADD left it, UnknownContainer for none at all."""
        config = self.config_of(request)
        check_verb(config.version, Verb.CHECK)
        with self._session(request, config, deadline, report) as session:
            session.check()

    def status(self, request: Request, deadline: float) -> None:
        """Raise NotAvailable or LimitedConnectivity where ADD could not serve a pod in the configured networks, naming
        every one that is not well.
        """
        config = self.config_of(request)
        check_verb(config.version, Verb.STATUS)
        if config.readiness_file and not wait_for_file(config.readiness_file, 0):
            raise NotAvailable(_unready(config), hint=_UNREADY_HINT)
        self._source.check()
        try:
            networks = configured(config, self._networks(config, deadline))
        except UnderlayError as error:
            raise NotAvailable(error.message, hint=error.hint) from error
        sandbox = self._sandbox(request, config)
        faults = [fault for each in networks if (fault := self._fault_of(each, sandbox, deadline))]
        if faults:
            worst = min(faults, key=lambda fault: fault.code)
            worst.message = "; ".join(fault.message for fault in faults)
            raise worst

    def gc(self, request: Request, deadline: float, report: Report) -> None:
        """Undo what the ledger holds of this network and the runtime does not list; raises the first fault."""
        config = self.config_of(request)
        check_verb(config.version, Verb.GC)
        keep = cni.valid_attachments(request.stdin)
        networks = self._collected(config, self._origin(request, config), keep, deadline, report)
        # the runtime knows of a container's first NIC alone; whoever holds that holds the others
        keep |= {(container, network.ifname) for container, _ in keep for network in networks}
        sandbox = self._sandbox(request, config)
        faults = self._engine.gc(self._origin(request, config), keep, networks, sandbox, deadline, report)
        self.tidy()
        if faults:
            raise faults[0]

    def tidy(self) -> None:
        """Withdraw every network-status of a pod that the ledger has no attachment of: its sandbox died without DEL."""
        published = self._source.published()  # first: a pod that is attached meanwhile was in the ledger before
        living = {(row.pod_namespace, row.pod_name) for row in self._engine.ledger.rows()} if published else set()
        for namespace, name in published:
            if (namespace, name) not in living:
                self._source.drop_status(namespace, name, "")

    def _collected(
        self, config: MultusConfig, origin: Origin, keep: frozenset[tuple[str, str]], deadline: float, report: Report
    ) -> list[Attachment]:
        """The networks whose plugins are told of GC: the configured ones, and those that pods were attached to.

        Of the latter none, where the runtime lists a container that somebody else has attached: under which names is
        not known, so its addresses would be taken for nobody's.
        """
        networks: list[Attachment] = []
        try:
            networks += configured(config, self._networks(config, deadline))
        except UnderlayError as error:
            report.faults.append(f"GC leaves out the plugins of the configured networks: {error.message}")
        used, containers = self._engine.in_use(origin)
        strangers = {container for container, _ in keep} - containers
        if strangers:
            words = f"GC leaves out the plugins of the pods' own networks: {min(strangers)} is not in the ledger"
            report.faults.append(words)
            return networks
        known = {network.conf for network in networks}
        return networks + [network for network in used if network.conf not in known]

    def _fault_of(self, network: Attachment, sandbox: Sandbox, deadline: float) -> UnderlayError | None:
        """What keeps a network from serving, of code 50 or 51; None where nothing does."""
        try:
            self._engine.status([network], sandbox, deadline)
        except UnderlayError as error:  # an executable's has the code that it printed
            if error.code in (NotAvailable.code, LimitedConnectivity.code):
                return named(error, f"network {network.network}")
            return NotAvailable(f"network {network.network}: {error.message}", hint=error.hint)
        return None

    def _session(self, request: Request, config: MultusConfig | None, deadline: float, report: Report) -> Session:
        return self._engine.session(self._sandbox(request, config), self._origin(request, config), deadline, report)

    def config_of(self, request: Request) -> MultusConfig:
        """The call's configuration; what has no effect in it is logged once. Raises InvalidConfig, DecodeFailure."""
        config = self._parse(request.stdin)
        for warning in config.warnings:
            self._warn_once(f"multus configuration {config.name!r}: {warning}")
        return config

    def _tolerant_config(self, request: Request, report: Report) -> MultusConfig | None:
        try:
            return self.config_of(request)
        except UnderlayError as error:
            report.faults.append(error.message)
            return None

    def _warn_once(self, words: str) -> None:
        if words not in self._warned and len(self._warned) < 1000:
            self._warned.add(words)
            self._log("warn", words)

    def _await_ready(self, config: MultusConfig, deadline: float) -> None:
        if not config.readiness_file or wait_for_file(config.readiness_file, 0):
            return
        if self._waiters.acquire(blocking=False):
            try:
                with self._engine.blocking():
                    ready = wait_for_file(config.readiness_file, min(deadline, time.monotonic() + _READY_WAIT))
            finally:
                self._waiters.release()
            if ready:
                return
        raise TryAgain(_unready(config), hint=_UNREADY_HINT)

    def _tell_left(self, left: Sequence[Recorded], faults: Sequence[UnderlayError]) -> None:
        pod = Pod(left[0].pod_namespace, left[0].pod_name, left[0].pod_uid)
        words = events.incomplete([each.network for each in left], faults)
        self._source.event(pod, "Warning", events.INCOMPLETE, words)

    def _pod(self, request: Request, namespace: str, name: str, deadline: float) -> Pod | None:
        """The pod that the runtime named; None where it named none or it exists no more. Raises PodMismatch."""
        if not name:
            return None
        uid = request.args.get("K8S_POD_UID", "")
        pod = self._source.pod(namespace, name, deadline, uid)
        if pod is not None and uid and pod.uid and uid != pod.uid and not pod.static:
            raise PodMismatch(f"pod {namespace}/{name} has UID {pod.uid}, the sandbox was made for UID {uid}")
        return pod

    def plan_of(
        self, config: MultusConfig, pod: Pod | None, request: Request, deadline: float, attached: Attached | None = None
    ) -> Plan:
        """See :func:`plan.plan`; its notes are logged."""
        networks, devices = self._networks(config, deadline), self._of(pod, request, deadline)
        made = plan(config, pod, request.ifname, networks, self._engine.parse, devices, attached)
        for note in made.notes:
            self._log("warn", note, pod=f"{pod.namespace}/{pod.name}" if pod else "")
        return made

    def _given(self, config: MultusConfig, request: Request, deadline: float) -> Sequence[Attachment]:
        """What a container that the ledger does not know may have been attached to, as far as can be told at once."""
        now = time.monotonic()
        pod = None
        try:
            pod = self._pod(request, *_identity(request), now)
        except UnderlayError as error:
            self._log("info", "DEL cannot tell the pod of an unknown container", cause=error.message)
        networks = self._networks(config, min(deadline, now + _LOOK_UP))
        try:
            return plan(config, pod, request.ifname, networks, self._engine.parse).attachments
        except UnderlayError as error:
            self._log("info", "DEL cannot tell the networks of an unknown container", cause=error.message)
        return ()

    def _of(self, pod: Pod | None, request: Request, deadline: float) -> PodDevices | None:
        uid = request.args.get("K8S_POD_UID", "")
        if pod is None:
            return None
        return PodDevices(self._devices, self._info, pod, uid=uid, container_id=request.container_id, deadline=deadline)

    def _networks(self, config: MultusConfig, deadline: float) -> Networks:
        conf_dir = config.conf_dir or self._conf_dir
        return Networks(
            self._source, self._files, conf_dir=conf_dir, namespace=config.multus_namespace, deadline=deadline
        )

    def _sandbox(self, request: Request, config: MultusConfig | None) -> Sandbox:
        own = (config.bin_dir,) if config and config.bin_dir else ()
        namespace, name = _identity(request)
        return Sandbox(
            container_id=request.container_id,
            netns=request.netns,
            args_text=request.args_text,
            args=request.args,
            path=own + request.path,
            pod_namespace=namespace,
            pod_name=name,
            pod_uid=request.args.get("K8S_POD_UID", ""),
        )

    def _origin(self, request: Request, config: MultusConfig | None) -> Origin:
        kept = request.stdin if self._hotplug and request.verb is Verb.ADD else b""
        return Origin(OWNER, config.name if config else "", request.ifname, kept)

    def publish(
        self, pod: Pod, container_id: str, attachments: Sequence[Attachment], results: Sequence[Result],
        mtus: Mapping[str, int],
    ) -> None:  # fmt: skip
        """Write network-status (:func:`status.statuses`). The pod is attached whether or not that succeeds."""
        infos = {each.info_file: self._info.read(each.info_file) for each in attachments if each.info_file}
        try:
            self._source.write_status(pod, status.encode(status.statuses(attachments, results, infos, mtus)))
        except StateUnwritable as error:
            self._log("error", "network-status is not written", pod=f"{pod.namespace}/{pod.name}", cause=error.message)
        if self._engine.ledger.may_know(container_id):
            return
        if not self._engine.pod_elsewhere(pod.namespace, pod.name, container_id):  # a DEL was there in between
            self._source.drop_status(pod.namespace, pod.name, pod.uid)


def _identity(request: Request) -> tuple[str, str]:
    """Namespace and name of the pod, both empty where the runtime is none of Kubernetes."""
    name = request.args.get("K8S_POD_NAME", "")
    namespace = request.args.get("K8S_POD_NAMESPACE", "")
    return (namespace, name) if name and namespace else ("", "")


def _unready(config: MultusConfig) -> str:
    return f"the cluster network is not ready: {config.readiness_file} (readinessindicatorfile) does not exist"


def attach(session: Session, attachment: Attachment) -> None:
    """ADD of one network, whose name a fault begins with."""
    try:
        session.add(attachment)
    except UnderlayError as error:
        raise named(error, f"network {attachment.network} on {attachment.ifname}") from error
