#!/usr/bin/env python3
"""Build the shim: the one place that knows its compilers and flags. Standard library only, any Python >= 3.11.

``shim_build.py OUT`` builds for this machine: by musl-gcc where there is one, else cc, else PyPI's ziglang.
``shim_build.py OUT --target aarch64`` (or x86_64) builds for others, static against musl, by PyPI's ziglang.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("underlay-shim.c")
FLAGS = ("-std=gnu11", "-O2", "-static", "-s", "-Wall", "-Wextra", "-Werror")
TARGETS = ("x86_64", "aarch64")
ZIG_VERSION = "0.17.1"
# musl first: started from glibc's static start-up code the shim takes twice as long (0.7 ms against 0.35 ms).
COMPILERS = ("musl-gcc", "cc", "gcc", "clang")


class NoCompiler(Exception):
    """No program that compiles C was found; the text says what to install."""


def zig(target: str | None = None) -> list[str]:
    """The command line of ziglang's C compiler, for a machine type or for this one."""
    if importlib.util.find_spec("ziglang") is None:
        raise NoCompiler(
            "no C compiler for the shim: install gcc (Debian: apt-get install gcc libc6-dev), "
            f"or ziglang into {sys.executable} (python -m pip install ziglang=={ZIG_VERSION})"
        )
    return [sys.executable, "-m", "ziglang", "cc", "-target", f"{target or os.uname().machine}-linux-musl"]


def native() -> list[str]:
    """The command line of the C compiler for this machine."""
    found = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if found:
        return [found]
    command = zig()
    print("shim: no C compiler on PATH, building with ziglang (the first time takes a minute)", file=sys.stderr)
    return command


def build(out: Path, target: str | None = None) -> Path:
    """Compile to ``out``, whole or not at all; raises NoCompiler or CalledProcessError."""
    compiler = zig(target) if target else native()
    out.parent.mkdir(parents=True, exist_ok=True)
    cache = {"ZIG_GLOBAL_CACHE_DIR": str(SOURCE.parent.parent / "build" / "zig")}
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        fresh = Path(folder, out.name)
        command = [*compiler, *FLAGS, "-o", str(fresh), str(SOURCE)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, env=cache | os.environ)
        fresh.replace(out)
    return out


def main() -> int:
    """Build as the command line says; 3 means that there is no compiler."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--target", choices=TARGETS)
    args = parser.parse_args()
    try:
        build(args.out, args.target)
    except NoCompiler as fault:
        print(f"shim_build.py: {fault}", file=sys.stderr)
        return 3
    except subprocess.CalledProcessError as fault:
        print(f"shim_build.py: the compiler exited with {fault.returncode}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
