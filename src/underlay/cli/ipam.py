"""``underlay ipam``: who has which address of the pools, and why a pod gets its addresses where it does."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from underlay.errors import UnderlayError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from underlay.ipam.pools.choose import Choice

_EPILOG = """\
explain reads the manifests alone; the other commands ask the daemon, or, where none runs, its state directory.

examples:
  underlay ipam explain default/web-0 --interface net1 --network kube-system/macvlan
  underlay ipam list
  underlay ipam who 172.18.40.10
  underlay ipam reserve 172.18.40.50 --for default/gateway
  underlay ipam release 172.18.40.50
"""
_ANSWER_SECONDS = 10.0


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand and its own."""
    parser = subparsers.add_parser(
        "ipam",
        description="Address pools: who has which address, and why.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    explain = commands.add_parser("explain", help="pool by pool, why a pod gets its addresses from it or not")
    explain.add_argument("pod", metavar="NAMESPACE/POD")
    explain.add_argument("--interface", default="eth0", metavar="NIC", help="default: %(default)s")
    explain.add_argument("--network", default="", metavar="NAMESPACE/NAME", help="the NetworkAttachmentDefinition")
    explain.add_argument("--second", action="store_true", help="another NIC of the pod has addresses of pools already")
    explain.add_argument("--node", default="", metavar="NAME", help="default: NODE_NAME, or this host's name")
    explain.add_argument("--manifest-dir", metavar="DIR")
    explain.set_defaults(run=run_explain)
    for name, words in (
        ("list", "every address in use or kept"),
        ("who", "whose an address is"),
        ("reserve", "keep a free address"),
        ("release", "let a kept address go"),
    ):
        command = commands.add_parser(name, help=words)
        if name != "list":
            command.add_argument("address", metavar="ADDRESS")
        if name == "reserve":
            command.add_argument("--for", dest="whom", default="", metavar="NAMESPACE/POD", help="default: for nobody")
        if name == "release":
            command.add_argument("--force", action="store_true", help="also one that a pod holds")
        command.add_argument("--json", action="store_true", help="for programs")
        command.add_argument("--run-dir", metavar="DIR", help="the daemon's")
        command.add_argument("--state-dir", metavar="DIR", help="where no daemon runs")
        command.set_defaults(run=run, act=name)
    for command in commands.choices.values():
        command.add_argument("--config", metavar="FILE", help="the daemon's configuration file")


def run(options: argparse.Namespace) -> int:
    """Ask, print; 1 where an address asked for is nobody's. Raises UnderlayError."""
    import msgspec

    from underlay.daemon.pool_desk import Answer, Wish

    wish = Wish(
        options.act,
        getattr(options, "address", ""),
        getattr(options, "whom", ""),
        getattr(options, "force", False),
    )
    answer = _ask(options, msgspec.json.encode(wish))
    leases = msgspec.json.decode(answer, type=Answer).leases
    if options.json:
        sys.stdout.write(answer.decode() + "\n")
    elif not leases:
        sys.stdout.write("no address is in use\n" if options.act == "list" else f"{options.address} is free\n")
    else:
        rows = [("ADDRESS", "POOL", "STATE", "POD", "NIC", "KEPT FOR", "SINCE")]
        for one in leases:
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.since))
            rows.append((one.address, one.pool, one.state, one.pod, one.ifname, one.keeper, since))
        sys.stdout.write(_table(rows))
    return 0 if leases or options.act in ("list", "release") else 1


def run_explain(options: argparse.Namespace) -> int:
    """Print the choice, and every pool with its reason; 1 where no pool suits."""
    from underlay.daemon.config import LogSettings
    from underlay.daemon.log import Logs
    from underlay.errors import InvalidConfig, PoolMissing
    from underlay.ipam.pools.choose import Ask, Suits, choose, ranked
    from underlay.kube.manifests import Manifests
    from underlay.kube.pool_manifests import PoolManifests, here

    namespace, slash, name = options.pod.partition("/")
    if not slash or not name:
        raise InvalidConfig(f"{options.pod!r} is no pod", hint="Write NAMESPACE/POD.")
    log = Logs(LogSettings(level="error", plugin_dir=""))
    manifests = Manifests(_settings(options).manifest_dir, log, watch=False)
    surroundings = PoolManifests(manifests, options.node or here(), log)
    catalogue = surroundings.catalogue()
    subject = surroundings.subject(namespace, name, "", time.monotonic())
    for fault in catalogue.faults:
        sys.stdout.write(f"not read: {fault}\n")
    if not subject.known:
        sys.stdout.write(f"pod {options.pod} has no manifest: nothing is known of its labels and annotations\n")
    ask = Ask(subject, options.interface, not options.second, options.network)
    try:
        choice = choose(ask, catalogue)
    except PoolMissing as error:
        sys.stdout.write(f"{options.pod} gets no address: {error.message}\n")
        judged = [(pool, Suits(ask, catalogue.node).objection(pool)) for pool in ranked(catalogue.pools.values())]
        sys.stdout.write(_table([("POOL", "VERDICT"), *((pool.name, why or "would suit") for pool, why in judged)]))
        return 1
    sys.stdout.write(f"{options.pod}, {options.interface}: decided by {choice.rule}\n" + _table(_verdicts(choice)))
    return 0


def _verdicts(choice: Choice) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("POOL", "FAMILY", "VERDICT")]
    for family, names in sorted(choice.subnets.items()):
        rows += [(f"(cut from {name})", f"IPv{family}", f"{n}.") for n, name in enumerate(names, 1)]
    for one in choice.verdicts:
        place = "" if one.objection else f"{choice.pools[one.family].index(one.pool) + 1}."
        rows.append((one.pool, f"IPv{one.family}", one.objection or f"{place} to be tried"))
    return rows


def _ask(options: argparse.Namespace, request: bytes) -> bytes:
    """The daemon's answer, or our own where no daemon holds the state directory."""
    from underlay.daemon import frame
    from underlay.daemon.pool_desk import PLUGIN

    settings = _settings(options)
    try:
        status, answer = frame.ask(
            f"{settings.run_dir}/underlay.sock", frame.request(PLUGIN, {}, request), time.monotonic() + _ANSWER_SECONDS
        )
    except (FileNotFoundError, ConnectionRefusedError):
        return _serve(settings, request)
    if status:
        raise _refusal(answer)
    return answer


def _serve(settings: Any, request: bytes) -> bytes:
    from underlay.daemon import pool_desk, pools
    from underlay.daemon.config import LogSettings
    from underlay.daemon.lock import Lock, private_directory
    from underlay.daemon.log import Logs
    from underlay.kube.manifests import Manifests

    private_directory(settings.state_dir)
    lock = Lock(settings.state_dir)
    log = Logs(LogSettings(level="error", plugin_dir=""))
    plugin = pools.embedded(settings.state_dir, Manifests(settings.manifest_dir, log), log, rest=settings.pool_rest)
    try:
        return pool_desk.serve(plugin, request)
    finally:
        plugin.close()
        lock.release()


def _refusal(answer: bytes) -> UnderlayError:
    """A CNI error of the daemon as an error of our own."""
    import msgspec

    told = msgspec.json.decode(answer, type=dict[str, Any])
    return UnderlayError(str(told.get("msg", "")), hint=str(told.get("details", "")))


def _settings(options: argparse.Namespace) -> Any:
    from underlay.daemon import config

    keys = ("run_dir", "state_dir", "manifest_dir")
    return config.load(options.config, {key: value for key in keys if (value := getattr(options, key, None))})


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(line.rstrip() + "\n" for line in lines)
