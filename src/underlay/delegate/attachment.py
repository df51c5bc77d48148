"""What is to be attached, to which sandbox, and on whose behalf: the frozen values that :mod:`engine` works on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from underlay.cni.result import Result


class Sandbox(msgspec.Struct, frozen=True):
    """The container of one call.

    ``netns`` is the CNI_NETNS path ("" on a DEL whose namespace is gone), ``args_text`` CNI_ARGS as it came, ``args``
    the same parsed, ``path`` the directories in which executables are looked for (CNI_PATH, then the network's own).
    The pod's identity is kept in the ledger for people who read it; nothing is decided by it here.
    """

    container_id: str
    netns: str
    args_text: str = ""
    args: Mapping[str, str] = msgspec.field(default_factory=dict)
    path: tuple[str, ...] = ()
    pod_namespace: str = ""
    pod_name: str = ""
    pod_uid: str = ""


class Origin(msgspec.Struct, frozen=True):
    """The call by which the runtime asked: the plugin it executed, the network's name in its configuration, CNI_IFNAME.

    One origin may own several attachments (Multus: eth0, net1, net2 …). DEL names them all by owner, container id
    and ``ifname``; GC by owner and ``network``, and keeps those whose (container id, ``ifname``) the runtime lists.
    ``conf``, the call's standard input, is given where the attachments may be changed while the sandbox runs
    (:mod:`changing`): the ledger then keeps it, and what later plugins have built on the NICs apart.
    """

    owner: str
    network: str
    ifname: str
    conf: bytes = b""


class Attachment(msgspec.Struct, frozen=True):
    """One NIC for the sandbox.

    ``network`` is the name shown to people ("kube-system/macvlan-a"), ``conf`` the exact CNI JSON, one plugin or a
    list, ``name`` the network's name where ``conf`` has none, ``runtime`` the capability arguments on offer (each
    plugin gets those it declares), ``cni_args`` becomes ``args.cni``. With ``default_gateways`` this NIC takes the
    pod's default routes over: those of every other NIC leave table main, these are set. ``info_file`` is a path that
    the plugins may write device information to; it is made with ``info`` in it, if there is any, before they are
    called, and removed when the attachment is taken back. ``by`` is who asked for it, in the owner's own words: the
    ledger keeps it, and nothing is decided by it here.
    """

    network: str
    conf: bytes
    ifname: str
    name: str = ""
    runtime: Mapping[str, Any] = msgspec.field(default_factory=dict)
    cni_args: Mapping[str, Any] = msgspec.field(default_factory=dict)
    default_gateways: tuple[str, ...] = ()
    info_file: str = ""
    info: bytes = b""
    by: str = ""


class Recorded(msgspec.Struct, frozen=True):
    """One attachment as the ledger knows it. ``result`` is None where its ADD has not come to its end."""

    network: str
    ifname: str
    result: Result | None
    created_ns: int
    pod_namespace: str = ""
    pod_name: str = ""
    pod_uid: str = ""


class Timing(msgspec.Struct, frozen=True):
    """How long one plugin took, in milliseconds: for the request's log line."""

    plugin: str
    ms: float
