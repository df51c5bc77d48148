"""What a changed networks annotation means for a pod that runs: which NICs go, which come, and what they are called.

    attached           net1 default/a     net2 default/b     net3 default/c
    annotation now     default/a          default/c          default/d
    stays              net1                                  net3
    goes, comes                           net2 default/b     net2 default/d

A NIC that stays keeps its name, and its device, whatever its place in the annotation is now; a new one takes the lowest
netN that is free. One whose arguments have changed (addresses, MAC, cni-args, default-route, deviceID) goes and comes
again; that its network is defined otherwise by now changes nothing. Pure.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from underlay.multus.devices import INFO_FILE, KEYS, Wanted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from underlay.delegate.attachment import Attachment
    from underlay.multus.annotations import NetworkSelection

BY_ANNOTATION: Final = "annotation"
BY_CONFIGURATION: Final = "configuration"
"""Who asked for an attachment, as the ledger keeps it: the pod's networks annotation, or, once and for the pod's whole
life, the configuration: the cluster network in whichever form, defaultNetworks, the auxiliary chain.
"""


@dataclass(frozen=True, slots=True)
class Changes:
    """``remove`` are attachments of the ledger, ``add`` new ones, both in their order."""

    remove: tuple[Attachment, ...]
    add: tuple[Attachment, ...]

    def __bool__(self) -> bool:
        return bool(self.remove or self.add)


@dataclass(frozen=True, slots=True)
class Attached:
    """What a pod is attached to, oldest first, with who asked for each (``Attachment.by``): only what an annotation
    asked for is changed by one, whatever the configuration and its names are by now.
    """

    attachments: tuple[Attachment, ...]

    @property
    def known(self) -> bool:
        """Whether all of it says who asked for it; what an earlier version attached does not."""
        return all(one.by for one in self.attachments)

    def fixed(self) -> list[Wanted]:
        """What no annotation asked for, as it is."""
        return [Wanted(one) for one in self.attachments if one.by != BY_ANNOTATION]

    def settled(self, selections: Sequence[NetworkSelection]) -> list[NetworkSelection]:
        """The selections, each with its NIC's name."""
        left = self._by_annotation()
        names: dict[int, str] = {}
        for n, selection in _named_first(selections):
            found = next((one for one in left if _is_of(one, selection)), None)
            if found is not None:
                left.remove(found)
                names[n] = found.ifname
        fixed = (each.attachment.ifname for each in self.fixed())
        taken = {*fixed, *names.values(), *(each.interface for each in selections)}
        free = (name for number in itertools.count(1) if (name := f"net{number}") not in taken)
        return [
            replace(selection, interface=selection.interface or names.get(n) or next(free))
            for n, selection in enumerate(selections)
        ]

    def with_devices(self, wanted: Sequence[Wanted]) -> list[Wanted]:
        """The same, each that is attached already with the device that it has."""
        devices = {(one.network, one.ifname): one.runtime.get(KEYS[0], "") for one in self.attachments}
        return [
            replace(each, device=each.device or devices.get((each.attachment.network, each.attachment.ifname), ""))
            for each in wanted
        ]

    def changes(self, planned: Sequence[Attachment]) -> Changes:
        """What turns this into what is planned."""
        wanted = [each for each in planned if each.by == BY_ANNOTATION]
        mine = {(one.network, one.ifname): one for one in self._by_annotation()}
        same = {
            (each.network, each.ifname)
            for each in wanted
            if (one := mine.get((each.network, each.ifname))) is not None and _arguments(one) == _arguments(each)
        }
        return Changes(
            tuple(one for key, one in mine.items() if key not in same),
            tuple(each for each in wanted if (each.network, each.ifname) not in same),
        )

    def _by_annotation(self) -> list[Attachment]:
        return [one for one in self.attachments if one.by == BY_ANNOTATION]


def _named_first(selections: Sequence[NetworkSelection]) -> list[tuple[int, NetworkSelection]]:
    """With their places; those that name their NIC first, so that none without a name takes it from them."""
    return sorted(enumerate(selections), key=lambda each: not each[1].interface)


def _is_of(attached: Attachment, selection: NetworkSelection) -> bool:
    return attached.network == selection.shown and selection.interface in ("", attached.ifname)


def _arguments(asked: Attachment) -> tuple[Mapping[str, Any], Mapping[str, Any], tuple[str, ...]]:
    """What was asked for beside the network; the device information file's path comes from the node."""
    runtime = {key: _plain(value) for key, value in asked.runtime.items() if key != INFO_FILE}
    return runtime, {key: _plain(value) for key, value in asked.cni_args.items()}, tuple(asked.default_gateways)


def _plain(value: Any) -> Any:
    """As JSON gives it back: tuples are lists there."""
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return value
