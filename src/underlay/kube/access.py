"""Where the API server is and who we are to it, as of now: read again whenever a file of it has changed.

    Access ──▶ Endpoint   address, TLS context, Authorization header
      InCluster           the service account that the kubelet mounts; its token lives an hour or less
      Kubeconfig          (kubeconfig.py) a file with tokens, certificates or a credential program

The question costs a stat of each file, 2 us; a TLS context is made anew only where certificates differ, because
connections live on with the one they have.
"""

from __future__ import annotations

import os
import ssl
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from underlay.errors import InvalidConfig, IOFailure
from underlay.kube.faults import Unreachable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from underlay.kube.source import Log

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_IN_CLUSTER_HINT = "Run the daemon as a pod with a service account, or name a kubeconfig (kube.kubeconfig)."


@dataclass(frozen=True, slots=True)
class Endpoint:
    """``prefix`` is put before every path; ``context`` None means plain HTTP; ``server_name`` is what the certificate
    must be for; ``authorization`` is a header's value, or empty.
    """

    host: str
    port: int
    prefix: str
    context: ssl.SSLContext | None
    server_name: str
    authorization: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.context else 'http'}://{host}:{self.port}{self.prefix}"


class Access(Protocol):
    """The way to the API server. Thread-safe."""

    def endpoint(self) -> Endpoint:
        """As it is now. Raises Unreachable where the credentials cannot be had."""

    def rejected(self) -> None:
        """The API server refused the credentials (401): get new ones where that is possible."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What a TLS context is made of, all PEM. ``ca`` empty: the system's authorities; ``verify`` False: none at all."""

    ca: bytes = b""
    certificate: bytes = b""
    key: bytes = b""
    verify: bool = True


class Files:
    """Files read, and whether any of them has changed since. Symbolic links are followed, as a volume's files are."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, int, int] | None] = {}

    def read(self, path: str) -> bytes:
        """The content. OSError."""
        self._seen[path] = _signature(path)  # first: what changes while it is read is read again
        with open(path, "rb") as file:
            return file.read()

    def changed(self) -> bool:
        """Whether any file read has changed, or gone, since."""
        return any(_signature(path) != before for path, before in self._seen.items())


class Contexts:
    """Makes TLS contexts; the same :class:`Trust` as last time gets the same context."""

    def __init__(self) -> None:
        self._last: tuple[Trust, ssl.SSLContext] | None = None

    def context(self, trust: Trust) -> ssl.SSLContext:
        """Raises ValueError, naming what is wrong, where it cannot be made."""
        if self._last is None or self._last[0] != trust:
            self._last = (trust, _context(trust))
        return self._last[1]


class InCluster:
    """The pod's own service account. Raises IOFailure or InvalidConfig at once where there is none.

    The API server's address comes from the environment, token and CA from ``directory``. Once they were good, files
    that cannot be read any more (a volume in the middle of its change) are no fault: the last good ones count.
    """

    def __init__(self, environ: Mapping[str, str], log: Log, directory: str = SERVICE_ACCOUNT) -> None:
        host = environ.get("KUBERNETES_SERVICE_HOST", "")
        port = environ.get("KUBERNETES_SERVICE_PORT_HTTPS") or environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host or not port.isdigit():
            raise InvalidConfig("kube.in_cluster: KUBERNETES_SERVICE_HOST is not set", hint=_IN_CLUSTER_HINT)
        self._host, self._port = host, int(port)
        self._log = log
        self._directory = directory
        self._lock = threading.Lock()
        self._contexts = Contexts()
        self._files = Files()
        try:
            self._now = self._read()
        except (OSError, ValueError) as fault:
            raise IOFailure(f"the service account in {directory}: {fault}", hint=_IN_CLUSTER_HINT) from fault

    def endpoint(self) -> Endpoint:
        """As the files are now."""
        with self._lock:
            if self._files.changed():
                try:
                    self._now = self._read()
                    self._log("info", "service account is read again", directory=self._directory)
                except (OSError, ValueError) as fault:
                    self._log("warn", "service account cannot be read, the last good one counts", cause=str(fault))
            return self._now

    def rejected(self) -> None:
        """Read the files again, whatever their times say."""
        with self._lock:
            try:
                self._now = self._read()
            except (OSError, ValueError) as fault:
                self._log("warn", "service account cannot be read, the last good one counts", cause=str(fault))

    def _read(self) -> Endpoint:
        token = self._files.read(os.path.join(self._directory, "token")).decode().strip()
        context = self._contexts.context(Trust(ca=self._files.read(os.path.join(self._directory, "ca.crt"))))
        if not token:
            raise ValueError("token is empty")
        return Endpoint(self._host, self._port, "", context, self._host, f"Bearer {token}")


def unreachable(what: str, fault: Exception) -> Unreachable:
    """Credentials that cannot be had, as the fault that callers know."""
    return Unreachable(f"{what}: {fault}")


def _signature(path: str) -> tuple[int, int, int] | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _context(trust: Trust) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not trust.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif trust.ca:
        try:
            context.load_verify_locations(cadata=trust.ca.decode("ascii"))
        except (ssl.SSLError, UnicodeDecodeError) as fault:
            raise ValueError(f"the certificate authority is no PEM certificate: {fault}") from fault
    else:
        context.load_default_certs()
    if trust.certificate:
        _load_pair(context, trust)
    return context


def _load_pair(context: ssl.SSLContext, trust: Trust) -> None:
    """OpenSSL's interface in Python reads keys from files alone: one in memory, so that no key comes onto a disk."""
    fd = os.memfd_create("underlay-client-key", os.MFD_CLOEXEC)
    try:
        with os.fdopen(fd, "wb", closefd=False) as file:
            file.write(trust.certificate + b"\n" + trust.key)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    except ssl.SSLError as fault:
        raise ValueError(f"client certificate and key do not fit: {fault}") from fault
    finally:
        os.close(fd)
