"""Which networks a pod is attached to, in which order, under which names, with what: decided before anything is done.

    1 the cluster network, or the pod's default-network     CNI_IFNAME
    2 defaultNetworks (further delegates)                   net1 …     not in systemNamespaces
    3 the pod's networks annotation, in its order           netN by position, unless it names one itself
    4 the auxiliary chain's plugins, where it has any       netN

A network that is tied to a device plugin's resource is given one of the pod's devices, in this order.

Pure: what it needs of the world comes through :class:`~underlay.multus.networks.Networks` and
:class:`~underlay.multus.devices.PodDevices`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec.structs import replace

from underlay.cni.decoding import FAULTS, fault
from underlay.delegate.attachment import Attachment
from underlay.errors import InvalidAnnotation, InvalidConfig, UnderlayError
from underlay.multus import networks
from underlay.multus.annotations import DEFAULT_NETWORK, NETWORKS, parse_default
from underlay.multus.annotations import parse as parse_networks
from underlay.multus.changes import BY_ANNOTATION, BY_CONFIGURATION
from underlay.multus.devices import INFO_FILE, KEYS, Wanted, with_device

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from underlay.cni.config import NetworkConfig
    from underlay.kube.objects import Pod
    from underlay.multus.annotations import NetworkSelection
    from underlay.multus.changes import Attached
    from underlay.multus.config import MultusConfig
    from underlay.multus.devices import PodDevices
    from underlay.multus.networks import Network, Networks

_OURSELVES: Final = ("multus", "multus-shim")
_EMPTY_RESULT: Final = msgspec.Raw(b'{"cniVersion":"0.4.0"}')
_CHAIN_VERSION: Final = "0.4.0"


class Plan(msgspec.Struct, frozen=True):
    """Attachments in the order of ADD, the cluster network's first. ``notes`` are for the log: what was asked for and
    has no effect.
    """

    attachments: tuple[Attachment, ...]
    notes: tuple[str, ...] = ()


def plan(
    config: MultusConfig,
    pod: Pod | None,
    ifname: str,
    nets: Networks,
    parse: Callable[[Attachment], NetworkConfig],
    devices: PodDevices | None = None,
    attached: Attached | None = None,
) -> Plan:
    """The whole plan of a pod; without a pod that of the configuration alone.

    ``parse`` is the engine's: every configuration is decoded now, so that one that is none fails before the first NIC
    is made. Without ``devices`` no device is handed out: nobody knows which. ``attached`` is what a pod that runs has
    already: its NICs keep their names and devices, and what the configuration asked for then stays as it is.

    Raises InvalidAnnotation, InvalidConfig, NetworkMissing, DeviceMissing and what lookups raise.
    """
    notes: list[str] = []
    wanted = attached.fixed() if attached is not None else _fixed(config, pod, ifname, nets, notes)
    selections = _selections(config, pod)
    for selection in attached.settled(selections) if attached is not None else selections:
        network = nets.definition(selection.namespace, selection.name)
        wanted.append(_selected(network, selection, f"net{len(wanted)}", notes, by=BY_ANNOTATION))
    if attached is None:
        wanted += _chain(config, nets, f"net{len(wanted)}")
    else:
        wanted = attached.with_devices(wanted)
    _check_names([each.attachment for each in wanted])
    _check_gateways([each.attachment for each in wanted])
    wanted = devices.hand_out(wanted) if devices is not None else wanted
    attachments: list[Attachment] = []
    for each in wanted:
        attachment = with_device(each.attachment, each.device)
        declared = _check_configuration(attachment, parse, notes)
        if devices is not None:
            attachment = devices.with_info(attachment, each, declared=INFO_FILE in declared)
        elif each.resource and not each.device:
            notes.append(f"network {attachment.network}: nobody knows which device of {each.resource} is its own")
        attachments.append(attachment)
    return Plan(tuple(attachments), tuple(notes))


def configured(config: MultusConfig, nets: Networks) -> list[Attachment]:
    """The networks that the configuration itself names, each under the NIC name it would have; for STATUS and GC."""
    networks = (_first(config, nets), *_defaults(config, nets))
    return [_attach(network, f"net{n}").attachment for n, network in enumerate(networks)]


def _fixed(config: MultusConfig, pod: Pod | None, ifname: str, nets: Networks, notes: list[str]) -> list[Wanted]:
    """What is attached whatever the pod's networks annotation says, but for the auxiliary chain, which comes last."""
    wanted = [_cluster(config, pod, ifname, nets, notes)]
    if pod is None or pod.namespace not in config.system_namespaces:
        for network in _defaults(config, nets):
            wanted.append(_attach(network, f"net{len(wanted)}"))
    return wanted


def _cluster(config: MultusConfig, pod: Pod | None, ifname: str, nets: Networks, notes: list[str]) -> Wanted:
    """The pod's first NIC. What the runtime asks for in runtimeConfig is meant for it."""
    text = pod.annotations.get(DEFAULT_NETWORK, "") if pod else ""
    selection = parse_default(text, config.multus_namespace) if text else None
    if selection is None or pod is None:
        return _attach(_first(config, nets), ifname, config.runtime)
    _check_isolation(config, pod, selection, DEFAULT_NETWORK)
    if selection.interface not in ("", ifname):
        raise InvalidAnnotation(
            f"annotation {DEFAULT_NETWORK} asks for the interface name {selection.interface!r}, but the "
            f"default network's is always the runtime's, {ifname}"
        )
    return _selected(nets.definition(selection.namespace, selection.name), selection, ifname, notes, config.runtime)


def _first(config: MultusConfig, nets: Networks) -> Network:
    return _delegate(config, 0) if config.delegates else nets.configured(config.cluster_network)


def _defaults(config: MultusConfig, nets: Networks) -> list[Network]:
    further = [_delegate(config, n) for n in range(1, len(config.delegates))]
    return further + [nets.configured(name) for name in config.default_networks]


def _delegate(config: MultusConfig, n: int) -> Network:
    conf = config.delegates[n]
    try:
        name = networks.own_name(conf)
    except FAULTS as error:
        raise fault(error, at=f"delegates[{n}]") from error
    return networks.Network(name or config.name, conf, config.name)


def _selections(config: MultusConfig, pod: Pod | None) -> tuple[NetworkSelection, ...]:
    text = pod.annotations.get(NETWORKS, "") if pod else ""
    if not text or pod is None:
        return ()
    selections = parse_networks(text, pod.namespace)
    for n, selection in enumerate(selections):
        _check_isolation(config, pod, selection, f"{NETWORKS}[{n}]")
    return selections


def _check_isolation(config: MultusConfig, pod: Pod, selection: NetworkSelection, place: str) -> None:
    allowed = selection.namespace == pod.namespace or selection.namespace in config.global_namespaces
    if config.namespace_isolation and not allowed:
        raise InvalidAnnotation(
            f"annotation {place} names network {selection.shown}, but a pod of namespace {pod.namespace} may use "
            f"networks of its own and of {', '.join(sorted(config.global_namespaces))} only (namespaceIsolation)",
            hint='Define the network in the pod\'s namespace, or add the other one to "globalNamespaces".',
        )


def _attach(network: Network, ifname: str, runtime: Mapping[str, Any] | None = None) -> Wanted:
    made = Attachment(
        network=network.shown, conf=network.conf, ifname=ifname, name=network.name, runtime=runtime or {},
        by=BY_CONFIGURATION,
    )  # fmt: skip
    return Wanted(made, network.resource)


def _selected(
    network: Network,
    selection: NetworkSelection,
    ifname: str,
    notes: list[str],
    runtime: Mapping[str, Any] | None = None,
    *,
    by: str = BY_CONFIGURATION,
) -> Wanted:
    shown = f"network {network.shown}"
    notes += [f"{shown}: {key!r} is no key of a network selection and has no effect" for key in selection.unknown]
    plain = _attach(network, selection.interface or ifname)
    attachment = replace(
        plain.attachment,
        runtime={**(runtime or {}), **_capability_arguments(selection)},
        cni_args=_cni_args(selection),
        default_gateways=selection.default_route,
        by=by,
    )
    return replace(plain, attachment=attachment, device=selection.device_id)


def _cni_args(selection: NetworkSelection) -> Mapping[str, Any]:
    """What travels as args.cni: the pod's own, and the claim that the IPAM plugin is to honour."""
    claim = selection.ipam_claim_reference
    return {**selection.cni_args, "ipam-claim-reference": claim} if claim else selection.cni_args


def _capability_arguments(selection: NetworkSelection) -> dict[str, Any]:
    """What travels as runtimeConfig; each plugin is given what its "capabilities" declare."""
    offered: dict[str, Any] = {
        "mac": selection.mac,
        "ips": selection.ips,
        "infinibandGUID": selection.infiniband_guid,
        "portMappings": selection.port_mappings,
        "bandwidth": selection.bandwidth,
    }
    return {key: value for key, value in offered.items() if value}


def _chain(config: MultusConfig, nets: Networks, ifname: str) -> list[Wanted]:
    """Plugins that the node's owner wants run for every pod beside its networks; they start from an empty result."""
    if not config.auxiliary_chain:
        return []
    parts = [part.conf for part in nets.chain(config.cluster_network, config.auxiliary_chain)]
    if not parts:
        return []
    try:
        first: dict[str, Any] = dict(msgspec.json.decode(parts[0], type=dict[str, msgspec.Raw]))
    except FAULTS as error:
        raise fault(error, what=f"the first file of the chain {config.auxiliary_chain}") from error
    plugins = [first | {"prevResult": _EMPTY_RESULT}, *map(msgspec.Raw, parts[1:])]
    conf = msgspec.json.encode({"cniVersion": _CHAIN_VERSION, "name": config.auxiliary_chain, "plugins": plugins})
    name = config.auxiliary_chain
    return [Wanted(Attachment(network=name, conf=conf, ifname=ifname, name=name, by=BY_CONFIGURATION))]


def _check_names(attachments: Sequence[Attachment]) -> None:
    """Two NICs cannot bear one name; the kernel would say so only after the first is made."""
    taken: dict[str, str] = {}
    for attachment in attachments:
        other = taken.setdefault(attachment.ifname, attachment.network)
        if other is not attachment.network:
            raise InvalidAnnotation(
                f"networks {other} and {attachment.network} both ask for the interface name {attachment.ifname!r}",
                hint="Give each its own name; the ones that name none are called net1, net2 … by position.",
            )


def _check_gateways(attachments: Sequence[Attachment]) -> None:
    """One NIC holds the default route of a family."""
    taken: dict[bool, str] = {}
    for attachment in attachments:
        for six in {":" in gateway for gateway in attachment.default_gateways}:
            if six in taken:
                raise InvalidAnnotation(
                    f"networks {taken[six]} and {attachment.network} both ask for the pod's IPv{6 if six else 4} "
                    "default route (default-route)",
                    hint="Let one of them have it; several gateways in one list share it.",
                )
            taken[six] = attachment.network


def _check_configuration(
    attachment: Attachment, parse: Callable[[Attachment], NetworkConfig], notes: list[str]
) -> set[str]:
    """Look the CNI JSON through, and for arguments that no plugin of the chain takes; the capabilities it declares."""
    try:
        network = parse(attachment)
    except UnderlayError as error:
        raise named(error, f"network {attachment.network}") from error
    declared = {key for plugin in network.plugins for key, on in plugin.capabilities.items() if on}
    for plugin in network.plugins:
        if plugin.type in _OURSELVES:
            raise InvalidConfig(
                f"network {attachment.network} is of type {plugin.type!r}: a pod's networks cannot nest"
            )
    unheard = [key for key in attachment.runtime if key not in declared and key not in KEYS]
    notes += [f"network {attachment.network}: no plugin declares the capability {key} asked for" for key in unheard]
    return declared


def named(error: UnderlayError, place: str) -> UnderlayError:
    """The same error with the place at the head of its sentence."""
    error.message = f"{place}: {error.message}"
    error.args = (error.message,)
    return error
