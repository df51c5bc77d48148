"""What is published about a resource's devices: device information files and, where asked for, a CDI specification.

    DIR/dp/intel.com-sriov-0000:3b:02.1-device.json     for Multus and CNI plugins (device-info-spec 1.1.0, section 4.1)
    CDI/underlay-intel.com_sriov.json                   for the container runtime (CDI specification 0.5.0)

Both say what a device is, not who has it, so they are there as long as the resource has the device. They stay when the
plugin stops: a pod's network, and a container that starts anew, need them also while another one is being started.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import msgspec

from underlay.device_plugin import nodes
from underlay.errors import DeviceUnfit, IOFailure
from underlay.kube import device_info
from underlay.net import pci
from underlay.plugins import info_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from underlay.device_plugin.inventory import Held
    from underlay.device_plugin.selection import Resource
    from underlay.net.pci import Pci

_CDI_VERSION: Final = "0.5.0"
_OURS: Final = "underlay-"


class InfoFiles:
    """The files of one resource below ``directory`` ("": none), and in ``cdi_directory`` ("": none)."""

    def __init__(self, resource: Resource, pci: Pci, directory: str, cdi_directory: str) -> None:
        self._resource = resource
        self._pci = pci
        self._directory = directory
        self._cdi = cdi_directory
        self._written: dict[str, bytes] = {}

    def publish(self, devices: Sequence[Held]) -> None:
        """Make the files say what the resource has; those that say it already are not touched. Raises IOFailure."""
        wanted = {self._path(each): self._described(each) for each in devices} if self._directory else {}
        if self._cdi and (specified := self._specified(devices)):
            wanted[self._cdi_path()] = specified
        for path in {*self._left_over(), *self._written} - set(wanted):
            info_file.remove(path)
            self._written.pop(path, None)
        for path, content in wanted.items():
            if self._written.get(path) != content or not os.path.exists(path):
                info_file.write(path, content)
                self._written[path] = content

    def cdi_names(self, devices: Iterable[Held]) -> list[str]:
        """The devices of the specification that are among these, by their qualified names; none without CDI."""
        if not self._cdi:
            return []
        return [f"{self._resource.name}={each.function.address}" for each in devices if self._node_paths(each)]

    def _path(self, held: Held) -> str:
        return device_info.published_path(self._directory, self._resource.name, held.function.address)

    def _described(self, held: Held) -> bytes:
        told = {
            "pci-address": held.function.address,
            "pf-pci-address": held.pf.address,
            "rdma-device": nodes.rdma_device(held.function.address, self._pci) if held.selector.rdma else "",
        }
        told = {key: value for key, value in told.items() if value}
        return msgspec.json.encode({"type": "pci", "version": "1.1.0", "pci": told})

    def _left_over(self) -> list[str]:
        """Files of this resource that an earlier process may have left for devices that it has no more."""
        if not self._directory or self._written:
            return []
        path = device_info.published_path(self._directory, self._resource.name, "\n")
        before, _, after = os.path.basename(path).partition("\n")
        directory = os.path.dirname(path)
        try:
            names = os.listdir(directory)
        except OSError:
            return []
        return [
            os.path.join(directory, name)
            for name in names
            if name.startswith(before) and pci.is_address(name.removeprefix(before).removesuffix(after))
        ]

    def _cdi_path(self) -> str:
        return os.path.join(self._cdi, f"{_OURS}{self._resource.prefix}_{self._resource.short}.json")

    def _specified(self, devices: Iterable[Held]) -> bytes:
        """b"" where no device needs anything: neither a device without edits nor a file without devices is valid."""
        listed: list[dict[str, Any]] = []
        for each in devices:
            paths = [
                {"path": inside, "hostPath": outside, "permissions": "rw"}
                for inside, outside in self._node_paths(each).items()
            ]
            if paths:
                listed.append({"name": each.function.address, "containerEdits": {"deviceNodes": paths}})
        if not listed:
            return b""
        return msgspec.json.encode({"cdiVersion": _CDI_VERSION, "kind": self._resource.name, "devices": listed})

    def _node_paths(self, held: Held) -> dict[str, str]:
        try:
            return nodes.of(held, self._pci).paths
        except DeviceUnfit:  # told when it is asked for
            return {}


def clean_cdi(directory: str, resources: Iterable[Resource]) -> None:
    """Remove the specifications of resources that an earlier configuration had. Raises IOFailure."""
    kept = {f"{_OURS}{each.prefix}_{each.short}.json" for each in resources}
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return
    except OSError as error:
        raise IOFailure(f"cannot read {directory}: {error.strerror}", hint="Correct --cdi-dir.") from error
    for name in names:
        if name.startswith(_OURS) and name.endswith(".json") and name not in kept:
            info_file.remove(os.path.join(directory, name))
