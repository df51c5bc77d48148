"""The kubelet's devices, over a real gRPC server on a unix socket, and from its checkpoint file."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.kube.kubelet import Kubelet, claim, claimed, container, devices, ids, pod

from underlay.errors import DevicesUnknown
from underlay.kube import checkpoint, protobuf
from underlay.kube import grpc as client
from underlay.kube.claimed import pci_address
from underlay.kube.devices import Device
from underlay.kube.pod_resources import PodResources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

VF = "intel.com/sriov"
WEB = pod("web", container(devices(VF, "0000:3b:02.1"), devices(VF, "0000:3b:02.2")))
DATA = {"PodUID": "uid-1", "ContainerName": "c", "ResourceName": VF, "AllocResp": "CgA="}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kubelet.sock"


def ask(path: Path, *, name: str = "web", patience: float = 0.0, seconds: float = 10.0, **keys: Any) -> Any:
    source = PodResources(
        socket=str(path), checkpoint=str(path.parent / "checkpoint"), patience=patience or 5.0, **keys
    )
    return source.of("default", name, "uid-1", time.monotonic() + seconds)


def note(path: Path, *entries: dict[str, Any]) -> None:
    content = {"Data": {"PodDeviceEntries": list(entries) or None, "RegisteredDevices": {VF: []}}, "Checksum": 1}
    (path.parent / "checkpoint").write_text(json.dumps(content))


def test_the_devices_of_every_container_come_in_the_kubelets_order(path):
    other = pod("other", container(devices(VF, "0000:3b:03.0")))
    web = pod("web", container(devices(VF, "b", "a"), devices("x.com/y", "z")), container(devices(VF, "c")))
    with Kubelet(path, [other, web]) as kubelet:
        assert ask(path) == (
            Device("b", (VF,)), Device("a", (VF,)), Device("z", ("x.com/y",)), Device("c", (VF,)),
        )  # fmt: skip
        assert kubelet.calls == ["Get"]


def test_a_pod_of_the_same_name_in_another_namespace_is_another(path):
    elsewhere = pod("web", container(devices(VF, "x")), namespace="elsewhere")
    with Kubelet(path, [elsewhere, WEB], methods=("List",)):
        assert list(ids(ask(path))) == ["0000:3b:02.1", "0000:3b:02.2"]


def test_a_device_that_is_told_of_twice_is_one(path):
    twice = container(devices(VF, "a", numa=0), devices(VF, "a", numa=1), claim("c", claimed("d.io", "x")))
    with Kubelet(path, [pod("web", twice, container(claim("c", claimed("d.io", "x"))))]):
        assert list(ids(ask(path))) == ["a", "x"]


def test_a_pod_without_devices_has_none(path):
    with Kubelet(path, [pod("web", container()), WEB]):
        assert ask(path) == ()


@pytest.mark.parametrize("keys", [{"methods": ("List",)}, {"get_gate": False}])
def test_a_kubelet_that_does_not_serve_get_is_asked_for_the_list(path, keys):
    with Kubelet(path, [WEB], **keys) as kubelet:
        assert list(ids(ask(path))) == ["0000:3b:02.1", "0000:3b:02.2"]
        assert kubelet.calls[-1] == "List"


def test_a_kubelet_that_does_not_know_the_pod_yet_is_asked_again(path):
    with Kubelet(path, [WEB], unaware=4) as kubelet:
        assert len(ask(path)) == 2
        assert kubelet.calls == ["Get", "List", "Get", "List", "Get"]


def test_a_pod_that_the_kubelet_never_knows_is_a_reason_to_come_again(path):
    with Kubelet(path, [WEB]), pytest.raises(DevicesUnknown, match=r"does not know pod default/gone yet") as caught:
        ask(path, name="gone", patience=0.3)
    assert caught.value.code == 11
    assert "pod_resources_socket" in caught.value.hint


def test_a_kubelet_that_comes_late_is_waited_for(path):
    def start() -> None:
        kubelet.__enter__()

    kubelet = Kubelet(path, [WEB])
    timer = threading.Timer(0.3, start)
    timer.start()
    try:
        assert len(ask(path)) == 2
    finally:
        timer.join()
        kubelet.__exit__()


def test_a_slow_answer_is_waited_for_within_the_deadline(path):
    with Kubelet(path, [WEB], late=0.3):
        assert len(ask(path)) == 2


def test_a_kubelet_that_does_not_answer_ends_at_the_deadline(path):
    note(path, DATA | {"DeviceIDs": ["old"]})  # a hanging kubelet may have given others since
    begun = time.monotonic()
    with Kubelet(path, [WEB], late=2.0), pytest.raises(DevicesUnknown, match=r"(?i)in time|deadline"):
        ask(path, seconds=0.3)
    assert time.monotonic() - begun < 30


def test_a_kubelet_that_takes_connections_and_says_nothing_ends_at_the_deadline(path):
    def mute(connection: socket.socket) -> None:
        while connection.recv(65536):
            pass

    with bare_server(path, mute), pytest.raises(DevicesUnknown, match="no answer in time"):
        ask(path, seconds=0.3)


def test_a_refusal_is_passed_on_in_the_kubelets_words(path):
    refused = r"on \S+kubelet.sock does not answer \(no: 100% refused\)"
    with (
        Kubelet(path, [WEB], refusal=grpc.StatusCode.PERMISSION_DENIED, refusals=1000),
        pytest.raises(DevicesUnknown, match=refused),
    ):
        ask(path, patience=0.2)


def test_a_kubelet_that_was_asked_too_often_is_asked_again(path):
    with Kubelet(path, [WEB], refusals=2) as kubelet:
        assert len(ask(path)) == 2
        assert kubelet.calls == ["Get"] * 3


def test_an_answer_of_many_pods_is_read_whole(path):
    many = [pod(f"pod-{n}", *[container(devices(VF, *map(str, range(64))))] * 8) for n in range(500)]
    with Kubelet(path, [*many, WEB], methods=("List",)):
        assert len(ask(path)) == 2


def test_an_answer_over_the_limit_is_refused(path, monkeypatch):
    monkeypatch.setattr(client, "_LONGEST", 1000)
    big = [pod(f"pod-{n}", container(devices(VF, "x"))) for n in range(500)]
    with (
        Kubelet(path, [*big, WEB], methods=("List",)),
        pytest.raises(DevicesUnknown, match="longer than 1000 bytes"),
    ):
        ask(path, patience=0.2)


def test_the_place_in_the_thread_pool_is_lent_while_the_kubelet_is_asked(path):
    lent: list[str] = []

    @contextmanager
    def lend() -> Iterator[None]:
        lent.append("lent")
        yield
        lent.append("back")

    with Kubelet(path, [WEB]):
        ask(path, blocking=lend)
    assert lent == ["lent", "back"]


# -- claims --------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "resource", "device"),
    [
        (
            "web-fast-x7k2p",
            claimed("sriov.example.com", "0000-3b-02-1", ["k8s.cni.cncf.io/vf=0000-3b-02-1"]),
            Device("0000:3b:02.1", ("sriov.example.com", "k8s.cni.cncf.io/vf", "web-fast-x7k2p", "fast")),
        ),
        ("shared", claimed("dra.net", "pci-0000-3b-02-1"), Device("0000:3b:02.1", ("dra.net", "shared"))),
        ("shared", claimed("dra.net", "eth1"), Device("eth1", ("dra.net", "shared"))),
        (
            "old",
            claimed(cdi=["a.com/nic=10000:E1:1f.7", "a.com/all=uid"]),
            Device("10000:e1:1f.7", ("a.com/nic", "a.com/all", "old")),
        ),
        ("webx-fast-x7k2p", claimed("d.io", "x"), Device("x", ("d.io", "webx-fast-x7k2p"))),
        ("web-x7k2p", claimed("d.io", "x"), Device("x", ("d.io", "web-x7k2p"))),
    ],
)
def test_a_claims_device_has_its_pci_address_and_the_names_that_a_network_may_use(path, name, resource, device):
    with Kubelet(path, [pod("web", container(claim(name, resource)))]):
        assert ask(path) == (device,)


def test_a_claim_without_a_nameable_device_is_passed_over(path):
    with Kubelet(path, [pod("web", container(claim("c", claimed())))]):
        assert ask(path) == ()


@pytest.mark.parametrize("label", ["3b-02-1", "0000-3b-02-8", "0000-3b-20-1", "x0000-3b-02-1", "0000-3b-02-1-x", ""])
def test_what_is_no_pci_address_is_none(label):
    assert pci_address(label) == ""


# -- other servers --------------------------------------------------------------

PREFACE = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"  # an empty SETTINGS frame
GOAWAY = b"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + b"\x00\x00\x00\x00" + b"\x00\x00\x00\x02"
RESET = b"\x00\x00\x04\x03\x00\x00\x00\x00\x01" + b"\x00\x00\x00\x07"
STRAY = b"\x00\x00\x01\x00\x00\x00\x00\x00\x00x"  # DATA of no stream
HTTP_404 = b"\x00\x00\x01\x01\x05\x00\x00\x00\x01\x8d"  # HEADERS, END_STREAM, END_HEADERS: ":status: 404"


@contextmanager
def bare_server(path: Path, talk: Callable[[socket.socket], object]) -> Iterator[None]:
    """A server that does ``talk`` with each connection and closes it."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    talk(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def sends(raw: bytes) -> Callable[[socket.socket], None]:
    def talk(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass

    return talk


@pytest.mark.parametrize(
    ("raw", "status", "words"),
    [
        (b"", client.UNAVAILABLE, "closed before the answer"),
        (PREFACE, client.UNAVAILABLE, "closed before the answer"),
        (PREFACE + GOAWAY, client.UNAVAILABLE, "went away"),
        (PREFACE + RESET, client.UNAVAILABLE, "broke the call off"),
        (PREFACE + HTTP_404, client.INTERNAL, "HTTP status 404 and no grpc-status"),
        (PREFACE + STRAY, client.INTERNAL, "no HTTP/2"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", client.UNAVAILABLE, "closed before the answer"),
    ],
)
def test_a_server_that_speaks_otherwise_is_named_by_what_it_did(path, raw, status, words):
    with bare_server(path, sends(raw)), pytest.raises(client.CallFailed, match=words) as caught:
        client.call(str(path), "/a.B/C", b"", time.monotonic() + 10)
    assert caught.value.status == status


@given(st.binary(max_size=200))
def test_whatever_a_server_sends_the_call_ends_with_a_status(tmp_path_factory, raw):
    path = tmp_path_factory.mktemp("s") / "s"
    with bare_server(path, sends(PREFACE + raw)), pytest.raises(client.CallFailed):
        client.call(str(path), "/a.B/C", b"", time.monotonic() + 10)


def test_a_call_whose_time_is_up_is_not_made(path):
    with bare_server(path, lambda _: None), pytest.raises(client.CallFailed) as caught:
        client.call(str(path), "/a.B/C", b"", time.monotonic() - 1)
    assert caught.value.status == client.DEADLINE_EXCEEDED


def test_a_malformed_message_is_said_to_be_one(path):
    with Kubelet(path, [b"\x0a\x7fshort"], methods=("List",)), pytest.raises(DevicesUnknown, match="malformed"):
        ask(path, patience=0.2)


# -- the checkpoint --------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_ids", "found"),
    [
        ({"10": ["d"], "2": ["c", "b"], "-1": ["a"], "0": None}, ["a", "c", "b", "d"]),
        ({"0": ["a"], "1": ["a", "b"]}, ["a", "b"]),
        (["b", "a"], ["b", "a"]),
        (None, []),
    ],
)
def test_both_forms_of_the_checkpoint_are_read_in_order(path, given_ids, found):
    note(path, DATA | {"PodUID": "other", "DeviceIDs": ["x"]}, DATA | {"DeviceIDs": given_ids})
    assert list(ids(checkpoint.read(str(path.parent / "checkpoint"), "uid-1"))) == found


@contextmanager
def nobody_behind_the_socket(path: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))
    yield


@pytest.mark.parametrize(
    "without", [lambda _: nullcontext(), nobody_behind_the_socket, lambda path: Kubelet(path, methods=())]
)
def test_the_checkpoint_counts_where_the_api_is_not_served(path, without):
    note(path, DATA | {"DeviceIDs": {"0": ["a"]}})
    with without(path):
        assert ask(path) == (Device("a", (VF,)),)


def test_a_server_that_dies_before_its_answer_leaves_it_to_the_checkpoint(path):
    note(path, DATA | {"DeviceIDs": {"0": ["a"]}})
    with bare_server(path, lambda connection: connection.recv(65536)):
        assert ask(path) == (Device("a", (VF,)),)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not help: No such file or directory"),
        ("", "does not help: it is no checkpoint of the device manager"),
        ('{"Data": {"PodDeviceEntries": [{}]}}', "missing required field `PodUID`"),
        ("[]", "it is no checkpoint"),
        ('{"Data": {}}', "names no device of pod UID 'uid-1'"),
    ],
)
def test_without_either_the_pod_waits_and_the_error_names_both(path, content, words):
    if content is not None:
        (path.parent / "checkpoint").write_text(content)
    with pytest.raises(DevicesUnknown) as caught:
        ask(path, patience=0.2)
    assert f"{path} does not answer (No such file or directory)" in caught.value.message
    assert words in caught.value.message


# -- parsers --------------------------------------------------------------


@given(st.binary())
def test_no_bytes_but_malformed_come_out_of_the_message_decoder(raw):
    try:
        fields = [protobuf.messages(raw, number) for number in range(1, 6)]
    except protobuf.Malformed:
        return
    assert sum(len(value) for values in fields for value in values) <= len(raw)


@given(st.lists(st.tuples(st.integers(1, 40), st.text(min_size=1))))
def test_text_comes_back_as_it_was_encoded(fields):
    raw = b"".join(protobuf.encode(number, value) for number, value in fields)
    for number in range(1, 41):
        mine = [value for key, value in fields if key == number]
        assert protobuf.texts(raw, number) == mine
        assert protobuf.text(raw, number) == (mine or [""])[-1]


@given(st.binary(max_size=30), st.integers(0, 400))
def test_a_message_cut_anywhere_is_malformed_or_shorter(tail, at):
    raw = (WEB + tail)[:at]
    try:
        found = protobuf.messages(raw, 3)
    except protobuf.Malformed:
        return
    assert all(each in raw for each in found)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(["Data", "PodDeviceEntries", "PodUID", "ResourceName", "DeviceIDs", "0", "-", "٣"]), inner
    ),
)  # fmt: skip
ENTRY = st.fixed_dictionaries({"PodUID": st.just("u"), "ResourceName": st.text(), "DeviceIDs": JSON})


@given(st.binary() | JSON.map(json.dumps) | ENTRY.map(lambda e: json.dumps({"Data": {"PodDeviceEntries": [e]}})))
def test_a_checkpoint_is_devices_or_malformed(raw):
    try:
        found = checkpoint.decode(raw if isinstance(raw, bytes) else raw.encode(), "u")
    except checkpoint.Malformed:
        return
    assert all(isinstance(device.id, str) for device in found)
