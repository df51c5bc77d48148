"""``underlay plugin NAME``: one built-in plugin as a plain CNI process, as the Go plugins are; for debugging.

No daemon, no ledger: DEL works from the configuration and its prevResult alone.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING

from underlay.cni import request as calls
from underlay.cni import versions
from underlay.cni.request import Verb
from underlay.errors import UnderlayError

if TYPE_CHECKING:
    from underlay.cni.result import Result

_DEADLINE_SECONDS = 55.0
_NAMES = ("macvlan", "veth", "router", "host-local", "static")
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
    parser.add_argument("--debug", action="store_true", help="write what the plugin logs to standard error")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Answer on standard output as the specification has it: 0 with the result, 1 with an error."""
    stdin = b"" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read()
    try:
        answer = _serve(options.name, stdin, debug=options.debug)
        status = 0
    except UnderlayError as error:
        answer, status = versions.encode_error(error, versions.announced(stdin)), 1
    sys.stdout.buffer.write(answer)
    return status


def _serve(name: str, stdin: bytes, *, debug: bool) -> bytes:
    request = calls.parse(name, {key: value for key, value in os.environ.items() if key.startswith("CNI_")}, stdin)
    if request.verb is Verb.VERSION:
        return versions.encode_version()
    result = _run(request, debug=debug)
    return b"" if result is None else versions.encode(result, versions.require(versions.announced(stdin)))


def _run(request: calls.Request, *, debug: bool) -> Result | None:
    from underlay.daemon import builtin
    from underlay.daemon.config import LogSettings
    from underlay.daemon.log import Logs
    from underlay.delegate import plain
    from underlay.delegate.exec import Executor

    log = Logs(LogSettings(level="debug" if debug else "error", plugin_dir=""))
    return plain.run(
        request,
        time.monotonic() + _DEADLINE_SECONDS,
        plugins=builtin.PLUGINS,
        allocators=builtin.ALLOCATORS,
        executor=Executor(log=log, environ=os.environ),
        log=log,
    )
