"""``underlay device-plugin``: virtual functions as resources that the kubelet hands out."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

    from underlay.device_plugin.plugin import Plugin

_EPILOG = """\
The configuration is that of the SR-IOV network device plugin, as JSON:
  {"resourceList": [{"resourceName": "sriov",
                     "selectors": [{"drivers": ["iavf"], "pfNames": ["ens1f0#0-3"]}]}]}

A device is healthy while a driver is bound to it, its physical function has a link, and the node does not use it.

The configuration is read again when it changes; one with errors is logged and changes nothing.

signals: SIGTERM, SIGINT stop

examples:
  underlay device-plugin --check config.json   what is wrong with a configuration; exit status 1 for errors
  underlay device-plugin --once                which devices each resource would have on this node
  underlay device-plugin                       serve them; deploy/device-plugin.yaml runs it
"""
_COLUMNS = ("RESOURCE", "DEVICE", "PF", "DRIVER", "NUMA", "STATE")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "device-plugin",
        description="Register virtual functions with the kubelet, and tell containers which ones they have.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", "--config-file", metavar="FILE", default="/etc/pcidp/config.json", help="default %(default)s"
    )
    parser.add_argument(
        "--resource-prefix", metavar="DOMAIN", default="intel.com", help="of resources that name none; %(default)s"
    )
    parser.add_argument(
        "--plugin-dir", metavar="DIR", default="/var/lib/kubelet/device-plugins", help="the kubelet's (%(default)s)"
    )
    parser.add_argument(
        "--device-info-dir", metavar="DIR", default="/var/run/k8s.cni.cncf.io/devinfo",
        help='device information files for Multus; "": none (%(default)s)',
    )  # fmt: skip
    parser.add_argument(
        "--cdi-dir", metavar="DIR", nargs="?", const="/var/run/cdi", default="",
        help="give device nodes by CDI, with specifications here (default %(const)s); without: by their paths",
    )  # fmt: skip
    parser.add_argument(
        "--use-cdi", dest="cdi_dir", action="store_const", const="/var/run/cdi", help="--cdi-dir with its default"
    )
    parser.add_argument("--sysfs", default="/sys", metavar="DIR", help="where sysfs is mounted (%(default)s)")
    parser.add_argument(
        "--interval", type=float, metavar="SECONDS", default=10.0,
        help="between looks at drivers; links tell of themselves (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--log-level", metavar="LEVEL", choices=("debug", "info", "warn", "error"), default="info")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", metavar="FILE", help="say what is wrong with a configuration, and end")
    mode.add_argument("--once", action="store_true", help="show which devices each resource has now, and end")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve until a signal; returns the exit status."""
    if options.check:
        return _check(options.check, options.resource_prefix)
    return _once(options) if options.once else _serve(options)


def _check(path: str, prefix: str) -> int:
    from underlay.cli.findings import as_text
    from underlay.device_plugin import configuration
    from underlay.device_plugin.followed import read

    _, findings = configuration.parse(read(path), path, prefix)
    print(as_text(findings, 1))
    return int(any(each.severity == "error" for each in findings))


def _once(options: argparse.Namespace) -> int:
    from underlay.cli.columns import table
    from underlay.cli.devices import sysfs
    from underlay.device_plugin.followed import Followed
    from underlay.device_plugin.inventory import Inventory
    from underlay.net.netns import Namespace

    pci = sysfs(options.sysfs)
    resources = Followed(options.config, options.resource_prefix, _warn).resources
    with Namespace.current() as host:
        found = Inventory(pci, host, resources).look(time.monotonic())
    rows = [_COLUMNS]
    for resource, devices in found.items():
        rows += [
            (
                resource, each.function.address, each.pf.nics[0] if each.pf.nics else each.pf.address,
                each.function.driver or "-", "-" if each.numa is None else str(each.numa), each.fault or "healthy",
            )
            for each in devices
        ] or [(resource, "none", "-", "-", "-", "no virtual function is selected")]  # fmt: skip
    sys.stdout.write(table(rows))
    return 0


def _warn(_level: str, _event: str, /, **fields: object) -> None:
    hint = f" ({fields['hint']})" if fields["hint"] else ""
    print("underlay: warning: {file}: {field}: {problem}".format(**fields) + hint, file=sys.stderr)


def _serve(options: argparse.Namespace) -> int:
    from underlay.daemon.config import LogSettings
    from underlay.daemon.log import Logs
    from underlay.device_plugin.followed import Followed
    from underlay.device_plugin.plugin import Plugin, Settings
    from underlay.errors import InvalidConfig
    from underlay.net.netns import Namespace

    if not 0.1 <= options.interval <= 3600:
        raise InvalidConfig(f"--interval {options.interval} is not within 0.1 and 3600", hint="Correct the flag.")
    log = Logs(LogSettings(level=options.log_level, plugin_dir=""))
    followed = Followed(options.config, options.resource_prefix, log)
    settings = Settings(
        options.plugin_dir, options.device_info_dir, options.cdi_dir or "", options.sysfs, options.interval
    )
    stopped = threading.Event()
    with Namespace.current() as host:
        again = True
        while again and not stopped.is_set():
            plugin = Plugin(followed, settings, host=host, log=log)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, partial(_stop, stopped, plugin))
            if stopped.is_set():  # by a signal that the former one's handler had
                plugin.stop()
            try:
                again = plugin.serve()
            finally:
                plugin.close()
    log("info", "stopped")
    return 0


def _stop(stopped: threading.Event, plugin: Plugin, _number: int, _frame: FrameType | None) -> None:
    stopped.set()
    plugin.stop()
