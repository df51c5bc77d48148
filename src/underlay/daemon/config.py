"""The daemon's settings: one file, YAML or JSON, with the command line's flags over it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import msgspec

from underlay.errors import InvalidConfig, IOFailure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DEFAULT_FILE = "/etc/underlay/underlay.yaml"
_HINT = 'The keys are in "underlay daemon --help" and docs; correct the file or the flag.'

Level = Literal["debug", "info", "warn", "error"]
PoolHome = Literal["auto", "manifests", "cluster"]


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The daemon's own log. ``file`` "" is standard error; ``max_size`` in MB, ``max_age`` in days, 0: no limit.

    ``plugin_dir`` is where the files of plugins' ``log_options`` may lie; "": they write none.
    """

    level: Level = "info"
    file: str = ""
    max_size: int = 100
    max_age: int = 5
    max_count: int = 5
    plugin_dir: str = "/var/log"


class KubeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The API server to take pods and networks from, in place of ``manifest_dir``.

    ``kubeconfig`` is a file, ``context`` one of its contexts ("": its current one); ``in_cluster`` takes the pod's own
    service account. Neither: no API server. ``node_name`` is this node's name there ("": NODE_NAME in the environment,
    or MULTUS_NODE_NAME, as Multus' own manifests have it).
    """

    kubeconfig: str = ""
    context: str = ""
    in_cluster: bool = False
    node_name: str = ""

    @property
    def used(self) -> bool:
        """Whether there is an API server."""
        return self.in_cluster or bool(self.kubeconfig)


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that can be set.

    ``workers`` requests are served at a time, ``queue`` more may wait in the socket's backlog; ``deadline`` seconds is
    what one request may take, waiting excluded; ``delegate_limit`` other plugins' processes run at a time; every
    ``reclaim_interval`` seconds the ledger is compared with the sandboxes that live; an address given back to a pool
    rests ``pool_rest`` seconds; ``pools`` says where address pools are: in files, and then all of their addresses are
    this node's, or at the API server, where nodes own them one by one ("auto": there, where one is used and no file has
    a pool); ``health_address`` HOST:PORT serves /healthz and /readyz over HTTP, "" does not; ``stop_deadline`` seconds
    may pass until requests in flight have ended after SIGTERM. ``pod_resources_socket`` and ``device_checkpoint`` are
    the kubelet's, ``device_info_dir`` is shared with device plugins and CNI plugins (device-info-spec, section 4).
    ``chroot_dir`` is a directory in which the node's root is mounted: other plugins run in it, and what they, the
    runtime and IPAM sections name is looked for there. ``multus_daemon_config`` is a file of Multus' own daemon, whose
    settings count where nothing else is set (multus.daemon_file). ``hotplug`` lets NICs come and go as the networks
    annotation of a pod that runs is changed (multus.hotplug).
    """

    state_dir: str = "/var/lib/underlay"
    run_dir: str = "/run/underlay"
    conf_dir: str = "/etc/cni/multus/net.d"
    bin_dir: tuple[str, ...] = ("/opt/cni/bin",)
    manifest_dir: str = "/etc/underlay/manifests"
    chroot_dir: str = ""
    multus_daemon_config: str = ""
    workers: int = 16
    queue: int = 1024
    deadline: float = 55.0
    delegate_limit: int = 64
    reclaim_interval: float = 10.0
    stop_deadline: float = 20.0
    hotplug: bool = False
    pool_rest: float = 30.0
    pools: PoolHome = "auto"
    health_address: str = ""
    pod_resources_socket: str = "/var/lib/kubelet/pod-resources/kubelet.sock"
    device_checkpoint: str = "/var/lib/kubelet/device-plugins/kubelet_internal_checkpoint"
    device_info_dir: str = "/var/run/k8s.cni.cncf.io/devinfo"
    log: LogSettings = LogSettings()
    kube: KubeSettings = KubeSettings()


_CHOICES: Final[dict[str, tuple[str, ...]]] = {"log.level": get_args(Level), "pools": get_args(PoolHome)}
_SECTIONS: Final[dict[str, type[msgspec.Struct]]] = {"log": LogSettings, "kube": KubeSettings}


def load(path: str | None, flags: Mapping[str, Any]) -> Settings:
    """The file's settings with ``flags`` (key to value; "log" and "kube" hold mappings of their own) over them.

    ``path`` None means DEFAULT_FILE, which need not exist. Raises IOFailure for a file that cannot be read and
    InvalidConfig, naming the key, for everything else.
    """
    merged = _over(_read(path), flags)
    where = path or DEFAULT_FILE
    given = {*flags, *(f"{section}.{key}" for section in _SECTIONS for key in flags.get(section, ()))}

    def source(key: str) -> str:
        return "the command line" if key in given else where

    _known(merged, Settings, "", where)
    for section, shape in _SECTIONS.items():
        if isinstance(merged.get(section), dict):
            _known(merged[section], shape, f"{section}.", where)
    if isinstance(theirs := merged.get("multus_daemon_config"), str) and theirs:
        _absolute("multus_daemon_config", theirs, source("multus_daemon_config"))
        from underlay.multus import daemon_file  # most daemons have none

        below = dict(daemon_file.load(theirs).settings)
        if _reads_api(merged):
            below.pop("kube", None)
        merged = _over(below, merged)
    if isinstance(merged.get("bin_dir"), str):
        merged["bin_dir"] = [merged["bin_dir"]]
    try:
        checked = msgspec.convert(merged, Settings)
    except msgspec.ValidationError as error:
        message, _, at = str(error).partition(" - at `$.")
        key = at.rstrip("`")
        hint = f"It is one of {', '.join(_CHOICES[key])}." if key in _CHOICES else _HINT
        raise InvalidConfig(f"{source(key)}: {key or 'the file'}: {message}", hint=hint) from error
    _sane(checked, source)
    return checked


def _reads_api(settings: Mapping[str, Any]) -> bool:
    """Whether the settings say how the API server is reached."""
    kube = settings.get("kube")
    return isinstance(kube, dict) and bool(kube.get("in_cluster") or kube.get("kubeconfig"))


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """One mapping of settings over another, a section key by key."""
    merged = {**below, **above}
    for section in _SECTIONS:
        if isinstance(below.get(section), dict) and isinstance(above.get(section), dict):
            merged[section] = {**below[section], **above[section]}
    return merged


def _read(path: str | None) -> dict[str, Any]:
    where = path or DEFAULT_FILE
    try:
        with open(where, "rb") as file:
            content = file.read()
    except FileNotFoundError as error:
        if path is None:
            return {}
        raise IOFailure(f"the configuration file {where} does not exist", hint="Correct --config.") from error
    except OSError as error:
        words = f"cannot read the configuration file {where}: {error.strerror}"
        raise IOFailure(words, hint="Name a file with --config, one that this user may read.") from error
    settings = _decode(content, where)
    if settings is None:
        return {}
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise InvalidConfig(f"{where} holds no mapping of keys to values", hint=_HINT)
    return settings


def _decode(content: bytes, where: str) -> Any:
    if content.lstrip().startswith(b"{"):
        try:
            return msgspec.json.decode(content)
        except msgspec.DecodeError:
            pass  # YAML may begin with a brace, too
    import yaml  # a daemon whose file is JSON saves 15 ms and 3 MiB

    try:
        return yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"{where} is neither JSON nor YAML: {' '.join(str(error).split())}", hint=_HINT) from error


def _known(settings: Mapping[str, Any], shape: type[msgspec.Struct], prefix: str, where: str) -> None:
    """Refuse unknown keys by name, with the one that was probably meant."""
    for key in settings:
        if key not in shape.__struct_fields__:
            import difflib  # only on the way to an error

            near = difflib.get_close_matches(key, shape.__struct_fields__, 1, 0.5)
            meant = f'; did you mean "{prefix}{near[0]}"?' if near else ""
            keys = ", ".join(shape.__struct_fields__)
            raise InvalidConfig(f'{where}: there is no key "{prefix}{key}"{meant}', hint=f"The keys are: {keys}.")


def _sane(settings: Settings, where: Callable[[str], str]) -> None:
    for key in (
        "state_dir", "run_dir", "conf_dir", "manifest_dir",
        "pod_resources_socket", "device_checkpoint", "device_info_dir",
    ):  # fmt: skip
        _absolute(key, getattr(settings, key), where(key))
    for path in settings.bin_dir:
        _absolute("bin_dir", path, where("bin_dir"))
    for key, least, most in (
        ("workers", 1, 1024),
        ("queue", 1, 65535),
        ("deadline", 1, 3600),
        ("delegate_limit", 1, 4096),
        ("reclaim_interval", 0.1, 86400),
        ("stop_deadline", 0, 3600),
        ("pool_rest", 0, 86400),
    ):
        value = getattr(settings, key)
        if not least <= value <= most:
            raise InvalidConfig(f"{where(key)}: {key}: {value} is not within {least} and {most}", hint=_HINT)
    _sane_log(settings.log, where)
    if settings.chroot_dir:
        _absolute("chroot_dir", settings.chroot_dir, where("chroot_dir"))
    if settings.pools == "cluster" and not settings.kube.used:
        words = f"{where('pools')}: pools: there is no API server that pools of the cluster could be read from"
        raise InvalidConfig(words, hint="Set kube.kubeconfig or kube.in_cluster, or leave pools out.")
    if settings.kube.used:
        _sane_kube(settings.kube, where)
    if settings.health_address:
        split_address(settings.health_address)
    if len(os.fsencode(settings.run_dir)) > 80:  # sockaddr_un holds 108 bytes, "/underlay.sock.new" included
        raise InvalidConfig(f"{where('run_dir')}: run_dir: {settings.run_dir!r} is longer than 80 bytes", hint=_HINT)


def _sane_log(log: LogSettings, where: Callable[[str], str]) -> None:
    for key in ("max_size", "max_age", "max_count"):
        if getattr(log, key) < 0:
            raise InvalidConfig(f"{where(f'log.{key}')}: log.{key}: {getattr(log, key)} is negative", hint=_HINT)
    for key in ("file", "plugin_dir"):
        if getattr(log, key):
            _absolute(f"log.{key}", getattr(log, key), where(f"log.{key}"))


def _sane_kube(kube: KubeSettings, where: Callable[[str], str]) -> None:
    if kube.in_cluster and kube.kubeconfig:
        words = f"{where('kube.in_cluster')}: kube: in_cluster and kubeconfig are both given"
        raise InvalidConfig(words, hint="Keep one of the two.")
    if kube.kubeconfig:
        _absolute("kube.kubeconfig", kube.kubeconfig, where("kube.kubeconfig"))
    if not node_name(kube):
        hint = "Set it (--node-name), or NODE_NAME in the environment from the pod's spec.nodeName (downward API)."
        raise InvalidConfig("kube.node_name: which node this is, is not known", hint=hint)


def node_name(kube: KubeSettings) -> str:
    """The name of this node at the API server, "" where nobody says it."""
    return kube.node_name or os.environ.get("NODE_NAME", "") or os.environ.get("MULTUS_NODE_NAME", "")


def split_address(address: str) -> tuple[str, int]:
    """HOST:PORT or [HOST]:PORT, apart. Raises InvalidConfig naming health_address."""
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise InvalidConfig(f'health_address: "{address}" is not HOST:PORT', hint='For example "127.0.0.1:9464".')
    return host.strip("[]"), int(port)


def _absolute(key: str, path: str, where: str) -> None:
    if not path.startswith("/") or "\0" in path:
        raise InvalidConfig(f"{where}: {key}: {path!r} is no absolute path", hint=_HINT)
