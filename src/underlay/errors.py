"""The one error tree: each leaf carries a CNI code, one sentence, and what to do next.

Codes 1-99 are fixed by the CNI specification (section "Error"), 100 and above are ours.
"""

from __future__ import annotations

import os


class UnderlayError(Exception):
    """Base of every fault that reaches a user.

    ``message`` is one sentence that names the object and the cause, ``hint`` says what to do next.
    Neither ever holds a whole configuration: it may contain secrets.
    """

    code = 199
    hint = "This is a bug in underlay: please report it with the daemon's log line of this request."

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if hint is not None:
            self.hint = hint


class IncompatibleVersion(UnderlayError):
    """The configuration asks for a CNI version, or for a verb its version does not have."""

    code = 1
    hint = 'Set "cniVersion" to one of 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0.'


class UnknownContainer(UnderlayError):
    """CHECK of a container that was never added, or is gone."""

    code = 3
    hint = "The container was not added by this node's daemon, or was deleted already."


class InvalidEnvironment(UnderlayError):
    """A CNI_* variable is missing or malformed."""

    code = 4
    hint = "The container runtime sets CNI_* variables; see the CNI specification, section 2."


class IOFailure(UnderlayError):
    """A file, a socket or a child process failed."""

    code = 5
    hint = "Check the file system and the limits of the process named above."


class DecodeFailure(UnderlayError):
    """Standard input is not JSON of the expected form."""

    code = 6
    hint = "Standard input must hold one CNI network configuration as JSON."


class InvalidConfig(UnderlayError):
    """A field of the network configuration has a wrong value."""

    code = 7
    hint = "Correct the field in the network configuration."


class ParentMissing(InvalidConfig):
    """The NIC that a plugin builds on does not exist."""

    hint = 'Set "master" to a NIC of this node; "ip -br link" lists them.'


class TryAgain(UnderlayError):
    """A passing fault; the runtime should call again later."""

    code = 11
    hint = "The runtime retries by itself; no action is needed unless it goes on for minutes."


class NotAvailable(UnderlayError):
    """STATUS: the plugin cannot serve ADD."""

    code = 50
    hint = "No pod can be attached to this network until this is mended."


class LimitedConnectivity(UnderlayError):
    """STATUS: containers in this network may have limited connectivity."""

    code = 51
    hint = "Pods can be attached, but traffic of this network may suffer until this is mended."


class KernelError(UnderlayError):
    """The kernel refused an act; ``errno`` and its extended ACK text are kept."""

    code = 101
    hint = "The kernel's own words are above; see the object it names."

    def __init__(self, act: str, errno: int, extack: str = "", *, hint: str | None = None) -> None:
        words = f"{os.strerror(errno)}: {extack}" if extack else os.strerror(errno)
        super().__init__(f"{act}: {words}", hint=hint)
        self.act = act
        self.errno = errno
        self.extack = extack


class NamespaceGone(UnderlayError):
    """The network namespace path does not exist or is no network namespace."""

    code = 102
    hint = "The sandbox has ended; the runtime makes a new one."


class InterfaceExists(UnderlayError):
    """The pod already has a NIC of this name."""

    code = 103
    hint = "Give each attachment its own interface name, or delete the earlier attachment first."


class AddressInUse(UnderlayError):
    """Another host on the wire answered for an address."""

    code = 104
    hint = "Take the address out of the pool or switch the other host off."


class NoAddressLeft(UnderlayError):
    """A range set has no free address, or not the requested one."""

    code = 105
    hint = "Enlarge the range, or free addresses of pods that are gone."


class PluginMissing(UnderlayError):
    """A plugin type is neither built in nor found in CNI_PATH."""

    code = 106
    hint = 'Install the plugin\'s executable into one of the directories named above, or correct "type".'


class DelegateFailed(UnderlayError):
    """A plugin run as another process failed without a CNI error of its own."""

    code = 107
    hint = "The plugin's own words are above; its standard error is in the daemon's log."


class CheckFailed(UnderlayError):
    """CHECK found the kernel different from what ADD left."""

    code = 108
    hint = "Delete the pod; its controller makes a new one with working network."


class StateUnwritable(UnderlayError):
    """The ledger or another file of the daemon's state cannot be written."""

    code = 109
    hint = "Free disk space, or make the state directory writable; the daemon heals by itself."


class DeadlineExceeded(TryAgain):
    """The request's time ran out."""

    hint = "The node is overloaded or a delegate hangs; the daemon's log line of this request names the slow part."


class DeviceUnfit(InvalidConfig):
    """A PCI device cannot be used as a virtual function."""

    hint = 'Set "deviceID" to the PCI address of a virtual function of this node; "underlay devices" lists them.'


class DeviceInUse(TryAgain):
    """Somebody else has the device."""

    hint = "The device is free as soon as that pod's network is taken down, which the daemon sees to by itself."


class NetworkMissing(UnderlayError):
    """A network that a pod asks for is not defined."""

    code = 110
    hint = "Create the NetworkAttachmentDefinition, or correct the pod's annotation."


class InvalidAnnotation(InvalidConfig):
    """A pod's annotation cannot be understood, or asks for what is not allowed."""

    hint = "Correct the annotation and create the pod again."


class PodMismatch(TryAgain):
    """The pod was created again under the same name; this sandbox belongs to its predecessor."""

    hint = "The runtime will call again for the new pod."


class DeviceMissing(UnderlayError):
    """A network is tied to a device plugin's resource, and the pod has no device of it left."""

    code = 111
    hint = "Let a container of the pod request the resource, one device for each network that is tied to it."


class DevicesUnknown(TryAgain):
    """Nobody can tell now which devices the kubelet gave to the pod."""

    hint = (
        "The daemon needs the kubelet's pod-resources directory (pod_resources_socket in its configuration; in a "
        "container: mount it), and the kubelet must run."
    )


class GatewaySilent(UnderlayError):
    """A pool's gateway does not answer on the wire."""

    code = 112
    hint = "Correct spec.gateway of the pool, or see why the router does not answer; detectGateway false asks no more."


class PoolMissing(UnderlayError):
    """An address pool that is asked for does not exist, or no pool suits the pod."""

    code = 113
    hint = 'Create or correct the pool, or what names it; "underlay ipam explain NAMESPACE/POD" says why of each.'
