"""Credentials from a program, by client.authentication.k8s.io/v1 (Kubernetes: "client-go credential plugins").

kubeconfig users[].user.exec ──▶ run COMMAND ARGS, KUBERNETES_EXEC_INFO in its environment
                             ◀── ExecCredential on its standard output: token or certificate, until when they are good
"""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from datetime import datetime  # noqa: TC003 - msgspec reads the annotation
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
_TIMEOUT = 30.0
_EARLY = 10.0  # seconds before its end a credential is no longer used
_LEAST = 5.0  # however wrong this node's clock is, the program is run no more often than this


@dataclass(frozen=True, slots=True)
class Credential:
    """What the program gave; ``certificate`` and ``key`` are PEM."""

    token: str = ""
    certificate: bytes = b""
    key: bytes = b""


class _Status(msgspec.Struct):
    token: str = ""
    certificate: str = msgspec.field(default="", name="clientCertificateData")
    key: str = msgspec.field(default="", name="clientKeyData")
    until: datetime | None = msgspec.field(default=None, name="expirationTimestamp")


class _Answer(msgspec.Struct):
    kind: str = ""
    version: str = msgspec.field(default="", name="apiVersion")
    status: _Status | None = None


class ExecCredential:
    """Runs the program when its last credential has come to its end. To be used under the caller's lock.

    ``cluster`` is the spec.cluster that goes into KUBERNETES_EXEC_INFO, None where the kubeconfig does not provide it.
    """

    def __init__(
        self, argv: Sequence[str], *, env: Mapping[str, str], version: str, cluster: Mapping[str, Any] | None, hint: str
    ) -> None:
        self._argv = list(argv)
        self._hint = f" ({hint})" if hint else ""
        spec = {"interactive": False, **({"cluster": cluster} if cluster is not None else {})}
        info = {"apiVersion": version, "kind": "ExecCredential", "spec": spec}
        self._env = {**env, "KUBERNETES_EXEC_INFO": msgspec.json.encode(info).decode()}
        self._version = version
        self._last = Credential()
        self._ran = 0.0
        self._ends = 0.0  # on the monotonic clock: a step of the realtime clock moves nothing

    def current(self) -> Credential:
        """The credential, from the program where the last one has ended. Raises ValueError with the cause."""
        if time.monotonic() >= self._ends:
            self._last = self._run()
        return self._last

    def forget(self) -> None:
        """The API server refused it: run the program again, unless it has just been run."""
        if time.monotonic() - self._ran >= _LEAST:
            self._ends = 0.0

    def _run(self) -> Credential:
        program = self._argv[0]
        try:
            done = subprocess.run(
                self._argv, env={**os.environ, **self._env}, stdin=subprocess.DEVNULL, capture_output=True,
                timeout=_TIMEOUT, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as fault:
            raise ValueError(f"credential program {program}: {fault}{self._hint}") from fault
        if done.returncode:
            words = done.stderr.decode(errors="replace").strip()[-300:]
            raise ValueError(f"credential program {program} ended with {done.returncode}: {words}{self._hint}")
        try:
            answer = msgspec.json.decode(done.stdout, type=_Answer)
        except msgspec.DecodeError as fault:
            raise ValueError(f"credential program {program} printed no ExecCredential: {fault}") from fault
        return self._taken(program, answer)

    def _taken(self, program: str, answer: _Answer) -> Credential:
        status = answer.status
        if answer.kind != "ExecCredential" or answer.version != self._version or status is None:
            raise ValueError(f"credential program {program} printed no ExecCredential of {self._version} with a status")
        if not status.token and not (status.certificate and status.key):
            raise ValueError(f"credential program {program} gave neither token nor client certificate with its key")
        self._ran = time.monotonic()
        left = status.until.timestamp() - time.time() - _EARLY if status.until else float("inf")
        self._ends = self._ran + max(left, _LEAST)
        return Credential(status.token, status.certificate.encode(), status.key.encode())
