"""A kubeconfig file as the way to the API server (Kubernetes: "kubeconfig (v1)").

    context ──▶ cluster: server, certificate authority (file or data), insecure-skip-tls-verify, tls-server-name
            └─▶ user:    token, tokenFile, client certificate and key (file or data), exec

What it does not support is refused by name, what nobody knows is named in a warning. Relative paths count from the
kubeconfig's directory. The file, and every file it names, is read again when it has changed.
"""

from __future__ import annotations

import base64
import binascii
import os
import threading
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from underlay.errors import InvalidConfig, IOFailure
from underlay.kube.access import Contexts, Endpoint, Files, Trust, unreachable
from underlay.kube.exec_credential import VERSIONS, Credential, ExecCredential

if TYPE_CHECKING:
    from underlay.kube.source import Log

_HINT = "Correct the kubeconfig; a daemon that runs reads it again by itself."
_UNSUPPORTED = {
    "proxy-url": "the API server is spoken to directly",
    "username": "the API server takes no passwords since Kubernetes 1.19",
    "password": "the API server takes no passwords since Kubernetes 1.19",
    "auth-provider": 'Kubernetes 1.26 removed it in favour of "exec"',
    "as": "the daemon acts as itself",
    "as-uid": "the daemon acts as itself",
    "as-groups": "the daemon acts as itself",
    "as-user-extra": "the daemon acts as itself",
}
_IGNORED = {"extensions", "disable-compression", "preferences"}
_Shape = TypeVar("_Shape", bound=msgspec.Struct)


class _Cluster(msgspec.Struct, rename="kebab"):
    server: str
    certificate_authority: str = ""
    certificate_authority_data: str = ""
    insecure_skip_tls_verify: bool = False
    tls_server_name: str = ""


class _Variable(msgspec.Struct):
    name: str
    value: str = ""


class _Exec(msgspec.Struct, rename="camel"):
    command: str
    api_version: str
    args: list[str] | None = None
    env: list[_Variable] | None = None
    install_hint: str = ""
    interactive_mode: str = "IfAvailable"
    provide_cluster_info: bool = False


class _User(msgspec.Struct, rename="kebab"):
    token: str = ""
    token_file: str = msgspec.field(default="", name="tokenFile")
    client_certificate: str = ""
    client_certificate_data: str = ""
    client_key: str = ""
    client_key_data: str = ""
    exec: _Exec | None = None


class _Context(msgspec.Struct):
    cluster: str
    user: str = ""
    namespace: str = ""


class Kubeconfig:
    """The file at ``path``; ``context`` "" is its current-context.

    Raises IOFailure or InvalidConfig, naming the field, at once where the file is not usable. Once it was good, what
    becomes of it later is logged, and its last good content counts.
    """

    def __init__(self, path: str, log: Log, context: str = "") -> None:
        self._path = path
        self._wanted = context
        self._log = log
        self._lock = threading.Lock()
        self._contexts = Contexts()
        self._warned: set[str] = set()
        self._exec: ExecCredential | None = None
        self._files = Files()
        self._load()

    def endpoint(self) -> Endpoint:
        """As the files are now. Raises Unreachable where the credential program does not give any."""
        with self._lock:
            if self._files.changed():
                self._reload()
            try:
                return self._endpoint()
            except (OSError, ValueError) as fault:
                raise unreachable(f"kubeconfig {self._path}", fault) from fault

    def rejected(self) -> None:
        """Read everything again, and run the credential program again."""
        with self._lock:
            if self._exec is not None:
                self._exec.forget()
            else:
                self._reload()

    def _reload(self) -> None:
        before = self._files
        try:
            self._load()
            self._log("info", "kubeconfig is read again", path=self._path)
        except (IOFailure, InvalidConfig) as fault:
            self._files = before
            self._log("warn", "kubeconfig is unusable, its last good content counts", cause=fault.message)

    def _load(self) -> None:
        files = Files()
        try:
            content = self._parsed(files.read(self._path))
            name = self._wanted or content.get("current-context") or ""
            context = self._entry(content, "context", name, _Context)
            cluster = self._entry(content, "cluster", context.cluster, _Cluster)
            user = self._entry(content, "user", context.user, _User) if context.user else _User()
            program = self._program(user.exec, cluster) if user.exec else None
            trust, token = self._trust(files, cluster, user), self._token(files, user)
            self._contexts.context(trust)
            address = self._address(cluster)
        except OSError as fault:
            words = f"kubeconfig {self._path}: cannot read {fault.filename}: {fault.strerror}"
            raise IOFailure(words, hint=_HINT) from fault
        except ValueError as fault:
            raise InvalidConfig(f"kubeconfig {self._path}: {fault}", hint=_HINT) from fault
        self._files, self._address_now, self._trust_now, self._token_now = files, address, trust, token
        self._server_name = cluster.tls_server_name
        self._exec = program

    def _endpoint(self) -> Endpoint:
        given = self._exec.current() if self._exec else Credential()
        trust = self._trust_now
        if given.certificate:
            trust = Trust(trust.ca, given.certificate, given.key, trust.verify)
        scheme, host, port, prefix = self._address_now
        context = self._contexts.context(trust) if scheme == "https" else None
        token = given.token or self._token_now
        return Endpoint(host, port, prefix, context, self._server_name or host, f"Bearer {token}" if token else "")

    def _parsed(self, raw: bytes) -> dict[str, Any]:
        import yaml  # 15 ms, 3 MiB; kubeconfigs are YAML nearly always

        try:
            content = yaml.safe_load(raw)
        except (yaml.YAMLError, UnicodeDecodeError) as fault:
            raise ValueError("no YAML: " + " ".join(str(fault).split())) from fault
        if not isinstance(content, dict) or content.get("kind", "Config") != "Config":
            raise ValueError("it holds no object of kind Config")
        return content

    def _entry(self, content: dict[str, Any], kind: str, name: str, shape: type[_Shape]) -> _Shape:
        listed = content.get(f"{kind}s") or []
        if not isinstance(listed, list):
            raise ValueError(f"{kind}s: a list is wanted")
        found = next((each for each in listed if isinstance(each, dict) and each.get("name") == name), None)
        if found is None:
            there = ", ".join(str(each.get("name")) for each in listed if isinstance(each, dict)) or "none"
            raise ValueError(f'{kind}s: there is no {kind} "{name}", there is: {there}')
        fields = found.get(kind) or {}
        where = f'{kind} "{name}"'
        if not isinstance(fields, dict):
            raise ValueError(f"{where}: an object is wanted")
        self._judge(fields, where, shape)
        try:
            return msgspec.convert({key: value for key, value in fields.items() if value is not None}, shape)
        except msgspec.ValidationError as fault:
            raise ValueError(f"{where}: {fault}") from fault

    def _judge(self, fields: dict[str, Any], where: str, shape: type[msgspec.Struct]) -> None:
        known = {field.encode_name for field in msgspec.structs.fields(shape)}
        for key in fields:
            if key in _UNSUPPORTED and fields[key]:
                raise ValueError(f'{where}: "{key}" is not supported: {_UNSUPPORTED[key]}')
            if key not in known and key not in _IGNORED and key not in _UNSUPPORTED:
                self._warn(f'{where}: "{key}" is no field of a kubeconfig')

    def _warn(self, words: str) -> None:
        if words not in self._warned:
            self._warned.add(words)
            self._log("warn", f"kubeconfig: {words}", path=self._path)

    def _beside(self, path: str) -> str:
        return os.path.join(os.path.dirname(os.path.abspath(self._path)), path)

    def _material(self, files: Files, path: str, data: str, field: str) -> bytes:
        """PEM from ``field``-data, which wins, or the file that ``field`` names."""
        if data:
            try:
                return base64.b64decode(data, validate=True)
            except binascii.Error as fault:
                raise ValueError(f"{field}-data is not base64: {fault}") from fault
        return files.read(self._beside(path)) if path else b""

    def _trust(self, files: Files, cluster: _Cluster, user: _User) -> Trust:
        if cluster.insecure_skip_tls_verify:
            self._warn("insecure-skip-tls-verify: whoever answers at the API server's address is believed")
        ca = self._material(
            files, cluster.certificate_authority, cluster.certificate_authority_data, "certificate-authority"
        )
        certificate = self._material(files, user.client_certificate, user.client_certificate_data, "client-certificate")
        key = self._material(files, user.client_key, user.client_key_data, "client-key")
        if bool(certificate) != bool(key):
            raise ValueError("client-certificate and client-key are wanted both, or neither")
        return Trust(ca, certificate, key, not cluster.insecure_skip_tls_verify)

    def _token(self, files: Files, user: _User) -> str:
        if user.token_file:
            return files.read(self._beside(user.token_file)).decode().strip()
        return user.token

    def _address(self, cluster: _Cluster) -> tuple[str, str, int, str]:
        server = cluster.server
        try:
            split = urlsplit(server)
            port = split.port or {"https": 443, "http": 80}.get(split.scheme, 0)
        except ValueError as fault:
            raise ValueError(f'server "{server}": {fault}') from fault
        if split.scheme not in ("https", "http") or not split.hostname or not port:
            raise ValueError(f'server "{server}" is not of the form https://HOST:PORT')
        return split.scheme, split.hostname, port, split.path.rstrip("/")

    def _program(self, given: _Exec, cluster: _Cluster) -> ExecCredential:
        if given.api_version not in VERSIONS:
            raise ValueError(f'exec.apiVersion "{given.api_version}" is not supported, only {" and ".join(VERSIONS)}')
        if given.interactive_mode == "Always":
            raise ValueError('exec.interactiveMode "Always": a daemon has nobody to ask')
        command = self._beside(given.command) if "/" in given.command else given.command
        info = msgspec.to_builtins(cluster) if given.provide_cluster_info else None
        env = {each.name: each.value for each in given.env or ()}
        return ExecCredential(
            [command, *(given.args or ())], env=env, version=given.api_version, cluster=info, hint=given.install_hint
        )
