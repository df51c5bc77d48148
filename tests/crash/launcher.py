"""Starts daemons that die after their n-th act. Runs inside the node; one line of JSON on standard input per daemon.

    {"limit": 7, "armed": "/path/of/a/file", "argv": ["daemon", "--run-dir", …]}   ->   its process id, on a line
                                                                                       its wait status, when it ended

Acts count while the file is there. The program is imported once and forked, so that a start takes milliseconds.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial

from tests.crash.faults import Fuse, lay

import underlay.cli.daemon
import underlay.daemon.app
from underlay.cli.main import main


def serve() -> None:
    """Until standard input ends."""
    assert underlay.cli.daemon
    assert underlay.daemon.app
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if not pid:
            lay(Fuse(order["limit"], partial(os.path.exists, order["armed"])))
            os._exit(main(order["argv"]))
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    serve()
