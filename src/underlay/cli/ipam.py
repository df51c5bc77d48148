"""``underlay ipam``: who has which address of the pools, and why a pod gets its addresses where it does."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

from underlay.cli import adopt, status
from underlay.cli.columns import table
from underlay.errors import DeadlineExceeded, NotAvailable, UnderlayError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from underlay.daemon.pool_explain import Explained, Nic

_EPILOG = """\
The daemon is asked, or, where none runs, its state directory. With --manifest-dir or --node, explain reads manifests
alone: it takes no root, and knows nothing of what is free. adopt asks the API server.

examples:
  underlay ipam explain default/web-0 --interface net1 --network kube-system/macvlan
  underlay ipam list
  underlay ipam list --all
  underlay ipam who 172.18.40.10
  underlay ipam reserve 172.18.40.50 --for default/gateway
  underlay ipam release 172.18.40.50
  underlay ipam adopt --kubeconfig admin.kubeconfig
"""
_ANSWER_SECONDS = 10.0
_START_HINT = "Start the daemon: the pools are at the API server."
_ASK_HINT = "Ask that daemon: name its run directory (--run-dir) or its configuration file (--config)."
_ELSEWHERE_HINT = "Start it, or name the directories of the one that is meant (--run-dir, --state-dir, --config)."


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
    explain.add_argument("--json", action="store_true", help="for programs")
    explain.add_argument("--node", default="", metavar="NAME", help="as on another node")
    explain.add_argument("--manifest-dir", metavar="DIR", help="pods, networks and pools from these files alone")
    explain.add_argument("--run-dir", metavar="DIR", help="the daemon's")
    explain.add_argument("--state-dir", metavar="DIR", help="where no daemon runs")
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
        if name == "list":
            command.add_argument("--all", dest="everywhere", action="store_true", help="what every node reports")
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
    adopt.register(commands)


def run(options: argparse.Namespace) -> int:
    """Ask, print; 1 where an address asked for is nobody's. Raises UnderlayError."""
    import msgspec

    from underlay.daemon.pool_desk import Answer, Wish

    keys = ("address", "whom", "force", "everywhere")
    wish = Wish(options.act, **{key: getattr(options, key) for key in keys if hasattr(options, key)})
    answer = _ask(options, msgspec.json.encode(wish))
    leases = msgspec.json.decode(answer, type=Answer).leases
    if options.json:
        sys.stdout.write(answer.decode() + "\n")
    elif not leases:
        sys.stdout.write("no address is in use\n" if options.act == "list" else f"{options.address} is free\n")
    else:
        if options.act == "release":
            sys.stdout.write(f"{options.address} is released; it was\n")
        rows = [("ADDRESS", "POOL", "STATE", "POD", "NIC", "KEPT FOR", "SINCE", *(["NODE"] if wish.everywhere else []))]
        for one in leases:
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.since))
            row = (one.address, one.pool, one.state, one.pod, one.ifname, one.keeper, since)
            rows.append((*row, *([one.node] if wish.everywhere else [])))
        sys.stdout.write(table(rows))
    return 0 if leases or options.act in ("list", "release") else 1


def run_explain(options: argparse.Namespace) -> int:
    """Print the choice, and every pool with its reason; 1 where no pool suits. Raises UnderlayError."""
    import msgspec

    from underlay.daemon.pool_desk import Wish
    from underlay.daemon.pool_explain import Explained, Nic

    nic = Nic(options.pod, options.interface, options.network, options.second)
    if options.manifest_dir or options.node:
        told = _explain_files(nic, options)
    else:
        answer = _ask(options, msgspec.json.encode(Wish("explain", nic)))
        told = msgspec.json.decode(answer, type=Explained)
    if options.json:
        sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
        return 1 if told.fault else 0
    for fault in told.unread:
        sys.stdout.write(f"not read: {fault}\n")
    if not told.known:
        sys.stdout.write(f"pod {told.pod} is not known: nothing is known of its labels and annotations\n")
    if told.fault:
        sys.stdout.write(f"{told.pod} gets no address: {told.fault}\n")
    else:
        sys.stdout.write(f"{told.pod}, {told.ifname}: decided by {told.rule}\n")
    rows = [("POOL", "FAMILY", "FREE", "VERDICT")]
    rows += [(f"(cut from {name})", "", "", f"{n}.") for n, name in enumerate(told.cut, 1)]
    for one in told.lines:
        free = str(one.free) if one.free >= 0 else ""
        rows.append((one.pool, f"IPv{one.family}", free, one.why or f"{one.place}. to be tried"))
    sys.stdout.write(table(rows))
    return 1 if told.fault else 0


def _explain_files(nic: Nic, options: argparse.Namespace) -> Explained:
    """From manifests alone, for a node that may be another: what is free there is not known."""
    from underlay.daemon.config import LogSettings
    from underlay.daemon.log import Logs
    from underlay.daemon.pool_explain import explain
    from underlay.kube.manifests import Manifests
    from underlay.kube.pool_manifests import PoolManifests, here

    log = Logs(LogSettings(level="error", plugin_dir=""))
    manifests = Manifests(_settings(options).manifest_dir, log, watch=False)
    return explain(nic, PoolManifests(manifests, options.node or here(), log), manifests, time.monotonic())


def _ask(options: argparse.Namespace, request: bytes) -> bytes:
    """The daemon's answer, or our own where no daemon holds the state directory."""
    from underlay.daemon import frame
    from underlay.daemon.pool_desk import PLUGIN

    settings = _settings(options)
    try:
        failed, answer = frame.ask(
            f"{settings.run_dir}/underlay.sock", frame.request(PLUGIN, {}, request), time.monotonic() + _ANSWER_SECONDS
        )
    except (FileNotFoundError, ConnectionRefusedError):
        return _serve(settings, request)
    except (OSError, DeadlineExceeded) as error:
        raise status.unanswered(settings.run_dir, error) from error
    if failed:
        raise _refusal(answer)
    return answer


def _serve(settings: Any, request: bytes) -> bytes:
    import msgspec

    from underlay.daemon import pool_desk, pools
    from underlay.daemon.config import LogSettings
    from underlay.daemon.log import Logs
    from underlay.daemon.pool_desk import Wish
    from underlay.kube.manifests import Manifests

    log = Logs(LogSettings(level="error", plugin_dir=""))
    manifests = Manifests(settings.manifest_dir, log)
    wish = msgspec.json.decode(request, type=Wish)
    act = wish.act
    if pools.in_cluster(settings, manifests) and (act not in ("list", "who") or wish.everywhere):
        told = "what the nodes report" if wish.everywhere else "which addresses are this node's"
        raise NotAvailable(f"no daemon runs, and {told} is for it to know", hint=_START_HINT)
    with _held(settings, act) as directory:
        plugin = pools.embedded(directory, manifests, log, rest=settings.pool_rest, node=settings.kube.node_name)
        with contextlib.closing(plugin):
            return pool_desk.serve(plugin, manifests, None, request)


@contextlib.contextmanager
def _held(settings: Any, act: str) -> Iterator[str]:
    """The state directory, kept from a daemon that starts meanwhile. Where there is none, only a reservation makes it:
    explain takes everything for free, and who asks for what is in use has probably named another one than was meant.
    """
    from underlay.daemon.lock import AlreadyRunning, Lock, private_directory

    directory = settings.state_dir
    with contextlib.ExitStack() as scope:
        if act != "reserve" and not os.path.lexists(directory):
            if act != "explain":
                words = f"no daemon answers in {settings.run_dir}, and {directory} is not there"
                raise NotAvailable(words, hint=_ELSEWHERE_HINT)
            directory = scope.enter_context(tempfile.TemporaryDirectory())
        private_directory(directory)
        try:
            scope.callback(Lock(directory).release)
        except AlreadyRunning as error:
            raise AlreadyRunning(error.message, hint=_ASK_HINT) from error
        yield directory


def _refusal(answer: bytes) -> UnderlayError:
    """A CNI error of the daemon as an error of our own."""
    import msgspec

    told = msgspec.json.decode(answer, type=dict[str, Any])
    return UnderlayError(str(told.get("msg", "")), hint=str(told.get("details", "")))


def _settings(options: argparse.Namespace) -> Any:
    from underlay.daemon import config

    keys = ("run_dir", "state_dir", "manifest_dir")
    return config.load(options.config, {key: value for key in keys if (value := getattr(options, key, None))})
