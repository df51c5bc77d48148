"""The file of Multus' own ("thick") daemon, daemon-config.json, taken over by ours as it is.

    daemon-config.json ─┬─ keys of a multus configuration ─▶ over those of every call: the file wins
                        ├─ the daemon's affairs           ─▶ settings, under those of underlay.yaml and the flags
                        ├─ multusConfigFile …             ─▶ how 00-multus.conf is kept, see :mod:`autoconf`
                        └─ the rest                       ─▶ a warning each

Paths in it are the daemon's own, as Multus has them ("/host/etc/cni/net.d" in a container); ``binDir`` alone is the
node's, since plugins run there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from underlay.cni import config as cni
from underlay.cni import versions
from underlay.errors import InvalidConfig, IOFailure, UnderlayError
from underlay.multus import config as configuration
from underlay.multus.config import Keys

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

AUTO: Final = "auto"
_HINT: Final = "docs/multus.md lists the keys and what becomes of them; correct the file."
_STUB: Final = b'{"cniVersion":"1.1.0","name":"multus","type":"multus","clusterNetwork":"x"}'
_LEVELS: Final = {"panic": "error", "error": "error", "verbose": "info", "debug": "debug"}
OVER: Final[Sequence[str]] = (
    "clusterNetwork", "defaultNetworks", "delegates", "confDir", "binDir", "namespaceIsolation", "globalNamespaces",
    "systemNamespaces", "multusNamespace", "readinessindicatorfile", "auxiliaryCNIChainName", "retryDeleteOnError",
)  # fmt: skip
"""Keys of a multus configuration that count over those of every call."""
_EMPTY: Final = (b'""', b"[]")
_OPTIONS: Final = {"maxAge": "max_age", "maxSize": "max_size", "maxBackups": "max_backups"}
_MOST_WORKERS: Final = 1024
_SOCKET: Final = "run_dir says where the socket lies, and the shims are laid with it"
WITHOUT_EFFECT: Final[Mapping[str, str]] = {
    "socketDir": _SOCKET,
    "daemonSocketDir": _SOCKET,
    "metricsPort": "health_address is where the daemon listens for HTTP",
    "perNodeCertificate": "the daemon reads the API with its service account or the kubeconfig of its own settings",
    "cniDir": "the daemon's ledger takes its place",
    "forceCNIVersion": "the cluster network's file is left as it is, and every network is spoken to in its own version",
    "name": "the file that is written is named multus-cni-network, or as overrideNetworkName says",
    "type": 'the file that is written calls "multus"',
}
"""Keys of Multus that have none here, and why."""


class _PerNodeCertificate(msgspec.Struct, frozen=True, rename="camel"):
    enabled: bool | None = None
    bootstrap_kubeconfig: str | None = None
    cert_dir: str | None = None
    cert_duration: str | None = None


class FileKeys(Keys, frozen=True, rename="camel"):
    """Every key of daemon-config.json, with its type; those of WITHOUT_EFFECT are checked all the same."""

    cni_version: str | None = None
    name: str | None = None
    type: str | None = None
    capabilities: dict[str, bool] | None = None
    chroot_dir: str | None = None
    socket_dir: str | None = None
    daemon_socket_dir: str | None = None
    metrics_port: int | None = None
    connection_limit: int | None = None
    per_node_certificate: _PerNodeCertificate | None = None
    cni_config_dir: str | None = None
    multus_config_file: str | None = None
    multus_autoconfig_dir: str | None = None
    multus_master_cni: str | None = msgspec.field(name="multusMasterCNI", default=None)
    override_network_name: bool | None = None
    cleanup_config_on_exit: bool | None = None
    force_cni_version: bool | None = msgspec.field(name="forceCNIVersion", default=None)


@dataclass(frozen=True, slots=True)
class Generation:
    """How the runtime's file is kept in ``directory``.

    ``copied`` is a file to lay there as it is, or "": the network of ``master`` (a file name, "": the first by name)
    in ``masters`` is wrapped, in ``version`` where it names none, with ``capabilities`` besides its own, under its own
    name if ``own_name``. ``clean_up``: it goes when the daemon is stopped.
    """

    directory: str
    masters: str
    copied: str = ""
    master: str = ""
    version: str = ""
    capabilities: tuple[str, ...] = ()
    own_name: bool = False
    clean_up: bool = False


@dataclass(frozen=True, slots=True)
class DaemonFile:
    """What one file says.

    ``overrides`` are keys and values over those of every call's configuration; ``settings`` go under the daemon's own
    (key to value, "log" and "kube" with mappings of their own); ``warnings`` are one sentence for each key without
    effect.
    """

    overrides: Mapping[str, msgspec.Raw]
    settings: Mapping[str, Any]
    generation: Generation
    warnings: tuple[str, ...] = ()


def load(path: str) -> DaemonFile:
    """Read a file. Raises IOFailure; InvalidConfig and DecodeFailure naming file and key."""
    try:
        with open(path, "rb") as file:
            raw = file.read()
    except OSError as error:
        words = f"cannot read Multus' daemon configuration {path}: {error.strerror}"
        raise IOFailure(words, hint="Correct multus_daemon_config.") from error
    try:
        return parse(raw)
    except UnderlayError as error:
        raise type(error)(f"{path}: {error.message}", hint=_HINT) from error


def parse(raw: bytes) -> DaemonFile:
    """What a file's bytes say. Raises InvalidConfig naming the key, DecodeFailure."""
    keys = cni.decode(raw, FileKeys)
    given = {key: value for key, value in cni.decode(raw, dict[str, msgspec.Raw]).items() if bytes(value) != b"null"}
    unset = [key for key in ("clusterNetwork", "delegates") if bytes(given.get(key, b"")) in _EMPTY]
    overrides = {key: given[key] for key in OVER if key in given and key not in unset}
    configuration.parse(_STUB, overrides)  # the same checks as at every call, once and at the start
    return DaemonFile(overrides, _settings(keys), _generation(keys), _warnings(raw, keys, given))


def _settings(keys: FileKeys) -> dict[str, Any]:
    options, limit, level = keys.log_options, keys.connection_limit or None, (keys.log_level or "").lower()
    if level and level not in _LEVELS:
        raise InvalidConfig(f'"logLevel" {level[:60]!r} is none of {", ".join(_LEVELS)}')
    if limit is not None and limit < 0:
        raise InvalidConfig(f'"connectionLimit" {limit} is negative')
    for key, attribute in _OPTIONS.items():
        if (value := getattr(options, attribute, None)) is not None and value < 0:
            raise InvalidConfig(f'"logOptions.{key}" {value} is negative')
    log = {
        "level": _LEVELS.get(level),
        "file": keys.log_file or None,
        "max_age": options and options.max_age,
        "max_size": options and options.max_size,
        "max_count": options and options.max_backups,
    }
    settings = {
        "chroot_dir": _path(keys.chroot_dir, "chrootDir") or None,
        "workers": limit and min(limit, _MOST_WORKERS),
        "kube": {"kubeconfig": kubeconfig} if (kubeconfig := _path(keys.kubeconfig, "kubeconfig")) else None,
    }
    return {**_set(settings), **({"log": _set(log)} if _set(log) else {})}


def _set(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _generation(keys: FileKeys) -> Generation:
    directory = _path(keys.cni_config_dir, "cniConfigDir") or "/etc/cni/net.d"
    copied = keys.multus_config_file or AUTO
    master = keys.multus_master_cni or ""
    if "/" in master or "\0" in master:
        raise InvalidConfig(f'"multusMasterCNI" {master[:60]!r} is no plain file name')
    if keys.cni_version:
        versions.require(keys.cni_version)
    return Generation(
        directory=directory,
        masters=_path(keys.multus_autoconfig_dir, "multusAutoconfigDir") or directory,
        copied="" if copied == AUTO else _path(copied, "multusConfigFile"),
        master=master,
        version=keys.cni_version or "",
        capabilities=tuple(key for key, on in (keys.capabilities or {}).items() if on),
        own_name=bool(keys.override_network_name),
        clean_up=bool(keys.cleanup_config_on_exit),
    )


def _path(value: str | None, key: str) -> str:
    if value and (not value.startswith("/") or "\0" in value):
        raise InvalidConfig(f'"{key}" {value[:60]!r} is no absolute path')
    return value or ""


def _warnings(raw: bytes, keys: FileKeys, given: Mapping[str, msgspec.Raw]) -> tuple[str, ...]:
    idle = {key: why for key, why in WITHOUT_EFFECT.items() if key in given}
    if keys.log_to_stderr is not None and keys.log_to_stderr is bool(keys.log_file):
        place = "logFile holds the whole log" if keys.log_file else "without logFile the log goes to standard error"
        idle["logToStderr"] = place
    if keys.log_options and keys.log_options.compress:
        idle["logOptions.compress"] = "rotated files are kept as they are"
    unknown = [key for key in cni.unknown_fields(raw, FileKeys) if key not in idle]
    strange = [f'"{key}" is no key of Multus\' daemon and has no effect' for key in unknown]
    return (*(f'"{key}" has no effect: {why}' for key, why in idle.items()), *strange)
