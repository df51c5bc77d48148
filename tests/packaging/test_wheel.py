"""The wheel as its users get it: built from the sdist, installed where there is no compiler and no source."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import tomllib
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from underlay import __version__
from underlay.cli import shim_binary
from underlay.cli.install import BUILT_IN

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[2]
# ELF e_machine, and the program header that names an interpreter: elf(5).
MACHINES = {"x86_64": 62, "aarch64": 183}
PT_INTERP = 3

# The first compilation for a machine type builds a C library: half a minute, kept under build/zig.
pytestmark = [pytest.mark.xdist_group("packaging"), pytest.mark.timeout(600)]


def hatchling(folder: Path, target: str, out: Path) -> Path:
    """Build in ``folder`` what a release is built of; the one file that came out."""
    cache = {"ZIG_GLOBAL_CACHE_DIR": str(ROOT / "build" / "zig")}
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", out]
    done = subprocess.run(command, cwd=folder, env=os.environ | cache, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hatchling(ROOT, "sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="session")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist alone: what the sdist lacks, the wheel cannot have."""
    unpacked = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["tar", "-xf", sdist, "-C", unpacked], check=True)
    (source,) = unpacked.iterdir()
    return hatchling(source, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment that holds the wheel and nothing else."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", wheel], check=True)
    return folder / "bin"


@pytest.fixture(scope="session")
def files(wheel: Path) -> Mapping[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def segments(image: bytes) -> list[int]:
    """The types of a 64-bit little-endian ELF file's program headers."""
    offset, size, count = (*struct.unpack_from("<Q", image, 32), *struct.unpack_from("<HH", image, 54))
    return [struct.unpack_from("<I", image, offset + n * size)[0] for n in range(count)]


@pytest.mark.parametrize("machine", MACHINES)
def test_the_wheel_holds_a_static_shim_for(machine: str, files: Mapping[str, bytes]) -> None:
    image = files[f"underlay/_shim/underlay-shim-{machine}"]
    assert image[:6] == b"\x7fELF\x02\x01"
    assert struct.unpack_from("<H", image, 18) == (MACHINES[machine],)
    assert segments(image)
    assert PT_INTERP not in segments(image)
    assert shim_binary.run_dir(image) == "/run/underlay"
    assert len(image) < 256 << 10


def test_the_wheel_holds_every_module_its_types_and_its_command(files: Mapping[str, bytes]) -> None:
    modules = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    assert modules <= files.keys()
    assert "underlay/py.typed" in files
    shims = {f"underlay/_shim/underlay-shim-{machine}" for machine in MACHINES}
    rest = files.keys() - modules - shims - {"underlay/py.typed"}
    assert {name for name in rest if ".dist-info/" not in name} == set()
    entry_points = next(content for name, content in files.items() if name.endswith(".dist-info/entry_points.txt"))
    assert entry_points.split() == [b"[console_scripts]", b"underlay", b"=", b"underlay.cli.main:main"]


def test_the_wheel_says_what_it_is(wheel: Path, files: Mapping[str, bytes]) -> None:
    told = message_from_bytes(next(content for name, content in files.items() if name.endswith("/METADATA")))
    assert (told["Name"], told["Version"], told["License-Expression"]) == ("multus-underlay", __version__, "Apache-2.0")
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    required = [each for each in told.get_all("Requires-Dist", []) if "extra ==" not in each]
    assert {re.split("[<>=]", each)[0] for each in required} == {re.split("[<>=]", each)[0] for each in wanted}
    assert any(name.endswith("/licenses/LICENSE") for name in files)


def test_what_is_installed_lays_its_own_shim(installed: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [installed / "underlay", "install", "--bin-dir", tmp_path / "bin", "--run-dir", "/run/else", "--all"],
        capture_output=True, text=True, check=False, cwd=tmp_path, env={},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list((tmp_path / "bin").iterdir())) == len(BUILT_IN)
    assert shim_binary.run_dir_of(tmp_path / "bin" / "multus") == "/run/else"
    version = subprocess.run(
        [tmp_path / "bin" / "multus"], env={"CNI_COMMAND": "VERSION"}, capture_output=True, check=True
    )
    assert b'"1.1.0"' in version.stdout
    packaged = next(
        installed.parent.glob(f"lib/python3*/site-packages/underlay/_shim/underlay-shim-{os.uname().machine}")
    )
    laid = (tmp_path / "bin" / "multus").read_bytes()
    assert laid == shim_binary.with_run_dir(packaged.read_bytes(), "/run/else")


def test_a_machine_without_a_shim_is_named(installed: Path, tmp_path: Path) -> None:
    python = [installed / "python", "-I", "-c"]  # nor what PYTHONPATH leads to
    script = (
        "import os, sys; real = os.uname(); os.uname = lambda: os.uname_result((*real[:4], 'riscv64'))\n"
        "from underlay.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [*python, script, "install", "--bin-dir", tmp_path / "bin"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "the shim for riscv64 is neither" in done.stderr
    assert "Wheels carry it for x86_64 and aarch64" in done.stderr
    assert not (tmp_path / "bin").exists()
