"""``underlay networks lint``: manifests and CNI configurations looked through, without a cluster and without root."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from typing import TYPE_CHECKING, Final

from underlay.cli.findings import as_json, as_text, printable
from underlay.errors import IOFailure, UnderlayError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from underlay.multus.lint import Linter

_STDIN: Final = "-"
_EPILOG: Final = """\
Looked through are NetworkAttachmentDefinitions, the network annotations of pods and of the templates of Deployments,
StatefulSets, DaemonSets, Jobs and CronJobs, SpiderIPPools, SpiderReservedIPs and SpiderSubnets (.yaml, .yml, .json),
CNI configurations and that of multus (.conf, .conflist, .json). Everything is read by the code that attaches pods, so
what passes here is not refused there.

severities:
  error    a pod would fail, or the files contradict each other
  warning  it would work, and most likely not as it was meant
  info     what could not be looked into; not shown with --quiet

exit status: 0 no errors, 1 errors (with --strict: or warnings), 2 wrong usage or a file that cannot be read

examples:
  underlay networks lint deploy/
  kubectl get net-attach-def,deployments -A -o yaml | underlay networks lint --complete -
  helm template . | underlay networks lint --strict -
  underlay networks lint --on-this-node /etc/cni/net.d
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand and its own."""
    parser = subparsers.add_parser("networks", description="Work on the definitions of networks.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    lint = commands.add_parser(
        "lint",
        help="find what pods would fail on",
        description="Find in manifests and CNI configurations what pods would fail on.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    lint.add_argument("files", metavar="FILE", nargs="+", help='a file, a directory with files below it, or "-"')
    lint.add_argument("--output", choices=("text", "json"), default="text", help="default text")
    lint.add_argument("--strict", action="store_true", help="warnings count as errors do")
    lint.add_argument("--quiet", action="store_true", help="show no infos")
    lint.add_argument(
        "--complete", action="store_true", help="the files are all: a network in none of them is an error"
    )
    lint.add_argument("--namespace", metavar="NS", default="default", help="of objects that name none; default default")
    lint.add_argument("--on-this-node", action="store_true", help="networks must work on this node, too")
    lint.add_argument(
        "--bin-dir",
        metavar="DIR",
        action="append",
        help="where --on-this-node looks for plugins that are not built in; default /opt/cni/bin",
    )
    lint.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the findings; returns the exit status."""
    from underlay.multus.review import review

    try:
        files = [(printable(name), raw) for name, raw in _files(options.files)]
    except UnderlayError as error:
        print(f"underlay: {error.message}\n  {error.hint}", file=sys.stderr)
        return 2
    found = review(files, _linter(options), namespace=options.namespace, complete=options.complete)
    shown = [each for each in found if not (options.quiet and each.severity == "info")]
    print(as_json(shown) if options.output == "json" else as_text(shown, len(files)))
    failing = ("error", "warning") if options.strict else ("error",)
    return int(any(each.severity in failing for each in found))


def _linter(options: argparse.Namespace) -> Linter:
    from underlay.daemon import builtin
    from underlay.multus.lint import Linter

    if not options.on_this_node:
        return Linter(*builtin.JUDGES)
    from underlay.cli.this_node import ThisNode

    node = ThisNode(builtin.PLUGINS, builtin.JUDGES[1], tuple(options.bin_dir or ("/opt/cni/bin",)))
    return Linter(*builtin.JUDGES, node)


def _files(names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file, each once, directories walked in order. Raises IOFailure."""
    done: set[str] = set()
    for name in names:
        if name == _STDIN:
            if name not in done:
                yield "<stdin>", sys.stdin.buffer.read()
            done.add(name)
            continue
        for path in _walk(name):
            real = os.path.realpath(path)
            if real not in done:
                done.add(real)
                yield path, _content(path)


def _walk(name: str) -> list[str]:
    from underlay.multus.review import ENDINGS

    if not os.path.isdir(name):
        return [name]
    found: list[str] = []
    for directory, inner, names in os.walk(name):
        inner[:] = sorted(each for each in inner if not each.startswith("."))
        wanted = sorted(each for each in names if each.endswith(ENDINGS) and not each.startswith("."))
        found += (os.path.join(directory, each) for each in wanted)
    if not found:
        hint = f"Name a file or a directory that holds files with one of the endings {', '.join(ENDINGS)}."
        raise IOFailure(f"there is nothing to look through in {printable(name)}", hint=hint)
    return found


def _content(path: str) -> bytes:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode) and not path.startswith("/dev/"):
            raise IOFailure(f"{printable(path)} is no regular file", hint='Name a file, or "-" for standard input.')
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise IOFailure(
            f"cannot read {printable(path)}: {error.strerror}", hint="Correct the file's name, or who may read it."
        ) from error
