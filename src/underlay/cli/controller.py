"""``underlay controller``: what no node can do for itself, for whoever runs it in the cluster."""

from __future__ import annotations

import argparse
import os
import secrets
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from underlay.controller.app import Controller
    from underlay.daemon.health import Health, Status
    from underlay.daemon.log import Logs
    from underlay.webhook.server import Server

_STOP_SECONDS = 10.0
_LEAST_UNREADY, _MOST_UNREADY = 1.0, 604800.0
_TOLERATED = 300.0  # the toleration that Kubernetes gives a pod for a node that is not ready, unless it has its own
_EPILOG = """\
Of several, the one that holds the Lease "underlay-controller" writes:
  status of SpiderIPPools and SpiderSubnets, SpiderEndpoints, the condition Valid of what slipped past the webhook;
  pools of applications, cut from SpiderSubnets; finalizers, so that a pool in use stays until its last address is free;
  addresses of nodes that are gone, or tainted node.kubernetes.io/out-of-service, become free; with
  --reclaim-not-ready-after those of pods that ought to have ended on nodes that are not ready, too; blocks of
  addresses that nothing has been in for an hour are removed.
All of them answer AdmissionReviews of address pools at POST /validate, over HTTPS, where a certificate is given.
GET /healthz and /readyz at --health-address. deploy/controller.yaml runs it.

environment: POD_NAMESPACE and POD_NAME stand for --namespace and --identity

signals: SIGTERM, SIGINT finish the writes in flight, leave the Lease to others and stop, a second one stops at once

examples:
  underlay controller --in-cluster --tls-cert /tls/tls.crt --tls-key /tls/tls.key
  underlay controller --kubeconfig admin.kubeconfig --health-address 127.0.0.1:9465
  underlay controller --in-cluster --reclaim-not-ready-after 600
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "controller",
        description="Do for address pools what no node can do for itself.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    access = parser.add_mutually_exclusive_group(required=True)
    access.add_argument("--kubeconfig", metavar="FILE", default="", help="the way to the API server")
    access.add_argument("--in-cluster", action="store_true", help="the same with the pod's service account")
    parser.add_argument("--context", metavar="NAME", default="", help="of the kubeconfig; default its current one")
    parser.add_argument("--namespace", metavar="NAME", default="", help="of the Lease; default kube-system")
    parser.add_argument("--identity", metavar="NAME", default="", help="who stands for election; default the host")
    parser.add_argument(
        "--reclaim-not-ready-after", metavar="SECONDS", type=float,
        help="give away what pods held that are gone, or terminate too long, on a node that has not been ready for "
        "that long; two pods may then use one address until it is fenced; default never",
    )  # fmt: skip
    parser.add_argument("--health-address", metavar="HOST:PORT", default="", help="of /healthz and /readyz")
    parser.add_argument("--tls-cert", metavar="FILE", default="", help="PEM, of the webhook; default no webhook")
    parser.add_argument("--tls-key", metavar="FILE", default="", help="PEM: its key")
    parser.add_argument("--address", metavar="HOST", default="", help="of the webhook; default every address")
    parser.add_argument("--port", metavar="N", type=int, default=9443, help="of the webhook; default 9443")
    parser.add_argument("--log-level", metavar="LEVEL", choices=("debug", "info", "warn", "error"), default="info")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Work until a signal; returns the exit status."""
    from underlay import __version__
    from underlay.daemon.config import LogSettings, split_address
    from underlay.daemon.health import Health, Probes
    from underlay.daemon.log import Logs

    log = Logs(LogSettings(level=options.log_level, plugin_dir=""))
    controller = _controller(options, log)
    webhook = _webhook(options, controller, log)
    health = Health(__version__)
    stopping = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping)  # before there are threads that would take them
    at = options.health_address
    probes = Probes(*split_address(at), _status(controller, health)) if at else None
    controller.start()
    if webhook is not None:
        webhook.start()
    health.state = "ready"
    log("info", "started", port=webhook.port if webhook else None, health_port=probes.port if probes else None)
    signal.sigwait(stopping)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stopping)
    health.state = "stopping"
    if webhook is not None:
        webhook.stop(_STOP_SECONDS)
    controller.stop()
    if probes is not None:
        probes.close()
    log("info", "stopped")
    return 0


def _controller(options: argparse.Namespace, log: Logs) -> Controller:
    from underlay.controller.app import Controller, Settings
    from underlay.errors import InvalidConfig
    from underlay.kube.access import InCluster
    from underlay.kube.kubeconfig import Kubeconfig

    unready = options.reclaim_not_ready_after
    if unready is not None and not _LEAST_UNREADY <= unready <= _MOST_UNREADY:
        raise InvalidConfig(
            f"--reclaim-not-ready-after {unready:g} is not within {_LEAST_UNREADY:g} and {_MOST_UNREADY:g} seconds",
            hint="Kubernetes itself deletes the pods of such a node after 300. Leave it out to take nothing by time.",
        )
    if unready is not None and unready < _TOLERATED:
        log(
            "warn", f"--reclaim-not-ready-after {unready:g} is less than {_TOLERATED:g} seconds",
            hint="Kubernetes leaves pods on such a node for that long: more of them run on when theirs is given away.",
        )  # fmt: skip
    access = InCluster(os.environ, log) if options.in_cluster else Kubeconfig(options.kubeconfig, log, options.context)
    name = options.identity or os.environ.get("POD_NAME") or os.uname().nodename
    settings = Settings(
        namespace=options.namespace or os.environ.get("POD_NAMESPACE") or "kube-system",
        identity=f"{name}_{secrets.token_hex(8)}",  # a pod of the same name later on is another candidate
        unready=unready,
    )
    return Controller(access, log, settings)


def _webhook(options: argparse.Namespace, controller: Controller, log: Logs) -> Server | None:
    """The webhook's server, where there is a certificate for it."""
    from functools import partial

    from underlay.daemon import builtin
    from underlay.errors import InvalidConfig
    from underlay.multus.lint import Linter
    from underlay.webhook import admission
    from underlay.webhook.certificate import Certificate
    from underlay.webhook.server import Server

    if bool(options.tls_cert) != bool(options.tls_key):
        raise InvalidConfig("--tls-cert and --tls-key go together", hint="Give both for the webhook, or neither.")
    if not options.tls_cert:
        return None
    return Server(
        (options.address, options.port),
        certificate=Certificate(options.tls_cert, options.tls_key, log),
        judge=partial(admission.answer, linter=Linter(*builtin.JUDGES), around=controller.around),
        log=log,
    )


def _status(controller: Controller, health: Health) -> Callable[[], Status]:
    """What the probes tell: ready once everything was listed, alive while the loops come round."""
    import msgspec

    def status() -> Status:
        health.fault("kubernetes", controller.fault())
        stuck = controller.stuck()
        found = health.status()
        faults = (*found.faults, f"{stuck}: has not come round for minutes") if stuck else found.faults
        return msgspec.structs.replace(found, alive=not stuck, faults=faults)

    return status
