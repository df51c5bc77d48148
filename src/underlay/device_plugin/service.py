"""What the kubelet is answered about one resource, from its devices as they were last looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from underlay.device_plugin import api, nodes, preference
from underlay.errors import DeviceUnfit, IOFailure
from underlay.kube.grpc import NOT_FOUND, UNAVAILABLE
from underlay.kube.grpc_server import FAILED_PRECONDITION, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from underlay.device_plugin.api import Grant
    from underlay.device_plugin.info_files import InfoFiles
    from underlay.device_plugin.inventory import Held
    from underlay.device_plugin.selection import Resource
    from underlay.kube.source import Log
    from underlay.net.pci import Pci

_ENVIRONMENT: Final = "PCIDEVICE"


class Service:
    """One resource. ``look`` brings all devices up to date before some are given away. Used by one thread."""

    def __init__(self, resource: Resource, pci: Pci, files: InfoFiles, log: Log, look: Callable[[], None]) -> None:
        self.resource = resource
        self._pci = pci
        self._files = files
        self._log = log
        self._look = look
        self._devices: dict[str, Held] = {}

    def calls(self) -> Mapping[str, Callable[[bytes], bytes]]:
        """The methods of the API that take one message and give one."""
        return {
            api.OPTIONS: lambda _request: api.options(),
            api.ALLOCATE: self.allocate,
            api.PREFERRED: self.prefer,
            api.PRE_START: lambda _request: api.EMPTY,
        }

    def update(self, devices: Sequence[Held]) -> None:
        """The resource has these devices now. What has changed is logged."""
        former, self._devices = self._devices, {each.function.address: each for each in devices}
        for address, held in self._devices.items():
            before = former.get(address)
            if before is None or before.fault != held.fault:
                self._told(address, "unhealthy" if held.fault else "healthy", held.fault)
        for address in former.keys() - self._devices.keys():
            self._told(address, "removed", "")
        try:
            self._files.publish(devices)
        except IOFailure as error:
            self._log("warn", "device files are not up to date", resource=self.resource.name, cause=error.message)

    def _told(self, address: str, state: str, cause: str) -> None:
        level = "warn" if cause else "info"
        self._log(level, "device", resource=self.resource.name, device=address, state=state, cause=cause)

    def listed(self) -> bytes:
        """The value of ListAndWatch."""
        numa = self.resource.numa
        return api.listed(
            api.Device(address, not held.fault, held.numa if numa else None) for address, held in self._devices.items()
        )

    def allocate(self, request: bytes) -> bytes:
        """Allocate. Raises Refused, Malformed."""
        self._look()
        return api.granted([self._grant(ids) for ids in api.wanted(request)])

    def _grant(self, ids: Sequence[str]) -> Grant:
        """All that one container gets. Raises Refused."""
        devices = [self._device(each) for each in ids]
        paths: dict[str, str] = {}
        told: dict[str, Mapping[str, Mapping[str, str]]] = {}
        for held in devices:
            try:
                found = nodes.of(held, self._pci)
            except DeviceUnfit as error:
                raise Refused(FAILED_PRECONDITION, f"{self.resource.name}: {error.message}. {error.hint}") from error
            paths |= found.paths
            told[held.function.address] = found.told | self._extra(held.function.address)
        cdi = self._published(devices)
        self._log("info", "allocated", resource=self.resource.name, devices=list(ids))
        return api.Grant(self._environment(ids, told), {} if cdi else paths, cdi)

    def _device(self, address: str) -> Held:
        held = self._devices.get(address)
        if held is None:
            raise Refused(NOT_FOUND, f"{self.resource.name} has no device {address}")
        if held.fault:
            raise Refused(FAILED_PRECONDITION, f"device {address} of {self.resource.name} cannot be used: {held.fault}")
        return held

    def _extra(self, address: str) -> dict[str, Mapping[str, str]]:
        extra = {**self.resource.extra.get("*", {}), **self.resource.extra.get(address, {})}
        return {"extraInfo": extra} if extra else {}

    def _published(self, devices: Iterable[Held]) -> list[str]:
        """CDI names, with the files that they lead to. Raises Refused."""
        named = self._files.cdi_names(devices)
        try:
            self._files.publish(list(self._devices.values()))
        except IOFailure as error:
            if named:  # the runtime would not find them
                raise Refused(UNAVAILABLE, f"{self.resource.name}: {error.message}") from error
            self._log("warn", "device files are not up to date", resource=self.resource.name, cause=error.message)
        return named

    def _environment(self, ids: Sequence[str], told: Mapping[str, object]) -> dict[str, str]:
        key = f"{_ENVIRONMENT}_{self.resource.prefix}_{self.resource.short}".replace(".", "_").upper()
        return {key: ",".join(ids), f"{key}_INFO": msgspec.json.encode(told).decode()}

    def prefer(self, request: bytes) -> bytes:
        """GetPreferredAllocation. Raises Malformed."""
        return api.preferred(preference.choose(each, self._devices) for each in api.choices(request))
