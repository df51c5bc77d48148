"""``underlay plugin NAME``: one built-in plugin as a plain CNI process, as the Go plugins are; for debugging.

No daemon, no ledger: DEL works from the configuration and its prevResult alone. Addresses of pools come from the state
directory all the same; while a daemon holds it, there are none for us.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING

from underlay.cni import request as calls
from underlay.cni import versions
from underlay.cni.request import Verb
from underlay.errors import NotAvailable, UnderlayError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from underlay.cni.result import Result
    from underlay.daemon.log import Logs
    from underlay.ipam.pools.plugin import Spiderpool

_DEADLINE_SECONDS = 55.0
_NAMES = ("macvlan", "ipvlan", "vlan", "sriov", "veth", "router", "host-local", "static", "spiderpool")
_EPILOG = """\
The CNI_* environment and standard input are those of any CNI plugin; the result or the error is printed as JSON.
multus is not among the names: its DEL works from the daemon's ledger.

examples:
  CNI_COMMAND=VERSION underlay plugin macvlan
  CNI_COMMAND=ADD CNI_CONTAINERID=c1 CNI_NETNS=/run/netns/pod CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin \\
      underlay plugin --debug macvlan < macvlan.conf
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "plugin",
        description="Run one plugin as a plain CNI process, without the daemon.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", choices=_NAMES, help=f"one of {', '.join(_NAMES)}")
    parser.add_argument("--state-dir", metavar="DIR", help="where the leases of address pools are (as of the daemon)")
    parser.add_argument("--manifest-dir", metavar="DIR", help="where the pools are defined (as of the daemon)")
    parser.add_argument("--debug", action="store_true", help="write what the plugin logs to standard error")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Answer on standard output as the specification has it: 0 with the result, 1 with an error."""
    stdin = b"" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read()
    try:
        answer = _serve(options, stdin)
        status = 0
    except UnderlayError as error:
        answer, status = versions.encode_error(error, versions.announced(stdin)), 1
    sys.stdout.buffer.write(answer + b"\n" if answer else b"")
    return status


def _serve(options: argparse.Namespace, stdin: bytes) -> bytes:
    request = calls.parse(
        options.name, {key: value for key, value in os.environ.items() if key.startswith("CNI_")}, stdin
    )
    if request.verb is Verb.VERSION:
        return versions.encode_version()
    result = _run(request, options)
    return b"" if result is None else versions.encode(result, versions.require(versions.announced(stdin)))


def _run(request: calls.Request, options: argparse.Namespace) -> Result | None:
    from underlay.daemon import builtin
    from underlay.daemon.config import LogSettings
    from underlay.daemon.log import Logs
    from underlay.delegate import plain
    from underlay.delegate.exec import Executor

    log = Logs(LogSettings(level="debug" if options.debug else "error", plugin_dir=""))
    with contextlib.ExitStack() as stack:
        plugins, allocators = builtin.PLUGINS, builtin.ALLOCATORS
        if options.name == "spiderpool" or b"spiderpool" in request.stdin:
            pools = stack.enter_context(_pools(options, log))
            plugins, allocators = builtin.plugins(pools), builtin.allocators(pools)
        return plain.run(
            request,
            time.monotonic() + _DEADLINE_SECONDS,
            plugins=plugins,
            allocators=allocators,
            executor=Executor(log=log, environ=os.environ),
            log=log,
        )


@contextlib.contextmanager
def _pools(options: argparse.Namespace, log: Logs) -> Iterator[Spiderpool]:
    """The address pools of the state directory, which nobody else may hand out meanwhile."""
    from underlay.daemon import config, pools
    from underlay.daemon.lock import Lock, private_directory
    from underlay.kube.manifests import Manifests

    given = {key: value for key in ("state_dir", "manifest_dir") if (value := getattr(options, key))}
    settings = config.load(None, given)
    manifests = Manifests(settings.manifest_dir, log, watch=False)
    if pools.in_cluster(settings, manifests):
        raise NotAvailable("address pools are at the API server, and a daemon alone hands them out",
                           hint='Call the shim; or set "pools: manifests".')  # fmt: skip
    private_directory(settings.state_dir)
    lock = Lock(settings.state_dir)
    plugin = pools.embedded(settings.state_dir, manifests, log, rest=settings.pool_rest)
    try:
        yield plugin
    finally:
        plugin.close()
        lock.release()
