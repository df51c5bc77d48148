"""Network devices: read, made, changed, deleted (rtnetlink(7), linux/if_link.h).

parent = link.get(host.rtnl, "eth0")
host.rtnl.batch([link.create_upper(link_info.macvlan("bridge"), name="net1", parent=parent.index, netns_fd=pod.fd)])
"""

from __future__ import annotations

import errno
import os
import struct
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec

from underlay.errors import KernelError
from underlay.net import link_info
from underlay.net.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
    attribute,
    attribute_text,
    attribute_u32,
    attributes,
    fixed,
    integer,
    pack_mac,
    text,
)
from underlay.net.vf import Vf, parse_vfs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from underlay.net.link_info import Data
    from underlay.net.rtnl import Rtnl

RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
RTM_SETLINK = 19

IFF_UP = 0x1
IFF_LOOPBACK = 0x8
IFF_NOARP = 0x80
IFF_PROMISC = 0x100
IFF_LOWER_UP = 0x10000

IFLA_ADDRESS = 1
IFLA_IFNAME = 3
IFLA_MTU = 4
IFLA_LINK = 5
IFLA_MASTER = 10
IFLA_IFALIAS = 20
IFLA_VFINFO_LIST = 22
IFLA_GROUP = 27
IFLA_NET_NS_FD = 28
IFLA_EXT_MASK = 29
IFLA_LINK_NETNSID = 37
IFLA_ALT_IFNAME = 53
IFLA_PARENT_DEV_NAME = 56

_RTEXT_FILTER_VF = 1 << 0
_RTEXT_FILTER_SKIP_STATS = 1 << 3
_IFNAMSIZ = 16
_ALTIFNAMSIZ = 128

# family u8, pad, hardware type u16, index s32, flags u32, mask of flags to change u32
IFINFOMSG = struct.Struct("=BxHiII")
_NO_STATS = attribute_u32(IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS)
_WITH_VFS = attribute_u32(IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS | _RTEXT_FILTER_VF)
_ANY = IFINFOMSG.pack(0, 0, 0, 0, 0)


class Link(msgspec.Struct, frozen=True):
    """One network device.

    ``kind`` is "" for hardware and the loopback; ``parent`` (IFLA_LINK) is the index of a macvlan's parent or a veth's
    peer, in the namespace ``parent_nsid`` (as this one numbers it) when that is not None; ``master`` the bridge or VRF
    it is enslaved to; ``mode`` is that of a macvlan or ipvlan, "" for other kinds, ``vlan`` the number of a VLAN's;
    ``alias`` is a free text that goes with the device from one namespace to another; ``device`` is the hardware's name
    on its bus, a PCI address mostly ("" before Linux 5.14); ``vfs`` are read only when asked for.
    """

    index: int
    name: str
    kind: str
    mac: str
    mtu: int
    up: bool
    flags: int
    parent: int | None = None
    master: int | None = None
    parent_nsid: int | None = None
    mode: str = ""
    vlan: int | None = None
    group: int = 0
    alias: str = ""
    device: str = ""
    vfs: tuple[Vf, ...] = ()

    @property
    def carrier(self) -> bool:
        """Whether the device below says that the wire is there (IFF_LOWER_UP)."""
        return bool(self.flags & IFF_LOWER_UP)


def parse(body: bytes) -> Link:
    """The link in the body of an RTM_NEWLINK. Raises Malformed."""
    _, _, index, flags, _ = fixed(IFINFOMSG, body)
    told = attributes(body, 16)
    kind, mode, vlan = (
        link_info.parse(told[link_info.IFLA_LINKINFO]) if link_info.IFLA_LINKINFO in told else link_info.NONE
    )
    vfs = told.get(IFLA_VFINFO_LIST)
    return Link(
        index=index,
        name=text(told.get(IFLA_IFNAME, b"")),
        kind=kind,
        mac=told.get(IFLA_ADDRESS, b"").hex(":"),
        mtu=integer(told.get(IFLA_MTU, b"")),
        up=bool(flags & IFF_UP),
        flags=flags,
        parent=_number(told, IFLA_LINK),
        master=_number(told, IFLA_MASTER),
        parent_nsid=_number(told, IFLA_LINK_NETNSID),
        mode=mode,
        vlan=vlan,
        group=integer(told.get(IFLA_GROUP, b"")),
        alias=text(told.get(IFLA_IFALIAS, b"")),
        device=text(told.get(IFLA_PARENT_DEV_NAME, b"")),
        vfs=parse_vfs(vfs) if vfs else (),
    )


# A parent's answer has fifty attributes, and is the same for every pod.
_parse_again = lru_cache(32)(parse)


def _number(told: dict[int, bytes], kind: int) -> int | None:
    payload = told.get(kind)
    return None if payload is None else integer(payload)


def get_message(name: str, *, vfs: bool = False) -> Message:
    """The get of one link by its name, or alternative name; for :meth:`Rtnl.requests`."""
    named = attribute_text(IFLA_IFNAME if len(name.encode()) < _IFNAMSIZ else IFLA_ALT_IFNAME, name)
    return Message(RTM_GETLINK, 0, _ANY + named + (_WITH_VFS if vfs else _NO_STATS), f"find link {name}")


def get(rtnl: Rtnl, name: str, *, vfs: bool = False) -> Link | None:
    """The link of that name or alternative name, None when there is none. Raises KernelError."""
    if not name or "\0" in name or len(name.encode()) >= _ALTIFNAMSIZ:  # no link can have it, and the kernel is rude
        return None
    return _one(rtnl, get_message(name, vfs=vfs))


def get_index(rtnl: Rtnl, index: int, *, vfs: bool = False) -> Link | None:
    """The link of that index, None when there is none. Raises KernelError."""
    return _one(rtnl, index_message(index, vfs=vfs)) if index > 0 else None


def index_message(index: int, *, vfs: bool = False) -> Message:
    """The get of one link by its index; for :meth:`Rtnl.requests`."""
    body = IFINFOMSG.pack(0, 0, index, 0, 0) + (_WITH_VFS if vfs else _NO_STATS)
    return Message(RTM_GETLINK, 0, body, f"find link #{index}")


def get_many(rtnl: Rtnl, names: Sequence[str]) -> list[Link | None]:
    """The links of those names, in one send. Raises KernelError."""
    return [found(answer) for answer in rtnl.requests([get_message(name) for name in names])]


def make(rtnl: Rtnl, creation: Message, name: str) -> Link:
    """Carry out a creation in this namespace and read what it made, in one send. Raises KernelError.

    Of a veth pair ``name`` is the first end; its :attr:`Link.parent` is the index of the other one.
    """
    made, answer = rtnl.requests((creation, get_message(name)))
    if isinstance(made, KernelError):
        raise made
    if isinstance(answer, KernelError):
        raise answer
    return parse(answer)


def get_indexes(rtnl: Rtnl, indexes: Sequence[int]) -> list[Link]:
    """The links of those indexes that exist, in one send. Raises KernelError."""
    links = map(found, rtnl.requests([index_message(index) for index in indexes]))
    return [one for one in links if one is not None]


def _one(rtnl: Rtnl, message: Message) -> Link | None:
    return found(rtnl.requests((message,))[0])


def found(answer: bytes | KernelError) -> Link | None:
    """The answer to a get: the link, None where there is none. Raises KernelError for any other fault."""
    if isinstance(answer, bytes):
        return _parse_again(answer)
    if answer.errno == errno.ENODEV:
        return None
    raise answer


def dump(rtnl: Rtnl) -> list[Link]:
    """All links, without their VFs. Raises KernelError."""
    return [parse(body) for _, body in rtnl.dump(Message(RTM_GETLINK, 0, _ANY + _NO_STATS, "list links"))]


def index_of(rtnl: Rtnl, name: str) -> int:
    """The index of the link of that name. Raises KernelError (ENODEV) when there is none."""
    return parse(rtnl.request(get_message(name))).index


def name_of(rtnl: Rtnl, index: int) -> str:
    """The name of the link of that index. Raises KernelError (ENODEV) when there is none."""
    there = get_index(rtnl, index)
    if there is None:
        raise KernelError(f"find link #{index}", errno.ENODEV)
    return there.name


def random_mac() -> str:
    """A random MAC address, locally administered and unicast (IEEE 802 bits in the first octet)."""
    octets = bytearray(os.urandom(6))
    octets[0] = octets[0] & 0xFC | 0x02
    return octets.hex(":")


def random_index() -> int:
    """An index for a new link, most likely free (one of 16 million).

    Who chooses the index need not ask for it afterwards: asking waits for the kernel's lock, which its own work on a
    new link holds then, and takes 30 us for a macvlan and 100 us for a veth pair.
    """
    return 0x10000 + int.from_bytes(os.urandom(3), "big")


def create_upper(
    info: Data,
    *,
    name: str,
    parent: int,
    mac: str = "",
    mtu: int = 0,
    netns_fd: int | None = None,
    index: int = 0,
) -> Message:
    """Make a link on ``parent`` (an index where the message is sent), directly in ``netns_fd``, left down.

    A name that is taken there gives EEXIST, and so does a chosen ``index`` (:func:`random_index`).
    Without ``mac`` the kernel chooses: its parent's for ipvlan, VLANs and macvlan's passthru.
    Raises ValueError for a bad MAC.
    """
    body = (
        IFINFOMSG.pack(0, 0, index, 0, 0)
        + attribute_text(IFLA_IFNAME, name)
        + attribute_u32(IFLA_LINK, parent)
        + settings(mac, mtu, netns_fd)
        + link_info.nested(info)
    )
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"create {info.kind} {name} on", parent)


def change(  # noqa: PLR0913 - the settings of a link, all by keyword
    *,
    index: int = 0,
    name: str = "",
    up: bool | None = None,
    mac: str = "",
    mtu: int = 0,
    new_name: str = "",
    netns_fd: int | None = None,
    group: int | None = None,
    promisc: bool | None = None,
    alias: str | None = None,
) -> Message:
    """Change a link, found by ``index`` or ``name``; what is left out stays as it is.

    The move to another namespace comes first, closes the device, and gives it ``new_name`` there: a name that is taken
    where it comes from does not matter (do_setlink, dev_change_net_namespace).

    Raises ValueError for a bad MAC, and for a new name without an index.
    """
    flags = mask = 0
    if up is not None:
        flags, mask = (IFF_UP if up else 0), IFF_UP
    if promisc is not None:
        flags, mask = flags | (IFF_PROMISC if promisc else 0), mask | IFF_PROMISC
    body = IFINFOMSG.pack(0, 0, index, flags, mask)
    # The kernel finds the link by IFLA_IFNAME when the index is 0, and renames it to IFLA_IFNAME otherwise.
    if new_name and not index:
        raise ValueError("a link is renamed by its index")
    if new_name or not index:
        body += attribute_text(IFLA_IFNAME, new_name or name)
    body += settings(mac, mtu, netns_fd)
    if group is not None:
        body += attribute_u32(IFLA_GROUP, group)
    if alias is not None:
        body += attribute(IFLA_IFALIAS, alias.encode())  # without a byte it is removed
    return Message(RTM_SETLINK, 0, body, f"change link {name}" if name else "change link", index)


def delete(*, index: int = 0, name: str = "") -> Message:
    """Delete a link; of a veth pair both ends.

    The kernel waits 16-32 ms for RCU: delete several by :func:`delete_group`.
    """
    body = IFINFOMSG.pack(0, 0, index, 0, 0)
    if not index:
        body += attribute_text(IFLA_IFNAME, name)
    return Message(RTM_DELLINK, 0, body, f"delete link {name}" if name else "delete link", index)


def group_deletion(indexes: Sequence[int]) -> list[Message]:
    """The messages that delete several links in one kernel wait.

    A common group is set on them, then the group is deleted. It is a large random number, as IFLA_GROUP is free for
    administrators to use, and they take small ones.
    """
    if len(indexes) == 1:
        return [delete(index=indexes[0])]
    group = int.from_bytes(os.urandom(4), "big") & 0x3FFFFFFF | 0x40000000
    batch = [change(index=index, group=group) for index in indexes]
    if batch:
        body = _ANY + attribute_u32(IFLA_GROUP, group)
        batch.append(Message(RTM_DELLINK, 0, body, f"delete links {', '.join(f'#{index}' for index in indexes)}"))
    return batch


def delete_group(rtnl: Rtnl, indexes: Sequence[int]) -> None:
    """Delete links in one kernel wait; those that are gone already are no fault. Raises KernelError."""
    rtnl.batch(group_deletion(indexes), tolerate=frozenset((errno.ENODEV,)))


def settings(mac: str, mtu: int, netns_fd: int | None) -> bytes:
    """The attributes that links of every kind have. Raises ValueError for a bad MAC."""
    body = attribute(IFLA_ADDRESS, pack_mac(mac)) if mac else b""
    if mtu:
        body += attribute_u32(IFLA_MTU, mtu)
    if netns_fd is not None:
        body += attribute_u32(IFLA_NET_NS_FD, netns_fd)
    return body
