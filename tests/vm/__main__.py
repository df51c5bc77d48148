"""``python -m tests.vm [ARGUMENT …]``: the tests of tests/vm/guest and kinds in a virtual machine with an SR-IOV NIC.

Arguments are pytest's; without any all of those tests are run. Where the machine cannot be made, a line says why, and
the exit status is 0: there is nothing wrong with the project.
"""

from __future__ import annotations

import os
import shlex
import sys
import time

from tests.vm import image, machine
from tests.vm.image import ROOT

# In all, fetching included. 10 minutes are the budget, which an idle machine keeps; this ends what hangs.
SECONDS = 1500.0
TESTS = ["tests/vm/guest", "tests/vm/kinds"]


def main(arguments: list[str]) -> int:
    """Returns pytest's exit status."""
    begun = time.monotonic()
    try:
        made = image.make()
    except image.Unavailable as fault:
        print(f"vm: NO TEST ON REAL VIRTUAL FUNCTIONS was run: {fault}", flush=True)
        return 0
    pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib -q"]
    pytest += [f"--color={'yes' if sys.stdout.isatty() else 'no'}", *(arguments or TESTS)]
    command = f"""
export PATH={os.environ["PATH"]} HOME=/root PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 UNDERLAY_VM=1
export PYTHONPATH={shlex.quote(str(ROOT / "src"))}
cd {shlex.quote(str(ROOT))} && {shlex.join(pytest)}
"""
    try:
        status = machine.run(made, command, seconds=begun + SECONDS - time.monotonic(), show=_show)
    except machine.Failed as fault:
        print(f"vm: {fault}", file=sys.stderr)
        return 1
    print(f"vm: {time.monotonic() - begun:.0f} s in all", flush=True)
    return status


def _show(told: bytes) -> None:
    sys.stdout.buffer.write(told)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
