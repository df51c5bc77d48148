"""A network configuration as frozen values (specification, section 1): one plugin's part, and a list of plugins.

    stdin of a direct call ──parse_plugin──▶ PluginConfig ──inject──▶ stdin of an executed plugin
    conflist, conf, NAD    ──parse_network─▶ NetworkConfig(plugins: PluginConfig…) ──with_runtime──▶ …

Everything is checked here, once; what comes out needs no second look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec.structs import replace

from underlay.cni import versions
from underlay.cni.decoding import FAULTS, Stranger, decode, decode_again, fault, find_strangers, strangers
from underlay.cni.names import identifier_fault, plugin_fault
from underlay.cni.result import DNS, NO_DNS
from underlay.errors import InvalidConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from underlay.cni.result import Result

__all__ = ["NetworkConfig", "PluginConfig", "decode", "decode_again", "inject", "parse_network", "parse_plugin",
           "unknown_fields", "unknown_to", "unknown_to_list", "valid_attachments", "with_runtime"]  # fmt: skip

_NOTHING: Final[Mapping[str, Any]] = {}


class PluginConfig(msgspec.Struct, frozen=True):
    """One plugin's configuration.

    ``raw`` is its JSON object as bytes, exactly as written by the user (without injected keys); ``version`` and
    ``name`` are those of the network (a list's plugins inherit them); ``capabilities`` the plugin's declared ones;
    ``runtime`` is runtimeConfig, already filtered by the declared capabilities; ``cni_args`` is ``args.cni``;
    ``prev`` is prevResult, converted to the one shape of :class:`Result`; ``dns`` is the network's own resolver.
    """

    raw: bytes
    version: str
    name: str
    type: str
    capabilities: Mapping[str, bool] = msgspec.field(default_factory=dict)
    runtime: Mapping[str, Any] = msgspec.field(default_factory=dict)
    cni_args: Mapping[str, Any] = msgspec.field(default_factory=dict)
    prev: Result | None = None
    ipam_type: str = ""
    dns: DNS = NO_DNS


class NetworkConfig(msgspec.Struct, frozen=True):
    """A network: its plugins in the order of ADD. A configuration of a single plugin is a list of one.

    ``inlined_only`` is loadOnlyInlinedPlugins: plugins are those of the list and no files beside it, which is what
    this program does in any case.
    """

    version: str
    name: str
    plugins: tuple[PluginConfig, ...]
    disable_check: bool = False
    disable_gc: bool = False
    inlined_only: bool = False


class _Args(msgspec.Struct, frozen=True):
    cni: dict[str, Any] | None = None


class _Ipam(msgspec.Struct, frozen=True):
    type: str | None = None


class _Plugin(msgspec.Struct, frozen=True, rename="camel"):
    """The keys that the specification gives a meaning, for every plugin."""

    cni_version: str | None = None
    name: str | None = None
    type: str | None = None
    capabilities: dict[str, bool] | None = None
    runtime_config: dict[str, Any] | None = None
    args: _Args | None = None
    ipam: _Ipam | None = None
    dns: DNS | None = None
    prev_result: versions.AnyResult | None = None


class _List(msgspec.Struct, frozen=True, rename="camel"):
    cni_version: str | None = None
    cni_versions: list[str] | None = None
    name: str | None = None
    plugins: list[msgspec.Raw] | None = None
    disable_check: bool | str | None = None
    disable_gc: bool | str | None = msgspec.field(name="disableGC", default=None)
    load_only_inlined_plugins: bool | None = None


class _Attachment(msgspec.Struct, frozen=True):
    container_id: str = msgspec.field(name="containerID")
    ifname: str


class _Gc(msgspec.Struct, frozen=True):
    valid: list[_Attachment] | None = msgspec.field(name="cni.dev/valid-attachments", default=None)
    older: list[_Attachment] | None = msgspec.field(name="cni.dev/attachments", default=None)


_PLUGIN: Final = msgspec.json.Decoder(_Plugin)
_LIST: Final = msgspec.json.Decoder(_List)
_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ENCODER: Final = msgspec.json.Encoder()


def parse_plugin(raw: bytes) -> PluginConfig:
    """A direct call's standard input: one plugin's configuration with what the runtime put into it.

    Raises DecodeFailure, IncompatibleVersion, InvalidConfig naming the field.
    """
    return _plugin(raw, _decode_plugin(raw, ""), name="", version="", at="")


def parse_network(raw: bytes, *, name: str = "", version: str = "") -> NetworkConfig:
    """A network as a file or a NAD holds it, a list ("plugins") or a single plugin's.

    ``name`` and ``version`` stand in where the configuration has none. Raises as :func:`parse_plugin`.
    """
    try:
        network = _LIST.decode(raw)
    except FAULTS as error:
        raise fault(error, what="the network configuration") from error
    if network.plugins is None:
        plugin = _plugin(raw, _decode_plugin(raw, ""), name=name, version=version, at="")
        return NetworkConfig(plugin.version, plugin.name, (plugin,))
    if not network.plugins:
        raise InvalidConfig('"plugins" is an empty list', hint="A network needs at least one plugin.")
    shown_version = _list_version(network, version)
    shown_name = _name(network.name or name)
    plugins = []
    for n, item in enumerate(network.plugins):
        part, at = bytes(item), f"plugins[{n}]"
        keys = _decode_plugin(part, at)
        plugin = _plugin(part, keys, name=shown_name, version=shown_version, at=f"{at}.", inherit=True)
        if not plugin.type:
            raise InvalidConfig(f'"{at}.type" is missing', hint='Every plugin of a list needs "type".')
        plugins.append(plugin)
    return NetworkConfig(
        version=shown_version,
        name=shown_name,
        plugins=tuple(plugins),
        disable_check=_flag(network.disable_check, "disableCheck"),
        disable_gc=_flag(network.disable_gc, "disableGC"),
        inlined_only=bool(network.load_only_inlined_plugins),
    )


def _decode_plugin(raw: bytes, at: str) -> _Plugin:
    try:
        raw.decode()  # the decoder does not look into members that it skips, but an executed plugin will
        return _PLUGIN.decode(raw)
    except FAULTS as error:
        raise fault(error, at=at) from error


def _plugin(raw: bytes, keys: _Plugin, *, name: str, version: str, at: str, inherit: bool = False) -> PluginConfig:
    """``inherit``: name and version are the list's, whatever the plugin's own part says."""
    if not inherit:
        version = versions.require(keys.cni_version or version)
        name = _name(keys.name or name)
    kind = keys.type or ""
    if kind and (wrong := plugin_fault(kind)):
        raise InvalidConfig(f'"{at}type" {kind[:60]!r} {wrong}')
    ipam = (keys.ipam and keys.ipam.type) or ""
    if ipam and (wrong := plugin_fault(ipam)):
        raise InvalidConfig(f'"{at}ipam.type" {ipam[:60]!r} {wrong}')
    prev = None
    if keys.prev_result is not None:
        versions.require(keys.prev_result.cni_version or version)
        prev = versions.lift(keys.prev_result, f"{at}prevResult.")
    return PluginConfig(
        raw,
        version,
        name,
        kind,
        keys.capabilities or _NOTHING,
        keys.runtime_config or _NOTHING,
        (keys.args and keys.args.cni) or _NOTHING,
        prev,
        ipam,
        keys.dns or NO_DNS,
    )


def _name(name: str) -> str:
    if not name:
        raise InvalidConfig('"name" is missing', hint="Give the network a name.")
    if wrong := identifier_fault(name):
        raise InvalidConfig(f'"name" {name[:60]!r} {wrong}')
    return name


def _list_version(network: _List, default: str) -> str:
    if network.cni_versions:
        own = [network.cni_version] if network.cni_version else []
        return versions.highest([*network.cni_versions, *own])
    return versions.require(network.cni_version or default)


def _flag(value: bool | str | None, field_name: str) -> bool:
    """A boolean that libcni takes as text as well."""
    if isinstance(value, str):
        if value.lower() not in ("true", "false"):
            raise InvalidConfig(f'"{field_name}" {value[:60]!r} is neither true nor false')
        return value.lower() == "true"
    return bool(value)


def with_runtime(conf: PluginConfig, runtime: Mapping[str, Any]) -> PluginConfig:
    """The configuration with runtimeConfig made of the capability arguments that the plugin declares; where it
    declares none of them, whatever it had before (as libcni does).
    """
    chosen = {key: value for key, value in runtime.items() if conf.capabilities.get(key)}
    return replace(conf, runtime=chosen) if chosen else conf


def inject(conf: PluginConfig) -> bytes:
    """The JSON for an executed plugin: ``raw`` with cniVersion, name, prevResult, runtimeConfig and args as ``conf``
    has them. Keys unknown to us are kept as they are written.
    """
    try:
        keys: dict[str, Any] = dict(_OBJECT.decode(conf.raw))
    except FAULTS as error:
        raise fault(error) from error
    keys["cniVersion"] = conf.version
    keys["name"] = conf.name
    keys.pop("prevResult", None)
    if conf.prev is not None:
        keys["prevResult"] = msgspec.Raw(versions.encode(conf.prev, conf.version))
    keys.pop("runtimeConfig", None)
    if conf.runtime:
        keys["runtimeConfig"] = conf.runtime
    if conf.cni_args:
        args = _OBJECT.decode(keys["args"]) if "args" in keys and keys["args"] != b"null" else {}
        keys["args"] = {**args, "cni": conf.cni_args}
    return _ENCODER.encode(keys)


def valid_attachments(raw: bytes) -> frozenset[tuple[str, str]]:
    """GC's list of what is still alive: pairs of container id and interface name (specification, section 2 "GC")."""
    listed = decode(raw, _Gc)
    if listed.valid is None and listed.older is None:
        raise InvalidConfig(
            '"cni.dev/valid-attachments" is missing',
            hint="Without the list GC would take every attachment for garbage.",
        )
    return frozenset((item.container_id, item.ifname) for item in (*(listed.valid or ()), *(listed.older or ())))


_KEYS_OF_ALL: Final = tuple(_Plugin.__struct_encode_fields__)
_LIST_KEYS: Final = tuple(_List.__struct_encode_fields__)
_PROTOCOL_KEYS: Final = frozenset(name for kind in (_Plugin, _Gc) for name in kind.__struct_encode_fields__)


def unknown_fields(raw: bytes, kind: type[msgspec.Struct]) -> tuple[str, ...]:
    """Paths ("ipam.subnett") that neither the specification nor a plugin's own keys ``kind`` give a meaning.

    The specification lets a plugin ignore them; they are mostly misspelt.
    """
    return tuple(path for path in strangers(raw, kind) if path not in _PROTOCOL_KEYS)


def unknown_to(raw: bytes, kind: type[msgspec.Struct], ipam: type[msgspec.Struct] | None = None) -> list[Stranger]:
    """As :func:`unknown_fields`, each path with the keys that its place has.

    ``kind`` are the plugin's keys; ``ipam`` those of the "ipam" section's plugin ({"ipam": …}), None where it is
    another program's.
    """
    own = [each for each in find_strangers(raw, kind) if each.path not in _PROTOCOL_KEYS]
    section = find_strangers(raw, ipam) if ipam is not None else ()
    return [
        *(each if set(".[") & set(each.path) else each._replace(known=each.known + _KEYS_OF_ALL) for each in own),
        *(each for each in section if each.path.startswith("ipam.") and each.path != "ipam.type"),
    ]


def unknown_to_list(raw: bytes) -> list[Stranger]:
    """The keys beside "plugins" that mean nothing to a list of plugins."""
    return [Stranger(path, _LIST_KEYS) for path in strangers(raw, _List)]
