"""Devices of resource claims (DRA, resource.k8s.io/v1), as the kubelet's PodResources API tells of them.

The kubelet knows a claimed device by driver, pool and name, and by its CDI ids; its attributes are in a ResourceSlice,
on the API server, which ADD does not ask. So a network asks by one of the names that the kubelet does know:

    resourceName: sriovnetwork.k8snetworkplumbingwg.io     the driver
    resourceName: k8s.cni.cncf.io/vf                       the kind of a CDI id, what stands before its "="
    resourceName: fast                                     the claim: its own name, or the pod's name for it

and the device's id is the PCI address in its name or in a CDI id ("0000-3b-02-1" is how a DNS label spells
0000:3b:02.1; drivers put words before it: "pci-0000-3b-02-1"), or else the name as it is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from underlay.kube.devices import Device

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PCI: Final = re.compile(
    r"(?:^|[^0-9a-z])([0-9a-f]{4,8})[:-]([0-9a-f]{2})[:-]([01][0-9a-f])[.-]([0-7])$", re.IGNORECASE
)
_SUFFIX: Final = 5  # random characters that end the name of a claim made from a template


def device(pod: str, claim: str, driver: str, name: str, cdi: Sequence[str]) -> Device | None:
    """One device of a claim of the pod, None for one that has neither a name nor a CDI id.

    An older kubelet tells the CDI ids alone: ``driver`` and ``name`` are empty.
    """
    labels = [each.rpartition("=")[2] for each in cdi]
    candidates = [label for label in (name, *labels) if label]
    if not candidates:
        return None
    found = next(filter(None, map(pci_address, candidates)), candidates[0])
    kinds = [kind for kind, mark, _ in (each.rpartition("=") for each in cdi) if mark and kind]
    names = [each for each in (driver, *kinds, *_claim_names(pod, claim)) if each]
    return Device(found, tuple(dict.fromkeys(names)))


def pci_address(label: str) -> str:
    """The PCI address that ends a device's name, "dddd:bb:dd.f" in lower case, or ""."""
    match = _PCI.search(label)
    return "{}:{}:{}.{}".format(*match.groups()).lower() if match else ""


def _claim_names(pod: str, claim: str) -> Iterator[str]:
    """The claim's name, and what the pod calls it where a template made it: "web-fast-x7k2p" is pod web's "fast"."""
    yield claim
    own, dash, suffix = claim.removeprefix(f"{pod}-").rpartition("-")
    if claim.startswith(f"{pod}-") and dash and own and len(suffix) == _SUFFIX:
        yield own
