"""The machine has what the other tests need: without this a missing module would look like a fault of the program."""

from __future__ import annotations

from pathlib import Path

from tests.vm.image import MODULES


def test_the_kernel_has_every_module() -> None:
    present = {line.split()[0] for line in Path("/proc/modules").read_text().splitlines()}
    assert [name for name in MODULES if name.replace("-", "_") not in present] == []


def test_both_physical_functions_offer_virtual_functions() -> None:
    found = {
        path.parent.name: path.read_text().strip() for path in Path("/sys/bus/pci/devices").glob("*/sriov_totalvfs")
    }
    assert found == {"0000:00:04.0": "7", "0000:00:06.0": "7"}
