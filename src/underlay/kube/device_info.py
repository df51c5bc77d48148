"""Device information files (device-info-spec 1.1.0, section 4).

    DIR/dp/intel.com-sriov-0000:3b:02.1-device.json    written by the device plugin, for its resource and device
    DIR/cni/default-fast-CONTAINER_net1                of one attachment: a copy of that, or what its CNI plugin wrote

What becomes of the second kind is in the ledger: :mod:`underlay.plugins.info_file`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from underlay.kube.source import Log

DIRECTORY = "/var/run/k8s.cni.cncf.io/devinfo"
_NAME = 128  # characters of the network's name; container and NIC alone make the path one's own
_LARGEST = 64 << 10  # bytes; the files hold half a dozen short keys


class DeviceInfo:
    """The files below ``directory``. Thread-safe. One that cannot be read or holds no JSON object is logged and counts
    as absent: the plugins that need it say so themselves. ``locate`` says where a path of the node is for this process.
    """

    def __init__(
        self, log: Log, directory: str = DIRECTORY, *, locate: Callable[[str], str] = lambda path: path
    ) -> None:
        self._locate = locate
        self._log = log
        self._directory = directory

    def published(self, resource: str, device: str) -> bytes:
        """What the resource's device plugin wrote about a device, or b""."""
        return self._read(published_path(self._directory, resource, device))[0]

    def path(self, network: str, container: str, ifname: str) -> str:
        """Where the information of one attachment is; no other attachment of this node has the same path."""
        return os.path.join(self._directory, "cni", f"{_flat(network)[:_NAME]}-{_flat(container)}_{_flat(ifname)}")

    def read(self, path: str) -> Mapping[str, Any] | None:
        """What is known of an attachment's device after its ADD, or None."""
        return self._read(path)[1]

    def _read(self, path: str) -> tuple[bytes, Mapping[str, Any] | None]:
        try:
            with open(self._locate(path), "rb") as file:
                raw = file.read(_LARGEST + 1)
            if len(raw) > _LARGEST:
                raise ValueError(f"it is longer than {_LARGEST} bytes")
            return raw, msgspec.json.decode(raw, type=dict[str, Any])
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, ValueError, RecursionError) as fault:
            self._log("warn", "device information file is left out", path=path, cause=str(fault))
        return b"", None


def published_path(directory: str, resource: str, device: str) -> str:
    """Where a device plugin writes about a device of its resource, below ``directory``."""
    return os.path.join(directory, "dp", f"{_flat(resource)}-{_flat(device)}-device.json")


def _flat(part: str) -> str:
    return part.replace("/", "-").replace("\0", "-")
