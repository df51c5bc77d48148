"""``underlay webhook``: lint as a validating admission webhook, for whoever runs it in the cluster."""

from __future__ import annotations

import argparse
import signal

_STOP_SECONDS = 10.0
_EPILOG = """\
POST /validate takes an AdmissionReview (admission.k8s.io/v1): errors deny, warnings are told. GET /healthz
answers "ok". Both over HTTPS; the files of the certificate are read again when they change. deploy/webhook.yaml
runs it.

signals: SIGTERM, SIGINT finish what is in flight and stop, a second one stops at once

example:
  underlay webhook --tls-cert /etc/underlay/tls/tls.crt --tls-key /etc/underlay/tls/tls.key
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "webhook",
        description='Serve "underlay networks lint" as an admission webhook.',
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tls-cert", metavar="FILE", required=True, help="PEM: the certificate and its chain")
    parser.add_argument("--tls-key", metavar="FILE", required=True, help="PEM: its key")
    parser.add_argument("--address", metavar="HOST", default="", help="where to listen; default every address")
    parser.add_argument("--port", metavar="N", type=int, default=9443, help="default 9443")
    parser.add_argument("--log-level", metavar="LEVEL", choices=("debug", "info", "warn", "error"), default="info")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve until a signal; returns the exit status."""
    from functools import partial

    from underlay.daemon import builtin
    from underlay.daemon.config import LogSettings
    from underlay.daemon.log import Logs
    from underlay.multus.lint import Linter
    from underlay.webhook import admission
    from underlay.webhook.certificate import Certificate
    from underlay.webhook.server import Server

    log = Logs(LogSettings(level=options.log_level, plugin_dir=""))
    server = Server(
        (options.address, options.port),
        certificate=Certificate(options.tls_cert, options.tls_key, log),
        judge=partial(admission.answer, linter=Linter(*builtin.JUDGES)),
        log=log,
    )
    stopping = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping)  # before there are threads that would take them
    server.start()
    log("info", "ready", port=server.port)
    signal.sigwait(stopping)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stopping)
    ended = server.stop(_STOP_SECONDS)
    log("info", "stopped", unfinished=not ended)
    return 0
