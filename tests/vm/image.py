"""What the machine is made of, taken from Debian's packages into a directory of the project; nothing is installed.

    build/vm/debs/      the packages, fetched by apt with a configuration of our own: the system's stays as it is
             qemu/      QEMU and the libraries that the system lacks, unpacked
             kernel/    Debian's kernel and its modules, unpacked
             initramfs  busybox, the modules wanted, init.sh

The second run finds it all and fetches nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = ROOT / "build" / "vm"
BUSYBOX = Path("/bin/busybox")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SUITES = (
    ("http://deb.debian.org/debian", "bookworm"),
    ("http://deb.debian.org/debian", "bookworm-backports"),
    ("http://deb.debian.org/debian-security", "bookworm-security"),
)
# The first QEMU with an SR-IOV NIC is 8.0; bookworm itself has 7.2.
QEMU = [*(f"qemu-system-{part}/bookworm-backports" for part in ("x86", "common", "data")), "seabios/bookworm-backports"]
KERNEL = "linux-image-amd64"
MODULES = [
    "virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_net", "igb", "igbvf", "vfio-pci", "uio_pci_generic", "veth",
    "bridge", "macvlan", "ipvlan", "8021q", "bonding", "dummy", "crc32c_generic", "nf_tables", "nft_chain_nat",
    "nft_nat", "nft_ct", "nft_masq",
]  # fmt: skip
FETCH_SECONDS = 300.0


class Unavailable(Exception):
    """The machine cannot be made here, and why."""


@dataclass(frozen=True)
class Image:
    """The pieces: QEMU's executable, its environment and firmware directories, kernel and initramfs."""

    qemu: Path
    env: dict[str, str]
    data: tuple[Path, ...]
    kernel: Path
    initramfs: Path


def make() -> Image:
    """The image, from the cache where it is there already. Raises Unavailable."""
    for needed in ("apt-get", "dpkg-deb", str(BUSYBOX)):
        if shutil.which(needed) is None:
            raise Unavailable(f"{needed} is missing: QEMU and the kernel are unpacked from Debian's packages")
    if not os.path.exists(KEYRING):
        raise Unavailable(f"{KEYRING} is missing: this is not Debian")
    until = time.monotonic() + FETCH_SECONDS
    stamp = CACHE / ".unpacked"
    if not stamp.exists():
        _fetch(until)
        stamp.touch()
    (kernel,) = (CACHE / "kernel/boot").glob("vmlinuz-*")
    usr = CACHE / "qemu/usr"
    libraries = [usr / "lib/x86_64-linux-gnu", usr / "lib/x86_64-linux-gnu/qemu", CACHE / "qemu/lib/x86_64-linux-gnu"]
    return Image(
        qemu=usr / "bin/qemu-system-x86_64",
        env={"LD_LIBRARY_PATH": ":".join(map(str, libraries)), "QEMU_MODULE_DIR": str(libraries[1])},
        data=tuple(usr / f"share/{name}" for name in ("qemu", "seabios", "ipxe/qemu")),
        kernel=kernel,
        initramfs=_initramfs(kernel.name.removeprefix("vmlinuz-")),
    )


def _fetch(until: float) -> None:
    print("vm: fetching QEMU and a kernel from Debian (84 MB) into build/vm", flush=True)
    shutil.rmtree(CACHE, ignore_errors=True)
    for name in ("lists/partial", "debs/partial", "debs/kernel", "qemu", "kernel"):
        (CACHE / name).mkdir(parents=True)
    sources = CACHE / "sources.list"
    sources.write_text("".join(f"deb [signed-by={KEYRING}] {url} {suite} main\n" for url, suite in SUITES))
    options = [
        f"Dir::Etc::sourcelist={sources}", "Dir::Etc::sourceparts=/dev/null", f"Dir::State::lists={CACHE}/lists",
        f"Dir::Cache::archives={CACHE}/debs", "Dir::Cache::pkgcache=", "Dir::Cache::srcpkgcache=",
        "Debug::NoLocking=1", f"APT::Sandbox::User={os.environ.get('USER', 'root')}", "Acquire::http::Timeout=20",
        "APT::Get::List-Cleanup=0", "Acquire::Languages=none",
    ]  # fmt: skip
    apt = [part for option in options for part in ("-o", option)]
    _run(["apt-get", *apt, "-qq", "update"], until)
    _run(["apt-get", *apt, "-qq", "install", "-y", "--download-only", "--no-install-recommends", *QEMU], until)
    told = _run(["apt-cache", *apt, "depends", KERNEL], until)
    named = re.search(r"Depends: (linux-image-\S+)", told)
    if named is None:
        raise Unavailable(f"{KERNEL} names no kernel: {told[:200]}")
    _run(["apt-get", *apt, "-qq", "download", named[1]], until, cwd=CACHE / "debs/kernel")
    for debs, target in (("debs", "qemu"), ("debs/kernel", "kernel")):
        for deb in (CACHE / debs).glob("*.deb"):
            _run(["dpkg-deb", "-x", str(deb), str(CACHE / target)], until)
    shutil.rmtree(CACHE / "lists")
    shutil.rmtree(CACHE / "debs")


def _run(argv: list[str], until: float, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, check=True, timeout=max(until - time.monotonic(), 1), cwd=cwd
        )
    except subprocess.TimeoutExpired as fault:
        raise Unavailable(f"{argv[0]} did not end within {FETCH_SECONDS:.0f} s") from fault
    except (OSError, subprocess.CalledProcessError) as fault:
        words = (getattr(fault, "stderr", "") or str(fault)).strip().splitlines()
        raise Unavailable(f"{argv[0]}: {words[-1]}") from fault
    return done.stdout


def _initramfs(release: str) -> Path:
    """An archive of busybox, init.sh and the modules, in an order in which they can be loaded."""
    init = (HERE / "init.sh").read_bytes()
    digest = hashlib.sha256(init + " ".join(MODULES).encode() + release.encode()).hexdigest()[:16]
    archive = CACHE / f"initramfs-{digest}"
    if archive.exists():
        return archive
    tree = CACHE / "initramfs.tree"
    shutil.rmtree(tree, ignore_errors=True)
    (tree / "modules").mkdir(parents=True)
    for position, module in enumerate(_ordered(CACHE / f"kernel/lib/modules/{release}")):
        shutil.copy(module, tree / "modules" / f"{position:03}-{module.name}")
    shutil.copy(BUSYBOX, tree / "busybox")
    (tree / "init").write_bytes(init)
    (tree / "init").chmod(0o755)
    names = "\n".join(["."] + [str(path.relative_to(tree)) for path in sorted(tree.rglob("*"))])
    with open(f"{archive}.new", "wb") as file:
        subprocess.run([BUSYBOX, "cpio", "-o", "-H", "newc"], input=names.encode(), stdout=file, cwd=tree, check=True,
                       stderr=subprocess.DEVNULL)  # fmt: skip
    os.rename(f"{archive}.new", archive)
    return archive


def _ordered(directory: Path) -> list[Path]:
    """The files of MODULES and of what they depend on, that before them."""
    files = {_module(path.name): path for path in directory.rglob("*.ko")}
    builtin = {_module(os.path.basename(line)) for line in (directory / "modules.builtin").read_text().split()}
    ordered: dict[str, Path] = {}

    def take(name: str) -> None:
        if name in ordered or name in builtin:
            return
        told = re.search(rb"\0depends=([^\0]*)\0", files[name].read_bytes())
        for other in told[1].decode().split(",") if told and told[1] else ():
            take(_module(other))
        ordered[name] = files[name]

    for name in MODULES:
        take(_module(name))
    return list(ordered.values())


def _module(name: str) -> str:
    return name.partition(".")[0].replace("-", "_")
