"""What answers in the lab: one process with a listening socket in every namespace, and just enough HTTP for curl.

Run in the node's namespace as `python -m underlay.cli.lab.responders LAB`; it prints a line once all sockets listen,
and lives until the lab is removed, which ends whoever is in its namespaces. The answer's body names the member that
answers, so that a probe knows whom it has reached.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading

from underlay.cli.lab import topology
from underlay.cli.lab.networks import PODS

_IMPATIENCE = 2.0  # seconds that one caller may keep the next one waiting


def main(name: str) -> None:
    """Listen everywhere, say so, answer for ever."""
    lab = topology.Lab.named(name)
    ports = {topology.NODE: topology.NODE_PORT, topology.LAN: topology.LAN_PORT, topology.BACKEND: topology.POD_PORT}
    ports |= {pod.name: topology.POD_PORT for pod in PODS}
    listeners = {member: _listen(lab, member, port) for member, port in ports.items()}
    serving = [threading.Thread(target=_answer, args=(listener, member)) for member, listener in listeners.items()]
    if not topology.have_nft():
        serving.append(threading.Thread(target=_relay, args=(lab,)))
    for thread in serving:
        thread.start()
    print("listening", flush=True)
    for thread in serving:
        thread.join()


def _listen(lab: topology.Lab, member: str, port: int) -> socket.socket:
    """A socket for both families in the member's namespace."""
    with lab.open(member) as namespace, namespace.entered():
        family = socket.AF_INET6 if lab.ipv6 else socket.AF_INET
        return socket.create_server(("", port), family=family, dualstack_ipv6=lab.ipv6, backlog=64)


def _answer(listener: socket.socket, member: str) -> None:
    body = f"{member} is well\n".encode()
    answer = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    while True:
        caller, _ = listener.accept()
        with caller, contextlib.suppress(OSError):  # a caller that hangs up is no fault here
            caller.settimeout(_IMPATIENCE)
            caller.recv(4096)
            caller.sendall(answer)


def _relay(lab: topology.Lab) -> None:
    """The ClusterIP where there is no nft: the node owns its address, and every call is put through to the backend."""
    listener = _listen(lab, topology.NODE, topology.CLUSTER_PORT)
    while True:
        caller, _ = listener.accept()
        with caller, contextlib.suppress(OSError):
            caller.settimeout(_IMPATIENCE)
            with socket.create_connection((topology.BACKEND_V4, topology.POD_PORT), _IMPATIENCE) as backend:
                backend.sendall(caller.recv(4096))
                while answer := backend.recv(4096):
                    caller.sendall(answer)


if __name__ == "__main__":
    main(sys.argv[1])
