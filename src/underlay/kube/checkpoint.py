"""The kubelet's own note of which container has which device: its device manager's checkpoint file.

    {"Data": {"PodDeviceEntries": [{"PodUID": "…", "ContainerName": "c", "ResourceName": "intel.com/sriov",
                                    "DeviceIDs": {"0": ["0000:3b:02.1"], "1": […]}}]}, "Checksum": …}

DeviceIDs are lists by NUMA node since Kubernetes 1.20, one list before. The file is the kubelet's internal state
(package pkg/kubelet/cm/devicemanager/checkpoint), so its checksum, which is of its Go values' text, is not looked at.
Devices of resource claims are not in it.
"""

from __future__ import annotations

from typing import Final

import msgspec

from underlay.kube.devices import Device, unique


class Malformed(ValueError):
    """What is wrong with the file, in words."""


class _Entry(msgspec.Struct):
    pod_uid: str = msgspec.field(name="PodUID")
    resource: str = msgspec.field(name="ResourceName")
    ids: dict[str, list[str] | None] | list[str] | None = msgspec.field(name="DeviceIDs", default=None)


class _Data(msgspec.Struct):
    entries: list[_Entry] | None = msgspec.field(name="PodDeviceEntries", default=None)


class _File(msgspec.Struct):
    data: _Data = msgspec.field(name="Data")


_FILE: Final = msgspec.json.Decoder(_File)


def read(path: str, uid: str) -> tuple[Device, ...]:
    """The devices of the pod with that UID, in the file's order. Raises OSError, Malformed."""
    with open(path, "rb") as file:
        return decode(file.read(), uid)


def decode(raw: bytes, uid: str) -> tuple[Device, ...]:
    """:func:`read` of bytes. Raises Malformed."""
    try:
        entries = _FILE.decode(raw).data.entries or []
    except (ValueError, RecursionError) as fault:  # msgspec's own errors are ValueErrors
        raise Malformed(f"it is no checkpoint of the device manager: {fault}") from fault
    return unique(
        Device(device, (entry.resource,)) for entry in entries if entry.pod_uid == uid for device in _ids(entry.ids)
    )


def _ids(ids: dict[str, list[str] | None] | list[str] | None) -> list[str]:
    if isinstance(ids, dict):
        return [device for node in sorted(ids, key=_number) for device in ids[node] or ()]
    return ids or []


def _number(node: str) -> tuple[int, str]:
    """NUMA nodes in their order; -1 is a device of none."""
    digits = node.removeprefix("-")
    return (int(node) if digits.isascii() and digits.isdigit() and len(digits) < 10 else 1 << 32, node)
