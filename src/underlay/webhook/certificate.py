"""The server's certificate and key, read again when their files change (cert-manager and mounted Secrets swap them)."""

from __future__ import annotations

import os
import ssl
import threading
from typing import TYPE_CHECKING

from underlay.errors import IOFailure

if TYPE_CHECKING:
    from collections.abc import Callable

_HINT = "--tls-cert and --tls-key name PEM files: the certificate with its chain, and its key without a password."
_Signature = tuple[tuple[int, int, int], ...]


class Certificate:
    """Hands out the TLS context of the present files. Thread-safe. Budget: two stat calls a connection."""

    def __init__(self, cert: str, key: str, log: Callable[..., None]) -> None:
        """Read the files. Raises IOFailure where they cannot be used."""
        self._paths = (cert, key)
        self._log = log
        self._lock = threading.Lock()
        self._seen: _Signature = ()
        try:
            self._seen = self._signature()
            self._context = self._load()
        except OSError as error:
            raise IOFailure(f"cannot use {cert} and {key}: {_cause(error)}", hint=_HINT) from error

    def context(self) -> ssl.SSLContext:
        """The present context; while new files are not whole (certificate and key differ), the one before."""
        with self._lock:
            try:
                signature = self._signature()
                if signature != self._seen:
                    self._seen = signature
                    self._context = self._load()
                    self._log("info", "certificate read again", file=self._paths[0])
            except OSError as error:
                if self._seen:
                    self._log("warn", "certificate cannot be read, the one before serves on", cause=_cause(error))
                if not isinstance(error, ssl.SSLError):
                    self._seen = ()  # gone: whatever comes back is new
            return self._context

    def _signature(self) -> _Signature:
        stats = [os.stat(path) for path in self._paths]
        return tuple((each.st_mtime_ns, each.st_size, each.st_ino) for each in stats)

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # without it OpenSSL would ask the terminal for a password
        context.load_cert_chain(*self._paths, password=str)
        return context


def _cause(error: OSError) -> str:
    return " ".join(str(error.strerror or error).split())
