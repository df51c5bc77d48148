"""One CNI call as frozen values: the CNI_* environment and standard input (specification, section 2)."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

import msgspec

from underlay.cni.names import identifier_fault, interface_fault
from underlay.errors import InvalidEnvironment

if TYPE_CHECKING:
    from collections.abc import Mapping


class Verb(enum.StrEnum):
    """CNI_COMMAND."""

    ADD = "ADD"
    CHECK = "CHECK"
    DEL = "DEL"
    GC = "GC"
    STATUS = "STATUS"
    VERSION = "VERSION"


class Request(msgspec.Struct, frozen=True):
    """A validated call.

    ``plugin`` is the name the executable was called by, ``path`` CNI_PATH split at colons, ``args`` CNI_ARGS as
    parsed pairs, ``args_text`` CNI_ARGS as it came (handed on to executed delegates), ``stdin`` the configuration's
    exact bytes. ``netns`` may be empty for DEL; ``container_id`` and ``ifname`` are empty for GC and STATUS.
    """

    verb: Verb
    plugin: str
    container_id: str
    netns: str
    ifname: str
    path: tuple[str, ...]
    stdin: bytes
    args: Mapping[str, str] = msgspec.field(default_factory=dict)
    args_text: str = ""


_REQUIRED: Final = {
    Verb.ADD: ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    Verb.CHECK: ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    Verb.DEL: ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"),
    Verb.GC: ("CNI_PATH",),
    Verb.STATUS: ("CNI_PATH",),
    Verb.VERSION: (),
}
_VERBS: Final = {verb.value: verb for verb in Verb}


def parse(plugin: str, env: Mapping[str, str], stdin: bytes) -> Request:
    """A call from the name the executable was called by, its CNI_* environment and standard input.

    Raises InvalidEnvironment naming the variable. DEL takes malformed CNI_ARGS for none: it must succeed.
    """
    command = env.get("CNI_COMMAND", "")
    verb = _VERBS.get(command)
    if verb is None:
        shown = f"{command[:40]!r} is none of {', '.join(_VERBS)}" if command else "is missing"
        raise InvalidEnvironment(f"CNI_COMMAND {shown}")
    missing = [name for name in _REQUIRED[verb] if not env.get(name)]
    if missing:
        raise InvalidEnvironment(f"{verb} needs {', '.join(missing)}, not set in the environment")
    container_id, ifname, netns = env.get("CNI_CONTAINERID", ""), env.get("CNI_IFNAME", ""), env.get("CNI_NETNS", "")
    if container_id and (wrong := identifier_fault(container_id)):
        raise InvalidEnvironment(f"CNI_CONTAINERID {container_id[:60]!r} {wrong}")
    if ifname and (wrong := interface_fault(ifname)):
        raise InvalidEnvironment(f"CNI_IFNAME {ifname[:60]!r} {wrong}")
    path, args_text = env.get("CNI_PATH", ""), env.get("CNI_ARGS", "")
    for name, value in (("CNI_NETNS", netns), ("CNI_PATH", path), ("CNI_ARGS", args_text)):
        if "\0" in value:
            raise InvalidEnvironment(f"{name} holds a NUL character")
    args = parse_args(args_text, tolerant=verb is Verb.DEL)
    return Request(
        verb, plugin, container_id, netns, ifname, tuple(filter(None, path.split(":"))), stdin, args, args_text
    )


def parse_args(text: str, *, tolerant: bool = False) -> Mapping[str, str]:
    """CNI_ARGS, ``KEY=VALUE`` pairs between semicolons; of a key named twice the last value counts.

    Raises InvalidEnvironment for a pair without "=" or key, which ``tolerant`` leaves out instead.
    """
    args: dict[str, str] = {}
    for pair in text.split(";") if text else ():
        key, equals, value = pair.partition("=")
        if key and equals:
            args[key] = value
        elif pair and not tolerant:
            raise InvalidEnvironment(
                f"CNI_ARGS: {pair[:60]!r} is not KEY=VALUE",
                hint='CNI_ARGS is a list like "IgnoreUnknown=true;K8S_POD_NAME=web".',
            )
    return args
