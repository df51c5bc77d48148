"""A virtual machine with an SR-IOV NIC that runs one command in the host's file system, read-only, and ends.

    0000:00:04.0  igb, 7 VFs ──┐
                               ├ one wire, a hub in QEMU
    0000:00:05.0  virtio ──────┘  the LAN's side
    0000:00:06.0  igb, 7 VFs, a wire of its own

KVM where it works, else QEMU's own translation (5 times slower). Its first process writes to the console every few
seconds: a machine that is silent hangs, as QEMU's translation now and then does under load, and is started again. Every
wait has an end, and so has the process.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.vm.image import CACHE, ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.vm.image import Image

EXCHANGE = CACHE / "exchange"
CONSOLE = CACHE / "console"
QEMU_WORDS = CACHE / "qemu.log"
FIRST_SIGN_OF_KVM = 8.0
SILENCE = 60.0  # the console's signs are 5 s apart, on a machine that has a processor to itself
SIGN = b"alive"
TRIES = 3
MEMORY = "2048M"


class Failed(Exception):
    """The machine did not do what it was started for."""


class _Hangs(Exception):
    """The machine is silent."""


def run(image: Image, command: str, *, seconds: float, show: Callable[[bytes], object]) -> int:
    """Run a shell command in the machine; ``show`` gets its output as it comes. Returns its exit status.

    Raises Failed where the machine does not start, hangs at every try, or does not end in time.
    """
    until = time.monotonic() + seconds
    EXCHANGE.mkdir(exist_ok=True)
    (EXCHANGE / "run").write_text(command)
    (EXCHANGE / "tree").write_text(str(ROOT))
    tries = TRIES
    while True:
        accelerator = _accelerator()
        try:
            return _attempt(image, accelerator, until, show)
        except _Hangs as fault:
            if accelerator == "kvm":
                Path(_kvm_verdict()).write_text("hangs")
                continue
            tries -= 1
            if not tries:
                raise Failed(f"{fault}, {TRIES} times; its console says: {_console()}") from fault
            show(f"\nvm: {fault}: started again\n".encode())


def _attempt(image: Image, accelerator: str, until: float, show: Callable[[bytes], object]) -> int:
    (EXCHANGE / "status").unlink(missing_ok=True)
    CONSOLE.write_bytes(b"")
    with open(QEMU_WORDS, "wb") as words:
        process = subprocess.Popen(
            _argv(image, accelerator), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=words,
            env=os.environ | image.env,
        )  # fmt: skip
    try:
        _relay(process, until, FIRST_SIGN_OF_KVM if accelerator == "kvm" else SILENCE, show)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    return _status(accelerator)


def _accelerator() -> str:
    """A KVM that hangs is remembered until the next boot."""
    usable = os.access("/dev/kvm", os.R_OK | os.W_OK) and not Path(_kvm_verdict()).exists()
    return "kvm" if usable else "tcg,thread=multi"


def translates() -> bool:
    """Whether the machine runs, or ran, by QEMU's translation."""
    return _accelerator() != "kvm"


def _kvm_verdict() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return f"{CACHE}/kvm-{file.read().strip()}"


def _relay(process: subprocess.Popen[bytes], until: float, first_sign: float, show: Callable[[bytes], object]) -> None:
    """Hand the output on until the machine ends; raises Failed at the deadline.

    Raises _Hangs where the console says nothing for ``first_sign`` seconds, or the machine's own sign (init.sh) does
    not come for SILENCE: a kernel whose timers stand still goes on to complain.
    """
    assert process.stdout is not None
    patience, signs, heard = first_sign, 0, time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            now = time.monotonic()
            if now >= until:
                raise Failed(f"it did not end in time; its console says: {_console()}")
            if now - heard >= patience:
                raise _Hangs(f"it gave no sign for {patience:.0f} s")
            if selector.select(min(until - now, 0.5)):
                told = os.read(process.stdout.fileno(), 65536)
                if not told:
                    return
                show(told.replace(b"\r", b""))
            console = CONSOLE.read_bytes()  # QEMU tells nobody when it writes to the file
            if console and patience == first_sign and not signs:
                patience = 2 * SILENCE  # it boots
            if (now_alive := console.count(SIGN)) > signs:
                patience, signs, heard = SILENCE, now_alive, time.monotonic()


def _status(accelerator: str) -> int:
    try:
        return int((EXCHANGE / "status").read_text())
    except (OSError, ValueError) as fault:
        if accelerator == "kvm":
            raise _Hangs("it ended without a word") from fault
        raise Failed(f"it ended without a word (accelerator {accelerator}); its console says: {_console()}") from fault


def _console() -> str:
    return "".join(path.read_text(errors="replace")[-1500:] for path in (QEMU_WORDS, CONSOLE))


def _argv(image: Image, accelerator: str) -> list[str]:
    nics = ["hubport,id=pf,hubid=0", "hubport,id=lan,hubid=0", "hubport,id=other,hubid=1"]
    devices = ["igb,netdev=pf,addr=4", "virtio-net-pci,netdev=lan,addr=5,romfile=", "igb,netdev=other,addr=6"]
    argv = [str(image.qemu), "-machine", "q35", "-accel", accelerator]
    argv += ["-cpu", "host" if accelerator == "kvm" else "max"]
    # QEMU 10.0 takes the lower half of a virtual function's 64-bit address for the whole: so none above 4 GiB
    argv += ["-global", "q35-pcihost.pci-hole64-size=0"]
    argv += ["-smp", str(min(os.cpu_count() or 1, 4)), "-m", MEMORY, "-nodefaults", "-display", "none", "-no-reboot"]
    for directory in image.data:
        argv += ["-L", str(directory)]
    argv += ["-kernel", str(image.kernel), "-initrd", str(image.initramfs)]
    # iomem=relaxed: a test reads registers of the NIC beside its driver. nohz, highres: with a timer that is armed anew
    # for each tick, one tick that is lost under translation leaves a processor without timers for good
    kernel = "console=ttyS0 edd=off panic=-1 quiet net.ifnames=0 iomem=relaxed nohz=off highres=off"
    argv += ["-append", kernel]
    argv += ["-serial", f"file:{CONSOLE}", "-chardev", "stdio,id=out,signal=off", "-serial", "chardev:out"]
    shared = "security_model=none,multidevs=remap"
    argv += ["-virtfs", f"local,path=/,mount_tag=root,readonly=on,{shared}"]
    argv += ["-virtfs", f"local,path={EXCHANGE},mount_tag=exchange,{shared}"]
    for nic in nics:
        argv += ["-netdev", nic]
    for device in devices:
        argv += ["-device", device]
    return argv
