"""sriov's STATUS on a folder laid out as sysfs is, with the node's eth0 for the physical function's NIC.

What becomes of virtual functions is seen on real ones: tests/vm/guest.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from tests.net.test_pci import PF, VF0, device
from tests.plugins.conftest import Node, soon

from underlay.cni import request
from underlay.delegate import plain
from underlay.errors import LimitedConnectivity, NotAvailable
from underlay.net.pci import Pci
from underlay.plugins.sriov import Sriov

if TYPE_CHECKING:
    from pathlib import Path


def status(node: Node, root: Path, **keys: Any) -> None:
    """STATUS as a process of its own carries it out."""
    conf = {"cniVersion": "1.1.0", "name": "vfs", "type": "sriov", **keys}
    parsed = request.parse("sriov", {"CNI_COMMAND": "STATUS", "CNI_PATH": "/bin"}, json.dumps(conf).encode())
    plugins = {"sriov": Sriov(Pci(str(root)))}
    plain.run(parsed, soon(), plugins=plugins, allocators={}, executor=node.engine.executor, log=node.log)


def test_a_node_without_a_nic_that_can_have_virtual_functions_is_not_available(node: Node, tmp_path: Path) -> None:
    with pytest.raises(NotAvailable, match="this node has no NIC that can have virtual functions"):
        status(node, tmp_path)


def test_a_node_without_virtual_functions_is_not_available(node: Node, tmp_path: Path) -> None:
    device(tmp_path, PF, "ice", sriov_totalvfs="64", nics="eth0")
    with pytest.raises(NotAvailable, match=f"none of the physical functions {PF} has virtual functions") as caught:
        status(node, tmp_path)
    assert "sriov_numvfs" in caught.value.hint


def test_a_physical_function_that_is_down_limits_connectivity(node: Node, tmp_path: Path) -> None:
    pf = device(tmp_path, PF, "ice", sriov_totalvfs="64", nics="eth0")
    vf = device(tmp_path, VF0, "iavf")
    os.symlink(f"../{PF}", vf / "physfn")
    os.symlink(f"../{VF0}", pf / "virtfn0")
    status(node, tmp_path)
    node.ns.batch("link set eth0 down")
    with pytest.raises(LimitedConnectivity, match="physical function eth0 is down") as caught:
        status(node, tmp_path)
    assert caught.value.code == 51
    with pytest.raises(NotAvailable, match=f"{PF} is a physical function"):
        status(node, tmp_path, deviceID=PF)
