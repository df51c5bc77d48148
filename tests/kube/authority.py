"""A certificate authority for tests, by the openssl program: a server's certificate, and clients' ones."""

from __future__ import annotations

import os
import ssl
import subprocess
from dataclasses import dataclass
from typing import Any


@dataclass
class Authority:
    """Makes its files below ``directory``. The server's certificate is for 127.0.0.1 and "kubernetes"; ``days`` is how
    long certificates are good: negative, they are over.
    """

    directory: Any
    days: int = 2

    def __post_init__(self) -> None:
        self.ca_file = self._path("ca.crt")
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", self._path("ca.key")]
        # "keyUsage" is what ssl.VERIFY_X509_STRICT, the default since Python 3.13, looks for
        _openssl("req", "-x509", *key, "-subj", "/CN=test CA", "-days", "2", "-out", self.ca_file,
                 "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip
        self._sign("server", "/CN=kubernetes", "subjectAltName=IP:127.0.0.1,DNS:kubernetes")

    def server_context(self) -> ssl.SSLContext:
        """For the server: shows its certificate, takes clients' ones where they have one."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._path("server.crt"), self._path("server.key"))
        context.load_verify_locations(self.ca_file)
        context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def client(self, user: str) -> tuple[str, str]:
        """The paths of a certificate and key for that user name."""
        self._sign(user, f"/CN={user}", "extendedKeyUsage=clientAuth")
        return self._path(f"{user}.crt"), self._path(f"{user}.key")

    def _sign(self, name: str, subject: str, extension: str) -> None:
        request = self._path(f"{name}.csr")
        _openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                 "-keyout", self._path(f"{name}.key"), "-subj", subject, "-out", request)  # fmt: skip
        with open(self._path(f"{name}.ext"), "w") as file:
            file.write(f"{extension}\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n")
        _openssl("x509", "-req", "-in", request, "-CA", self.ca_file, "-CAkey", self._path("ca.key"),
                 "-days", str(self.days), "-extfile", self._path(f"{name}.ext"),
                 "-out", self._path(f"{name}.crt"))  # fmt: skip

    def _path(self, name: str) -> str:
        return os.path.join(str(self.directory), name)


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
