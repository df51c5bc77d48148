"""SR-IOV devices in a folder laid out as sysfs is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from underlay.net.pci import Pci, is_address

if TYPE_CHECKING:
    from pathlib import Path

PF, VF0, VF1 = "0000:3b:00.0", "0000:3b:02.0", "0000:3b:02.1"


def device(root: Path, address: str, driver: str, **attributes: str) -> Path:
    """A PCI function; ``nics`` are its NICs, the other keys the files below it."""
    at = root / "bus/pci/devices" / address
    at.mkdir(parents=True)
    for nic in attributes.pop("nics", "").split():
        (at / "net" / nic).mkdir(parents=True)
        (at / "net" / nic / "type").write_text(attributes.get("kind", "1"))
    for name, value in attributes.items():
        (at / name).write_text(f"{value}\n")
    if driver:
        os.symlink(f"../../../../bus/pci/drivers/{driver}", at / "driver")
    return at


@pytest.fixture
def pci(tmp_path: Path) -> Pci:
    pf = device(
        tmp_path, PF, "ice", vendor="0x8086", device="0x1592", numa_node="1", sriov_totalvfs="64", nics="ens1f0"
    )
    for number, (address, driver) in enumerate(((VF0, "iavf"), (VF1, "vfio-pci"))):
        vf = device(
            tmp_path, address, driver, vendor="0x8086", device="0x1889", numa_node="-1",
            nics="ens1f0v0" if driver == "iavf" else "",
        )  # fmt: skip
        os.symlink(f"../{PF}", vf / "physfn")
        os.symlink(f"../{address}", pf / f"virtfn{number}")
    device(tmp_path, "0000:00:1f.2", "ahci", vendor="0x8086", device="0x2922")
    return Pci(str(tmp_path))


def test_a_virtual_function_knows_its_physical_one_and_its_number(pci: Pci) -> None:
    first, second = pci.function(VF0), pci.function(VF1)
    assert first is not None
    assert second is not None
    assert (first.pf, first.number, first.driver, first.nics, first.numa) == (PF, 0, "iavf", ("ens1f0v0",), None)
    assert (second.number, second.nics, second.for_programs, first.for_programs) == (1, (), True, False)
    assert (first.vendor, first.model) == ("8086", "1889")


def test_a_physical_function_lists_its_virtual_ones_in_their_order(pci: Pci) -> None:
    (found,) = pci.pfs()
    assert (found.address, found.most_vfs, found.pf, found.number, found.numa) == (PF, 64, "", -1, 1)
    assert pci.vfs(PF) == [(0, VF0), (1, VF1)]


def test_the_virtual_functions_of_a_physical_one_are_read_as_each_is_by_itself(pci: Pci) -> None:
    assert pci.functions(PF) == [pci.function(VF0), pci.function(VF1)]
    assert pci.functions("0000:ff:00.0") == []


def test_what_is_not_there_is_none(pci: Pci, tmp_path: Path) -> None:
    assert pci.function("0000:ff:00.0") is None
    assert pci.vfs("0000:ff:00.0") == []
    assert Pci(str(tmp_path / "nonesuch")).pfs() == []


def test_infiniband_is_known_by_the_hardwares_type(tmp_path: Path) -> None:
    device(tmp_path, VF0, "mlx5_core", nics="ib0", kind="32")
    pci = Pci(str(tmp_path))
    found = pci.function(VF0)
    assert found is not None
    assert pci.is_infiniband(found)


@pytest.mark.parametrize(
    "text", ["3b:02.1", "0000:3b:02.8", "0000:3B:02.1", "0000:3b:02.1\n", "../0000:3b:02.1", "", "0000:3b:22.1"]
)
def test_what_is_no_address_is_not_taken_for_a_file_name(text: str) -> None:
    assert not is_address(text)
