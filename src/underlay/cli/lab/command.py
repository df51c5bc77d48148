"""``underlay lab``: the problem and its repair, shown on this machine, in namespaces of their own.

::

    underlay lab            build, attach, show who reaches whom, remove    (what `make demo` runs)
    underlay lab up         build and keep; then status, exec, down
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, NoReturn, TextIO

from underlay.cli import install
from underlay.cli.lab import leftovers, networks, runtime, scene, topology
from underlay.cli.lab.table import Style, render

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from underlay.cli.lab.table import Table
    from underlay.cli.lab.topology import Lab

_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TITLE = "  A macvlan pod, its node and the cluster"
_EXAMPLES = """\
examples:
  underlay lab                              the demo: a few seconds, leaves nothing behind
  underlay lab up                           the same lab, kept for playing
  underlay lab status                       who reaches whom, now
  underlay lab exec veth -- ip route        run a command in a pod, the node, the lan
  underlay lab down                         remove it
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``lab`` and its subcommands to the command line."""
    lab = subparsers.add_parser(
        "lab",
        help="show who reaches whom, in throw-away namespaces",
        description="A node, a LAN, a ClusterIP and three pods in network namespaces of their own. Needs root.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    about_name = "the lab's name; several live side by side (default: demo for the demo, lab for the commands)"
    lab.add_argument("--name", help=about_name)
    lab.set_defaults(run=_guarded(_demo), usual_name="demo")
    commands = lab.add_subparsers(metavar="COMMAND")
    for word, run, about in (
        ("up", _guarded(_up), "build the lab and keep it"),
        ("status", _guarded(_status), "probe who reaches whom, now"),
        ("down", _guarded(_down), "remove the lab; of one that is not there: nothing"),
        ("exec", _guarded(_exec, alone=False), "run a command in one member's namespace"),
    ):
        command = commands.add_parser(word, help=about, description=about)
        # not given, it leaves what may stand before the command
        command.add_argument("--name", default=argparse.SUPPRESS, help="the lab's name (default: lab)")
        command.set_defaults(run=run, usual_name="lab")
        if word == "exec":
            command.add_argument("member", choices=topology.MEMBERS)
            command.add_argument("command", nargs=argparse.REMAINDER, help="default: a shell")


def _guarded(
    act: Callable[[Lab, argparse.Namespace], int], *, alone: bool = True
) -> Callable[[argparse.Namespace], int]:
    """The act with what every subcommand needs before: root, `ip`, a good name, nobody else at the same lab."""

    def run(options: argparse.Namespace) -> int:
        if os.geteuid():
            raise topology.LabError("the lab needs root: it makes network namespaces", hint="Run it with sudo.")
        if not shutil.which("ip"):
            raise topology.LabError("the lab needs `ip`", hint="It is in the package iproute2 (iproute on Fedora).")
        lab = topology.Lab.named(options.usual_name if options.name is None else options.name)
        if not alone:
            return act(lab, options)
        with _alone(lab):
            _remove_abandoned(but=lab)
            return act(lab, options)

    return run


def _remove_abandoned(*, but: topology.Lab) -> None:
    """Labs that a kill -9 left half-made: not complete, and nobody works on them."""
    for lab in topology.all_labs():
        if lab != but and not runtime.is_complete(lab):
            with contextlib.suppress(topology.LabError), _alone(lab):  # somebody works on it
                topology.remove(lab)
                _say(Style.of(sys.stdout), f"  Removed the remains of the lab {lab.name!r}, whose command was killed.")


@contextlib.contextmanager
def _alone(lab: Lab) -> Iterator[None]:
    """One command at a time on a lab. An abstract socket is a lock that leaves no file and ends with its holder."""
    with socket.socket(socket.AF_UNIX) as lock:
        try:
            lock.bind(f"\0underlay-lab/{lab.name}")
        except OSError as error:
            raise topology.LabError(
                f"another command works on the lab {lab.name!r}", hint="Wait for it, or choose another lab by --name."
            ) from error
        yield


@contextlib.contextmanager
def _removed_after(lab: Lab, *, unless_it_succeeds: bool = False) -> Iterator[None]:
    """Whatever ends the work, Ctrl-C and SIGTERM included, the lab is removed; a second signal does not stop that."""
    interrupted: list[int] = []
    handler = partial(_interrupt, interrupted)
    before = {number: signal.signal(number, handler) for number in _ENDING_SIGNALS}
    sys.unraisablehook = _dropped
    keep = False
    try:
        try:
            yield
            for number in interrupted:  # it came in a destructor, where Python drops what the handler raises
                raise SystemExit(128 + number)
            keep = unless_it_succeeds
        finally:
            _ignore_signals()  # a signal in here ends it, and has done the same
    except SystemExit:
        keep = False
        runtime.abandon(lab)
        with contextlib.suppress(OSError):  # the terminal is gone
            _say(Style.of(sys.stderr), "underlay: interrupted, the lab is removed", to=sys.stderr)
        raise
    finally:
        if not keep:
            topology.remove(lab)
        sys.unraisablehook = sys.__unraisablehook__
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _interrupt(interrupted: list[int], number: int, _frame: object) -> NoReturn:
    """Signal handler. The exit status is the shell's: 128 and the signal's number."""
    _ignore_signals()
    interrupted.append(number)
    raise SystemExit(128 + number)


def _dropped(unraisable: sys.UnraisableHookArgs) -> None:
    """An interrupt that Python has dropped takes effect later, and is nothing to print."""
    if not isinstance(unraisable.exc_value, SystemExit):
        sys.__unraisablehook__(unraisable)


def _ignore_signals() -> None:
    for number in _ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _prepare(lab: Lab) -> None:
    """The lab with nothing attached yet; of an earlier one nothing is left."""
    topology.remove(lab)
    networks.write(lab.root, ipv6=lab.ipv6)
    install.install(lab.root / "bin", str(lab.root / "run"), install.BUILT_IN)
    topology.build(lab)
    runtime.start_responders(lab)
    runtime.start_daemon(lab)


def _demo(lab: Lab, _options: argparse.Namespace) -> int:
    began, style = time.monotonic(), Style.of(sys.stdout)
    _say(style, "", style.bold(_TITLE), "", scene.PICTURE, "")
    with _removed_after(lab):
        _prepare(lab)
        clean = leftovers.on_node(lab)
        attached = runtime.attach(lab, networks.PODS)
        answers = scene.ask(lab, attached)
        runtime.detach(lab, networks.PODS)
        left = sorted(leftovers.on_node(lab) - clean)
    table = scene.table(attached, answers, scene.notes(attached))
    _say(style, render(table, style), "")
    _say(style, *(style.bad(f"  left on the node after DEL: {line}") for line in left))
    took = f"  The lab is removed; all of it took {time.monotonic() - began:.1f} s."
    _say(style, _verdict(table, style), style.dim(took))
    return 1 if table.wrong() or left else 0


def _up(lab: Lab, _options: argparse.Namespace) -> int:
    style = Style.of(sys.stdout)
    attached = runtime.recall(lab)
    if attached:
        _say(style, f"  The lab {lab.name!r} is up already.")
        return _show(lab, attached, style)
    with _removed_after(lab, unless_it_succeeds=True):
        _prepare(lab)
        attached = runtime.attach(lab, networks.PODS)
        runtime.remember(lab, attached)
    status = _show(lab, attached, style)
    _say(style, "", style.bold("  Try next"), *(f"    {line}" for line in scene.hints(lab, attached)))
    return status


def _status(lab: Lab, _options: argparse.Namespace) -> int:
    attached = runtime.recall(lab)
    if not attached:
        raise topology.LabError(f"the lab {lab.name!r} is not up", hint=f"underlay lab up --name {lab.name}")
    return _show(lab, attached, Style.of(sys.stdout))


def _show(lab: Lab, attached: Sequence[runtime.Attached], style: Style) -> int:
    """The table as it is now."""
    table = scene.table(attached, scene.ask(lab, attached), scene.notes(attached))
    _say(style, "", scene.PICTURE, "", render(table, style), "", _verdict(table, style))
    return 1 if table.wrong() else 0


def _down(lab: Lab, _options: argparse.Namespace) -> int:
    there = lab.exists()
    topology.remove(lab)
    _say(Style.of(sys.stdout), f"  The lab {lab.name!r} is {'removed' if there else 'not there'}.")
    return 0


def _exec(lab: Lab, options: argparse.Namespace) -> int:
    """Become the command, in the member's network namespace. 127 and 126 as a shell has them."""
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    command = command or [os.environ.get("SHELL", "/bin/sh")]
    with lab.open(options.member) as namespace, namespace.entered():
        try:
            os.execvp(command[0], command)  # noqa: S606 - what the user typed, become this process
        except OSError as error:
            _say(Style.of(sys.stderr), f"underlay: {command[0]}: {error.strerror}", to=sys.stderr)
            return 127 if isinstance(error, FileNotFoundError) else 126


def _verdict(table: Table, style: Style) -> str:
    wrong, cells = table.wrong(), table.cells()
    if wrong:
        return style.bad(f"  {wrong} of {cells} paths are not as they should be (marked !).")
    lacking = f"macvlan alone lacks {table.unreached()}, its repairs none"
    return style.good(f"  All {cells} paths are as they should be: {lacking}.")


def _say(style: Style, *lines: str, to: TextIO | None = None) -> None:
    """Print at once: a slow step below must not hide it."""
    for line in lines:
        print(style.plain_signs(line), file=to or sys.stdout)
    (to or sys.stdout).flush()
