"""Calls over the network, from within a namespace: HTTP to a sandbox, TCP to whoever listens."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING

from tests.e2e import pause_image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Netns

_PATIENCE = 8.0
_ATTEMPT = 4.0  # a lost SYN is sent again after 1 s and after 3 s


def greets(caller: Netns, address: str) -> bool:
    """Whether the sandbox's web server answers there. It may begin to listen only after RunPodSandbox has returned."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(ConnectionRefusedError, TimeoutError), caller.entered():
            return _page(address).endswith(b"\r\n\r\n" + pause_image.GREETING)
        time.sleep(0.02)
    return False


def _page(address: str) -> bytes:
    with socket.create_connection((address, pause_image.PORT), _ATTEMPT) as call:
        call.sendall(b"GET /index.html HTTP/1.0\r\n\r\n")
        return b"".join(iter(lambda: call.recv(4096), b""))


@contextlib.contextmanager
def listening(ns: Netns, port: int) -> Iterator[None]:
    """Both families, in the namespace. The kernel accepts; nobody answers."""
    with ns.entered():
        listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    with listener:
        yield


def connects(caller: Netns, address: str, port: int) -> bool:
    """Whether a TCP connection comes about."""
    with contextlib.suppress(OSError), caller.entered(), socket.create_connection((address, port), _ATTEMPT):
        return True
    return False
