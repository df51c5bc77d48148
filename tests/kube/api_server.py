"""A Kubernetes API server for tests: real HTTP (or HTTPS) on loopback, the verbs that a node's daemon uses, and faults.

    server = ApiServer()                                   listens at once, http://127.0.0.1:PORT
    server.put(PODS, pod("web", node="n1", networks="a"))  as any other client would; watches are told
    server.put(NETWORKS, network("a", {"type": "macvlan"}))
    server.faults.append(Fault(path="/pods", status=429, retry_after=1, times=2))
    server.stop(); server.start()                          away, and back at the same port; objects stay
    server.requests                                        what was asked, in order: verb, resource, name, user, …
    server.kubeconfig(path)                                writes a kubeconfig that leads here

It lists with paging, watches with bookmarks and field selectors, gets, creates, replaces, merge-patches (the
``status`` subresource too) and deletes (with finalizers), metadata.uid and resourceVersion being preconditions; it
serves PartialObjectMetadata where Accept asks for it. A daemon in another network namespace reaches it where ``listen``
makes the socket in there:

    def listen(host, port):
        with netns.entered():
            return socket.create_server((host, port))

``authority`` makes it speak HTTPS and take client certificates; ``tokens`` maps bearer tokens to user names, None lets
everybody in; ``forbidden`` holds (verb, resource) refused by 403, ``unserved`` resources whose definition is not
there. What it keeps: :mod:`tests.kube.api_objects`.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from tests.kube.api_objects import API_VERSION, EVENTS, NETWORKS, PODS, Object, Objects, Refused

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping

    from tests.kube.authority import Authority

PARTIAL = "as=PartialObjectMetadata"


@dataclass
class Fault:
    """What goes wrong with the next ``times`` requests whose method is ``method``, whose path holds ``path`` and which
    are watches or not as ``watch`` says (None, "": any).

    ``delay`` seconds before anything; ``status`` answers with that code; ``cut`` closes the connection after that many
    bytes of the body (0: before any answer); ``after`` does the request and then closes without an answer; ``silent``:
    a watch that never says anything, bookmarks neither; ``error``: a watch whose first event is this ERROR status.
    """

    path: str = ""
    method: str = ""
    watch: bool | None = None
    times: int = 1
    delay: float = 0.0
    status: int = 0
    retry_after: int | None = None
    cut: int | None = None
    after: bool = False
    silent: bool = False
    error: int = 0


@dataclass(frozen=True)
class Request:
    """One request as it came in. ``verb`` is the RBAC verb; ``resource`` has "/status" for the subresource."""

    method: str
    path: str
    query: Mapping[str, str]
    verb: str
    group: str
    resource: str
    namespace: str
    name: str
    user: str
    headers: Mapping[str, str]
    body: bytes
    at: float


@dataclass
class ApiServer:
    """The server; listening from the moment it is made. Thread-safe."""

    listen: Callable[[str, int], socket.socket] = lambda host, port: socket.create_server((host, port), backlog=256)
    authority: Authority | None = None
    tokens: dict[str, str] | None = None
    bookmark_every: float = 60.0
    objects: Objects = field(default_factory=Objects)
    faults: list[Fault] = field(default_factory=list)
    forbidden: set[tuple[str, str]] = field(default_factory=set)
    unserved: set[str] = field(default_factory=set)
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._http: ThreadingHTTPServer | None = None
        self._connections: set[socket.socket] = set()
        self.tls: ssl.SSLContext | None = self.authority.server_context() if self.authority else None
        self.host, self.port = "127.0.0.1", 0
        self.start()

    @property
    def url(self) -> str:
        """What a kubeconfig's ``server`` would be."""
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"

    def put(self, resource: str, wanted: Object) -> Object:
        """Create or replace an object (see :class:`~tests.kube.api_objects.Objects`)."""
        return self.objects.put(resource, wanted)

    def delete(self, resource: str, namespace: str, name: str) -> None:
        """Remove an object."""
        self.objects.delete(resource, namespace, name)

    def get(self, resource: str, namespace: str, name: str) -> Object | None:
        """An object as it is now, or None."""
        return self.objects.get(resource, namespace, name)

    def asked(self, verb: str = "", resource: str = "") -> list[Request]:
        """The requests so far of that verb and resource ("": any)."""
        with self._lock:
            return [each for each in self.requests
                    if verb in ("", each.verb) and resource in ("", each.resource)]  # fmt: skip

    def kubeconfig(self, path: Any, **user: Any) -> str:
        """Write a kubeconfig that leads here, ``user`` being the user's fields; returns its path."""
        cluster: Object = {"server": self.url}
        if self.authority:
            cluster["certificate-authority"] = self.authority.ca_file
        content = {
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "c", "cluster": cluster}], "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "c", "user": "u"}}],
        }  # fmt: skip
        with open(path, "w") as file:
            json.dump(content, file)
        return str(path)

    def stop(self) -> None:
        """Go away: every connection is cut, new ones are refused."""
        http, self._http = self._http, None
        if http is None:
            return
        http.shutdown()
        http.server_close()
        self.cut()

    def start(self) -> None:
        """Listen; after :meth:`stop`, at the same port."""
        if self._http is not None:
            return
        listening = self.listen(self.host, self.port)
        self.port = listening.getsockname()[1]
        self._http = http = _Http((self.host, self.port), _Handler, bind_and_activate=False)
        http.socket.close()
        http.socket = listening
        http.api = self
        threading.Thread(target=http.serve_forever, args=(0.02,), name="api-server", daemon=True).start()

    def cut(self) -> None:
        """Close every open connection, watches in the middle of an event too."""
        with self._lock:
            connections = list(self._connections)
        for each in connections:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(each, socket.SHUT_RDWR)  # not SSLSocket's own, which forgets the session

    def __enter__(self) -> ApiServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- inside --------------------------------------------------------------------------------------------------------

    @property
    def away(self) -> bool:
        """Whether :meth:`stop` was called."""
        return self._http is None

    def fault(self, request: Request) -> Fault | None:
        """The fault that this request meets, used up by one."""
        watch = request.verb == "watch"
        with self._lock:
            for each in self.faults:
                meant = each.path in request.path and each.method in ("", request.method)
                if meant and each.times > 0 and each.watch in (None, watch):
                    each.times -= 1
                    return each
        return None

    def user(self, headers: Any, certificate: Any) -> str:
        """Who asks: by client certificate or bearer token. 401 for nobody."""
        for names in (certificate or {}).get("subject", ()):
            for key, value in names:
                if key == "commonName":
                    return str(value)
        if self.tokens is None:
            return "anybody"
        user = self.tokens.get((headers.get("Authorization") or "").removeprefix("Bearer "))
        if user is None:
            raise Refused(401, "Unauthorized", "Unauthorized")
        return user

    def note(self, request: Request) -> None:
        """Into the log; 403 where it is forbidden."""
        with self._lock:
            self.requests.append(request)
        if (request.verb, request.resource) in self.forbidden:
            words = f'{request.resource} is forbidden: User "{request.user}" cannot {request.verb}'
            raise Refused(403, "Forbidden", words)

    def opened(self, connection: socket.socket, *, closed: bool = False) -> None:
        """Keep count of the connections, for :meth:`cut`."""
        with self._lock:
            (self._connections.discard if closed else self._connections.add)(connection)


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    api: ApiServer

    def get_request(self) -> tuple[Any, Any]:
        """The handshake is for the connection's own thread."""
        connection, address = super().get_request()
        if self.api.tls:
            connection = self.api.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class _Cut(Exception):
    """The fault wants the connection closed."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Http

    def setup(self) -> None:
        self._api = self.server.api
        if self._api.tls:
            self.request.settimeout(5)
            self.request.do_handshake()
            self.request.settimeout(None)
        self._api.opened(self.request)
        super().setup()

    def finish(self) -> None:
        self._api.opened(self.request, closed=True)
        super().finish()

    def log_message(self, *_: Any) -> None:
        """The request log is the server's."""

    def do_GET(self) -> None:
        self._any()

    do_POST = do_PATCH = do_PUT = do_DELETE = do_GET  # noqa: N815

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._fault: Fault | None = None
        try:
            self._route(body)
        except Refused as refused:
            self._json(refused.code, refused.status())
        except (_Cut, OSError):
            self.close_connection = True

    def _route(self, body: bytes) -> None:
        certificate = self.request.getpeercert() if self._api.tls else None
        request = _parsed(self.command, self.path, self._api.user(self.headers, certificate), dict(self.headers), body)
        try:
            self._api.note(request)
        finally:
            self._fault = self._api.fault(request)
        self._misfortune()
        answer = _ANSWERS.get(request.verb)
        resource = request.resource.partition("/")[0]
        if answer is None or resource not in API_VERSION or resource in self._api.unserved:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        answer(self, request)

    def _misfortune(self) -> None:
        fault = self._fault
        if fault is None:
            return
        time.sleep(fault.delay)
        if fault.status:
            raise Refused(fault.status, {410: "Expired", 429: "TooManyRequests"}.get(fault.status, ""), "as wanted")
        if fault.cut == 0:
            raise _Cut

    # -- the verbs -----------------------------------------------------------------------------------------------------

    def list(self, request: Request) -> None:
        query = request.query
        found = self._api.objects.page(
            request.resource, _chosen(request), int(query.get("limit", 0)), query.get("continue", "")
        )
        self._json(200, found)

    def get(self, request: Request) -> None:
        found = self._api.objects.get(request.resource, request.namespace, request.name)
        if found is None:
            raise Refused(404, "NotFound", f'{request.resource} "{request.name}" not found')
        self._json(200, found)

    def create(self, request: Request) -> None:
        wanted = json.loads(request.body)
        if request.namespace:
            wanted.setdefault("metadata", {}).setdefault("namespace", request.namespace)
        self._json(201, self._api.objects.create(request.resource, wanted))

    def patch(self, request: Request) -> None:
        if "merge-patch+json" not in request.headers.get("Content-Type", ""):
            raise Refused(415, "UnsupportedMediaType", "the body of the request was in an unknown format")
        resource, _, subresource = request.resource.partition("/")
        patch = json.loads(request.body)
        self._json(200, self._api.objects.patch(resource, request.namespace, request.name, patch, subresource))

    def update(self, request: Request) -> None:
        wanted = json.loads(request.body)
        self._json(200, self._api.objects.update(request.resource, request.namespace, request.name, wanted))

    def delete(self, request: Request) -> None:
        options = json.loads(request.body) if request.body else {}
        self._json(200, self._api.objects.remove(request.resource, request.namespace, request.name, options))

    def watch(self, request: Request) -> None:
        objects, query, chosen = self._api.objects, request.query, _chosen(request)
        version = int(query.get("resourceVersion") or 0)
        if version:
            objects.since(request.resource, version, 0)  # too old: a plain 410, before the stream begins
        self._begin(200, chunked=True)
        if self._fault and self._fault.error:
            self._event("ERROR", Refused(self._fault.error, "Expired", "as wanted").status())
        if not version:
            for each in objects.all(request.resource):
                if chosen(each):
                    self._event("ADDED", each)
            version = objects.version
        ends = time.monotonic() + float(query.get("timeoutSeconds", 1800))
        bookmark = time.monotonic() + self._api.bookmark_every
        while (now := time.monotonic()) < ends and not self._api.away:
            try:
                changes = objects.since(request.resource, version, max(0.0, min(ends, bookmark) - now))
            except Refused as refused:
                self._event("ERROR", refused.status())
                break
            if self._fault and self._fault.silent:
                time.sleep(0.05)
                continue
            for change in changes:
                version = change.version
                self._change(change, chosen)
            if not changes:
                version = max(version, objects.version)
            if time.monotonic() >= bookmark:
                bookmark += self._api.bookmark_every
                self._bookmark(request, version)
        self.wfile.write(b"0\r\n\r\n")

    def _change(self, change: Any, chosen: Callable[[Object], bool]) -> None:
        now = chosen(change.object) and change.type != "DELETED"
        before = change.old is not None and chosen(change.old)
        if now:
            self._event("MODIFIED" if before else "ADDED", change.object)
        elif before:
            self._event("DELETED", change.object)

    def _bookmark(self, request: Request, version: int) -> None:
        if request.query.get("allowWatchBookmarks") in ("1", "true"):
            api, kind = API_VERSION[request.resource]
            meta = {"resourceVersion": str(version), "creationTimestamp": None}
            self._event("BOOKMARK", {"kind": kind, "apiVersion": api, "metadata": meta})

    # -- the wire ------------------------------------------------------------------------------------------------------

    def _shaped(self, found: Object) -> Object:
        if PARTIAL not in (self.headers.get("Accept") or "") or found["kind"] == "Status":
            return found
        meta_only = {"apiVersion": "meta.k8s.io/v1", "metadata": found["metadata"]}
        if "items" in found:
            return {
                **meta_only,
                "kind": "PartialObjectMetadataList",
                "items": [self._shaped(e) for e in found["items"]],
            }
        return {**meta_only, "kind": "PartialObjectMetadata"}

    def _begin(self, code: int, *, length: int = 0, chunked: bool = False) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(length))
        if code in (429, 503) and self._fault and self._fault.retry_after is not None:
            self.send_header("Retry-After", str(self._fault.retry_after))
        self.end_headers()

    def _json(self, code: int, found: Object) -> None:
        if self._fault and self._fault.after:
            raise _Cut
        raw = json.dumps(self._shaped(found)).encode()
        self._begin(code, length=len(raw))
        self._write(raw)

    def _event(self, kind: str, found: Object) -> None:
        raw = json.dumps({"type": kind, "object": self._shaped(found)}).encode() + b"\n"
        if self._fault and self._fault.cut is not None:
            raw = raw[: self._fault.cut]
            self.wfile.write(f"{len(raw) + 10:x}\r\n".encode())  # a chunk that never becomes whole
            self._write(raw)
        self._write(b"%x\r\n%s\r\n" % (len(raw), raw))

    def _write(self, raw: bytes) -> None:
        if self._fault and self._fault.cut is not None:
            self.wfile.write(raw[: self._fault.cut])
            raise _Cut
        self.wfile.write(raw)


_ANSWERS: dict[str, Callable[[_Handler, Request], None]] = {
    "list": _Handler.list, "watch": _Handler.watch, "get": _Handler.get,
    "create": _Handler.create, "update": _Handler.update, "patch": _Handler.patch, "delete": _Handler.delete,
}  # fmt: skip


def _parsed(method: str, target: str, user: str, headers: dict[str, str], body: bytes) -> Request:
    """Take /api/v1/… and /apis/GROUP/VERSION/… apart (Kubernetes API concepts, "Resource URIs")."""
    split = urlsplit(target)
    query = {key: values[-1] for key, values in parse_qs(split.query, keep_blank_values=True).items()}
    parts = split.path.strip("/").split("/")
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1] if len(parts) > 1 else "", parts[3:])
    namespace = ""
    if len(rest) > 2 and rest[0] == "namespaces":
        namespace, rest = rest[1], rest[2:]
    resource, name, sub = (*rest, "", "", "")[:3]
    watching = query.get("watch") in ("1", "true")
    verb = {"GET": "get" if name else "watch" if watching else "list", "POST": "create", "PATCH": "patch",
            "PUT": "update", "DELETE": "delete"}[method]  # fmt: skip
    return Request(method, split.path, query, verb, group, f"{resource}/{sub}" if sub else resource, namespace, name,
                   user, headers, body, time.monotonic())  # fmt: skip


def _chosen(request: Request) -> Callable[[Object], bool]:
    """The namespace and the field selector as a predicate. 400 for a field that the API server does not select by."""
    wanted = dict(part.split("=", 1) for part in request.query.get("fieldSelector", "").split(",") if part)
    known = {"metadata.name", "metadata.namespace"} | ({"spec.nodeName"} if request.resource == PODS else set())
    if unknown := set(wanted) - known:
        raise Refused(400, "BadRequest", f"field label not supported: {min(unknown)}")

    def chosen(each: Object) -> bool:
        if request.namespace and each["metadata"].get("namespace") != request.namespace:
            return False
        return all(_field(each, path) == value.lstrip("=") for path, value in wanted.items())

    return chosen


def _field(each: Object, path: str) -> Any:
    for key in path.split("."):
        each = each.get(key, {})
    return each or ""


def pod(name: str, *, node: str, namespace: str = "default", networks: str = "", **metadata: Any) -> Object:
    """A Pod about as large as a real one, on ``node``; ``networks`` is its annotation, ``metadata`` more of its own."""
    annotations = {"kubernetes.io/config.seen": "2026-01-01T00:00:00Z", **metadata.pop("annotations", {})}
    if networks:
        annotations["k8s.v1.cni.cncf.io/networks"] = networks
    fields = [{"manager": "kubelet", "fieldsV1": {f"f:{number}": {} for number in range(40)}}]
    environment = [{"name": f"VARIABLE_{number}", "value": "x" * 60} for number in range(20)]
    return {
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}, "annotations": annotations,
                     "managedFields": fields, **metadata},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "busybox", "env": environment}]},
        "status": {"phase": "Pending"},
    }  # fmt: skip


def network(name: str, config: Object | str, *, namespace: str = "default", **metadata: Any) -> Object:
    """A NetworkAttachmentDefinition; ``config`` as JSON text or what becomes it."""
    text = config if isinstance(config, str) else json.dumps(config)
    return {"metadata": {"name": name, "namespace": namespace, **metadata}, "spec": {"config": text}}


__all__ = ["EVENTS", "NETWORKS", "PODS", "ApiServer", "Fault", "Object", "Request", "network", "pod"]
