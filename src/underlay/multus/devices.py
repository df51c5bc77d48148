"""A pod's devices to the networks that are tied to their resources: in order, none twice.

    networks                 resource            the kubelet's devices          handed out
    default/a                intel.com/sriov     0000:3b:02.1 0000:3b:02.2      0000:3b:02.1
    default/b                (none)                                             nothing
    default/a, deviceID …02.3                                                   0000:3b:02.3, the annotation's own
    default/c                intel.com/sriov                                    0000:3b:02.2

A device goes into the configuration of every plugin of the network, as "deviceID" and "pciBusID", be the id a PCI
address or not: which one a plugin reads is its own affair. The same two are on offer as runtimeConfig.

Pure, but for what it asks :class:`Devices` and :class:`DeviceInfo`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from underlay.cni.decoding import FAULTS
from underlay.errors import DeviceMissing

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from underlay.delegate.attachment import Attachment
    from underlay.kube.device_info import DeviceInfo
    from underlay.kube.devices import Device, Devices
    from underlay.kube.objects import Pod

KEYS: Final = ("deviceID", "pciBusID")
INFO_FILE: Final = "CNIDeviceInfoFile"
_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST: Final = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])


class Wanted(msgspec.Struct, frozen=True):
    """An attachment before its device is known: ``resource`` is what its network is tied to, or empty, ``device`` the
    id, as soon as there is one; the annotation's own to begin with.
    """

    attachment: Attachment
    resource: str = ""
    device: str = ""


class PodDevices:
    """The devices of one pod, for one request."""

    def __init__(
        self, devices: Devices, info: DeviceInfo, pod: Pod, *, uid: str, container_id: str, deadline: float
    ) -> None:
        self._devices = devices
        self._info = info
        self._pod = pod
        self._uid = uid
        self._container_id = container_id
        self._deadline = deadline

    def hand_out(self, wanted: Sequence[Wanted]) -> list[Wanted]:
        """The same with a device for each that is tied to a resource; the kubelet is asked if one of them has none yet.

        Raises DeviceMissing, DevicesUnknown.
        """
        asking = [each for each in wanted if each.resource and not each.device]
        pod = self._pod
        given = self._devices.of(pod.namespace, pod.name, self._uid or pod.uid, self._deadline) if asking else ()
        pool = _Pool(given, {each.device for each in wanted}, asking)
        return [replace(each, device=pool.take(each)) if each in asking else each for each in wanted]

    def with_info(self, attachment: Attachment, wanted: Wanted, *, declared: bool) -> Attachment:
        """The attachment with its device information file, where it has a device or a plugin of it declares that it
        would write one; with what the device plugin wrote in it.
        """
        if not wanted.device and not declared:
            return attachment
        path = self._info.path(attachment.network, self._container_id, attachment.ifname)
        info = self._info.published(wanted.resource, wanted.device) if wanted.resource else b""
        return replace(attachment, info_file=path, info=info, runtime={**attachment.runtime, INFO_FILE: path})


class _Pool:
    """What the kubelet gave, less what is named already and what was taken."""

    def __init__(self, given: Sequence[Device], named: Collection[str], asking: Sequence[Wanted]) -> None:
        self._given = given
        self._free = [device for device in given if device.id not in named]
        self._asking = asking

    def take(self, wanted: Wanted) -> str:
        """The next device of the resource, by its id. Raises DeviceMissing."""
        for device in self._free:
            if wanted.resource in device.resources:
                self._free.remove(device)
                return device.id
        raise self._missing(wanted.resource, wanted.attachment.network)

    def _missing(self, resource: str, network: str) -> DeviceMissing:
        asking = [each.attachment.network for each in self._asking if each.resource == resource]
        given = [device for device in self._given if resource in device.resources]
        others = sorted({name for device in self._given for name in device.resources})
        elsewhere = ", some of them for other networks" if len(given) >= len(asking) else ""
        has = f", only of {', '.join(others)}" if others and not given else ""
        return DeviceMissing(
            f"network {network} needs a device of {resource}: {len(asking)} of the pod's networks are to be given one "
            f"({', '.join(asking)}), and the kubelet gave the pod {len(given) or 'none'}{elsewhere}{has}",
            hint=f'Let a container of the pod request it (resources.limits, "{resource}": {len(asking)}), or correct '
            "the annotation k8s.v1.cni.cncf.io/resourceName of the NetworkAttachmentDefinition.",
        )


def with_device(attachment: Attachment, device: str) -> Attachment:
    """The attachment with a device's id in its configuration, over what stands there, and on offer."""
    if not device:
        return attachment
    given = dict.fromkeys(KEYS, device)
    return replace(attachment, conf=_inject(attachment.conf, given), runtime={**attachment.runtime, **given})


def _inject(conf: bytes, given: dict[str, str]) -> bytes:
    """A configuration that is none stays as it is: the parser, which comes next, says what is wrong with it."""
    try:
        keys: dict[str, object] = dict(_OBJECT.decode(conf))
        plugins = keys.get("plugins")
        if plugins is None:
            return msgspec.json.encode(keys | given)
        listed = _LIST.decode(plugins if isinstance(plugins, msgspec.Raw) else b"")
    except FAULTS:
        return conf
    return msgspec.json.encode(keys | {"plugins": [plugin | given for plugin in listed]})
