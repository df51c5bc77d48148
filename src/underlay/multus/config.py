"""The configuration of the `multus` type, parsed into a frozen value.

A key that has no effect here is named in :attr:`MultusConfig.warnings`, never passed over in silence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

from underlay.cni import config as cni
from underlay.cni.names import plugin_fault
from underlay.errors import InvalidConfig
from underlay.kube.objects import is_label

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEFAULT_MULTUS_NAMESPACE: Final = "kube-system"
DEFAULT_GLOBAL_NAMESPACE: Final = "default"

_OWN_LOG: Final = "one log, the daemon's, holds a line of every request; its configuration says where"
_THICK: Final = "it belongs to the configuration file of Multus' own daemon"
_NOTHING: Final[Mapping[str, msgspec.Raw]] = {}
WITHOUT_EFFECT: Final = {
    "kubeconfig": "the daemon reads pods and networks once for all calls; name the file in its kube.kubeconfig",
    "cniDir": "the daemon's ledger takes its place",
    "logFile": _OWN_LOG,
    "logLevel": _OWN_LOG,
    "logToStderr": _OWN_LOG,
    "logOptions": _OWN_LOG,
    **dict.fromkeys(
        ("chrootDir", "socketDir", "daemonSocketDir", "metricsPort", "cniConfigDir", "multusConfigFile",
         "multusAutoconfigDir", "connectionLimit", "perNodeCertificate"),
        _THICK,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class MultusConfig:
    """What one `multus` configuration says. Either ``cluster_network`` or ``delegates`` is set.

    ``delegates`` are the exact bytes of CNI configurations, the first being the cluster network. ``conf_dir`` and
    ``bin_dir`` are empty where the daemon's own count. ``runtime`` is the call's runtimeConfig, meant for the cluster
    network. ``global_namespaces`` and ``system_namespaces`` as named; ``warnings`` one sentence for each key without
    effect.
    """

    version: str
    name: str
    cluster_network: str = ""
    default_networks: tuple[str, ...] = ()
    delegates: tuple[bytes, ...] = ()
    conf_dir: str = ""
    bin_dir: str = ""
    namespace_isolation: bool = False
    global_namespaces: frozenset[str] = frozenset((DEFAULT_GLOBAL_NAMESPACE,))
    system_namespaces: frozenset[str] = frozenset()
    multus_namespace: str = DEFAULT_MULTUS_NAMESPACE
    readiness_file: str = ""
    auxiliary_chain: str = ""
    runtime: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class _LogOptions(msgspec.Struct, frozen=True, rename="camel"):
    max_age: int | None = None
    max_size: int | None = None
    max_backups: int | None = None
    compress: bool | None = None


class Keys(msgspec.Struct, frozen=True, rename="camel"):
    """The keys of the reference, with their types; those of WITHOUT_EFFECT are checked all the same."""

    cluster_network: str | None = None
    default_networks: tuple[str, ...] | None = None
    delegates: tuple[msgspec.Raw, ...] | None = None
    conf_dir: str | None = None
    bin_dir: str | None = None
    cni_dir: str | None = None
    kubeconfig: str | None = None
    namespace_isolation: bool | None = None
    global_namespaces: str | tuple[str, ...] | None = None
    system_namespaces: tuple[str, ...] | None = None
    multus_namespace: str | None = None
    readinessindicatorfile: str | None = None
    auxiliary_cni_chain_name: str | None = msgspec.field(name="auxiliaryCNIChainName", default=None)
    retry_delete_on_error: bool | None = None
    log_file: str | None = None
    log_level: str | None = None
    log_to_stderr: bool | None = None
    log_options: _LogOptions | None = None


def parse(raw: bytes, overrides: Mapping[str, msgspec.Raw] = _NOTHING) -> MultusConfig:
    """The configuration of one call, standard input's bytes, with ``overrides`` over its keys.

    Raises DecodeFailure, IncompatibleVersion, InvalidConfig naming the key.
    """
    if overrides:
        raw = _overridden(raw, overrides)
    plugin = cni.parse_plugin(raw)
    keys = cni.decode(raw, Keys)
    _check_choice(keys)
    chain = keys.auxiliary_cni_chain_name or ""
    if chain and (wrong := plugin_fault(chain)):
        raise InvalidConfig(f'"auxiliaryCNIChainName" {chain[:60]!r} {wrong}')
    return MultusConfig(
        version=plugin.version,
        name=plugin.name,
        cluster_network=keys.cluster_network or "",
        default_networks=_names(keys.default_networks or (), "defaultNetworks"),
        delegates=tuple(bytes(delegate) for delegate in keys.delegates or ()),
        conf_dir=_path(keys.conf_dir, "confDir"),
        bin_dir=_path(keys.bin_dir, "binDir"),
        namespace_isolation=bool(keys.namespace_isolation),
        global_namespaces=_global(keys.global_namespaces),
        system_namespaces=frozenset(_namespaces(keys.system_namespaces or (), "systemNamespaces")),
        multus_namespace=_namespaces([keys.multus_namespace or DEFAULT_MULTUS_NAMESPACE], "multusNamespace")[0],
        readiness_file=_path(keys.readinessindicatorfile, "readinessindicatorfile"),
        auxiliary_chain=chain,
        runtime=plugin.runtime,
        warnings=_warnings(raw),
    )


def _overridden(raw: bytes, overrides: Mapping[str, msgspec.Raw]) -> bytes:
    """The configuration with those keys over its own; what they exclude gives way to them."""
    given = cni.decode(raw, dict[str, msgspec.Raw])
    if "delegates" in overrides:
        given = {key: value for key, value in given.items() if key not in ("clusterNetwork", "defaultNetworks")}
    elif "clusterNetwork" in overrides:
        given.pop("delegates", None)
    return msgspec.json.encode({**given, **overrides})


def _check_choice(keys: Keys) -> None:
    """``delegates`` and ``clusterNetwork`` exclude each other, and one of them says what a pod's first NIC is."""
    if keys.delegates and (keys.cluster_network or keys.default_networks):
        other = "clusterNetwork" if keys.cluster_network else "defaultNetworks"
        raise InvalidConfig(f'"delegates" and "{other}" exclude each other', hint="Leave one of them out.")
    if not keys.delegates and not keys.cluster_network:
        raise InvalidConfig(
            'neither "clusterNetwork" nor "delegates" says which network a pod\'s first NIC is in',
            hint='Set "clusterNetwork" to the name of the cluster\'s own network.',
        )


def _names(values: Sequence[str], key: str) -> tuple[str, ...]:
    for n, value in enumerate(values):
        if not value:
            raise InvalidConfig(f'"{key}[{n}]" is empty')
    return tuple(values)


def _path(value: str | None, key: str) -> str:
    if value and (not value.startswith("/") or "\0" in value):
        raise InvalidConfig(f'"{key}" {value[:60]!r} is no absolute path')
    return value or ""


def _namespaces(values: Sequence[str], key: str) -> Sequence[str]:
    for value in values:
        if not is_label(value):
            raise InvalidConfig(f'"{key}": {value[:60]!r} is no name of a namespace')
    return values


def _global(value: str | Sequence[str] | None) -> frozenset[str]:
    """A list, or its names in one string between commas, as Multus writes it."""
    names = value.split(",") if isinstance(value, str) else value or ()
    given = [name.strip() for name in names if name.strip()]
    return frozenset(_namespaces(given, "globalNamespaces") or (DEFAULT_GLOBAL_NAMESPACE,))


def _warnings(raw: bytes) -> tuple[str, ...]:
    unknown = cni.unknown_fields(raw, Keys)
    given = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    idle = [f'"{key}" has no effect: {reason}' for key, reason in WITHOUT_EFFECT.items() if key in given]
    strange = [f'"{key}" is no key of a multus configuration and has no effect' for key in unknown]
    return tuple(idle + [words for key, words in zip(unknown, strange, strict=True) if key not in WITHOUT_EFFECT])
