"""Follow the networks annotation of pods that run: NICs come and go without a restart. Off unless it is switched on.

    annotation differs from what was applied last ──▶ take off · lay anew · attach ──▶ network-status, Events
                                                              │ fault
                                                              └──▶ an Event, and again after a pause

What was attached before this was switched on, by an earlier version or by another Multus is left as it is: nobody
knows any more what was asked for.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from underlay.cni.request import Request, Verb
from underlay.delegate.report import Report
from underlay.errors import UnderlayError
from underlay.multus import events
from underlay.multus.annotations import NETWORKS
from underlay.multus.changes import Attached, Changes
from underlay.multus.devices import INFO_FILE
from underlay.multus.handler import attach
from underlay.multus.plan import named

if TYPE_CHECKING:
    from underlay.delegate.attachment import Origin, Sandbox
    from underlay.delegate.engine import Engine
    from underlay.kube.objects import Pod
    from underlay.kube.source import Log, Source
    from underlay.multus.handler import Multus

_DEADLINE: Final = 30.0  # seconds for one pod
_FIRST_PAUSE: Final = 5.0
_LONGEST_PAUSE: Final = 300.0


@dataclass(slots=True)
class _Applied:
    """The annotation last applied to a container; where that failed, when to try again and the pause before that."""

    text: str
    again: float | None = None
    pause: float = 0.0


class HotPlug:
    """Used by one thread at a time."""

    def __init__(self, multus: Multus, engine: Engine, source: Source, log: Log) -> None:
        self._multus = multus
        self._engine = engine
        self._source = source
        self._log = log
        self._applied: dict[str, _Applied] = {}

    def sweep(self) -> None:
        """One pass: bring every pod of this node whose annotation has changed to what it asks for."""
        seen: set[str] = set()
        for sandbox, origin in self._engine.changeable(self._multus.owner):
            seen.add(sandbox.container_id)
            pod = self._source.known_pod(sandbox.pod_namespace, sandbox.pod_name, sandbox.pod_uid)
            if pod is not None and self._is_due(sandbox.container_id, pod):
                self._follow(sandbox, origin, pod)
        self._applied = {container: each for container, each in self._applied.items() if container in seen}

    def _is_due(self, container: str, pod: Pod) -> bool:
        applied = self._applied.get(container)
        if applied is None or applied.text != _text(pod):
            return True
        return applied.again is not None and applied.again <= time.monotonic()

    def _follow(self, sandbox: Sandbox, origin: Origin, pod: Pod) -> None:
        before = self._applied.get(sandbox.container_id)
        begun = time.monotonic()
        self._applied[sandbox.container_id] = applied = _Applied(_text(pod), begun + _LONGEST_PAUSE)
        try:
            changes = self._change(sandbox, origin, pod, begun + _DEADLINE)
        except UnderlayError as error:
            last = before.pause if before is not None and before.text == applied.text else 0.0
            applied.pause = min(max(last * 2, _FIRST_PAUSE), _LONGEST_PAUSE)
            applied.again = time.monotonic() + applied.pause
            self._failed(pod, error, applied.pause)
            return
        applied.again = None
        if changes:
            self._succeeded(sandbox, origin, pod, changes, begun)

    def _change(self, sandbox: Sandbox, origin: Origin, pod: Pod, deadline: float) -> Changes:
        """Raises what stands in the way; the pod then has what it had and the annotation still asks for."""
        request = Request(
            Verb.ADD, "multus", sandbox.container_id, sandbox.netns, origin.ifname, sandbox.path, origin.conf,
            sandbox.args, sandbox.args_text,
        )  # fmt: skip
        config = self._multus.config_of(request)
        changes = Changes((), ())
        try:
            with self._engine.change(sandbox, origin, deadline, Report()) as session:
                present = session.attached()
                if not present:
                    return changes  # a DEL was first: the sandbox may be there for a while, the pod's NICs are not
                attached = Attached(tuple(present))
                found = changes
                if attached.known:
                    planned = self._multus.plan_of(config, pod, request, deadline, attached)
                    found = attached.changes(planned.attachments)
                if found or session.unfinished:
                    changes = found
                    session.take_off([(each.network, each.ifname) for each in changes.remove])
                    for attachment in changes.add:
                        attach(session, attachment)
                    session.settle()
        finally:
            if changes:
                self._publish(sandbox, origin, pod)
        return changes

    def _publish(self, sandbox: Sandbox, origin: Origin, pod: Pod) -> None:
        whole = self._engine.whole(sandbox.container_id, origin)
        if not whole:
            return  # a DEL came after, and has withdrawn the status
        attachments = [replace(each, info_file=str(each.runtime.get(INFO_FILE, ""))) for each, _, _ in whole]
        mtus = {each.ifname: mtu for each, _, mtu in whole}
        self._multus.publish(pod, sandbox.container_id, attachments, [result for _, result, _ in whole], mtus)

    def _succeeded(self, sandbox: Sandbox, origin: Origin, pod: Pod, changes: Changes, begun: float) -> None:
        whole = self._engine.whole(sandbox.container_id, origin)
        new = {(each.network, each.ifname) for each in changes.add}
        added = [(each, result) for each, result, _ in whole if (each.network, each.ifname) in new]
        if changes.remove:
            self._source.event(pod, "Normal", events.REMOVED, events.removed(changes.remove))
        if added:
            words = events.added([each for each, _ in added], [result for _, result in added])
            self._source.event(pod, "Normal", events.ADDED, words)
        self._log(
            "info", "networks changed", pod=f"{pod.namespace}/{pod.name}", container=sandbox.container_id,
            removed=[f"{each.ifname} {each.network}" for each in changes.remove],
            added=[f"{each.ifname} {each.network}" for each in changes.add],
            ms=round((time.monotonic() - begun) * 1000, 1),
        )  # fmt: skip

    def _failed(self, pod: Pod, error: UnderlayError, pause: float) -> None:
        place = f"pod {pod.namespace}/{pod.name}"
        events.tell_failure(self._source, pod, error, place)
        self._log("warn", "networks not changed", cause=named(error, place).message, again_in_s=pause)


def _text(pod: Pod) -> str:
    return pod.annotations.get(NETWORKS, "")
