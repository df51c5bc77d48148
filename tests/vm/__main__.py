"""``python -m tests.vm [ARGUMENT …]``: the tests of tests/vm/guest and kinds in a virtual machine with an SR-IOV NIC.

Arguments are pytest's; without any all of those tests are run. Where the machine cannot be made, a line says why, and
the exit status is 0: there is nothing wrong with the project.

Where QEMU translates, timers of the machine now and then stand still for a minute, and a driver is late with what a
test waits for. So what failed there is run once more in a fresh machine, and a line names it; a fault of the project
fails again.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from typing import TYPE_CHECKING

from tests.vm import image, machine
from tests.vm.image import ROOT

if TYPE_CHECKING:
    from tests.vm.image import Image

# In all, fetching included. 10 minutes are the budget, which an idle machine keeps; this ends what hangs.
SECONDS = 1500.0
TESTS = ["tests/vm/guest", "tests/vm/kinds"]
TESTS_FAILED = 1  # pytest's exit status
CACHE = "pytest"  # its cache, in the folder that the machine writes to; the machine sees it in /mnt


def main(arguments: list[str]) -> int:
    """Returns pytest's exit status."""
    begun = time.monotonic()
    try:
        made = image.make()
    except image.Unavailable as fault:
        print(f"vm: NO TEST ON REAL VIRTUAL FUNCTIONS was run: {fault}", flush=True)
        return 0
    until = begun + SECONDS
    shutil.rmtree(machine.EXCHANGE / CACHE, ignore_errors=True)
    try:
        status = _run(made, arguments or TESTS, until)
        if status == TESTS_FAILED and machine.translates():
            failed = json.loads((machine.EXCHANGE / CACHE / "v/cache/lastfailed").read_text())
            print("vm: once more, in a fresh machine:", *failed, sep="\n    ", flush=True)
            status = _run(made, ["--last-failed", *(arguments or TESTS)], until)
    except machine.Failed as fault:
        print(f"vm: {fault}", file=sys.stderr)
        return 1
    print(f"vm: {time.monotonic() - begun:.0f} s in all", flush=True)
    return status


def _run(made: Image, arguments: list[str], until: float) -> int:
    pytest = [sys.executable, "-m", "pytest", "-o", "addopts=--import-mode=importlib -q"]
    pytest += ["-o", f"cache_dir=/mnt/{CACHE}", f"--color={'yes' if sys.stdout.isatty() else 'no'}", *arguments]
    command = f"""
export PATH={os.environ["PATH"]} HOME=/root PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 UNDERLAY_VM=1
export PYTHONPATH={shlex.quote(str(ROOT / "src"))}
cd {shlex.quote(str(ROOT))} && {shlex.join(pytest)}
"""
    return machine.run(made, command, seconds=until - time.monotonic(), show=_show)


def _show(told: bytes) -> None:
    sys.stdout.buffer.write(told)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
