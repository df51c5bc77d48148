"""The project's image without Debian's registry: what deploy/Containerfile comes to, of this machine's Python.

Where the Containerfile has Debian's python3, this has the interpreter that the tests run with and the libraries that it
is linked to; the environment in /opt/underlay, its path and the entry point are as there. Nothing else is in it: no
shell, no coreutils.
"""

from __future__ import annotations

import compileall
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.e2e import oci_image

import underlay
from underlay.cli import shim_binary

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
HOME = "/opt/underlay"
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
SITE = f"{HOME}/lib/python{VERSION}/site-packages"
# Of the standard library what no server needs; site-packages are the environment's.
_LEFT_OUT = {"test", "idlelib", "lib2to3", "tkinter", "turtledemo", "ensurepip", "site-packages"}
_SCRIPT = f"#!{HOME}/bin/python\nimport sys\nfrom underlay.cli.main import main\nsys.exit(main())\n"


def write(path: Path, name: str) -> None:
    """The image as a tar."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        _environment(archive)
        _interpreter(archive)
    oci_image.write(path, name, out.getvalue(), started_with())


def started_with() -> dict[str, Any]:
    """The image's configuration, as the last stage of the Containerfile says it."""
    stage = (ROOT / "deploy" / "Containerfile").read_text().rpartition("\nFROM ")[2]
    env, entrypoint = (re.search(rf"(?m)^{word} (.*)$", stage) for word in ("ENV", "ENTRYPOINT"))
    assert env is not None
    assert entrypoint is not None
    return {"Env": shlex.split(env[1]), "Entrypoint": json.loads(entrypoint[1])}


def _environment(archive: tarfile.TarFile) -> None:
    """As `python -m venv` and pip leave it, with what deploy/requirements.txt names."""
    python = os.path.realpath(sys.executable)
    _file(archive, f"{HOME}/pyvenv.cfg", f"home = {os.path.dirname(python)}\nversion = {VERSION}\n".encode())
    _link(archive, f"{HOME}/bin/python", python)
    _file(archive, f"{HOME}/bin/underlay", _SCRIPT.encode(), 0o755)
    for package in re.findall(r"(?m)^([\w-]+)==", (ROOT / "deploy" / "requirements.txt").read_text()):
        for each in metadata.files(package) or ():
            if each.parts[0] != "..":
                _copy(archive, Path(str(each.locate())), f"{SITE}/{each}")
    with tempfile.TemporaryDirectory() as directory:
        shutil.copytree(Path(underlay.__file__).parent, f"{directory}/underlay", ignore=shutil.ignore_patterns("*.pyc"))
        compileall.compile_dir(directory, quiet=1, workers=0)
        for each in Path(directory).rglob("*.py*"):
            _copy(archive, each, f"{SITE}/{each.relative_to(directory)}")
    shim = f"{SITE}/underlay/_shim/underlay-shim-{os.uname().machine}"
    _file(archive, shim, shim_binary.load(), 0o755)


def _interpreter(archive: tarfile.TarFile) -> None:
    python = Path(os.path.realpath(sys.executable))
    library = Path(sysconfig.get_path("stdlib"))
    _copy(archive, python, str(python))
    programs = [python]
    for each in library.rglob("*"):
        inside = each.relative_to(library).parts
        if each.is_file() and _LEFT_OUT.isdisjoint(inside) and not inside[0].startswith("config-"):
            _copy(archive, each, str(each))
            programs += [each] if each.suffix == ".so" else []
    packaged = Path(sysconfig.get_path("platlib"))
    programs += [each for name in ("msgspec", "yaml") for each in (packaged / name).glob("*.so")]
    for needed in sorted(set(_libraries(programs))):
        _copy(archive, Path(os.path.realpath(needed)), needed)


def _libraries(programs: list[Path]) -> Iterator[str]:
    """What the dynamic linker would load for them: ldd(1)."""
    done = subprocess.run(["ldd", *programs], check=False, capture_output=True, text=True)
    yield from re.findall(r"(?m)^\s+(?:\S+ => )?(/\S+) \(", done.stdout)


def _file(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644, mtime: float = 0) -> None:
    info = tarfile.TarInfo(name.lstrip("/"))
    info.size, info.mode, info.mtime = len(content), mode, int(mtime)
    archive.addfile(info, io.BytesIO(content))


def _copy(archive: tarfile.TarFile, source: Path, name: str) -> None:
    """With its time, by which byte code knows its source."""
    told = source.stat()
    _file(archive, name, source.read_bytes(), told.st_mode & 0o755, told.st_mtime)


def _link(archive: tarfile.TarFile, name: str, target: str) -> None:
    info = tarfile.TarInfo(name.lstrip("/"))
    info.type, info.linkname = tarfile.SYMTYPE, target
    archive.addfile(info)
