"""A built-in plugin called by the runtime itself, or by another plugin: any verb but VERSION."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from msgspec.structs import replace

from underlay.cni.config import NetworkConfig, parse_plugin, valid_attachments
from underlay.cni.request import Verb
from underlay.cni.versions import check_verb
from underlay.delegate.attachment import Attachment, Origin, Sandbox
from underlay.errors import InvalidConfig, PluginMissing, UnderlayError

if TYPE_CHECKING:
    from underlay.cni.request import Request
    from underlay.cni.result import Result
    from underlay.delegate.engine import Engine
    from underlay.delegate.report import Report


def run(engine: Engine, request: Request, deadline: float, report: Report) -> Result | None:
    """Carry the call out; ADD returns the result, the other verbs None.

    DEL never raises but TryAgain: what stands in its way goes into ``report.faults``.
    """
    if request.verb is Verb.DEL:
        delete(engine, request, deadline, report)
        return None
    network = _network(engine, request)
    check_verb(network.version, request.verb)
    attachment, sandbox, origin = _attachment(request, network.name), _sandbox(request), _origin(request, network.name)
    if request.verb is Verb.ADD:
        with engine.session(sandbox, origin, deadline, report) as session:
            return session.add_network(attachment, network)
    if request.verb is Verb.CHECK:
        if network.plugins[0].prev is None:
            raise InvalidConfig('"prevResult" is missing', hint="CHECK compares with the result of ADD.")
        with engine.session(sandbox, origin, deadline, report) as session:
            session.check_network(attachment, network, network.plugins[0].prev)
    elif request.verb is Verb.GC:
        keep = valid_attachments(request.stdin)
        errors = engine.collect(origin, keep, deadline, report)
        errors += engine.gc_of(attachment, network, keep, sandbox, deadline, report)
        if errors:
            raise errors[0]
    elif request.verb is Verb.STATUS:
        engine.status_of(attachment, network, sandbox, deadline)
    return None


def delete(engine: Engine, request: Request, deadline: float, report: Report, *, before: int | None = None) -> None:
    """DEL: from the ledger; where it has no row, from the configuration, best effort.

    ``before`` (realtime ns): rows created later are left alone. Faults go into ``report.faults``; raises TryAgain only.
    """
    with engine.session(_sandbox(request), _origin(request, ""), deadline, report) as session:
        if session.recorded():
            session.delete(before=before)
            return
        try:
            network = _network(engine, request)
        except UnderlayError as error:
            report.faults.append(error.message)
            return
        errors = session.delete_network(_attachment(request, network.name), network)
        report.faults += [error.message for error in errors]


def _network(engine: Engine, request: Request) -> NetworkConfig:
    """The configuration as a list of one, the plugin being the one that was called, whatever "type" says:
    an IPAM plugin is handed its caller's configuration.
    """
    if request.plugin not in engine.plugins:
        raise PluginMissing(f"plugin {request.plugin!r} is not built in")
    return _parsed(request.stdin, request.plugin)


@lru_cache(maxsize=64)
def _parsed(stdin: bytes, plugin: str) -> NetworkConfig:
    """Pods come with the same configuration again and again; reading it takes 20 us."""
    conf = parse_plugin(stdin)
    if conf.type != plugin:
        conf = replace(conf, type=plugin)
    return NetworkConfig(conf.version, conf.name, (conf,))


def _attachment(request: Request, network: str) -> Attachment:
    return Attachment(network=network, conf=request.stdin, ifname=request.ifname)


def _sandbox(request: Request) -> Sandbox:
    args = request.args
    return Sandbox(
        container_id=request.container_id,
        netns=request.netns,
        args_text=request.args_text,
        args=args,
        path=request.path,
        pod_namespace=args.get("K8S_POD_NAMESPACE", ""),
        pod_name=args.get("K8S_POD_NAME", ""),
        pod_uid=args.get("K8S_POD_UID", ""),
    )


def _origin(request: Request, network: str) -> Origin:
    return Origin(request.plugin, network, request.ifname)
