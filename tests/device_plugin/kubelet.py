"""The kubelet's side of the device plugin API: grpcio, as an HTTP/2 and gRPC implementation that is not ours.

It does what pkg/kubelet/cm/devicemanager/plugin/v1beta1 does: at its start it removes every socket of the directory; to
a Register it answers when it has a connection to the plugin's socket; from then on it listens. Messages are encoded by
field number, independent of the code under test.
"""

from __future__ import annotations

import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
from tests.e2e.cri import field as encoded
from tests.e2e.cri import fields, texts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

SERVICE = "/v1beta1.DevicePlugin/"
SECONDS = 20.0


@dataclass(frozen=True)
class Told:
    """A device as it was told."""

    health: str
    numa: int | None = None


@dataclass(frozen=True)
class Container:
    """A ContainerAllocateResponse."""

    environment: dict[str, str]
    devices: list[tuple[str, str, str]]
    cdi: list[str]


@dataclass
class Endpoint:
    """One registered plugin, as long as its stream lasts. ``lists`` are all that it told."""

    resource: str
    channel: grpc.Channel
    preferred: bool
    lists: list[dict[str, Told]] = field(default_factory=list)
    ended: grpc.StatusCode | None = None

    def call(self, method: str, request: bytes = b"") -> bytes:
        answer: bytes = self.channel.unary_unary(SERVICE + method)(request, timeout=SECONDS)
        return answer

    def allocate(self, *containers: Sequence[str]) -> list[Container]:
        request = b"".join(encoded(1, b"".join(encoded(1, each) for each in ids)) for ids in containers)
        return [_container(each) for each in texts(self.call("Allocate", request), 1)]

    def prefer(self, available: Sequence[str], must: Sequence[str], size: int) -> list[str]:
        asked = b"".join(encoded(1, each) for each in available) + b"".join(encoded(2, each) for each in must)
        answer = self.call("GetPreferredAllocation", encoded(1, asked + encoded(3, size)))
        (container,) = texts(answer, 1)
        return [each.decode() for each in texts(container, 1)]


class Kubelet(grpc.GenericRpcHandler):
    """``refusals`` registrations are refused with words; ``endpoints`` are the present ones by resource."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.refusals = 0
        self.registrations: list[str] = []
        self.endpoints: dict[str, Endpoint] = {}
        self._news = threading.Condition()
        self._server: grpc.Server | None = None
        self._channels: list[grpc.Channel] = []

    def start(self) -> None:
        """As a kubelet that starts: whatever sockets were there are gone."""
        for path in self.directory.iterdir():
            if stat.S_ISSOCK(path.lstat().st_mode):
                path.unlink()
        self._server = grpc.server(ThreadPoolExecutor(8), handlers=[self])
        self._server.add_insecure_port(f"unix://{self.directory}/kubelet.sock")
        self._server.start()

    def stop(self) -> None:
        assert self._server is not None
        self._server.stop(None).wait()
        for channel in self._channels:
            channel.close()
        self._channels.clear()
        with self._news:
            self.endpoints.clear()

    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method != "/v1beta1.Registration/Register":
            return None
        return grpc.unary_unary_rpc_method_handler(self._register)

    def _register(self, request: bytes, context: Any) -> bytes:
        said = dict(fields(request))
        version, socket, resource = (bytes(said[n]).decode() for n in (1, 2, 3))  # type: ignore[arg-type]
        with self._news:
            self.registrations.append(resource)
            refused = self.refusals > 0
            self.refusals -= refused
            self._news.notify_all()
        if refused or version != "v1beta1":
            context.abort(grpc.StatusCode.UNKNOWN, f"version {version}: refused")
        # the authority that Go's gRPC gives to a socket without a scheme
        channel = grpc.insecure_channel(
            f"unix://{self.directory}/{socket}", [("grpc.default_authority", f"{self.directory}/{socket}")]
        )
        grpc.channel_ready_future(channel).result(SECONDS)
        options = dict(fields(bytes(said[4])))  # type: ignore[arg-type]
        endpoint = Endpoint(resource, channel, options.get(2) == 1)
        with self._news:
            self._channels.append(channel)
            self.endpoints[resource] = endpoint
        threading.Thread(target=self._listen, args=(endpoint,), daemon=True).start()
        return b""

    def _listen(self, endpoint: Endpoint) -> None:
        try:
            for answer in endpoint.channel.unary_stream(SERVICE + "ListAndWatch")(b"", wait_for_ready=True):
                with self._news:
                    endpoint.lists.append(dict(_told(each) for each in texts(answer, 1)))
                    self._news.notify_all()
        except (grpc.RpcError, ValueError) as error:  # the latter: the channel was closed
            with self._news:
                endpoint.ended = error.code() if isinstance(error, grpc.RpcError) else None
                self._news.notify_all()

    def wait(self, until: Callable[[], Any]) -> Any:
        """The first true value of ``until``, asked at each piece of news."""
        with self._news:
            found = self._news.wait_for(until, SECONDS)
        assert found, "the kubelet did not hear of it in time"
        return found

    def endpoint(self, resource: str) -> Endpoint:
        """The resource's, as soon as it has told its devices."""
        found: Endpoint = self.wait(
            lambda: (each := self.endpoints.get(resource)) and each.lists and each.ended is None and each
        )
        return found

    def until(self, resource: str, **health: str) -> dict[str, Told]:
        """The resource's list as soon as it tells these devices (``vf0="Healthy"``: by their place) and no others."""
        wanted = list(health.values())

        def last() -> dict[str, Told] | None:
            endpoint = self.endpoints.get(resource)
            told = endpoint.lists[-1] if endpoint and endpoint.lists else None
            if told is None or [told[each].health for each in sorted(told)] != wanted:
                return None
            return told or {"": Told("")}

        found: dict[str, Told] = self.wait(last)
        return found


def _told(raw: bytes) -> tuple[str, Told]:
    said = dict(fields(raw))
    numa = None
    if 3 in said:
        (node,) = texts(bytes(said[3]), 1)  # type: ignore[arg-type]
        numa = int(dict(fields(node)).get(1, 0))
    return bytes(said[1]).decode(), Told(bytes(said[2]).decode(), numa)  # type: ignore[arg-type]


def _container(raw: bytes) -> Container:
    def parts(each: bytes) -> dict[int, str]:
        return {number: bytes(value).decode() for number, value in fields(each)}  # type: ignore[arg-type]

    variables = [parts(each) for each in texts(raw, 1)]
    return Container(
        {each[1]: each[2] for each in variables},
        [(each[1], each[2], each[3]) for each in map(parts, texts(raw, 3))],
        [parts(each)[1] for each in texts(raw, 5)],
    )


def mode(path: str | Path) -> int:
    """Permission bits of a file."""
    return stat.S_IMODE(os.stat(path).st_mode)
