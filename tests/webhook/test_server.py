"""The webhook as a process, over real HTTPS on loopback (the tests' own network namespace)."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from underlay.errors import UnderlayError
from underlay.webhook.admission import Decision
from underlay.webhook.certificate import Certificate
from underlay.webhook.server import BODY_BYTES, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BAD = {"cniVersion": "1.0.0", "name": "lan", "type": "macvlan", "mode": "x"}


def make_certificate(directory: Path, number: int) -> tuple[str, str]:
    """A self-signed certificate for 127.0.0.1 with that serial number, and its key."""
    cert, key = str(directory / f"cert{number}.pem"), str(directory / f"key{number}.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=webhook", "-set_serial", str(number),
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    directory = tmp_path_factory.mktemp("tls")
    return [make_certificate(directory, number) for number in (1, 2)]


@pytest.fixture
def installed(tmp_path: Path, pairs: list[tuple[str, str]]) -> Callable[[int], tuple[str, str]]:
    """Puts pair N in the place that the server reads, as a mounted Secret does: both at once, by one rename."""

    def install(number: int) -> tuple[str, str]:
        for name, source in zip(("tls.crt", "tls.key"), pairs[number], strict=True):
            spare = tmp_path / f".{name}"
            spare.write_bytes(Path(source).read_bytes())
            spare.rename(tmp_path / name)
        return str(tmp_path / "tls.crt"), str(tmp_path / "tls.key")

    return install


def trusting(cert: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=cert)


class Webhook:
    """The process."""

    def __init__(self, cert: str, key: str, *flags: str) -> None:
        command = [sys.executable, "-m", "underlay", "webhook", "--tls-cert", cert, "--tls-key", key]
        self.process = subprocess.Popen(
            [*command, "--address", "127.0.0.1", "--port", "0", *flags], stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stderr is not None
        self.lines: list[dict[str, Any]] = []
        line = self.process.stderr.readline()
        self.port = json.loads(line)["port"]
        self.cert = cert

    def connect(self, cert: str | None = None) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=trusting(cert or self.cert))

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
        connection = self.connect()
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()

    def stop(self) -> tuple[int, list[dict[str, Any]]]:
        """Send SIGTERM and see it end."""
        self.process.send_signal(signal.SIGTERM)
        return self.ended()

    def ended(self) -> tuple[int, list[dict[str, Any]]]:
        """The exit status, and the log: every line is JSON, so there was no traceback."""
        out, err = self.process.communicate(timeout=30)
        assert out == b""
        return self.process.returncode, [json.loads(line) for line in err.splitlines()]


@pytest.fixture
def webhook(installed: Callable[[int], tuple[str, str]]) -> Iterator[Webhook]:
    running = Webhook(*installed(0))
    yield running
    status, lines = running.stop()
    assert status == 0
    assert lines[-1]["event"] == "stopped"
    assert [line for line in lines if line["level"] == "error"] == []


def review(config: Any = BAD) -> bytes:
    kind = {"group": "k8s.cni.cncf.io", "version": "v1", "kind": "NetworkAttachmentDefinition"}
    found = {"metadata": {"name": "lan"}, "spec": {"config": json.dumps(config)}}
    request = {"uid": "u-1", "kind": kind, "operation": "CREATE", "namespace": "net", "object": found}
    return json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).encode()


def judged(webhook: Webhook) -> dict[str, Any]:
    status, body = webhook.ask("POST", "/validate?timeout=3s", review(), **{"Content-Type": "application/json"})
    assert status == 200
    return json.loads(body)["response"]


def test_a_review_is_answered_and_probes_are(webhook):
    response = judged(webhook)
    assert not response["allowed"]
    assert "none of private" in response["status"]["message"]
    assert webhook.ask("GET", "/healthz") == (200, b"ok\n")


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/", None, 404),
        ("GET", "/validate", None, 404),
        ("POST", "/healthz", b"{}", 404),
        ("POST", "/validate", b"{}", 400),
        ("POST", "/validate", b"\x00\xff", 400),
        ("POST", "/validate", iter([b"{}"]), 411),
        ("PUT", "/validate", b"{}", 501),
        ("POST", "/validate", b"x" * (BODY_BYTES + 1), 413),
    ],
    ids=["root", "get", "post healthz", "no review", "bytes", "chunked", "put", "huge"],
)
def test_what_is_no_review_is_refused_and_the_next_is_served(webhook, method, path, body, status):
    answered, text = webhook.ask(method, path, body)
    assert answered == status
    assert b"Traceback" not in text
    assert not judged(webhook)["allowed"]


def tls(webhook: Webhook) -> ssl.SSLSocket:
    """The plain socket is the other's from the handshake on; where that never begins it is closed here."""
    with socket.create_connection(("127.0.0.1", webhook.port), timeout=30) as plain:
        return trusting(webhook.cert).wrap_socket(plain, server_hostname="127.0.0.1")


@pytest.mark.parametrize(
    "content",
    [
        b"garbage\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST /validate HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /validate HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /validate HTTP/1.1\r\n" + b"X: y\r\n" * 500 + b"\r\n",
        b"GET /" + b"x" * 100000 + b" HTTP/1.1\r\n\r\n",
        b"\x00" * 100,
    ],
    ids=["words", "short", "negative", "vast", "many headers", "long line", "zeros"],
)
def test_garbage_over_tls_ends_that_connection_alone(webhook, content):
    with tls(webhook) as connection:
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
    assert not judged(webhook)["allowed"]


def test_clients_that_break_off_at_any_point_leave_the_server_well(webhook):
    with socket.create_connection(("127.0.0.1", webhook.port), timeout=30) as plain:
        plain.sendall(b"GET / HTTP/1.0\r\n\r\n")  # no TLS at all
    socket.create_connection(("127.0.0.1", webhook.port), timeout=30).close()
    with tls(webhook) as connection:
        connection.sendall(b"POST /validate HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
    assert not judged(webhook)["allowed"]


def test_slow_clients_do_not_keep_others_out(webhook):
    with ExitStack() as clients:
        for _ in range(80):  # more than places
            clients.enter_context(socket.create_connection(("127.0.0.1", webhook.port), timeout=30))
        for _ in range(3):
            slow = clients.enter_context(tls(webhook))
            slow.sendall(b"POST /validate HTTP/1.1\r\nContent-Length: 1000\r\n\r\n{")
        begun = time.monotonic()
        assert not judged(webhook)["allowed"]
        assert time.monotonic() - begun < 30


def test_many_reviews_at_once_are_all_answered(webhook):
    answers: list[bool] = []
    threads = [threading.Thread(target=lambda: answers.append(judged(webhook)["allowed"])) for _ in range(40)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert answers == [False] * 40


def serial(webhook: Webhook, cert: str) -> int:
    connection = webhook.connect(cert)
    connection.connect()
    found = connection.sock.getpeercert()
    connection.close()
    return int(found["serialNumber"], 16)


def test_a_renewed_certificate_is_used_without_a_restart(webhook, installed, pairs):
    assert serial(webhook, pairs[0][0]) == 1
    installed(1)
    assert serial(webhook, pairs[1][0]) == 2


def test_while_certificate_and_key_differ_or_are_gone_the_pair_before_serves_on(webhook, installed, pairs, tmp_path):
    (tmp_path / "tls.crt").write_bytes(Path(pairs[1][0]).read_bytes())
    assert serial(webhook, pairs[0][0]) == 1
    (tmp_path / "tls.crt").unlink()
    assert serial(webhook, pairs[0][0]) == 1
    (tmp_path / "tls.key").write_text("no key")
    assert serial(webhook, pairs[0][0]) == 1
    installed(1)
    assert serial(webhook, pairs[1][0]) == 2


def test_sigterm_lets_the_exchange_in_flight_end(installed):
    webhook = Webhook(*installed(0), "--log-level", "debug")
    body = review()
    connection = tls(webhook)
    connection.sendall(
        f"POST /validate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body[:50]
    )
    assert webhook.ask("GET", "/healthz")[0] == 200  # so the one before has been accepted
    webhook.process.send_signal(signal.SIGTERM)
    refused = False
    while not refused:  # the listening socket is closed
        try:
            socket.create_connection(("127.0.0.1", webhook.port), timeout=30).close()
        except ConnectionError:
            refused = True
    connection.sendall(body[50:])
    assert connection.recv(4096).startswith(b"HTTP/1.1 200 OK")
    connection.close()
    status, lines = webhook.ended()
    assert status == 0
    assert lines[-1] == {**lines[-1], "event": "stopped", "unfinished": False}


@pytest.mark.parametrize("broken", ["missing", "key", "empty"])
def test_a_certificate_that_cannot_be_used_is_said_at_the_start(tmp_path, installed, broken):
    cert, key = installed(0)
    if broken == "missing":
        os.unlink(cert)
    else:
        Path(key).write_text("x" if broken == "key" else "")
    command = [sys.executable, "-m", "underlay", "webhook", "--tls-cert", cert, "--tls-key", key, "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 1
    assert f"cannot use {cert} and {key}" in done.stderr
    assert "Traceback" not in done.stderr


@contextmanager
def serving(
    pair: tuple[str, str], judge: Callable[[bytes], Decision], **keys: Any
) -> Iterator[tuple[Server, list[Any]]]:
    lines: list[Any] = []

    def log(level: str, event: str, **fields: Any) -> None:
        lines.append((level, event, fields))

    certificate = Certificate(*pair, log)
    server = Server(("127.0.0.1", 0), certificate=certificate, judge=judge, log=log, **keys)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server, lines
    finally:
        assert server.stop(30)
        thread.join(30)
        assert not thread.is_alive()


def post(server: Server, cert: str, body: bytes = b"{}") -> int:
    connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=30, context=trusting(cert))
    connection.request("POST", "/validate", body)
    return connection.getresponse().status


def allowed(_body: bytes) -> Decision:
    return Decision(b"{}", "x", allowed=True, errors=0, warnings=0)


def test_a_fault_of_ours_ends_the_exchange_and_not_the_server(pairs):
    def judge(body: bytes) -> Decision:
        if body == b"bug":
            raise ZeroDivisionError
        return allowed(body)

    with serving(pairs[0], judge) as (server, lines):
        with pytest.raises((ConnectionError, http.client.HTTPException, ssl.SSLError)):
            post(server, pairs[0][0], b"bug")
        assert post(server, pairs[0][0]) == 200
    assert ("error", "exchange failed", {"error": "ZeroDivisionError()"}) in lines


def test_a_client_that_dribbles_is_cut_off_by_the_deadline_of_the_whole_exchange(pairs):
    with serving(pairs[0], allowed, seconds=0.5) as (server, _):
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=30) as plain,
            trusting(pairs[0][0]).wrap_socket(plain, server_hostname="127.0.0.1") as slow,
        ):
            assert dribble(slow) < 600
        assert post(server, pairs[0][0]) == 200


def dribble(connection: ssl.SSLSocket) -> int:
    """Write a byte every 50 ms until the other end has had enough; returns how many."""
    for n in range(600):
        try:
            connection.settimeout(0.05)
            if not connection.recv(1):
                return n
        except TimeoutError:
            connection.settimeout(30)
            with suppress(TimeoutError):
                connection.sendall(b"P")
        except OSError:
            return n
    return 600


def test_where_all_places_are_taken_the_oldest_idle_client_gives_way(pairs):
    with (
        serving(pairs[0], allowed, connections=2, seconds=600) as (server, _),
        socket.create_connection(("127.0.0.1", server.port), timeout=30) as older,
        socket.create_connection(("127.0.0.1", server.port), timeout=30),
    ):
        assert post(server, pairs[0][0]) == 200
        assert older.recv(1) == b""


def test_a_client_gives_way_also_while_its_connection_is_being_prepared(pairs, monkeypatch):
    wrap = ssl.SSLContext.wrap_socket

    def slowly(context, connection, server_side=False, **how):
        wrapped = wrap(context, connection, server_side=server_side, **how)
        if server_side:
            time.sleep(0.3)  # the plain socket has lost its descriptor, and nobody knows of the other one yet
        return wrapped

    with serving(pairs[0], allowed, connections=1, seconds=600) as (server, _):
        monkeypatch.setattr(ssl.SSLContext, "wrap_socket", slowly)
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as older:
            assert post(server, pairs[0][0]) == 200
            assert older.recv(1) == b""


def test_an_address_that_cannot_be_had_is_said(pairs):
    with serving(pairs[0], allowed) as (server, _):
        certificate = Certificate(*pairs[0], lambda *_, **__: None)
        for address in (("127.0.0.1", server.port), ("192.0.2.1", 0), ("127.0.0.1", 70000)):
            with pytest.raises(UnderlayError, match=r"cannot listen|no port"):
                Server(address, certificate=certificate, judge=allowed, log=lambda *_, **__: None)
