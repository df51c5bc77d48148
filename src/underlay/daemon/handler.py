"""The edge: a frame's bytes come in, an exit status and standard output go out, whatever happens between.

Errors become CNI errors here and nowhere else, and every request leaves one log line:

    {"event":"request","verb":"ADD","plugin":"multus","pod":"default/web-0","container":"3f…","ifname":"eth0",
     "networks":["kube-system/macvlan"],"plugins":{"macvlan":0.6,"veth":0.7},"ms":1.9,"outcome":"ok"}
"""

from __future__ import annotations

import time
import traceback
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from msgspec.structs import replace

from underlay.cni import request as calls
from underlay.cni import versions
from underlay.cni.request import Request, Verb
from underlay.daemon import frame, health
from underlay.delegate.report import Report
from underlay.errors import PluginMissing, TryAgain, UnderlayError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from underlay.cni.result import Result
    from underlay.daemon.health import Health

MULTUS = "multus"
_MULTUS_NAMES = frozenset({MULTUS, "multus-shim"})  # the second: in files that Multus' own daemon has written
_CHANGING = frozenset({Verb.ADD, Verb.CHECK, Verb.GC})


class Runner(Protocol):
    """Whoever carries a call out: the engine for single plugins, Multus for its own."""

    def run(self, request: Request, deadline: float, report: Report) -> Result | None:
        """Any verb but VERSION. Only ADD returns a result."""

    def delete_spooled(self, request: Request, spooled_at: int, deadline: float, report: Report) -> None:
        """DEL that was spooled at that time (realtime nanoseconds): of nothing that was attached later."""


class _Entry(msgspec.Struct):
    """The log line of one request, as far as it is known."""

    fields: dict[str, Any] = msgspec.field(default_factory=dict)
    report: Report = msgspec.field(default_factory=lambda: Report(waits=True))
    request: Request | None = None
    stdin: bytes = b""


class Handler:
    """Serves requests on any thread. ``builtin`` are the names of the engine's plugins, Multus apart; ``bin_dir`` is
    searched after CNI_PATH; ``desks`` answer what is no CNI call, by the name they are asked under.
    """

    def __init__(
        self,
        *,
        engine: Runner,
        multus: Runner,
        builtin: Collection[str],
        bin_dir: Sequence[str],
        health: Health,
        log: Callable[..., None],
        desks: Mapping[str, Callable[[bytes], bytes]] | None = None,
    ) -> None:
        self._engine = engine
        self._multus = multus
        self._builtin = frozenset(builtin)
        self._bin_dir = tuple(bin_dir)
        self._health = health
        self._log = log
        self._desks = desks or {}

    def answer(
        self, payload: bytes, deadline: float, gone: Callable[[], bool]
    ) -> tuple[int, bytes, Callable[[], None]]:
        """Exit status, standard output, and what writes the log line once they are sent."""
        started = time.monotonic()
        number = self._health.begin(deadline)
        entry = _Entry()
        failure: UnderlayError | None = None
        try:
            call = frame.parse(payload)
            if call.plugin == health.PLUGIN:
                self._health.overlook(number)
            stdout = self._serve(call, deadline, gone, entry)
        except UnderlayError as error:
            failure, stdout = error, _printed(error, entry.stdin)
        except Exception as error:
            failure = UnderlayError(f"internal error: {type(error).__name__}: {error}")
            stdout = _printed(failure, entry.stdin)
            self._log("error", "internal error", traceback=traceback.format_exc())
        finally:
            self._health.end(number, failed=failure is not None)
        return int(failure is not None), stdout, lambda: self._tell(entry, started, failure)

    def refuse(self, error: UnderlayError) -> bytes:
        """Standard output for a client whose request is no frame, or not to be served."""
        self._log("warn", "request refused", code=error.code, error=error.message)
        return _printed(error, b"")

    def deliver(self, call: frame.Call, spooled_at: int, deadline: float) -> None:
        """Carry out a spooled DEL. Raises UnderlayError when it failed."""
        started = time.monotonic()
        entry = _Entry(fields={"spooled_s_ago": round(time.time() - spooled_at / 1e9, 3)})
        failure: UnderlayError | None = None
        try:
            request = self._parse(call, entry)
            self._runner(call.plugin).delete_spooled(request, spooled_at, deadline, entry.report)
        except UnderlayError as error:
            failure = error
            raise
        finally:
            self._tell(entry, started, failure)

    def _serve(self, call: frame.Call, deadline: float, gone: Callable[[], bool], entry: _Entry) -> bytes:
        if call.plugin == health.PLUGIN:
            entry.fields = {}
            return health.encode(self._health.status())
        if call.plugin in self._desks:
            entry.fields = {"desk": call.plugin}
            return self._desks[call.plugin](call.stdin)
        request = self._parse(call, entry)
        if request.verb is Verb.VERSION:
            return versions.encode_version()
        runner = self._runner(call.plugin)
        if request.verb in _CHANGING and gone():
            # The runtime has given up and may have called DEL already: an ADD now would never be taken back.
            raise TryAgain("the client went away while its request was waiting")
        result = runner.run(request, deadline, entry.report)
        if result is None:
            return b""
        return versions.encode(result, versions.require(versions.announced(request.stdin)))

    def _parse(self, call: frame.Call, entry: _Entry) -> Request:
        entry.stdin = call.stdin
        env = call.env
        entry.fields.update(
            verb=env.get("CNI_COMMAND", ""), plugin=call.plugin, container=env.get("CNI_CONTAINERID", ""),
            ifname=env.get("CNI_IFNAME", ""),
        )  # fmt: skip
        request = calls.parse(call.plugin, env, call.stdin)
        further = tuple(path for path in self._bin_dir if path not in request.path)
        if further:
            request = replace(request, path=request.path + further)
        entry.request = request
        return request

    def _runner(self, plugin: str) -> Runner:
        if plugin in _MULTUS_NAMES:
            return self._multus
        if plugin in self._builtin:
            return self._engine
        names = ", ".join(sorted({MULTUS, *self._builtin}))
        raise PluginMissing(
            f"{plugin[:60]!r} is none of the daemon's plugins: {names}",
            hint='The shim is laid under the names of built-in plugins only; run "underlay install" again.',
        )

    def _tell(self, entry: _Entry, started: float, failure: UnderlayError | None) -> None:
        fields, report = entry.fields, entry.report
        if not fields:
            return
        report.answered(failure)
        if entry.request is not None and (name := entry.request.args.get("K8S_POD_NAME")):
            fields["pod"] = f"{entry.request.args.get('K8S_POD_NAMESPACE', '')}/{name}"
        if report.networks:
            fields["networks"] = report.networks
        if report.times:
            fields["plugins"] = [[timing.plugin, round(timing.ms, 3)] for timing in report.times]
        if report.faults:
            fields["faults"] = report.faults
        fields["ms"] = round((time.monotonic() - started) * 1e3, 3)
        if failure is None:
            self._log("info", "request", **fields, outcome="ok")
            return
        level = "warn" if isinstance(failure, TryAgain) else "error"
        self._log(level, "request", **fields, outcome="error", code=failure.code, error=failure.message)


def _printed(error: UnderlayError, stdin: bytes) -> bytes:
    return versions.encode_error(error, versions.announced(stdin))
