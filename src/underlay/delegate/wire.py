"""Tell the wire of a sandbox's addresses, once the runtime has its answer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from underlay.errors import KernelError
from underlay.net import carrier
from underlay.net.announce import announce

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from underlay.net.netns import Namespace


def tell(pod: Namespace, announcements: Mapping[int, tuple[str, Sequence[str]]], log: Callable[..., None]) -> None:
    """Announce the addresses of each link (index: MAC, addresses), and close ``pod``.

    Who misses it learns by asking: the attachment holds without it.
    """
    until = time.monotonic() + carrier.SECONDS
    with pod:
        for index, (mac, addresses) in announcements.items():
            try:
                if not carrier.wait_to_send(pod, index, until=until):
                    log("warn", "addresses announced without a link", mac=mac)
                announce(pod, index, mac, addresses)
            except KernelError as error:
                log("warn", "addresses not announced", cause=error.message)
