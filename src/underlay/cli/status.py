"""``underlay status``: ask the daemon how it is, or wait until it is ready."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from underlay.errors import DeadlineExceeded, DecodeFailure, NotAvailable

if TYPE_CHECKING:
    from collections.abc import Mapping

_EPILOG = """\
exit status: 0 ready, 1 not ready or no daemon

examples:
  underlay status                              one line
  underlay status --json                       everything, for programs
  underlay status --wait 10                    until it is ready, at most 10 seconds
  underlay status --run-dir /run/lab/underlay  another daemon
"""
_KEYS = frozenset(
    ("ready", "state", "faults", "pid", "version", "uptime_s", "requests", "failures", "in_flight", "spooled")
)
_ANSWER_SECONDS = 5.0
_RETRY_SECONDS = 0.02


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "status",
        description="Ask the daemon whether it is ready and what it is doing.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run-dir", default="/run/underlay", metavar="DIR", help="the daemon's (default %(default)s)")
    parser.add_argument("--wait", type=_seconds, default=0.0, metavar="SECONDS", help="wait for it to be ready")
    parser.add_argument("--json", action="store_true", help="print the whole status as JSON")
    parser.set_defaults(run=run)


def _seconds(text: str) -> float:
    """Raises ValueError for what is no time to wait: a deadline of "nan" never comes."""
    seconds = float(text)
    if not seconds >= 0:
        raise ValueError
    return seconds


_seconds.__name__ = "number of seconds"  # as argparse words its refusal


def run(options: argparse.Namespace) -> int:
    """Ask, print, and say by the exit status whether it is ready. Raises NotAvailable when there is no daemon."""
    import msgspec

    deadline = time.monotonic() + options.wait
    while True:
        try:
            status = ask(options.run_dir)
        except (OSError, DeadlineExceeded) as error:
            if time.monotonic() >= deadline:
                raise unanswered(options.run_dir, error) from error
        else:
            if status["ready"] or time.monotonic() >= deadline:
                break
        time.sleep(_RETRY_SECONDS)  # nothing tells of a daemon that starts
    sys.stdout.write(msgspec.json.encode(status).decode() + "\n" if options.json else _line(status))
    return 0 if status["ready"] else 1


def ask(run_dir: str) -> Mapping[str, Any]:
    """The status that the daemon of that run directory gives.

    Raises OSError when none answers, DeadlineExceeded when it is too slow, NotAvailable when it refuses and
    DecodeFailure when what it says is no status.
    """
    from underlay.daemon import frame, health

    request = frame.request(health.PLUGIN, {}, b"")
    failed, answer = frame.ask(f"{run_dir}/underlay.sock", request, time.monotonic() + _ANSWER_SECONDS)
    try:
        status = health.decode(answer)
    except ValueError:  # as msgspec's faults are
        status = None
    if failed and isinstance(status, dict) and "msg" in status:
        raise NotAvailable(f"the daemon in {run_dir} refuses: {status['msg']}", hint=str(status.get("details", "")))
    if not isinstance(status, dict) or not status.keys() >= _KEYS:
        raise DecodeFailure(
            f"what answers in {run_dir} gives no status that this command understands",
            hint="Command and daemon are of different versions, or it is no daemon of underlay: restart the daemon.",
        )
    return status


def unanswered(run_dir: str, error: OSError | DeadlineExceeded) -> NotAvailable:
    """That no daemon answers in the run directory, why, and what to do about that."""
    hint = 'Start it ("underlay daemon", or its systemd unit), and look at its log.'
    if isinstance(error, PermissionError):
        hint = "Run this command as root: the daemon answers nobody else."
    elif isinstance(error, NotADirectoryError):
        hint = "A file stands in its path: name the daemon's own run directory (--run-dir)."
    return NotAvailable(f"no daemon answers in {run_dir}: {_reason(error)}", hint=hint)


def _reason(error: OSError | DeadlineExceeded) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"a daemon listens, but gave no answer within {_ANSWER_SECONDS:g} s"


def in_words(status: Mapping[str, Any]) -> str:
    """Whether it is ready, and what it is doing where that is why it is not."""
    if status["ready"]:
        return "ready"
    return "not ready" if status["state"] == "ready" else f"not ready ({status['state']})"


def _line(status: Mapping[str, Any]) -> str:
    faults = "".join(f"\n  {fault}" for fault in status["faults"])
    return (
        f"{in_words(status)}: pid {status['pid']}, version {status['version']}, up {status['uptime_s']:.0f} s, "
        f"{status['requests']} requests ({status['failures']} failed, {status['in_flight']} in flight), "
        f"{status['spooled']} spooled{faults}\n"
    )
