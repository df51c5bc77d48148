"""One address and whose it is: the value that journal, space and plugin pass among themselves."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from underlay.cni.address import Address, parse, text

State = Literal["held", "kept", "rest", "aside"]
HELD: Final = "held"
KEPT: Final = "kept"
REST: Final = "rest"
ASIDE: Final = "aside"

RESERVED: Final = "Reserved"
CLAIM: Final = "IPAMClaim"
POD: Final = "Pod"


class Lease(NamedTuple):
    """``state`` held: by the NIC ``ifname`` of the container, which is one of the pod ``uid``. kept: by nobody, for
    ``keeper`` to come back. rest: free since ``since``. aside: used by a host outside, whose MAC is the ``keeper``,
    not to be handed out until ``since``.

    ``keeper`` is "Kind/namespace/name" or "" for an address that is simply free afterwards; ``pod`` is
    "namespace/name", ``network`` the name in the CNI configuration, ``boot`` the kernel's boot id, ``since`` realtime
    nanoseconds. The fields are the journal's columns in their order; the address is written as text there.
    """

    address: Address
    pool: str
    state: State
    uid: str = ""
    container_id: str = ""
    ifname: str = ""
    pod: str = ""
    keeper: str = ""
    network: str = ""
    boot: str = ""
    since: int = 0

    @property
    def family(self) -> int:
        """4 or 6."""
        return self.address.family

    @property
    def value(self) -> int:
        """The address as a number."""
        return self.address.value

    @property
    def shown(self) -> str:
        """The address as text."""
        return text(*self.address)

    @property
    def adopted(self) -> bool:
        """Held by a pod that another IPAM gave it to: no container that nodes know of has it, and none owns it."""
        return self.state == HELD and not self.container_id

    def owner(self) -> str:
        """Whose it is, for messages."""
        if self.state == KEPT:
            return f"kept for {self.keeper}"
        if self.state == ASIDE:
            return f"in use by {self.keeper} outside"
        whom = f"pod {self.pod}" if self.pod else f"container {self.container_id[:80]}"
        return f"held by {whom} ({self.ifname})"


def keepers(who: Lease) -> tuple[str, ...]:
    """On behalf of whom the NIC gets what is kept: its pod by name, its keeper, and its pod as it was before it came to
    this IPAM.
    """
    reserved = (f"{RESERVED}/{who.pod}",) if who.pod else ()
    kept = (who.keeper,) if who.keeper else ()
    return (*reserved, *kept, pod_keeper(who.pod, who.uid)) if who.pod and who.uid else (*reserved, *kept)


def pod_keeper(pod: str, uid: str) -> str:
    """Of what is kept for this one pod, "namespace/name", and not for the next one of its name."""
    return f"{POD}/{pod}/{uid}"


def keeper_parts(keeper: str) -> tuple[str, str, str]:
    """Kind, namespace and name of "Kind/namespace/name", a pod's with its UID; "" for what it has not: a reservation
    for nobody is "Reserved/", and a block may say anything.
    """
    kind, _, named = keeper.partition("/")
    namespace, _, name = named.partition("/")
    return kind, namespace, name


def row(lease: Lease) -> tuple[object, ...]:
    """As the journal stores it."""
    return (lease.shown, *lease[1:])


def of_row(columns: tuple[object, ...]) -> Lease | None:
    """The inverse of :func:`row`; None for what no newer or damaged file should have held."""
    address = parse(str(columns[0]))
    if address is None or columns[2] not in (HELD, KEPT, REST, ASIDE):
        return None
    return Lease(address, *columns[1:])  # type: ignore[arg-type]  # the schema says what they are
