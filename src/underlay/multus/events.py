"""What the pod's owner is told of an ADD and a DEL: Kubernetes Events, after the call is answered.

    ADD that succeeded     Normal   AddedInterface      one Event, its message names every NIC
    annotation changed   Normal   RemovedInterface    and AddedInterface, of a pod that runs
    ADD that failed        Warning  a reason per kind   the cause, and what to do
    DEL that left a rest   Warning  DetachIncomplete    what is still there; a DEL that left nothing is no news

A DEL answers with success whatever it finds, so its faults would be known to the node's log alone. The pod is still
there then, Terminating, or alive with its next sandbox; and what is left may be an address that others lack.

An ADD that fails before the pod is known, and one of a pod that was made again meanwhile, are told by the log alone:
there is nobody to tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from underlay import errors
from underlay.multus.status import own_addresses

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from underlay.cni.result import Result
    from underlay.delegate.attachment import Attachment
    from underlay.errors import UnderlayError
    from underlay.kube.objects import Pod
    from underlay.kube.source import Source

ADDED: Final = "AddedInterface"
REMOVED: Final = "RemovedInterface"
INCOMPLETE: Final = "DetachIncomplete"
REASONS: Final[dict[type[UnderlayError], str]] = {
    errors.NetworkMissing: "NoNetworkFound",
    errors.InvalidAnnotation: "InvalidAnnotation",
    errors.ParentMissing: "ParentMissing",
    errors.InvalidConfig: "InvalidNetwork",
    errors.DecodeFailure: "InvalidNetwork",
    errors.IncompatibleVersion: "InvalidNetwork",
    errors.PluginMissing: "PluginMissing",
    errors.DelegateFailed: "PluginFailed",
    errors.NoAddressLeft: "NoAddressLeft",
    errors.AddressInUse: "AddressInUse",
    errors.InterfaceExists: "InterfaceExists",
    errors.DeviceMissing: "DeviceMissing",
    errors.DevicesUnknown: "DevicesUnknown",
    errors.NamespaceGone: "SandboxGone",
    errors.KernelError: "KernelRefused",
    errors.StateUnwritable: "NodeStateUnwritable",
    errors.DeadlineExceeded: "DeadlineExceeded",
    errors.TryAgain: "NotReady",
    errors.UnderlayError: "AttachFailed",
}
"""By the error's class; one that is not here has its nearest base's."""


class Adding:
    """One ADD of a pod, told by :meth:`tell` once it is answered. ``place`` is what an error's sentence begins with."""

    def __init__(self, source: Source, pod: Pod, place: str) -> None:
        self._source = source
        self._pod = pod
        self._place = place
        self._attachments: Sequence[Attachment] = ()
        self._results: Sequence[Result] = ()

    def attached(self, attachments: Sequence[Attachment], results: Sequence[Result]) -> None:
        """It succeeded, with these."""
        self._attachments, self._results = attachments, results

    def tell(self, failure: UnderlayError | None) -> None:
        """One Event: of what was attached, or of the failure."""
        if failure is None:
            self._source.event(self._pod, "Normal", ADDED, added(self._attachments, self._results))
        else:
            tell_failure(self._source, self._pod, failure, self._place)


def tell_failure(source: Source, pod: Pod, failure: UnderlayError, place: str) -> None:
    """One Event: the cause, and what to do. ``place``, which the sentence may begin with, is the pod itself."""
    cause = failure.message.removeprefix(f"{place}: ")
    source.event(pod, "Warning", reason(failure), f"{_sentence(cause)} {failure.hint}")


def added(attachments: Sequence[Attachment], results: Sequence[Result]) -> str:
    """As in: Add eth0 [10.244.1.5/24] from cluster-net, net1 [172.18.8.1/16] from default/macvlan-a."""
    return "Add " + ", ".join(_each(attachments, results))


def removed(attachments: Sequence[Attachment]) -> str:
    """As in: Remove net1 from default/macvlan-a."""
    return "Remove " + ", ".join(f"{each.ifname} from {each.network}" for each in attachments)


def incomplete(networks: Sequence[str], faults: Sequence[UnderlayError]) -> str:
    """What a DEL has left, and why."""
    causes = "; ".join(dict.fromkeys(fault.message for fault in faults))
    return _sentence(f"Not everything of {', '.join(networks)} could be taken back: {causes}") + (
        " The daemon tries again by itself until it is."
    )


def reason(failure: UnderlayError) -> str:
    """The Event's reason, one word in CamelCase."""
    return next(REASONS[kind] for kind in type(failure).__mro__ if kind in REASONS)


def _each(attachments: Sequence[Attachment], results: Sequence[Result]) -> Iterator[str]:
    for attachment, result in zip(attachments, results, strict=True):
        addresses = " ".join(ip.address for ip in own_addresses(result))
        yield f"{attachment.ifname} [{addresses}] from {attachment.network}"


def _sentence(words: str) -> str:
    return words if words.endswith((".", "!", "?")) else f"{words}."
