"""Credentials: kubeconfig and service account, and what happens when they change while the daemon runs."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kube.api_server import NETWORKS, PODS, ApiServer, Fault, network, pod
from tests.kube.authority import Authority
from tests.kube.cluster_bench import NODE, QUICK, Lines, soon, until

from underlay.errors import InvalidConfig, IOFailure, UnderlayError
from underlay.kube.access import InCluster
from underlay.kube.client import Client
from underlay.kube.cluster import Cluster
from underlay.kube.faults import Refused, Unreachable
from underlay.kube.kubeconfig import Kubeconfig
from underlay.kube.resources import JSON


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def secure(authority):
    with ApiServer(authority=authority, tokens={"t1": "first", "t2": "second"}) as server:
        yield server


def ask(access, path="/api/v1/pods"):
    client = Client(access, "test")
    try:
        return json.loads(client.call("GET", path, soon(), accept=JSON))
    finally:
        client.close()


def users(server):
    return [each.user for each in server.requests]


def put(path, text):
    """As the kubelet and others do: another file in the place of the first."""
    temporary = f"{path}.new"
    with open(temporary, "w") as file:
        file.write(text)
    os.rename(temporary, path)


def written(tmp_path, **content):
    path = tmp_path / "config"
    path.write_text(json.dumps(content))
    return str(path)


def config(tmp_path, *, cluster=None, user=None):
    return written(
        tmp_path,
        **{
            "kind": "Config",
            "current-context": "x",
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": "https://10.0.0.1:6443", **(cluster or {})}}],
            "users": [{"name": "u", "user": user or {}}],
        },
    )


def test_a_token_over_tls(secure, tmp_path):
    ask(Kubeconfig(secure.kubeconfig(tmp_path / "k", token="t1"), Lines()))
    assert users(secure) == ["first"]


def test_a_client_certificate_from_files_and_from_data(secure, authority, tmp_path):
    certificate, key = authority.client("node-1")
    files = {"client-certificate": certificate, "client-key": key}
    ask(Kubeconfig(secure.kubeconfig(tmp_path / "k", **files), Lines()))
    data = {f"{field}-data": base64.b64encode(Path(path).read_bytes()).decode() for field, path in files.items()}
    ask(Kubeconfig(secure.kubeconfig(tmp_path / "k", **data), Lines()))
    assert users(secure) == ["node-1", "node-1"]


def test_a_token_file_that_is_rotated_is_used_from_the_next_request_on(secure, tmp_path):
    token = tmp_path / "token"
    put(token, "t1\n")
    access = Kubeconfig(secure.kubeconfig(tmp_path / "k", tokenFile="token"), Lines())
    ask(access)
    put(token, "t2\n")
    ask(access)
    assert users(secure) == ["first", "second"]


def test_a_watch_outlives_its_token_and_the_next_one_carries_the_new(secure, tmp_path):
    token = tmp_path / "token"
    put(token, "t1")
    log = Lines()
    access = Kubeconfig(secure.kubeconfig(tmp_path / "k", tokenFile=str(token)), log)
    cluster = Cluster(access, NODE, f"{tmp_path}/state/kube.db", log, timing=QUICK)
    cluster.start()
    assert until(lambda: not cluster.fault())
    put(token, "t2")
    del secure.tokens["t1"]
    secure.cut()
    secure.put(NETWORKS, network("a", {}))
    secure.put(PODS, pod("web", node=NODE, uid="u1"))
    assert until(lambda: cluster._networks.find(("default", "a")))
    cluster.write_status(cluster.pod("default", "web", soon(), "u1"), b"[]")
    assert until(lambda: cluster.waiting() == 0)
    assert secure.asked("patch")[0].user == "second"
    cluster.close()


def test_a_kubeconfig_that_changes_is_read_again_and_a_broken_one_is_not_taken(secure, tmp_path):
    log = Lines()
    path = secure.kubeconfig(tmp_path / "k", token="t1")
    access = Kubeconfig(path, log)
    ask(access)
    put(path, "{ not yaml")
    ask(access)
    assert "kubeconfig is unusable, its last good content counts" in log.events()
    put(path, Path(secure.kubeconfig(tmp_path / "k2", token="t2")).read_text())
    ask(access)
    assert users(secure) == ["first", "first", "second"]


def test_a_kubeconfig_from_before_401_is_read_again(secure, tmp_path):
    """The same size and times: only the refusal tells."""
    path = tmp_path / "k"
    access = Kubeconfig(secure.kubeconfig(path, token="t0"), Lines())
    stat = os.stat(path)
    with open(path, "r+") as file:
        text = file.read().replace("t0", "t1")
        file.seek(0)
        file.write(text)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    ask(access)
    assert users(secure) == ["first"]


def test_the_service_account_and_its_rotation(secure, authority, tmp_path):
    put(tmp_path / "token", "t1")
    put(tmp_path / "ca.crt", Path(authority.ca_file).read_text())
    environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(secure.port)}
    access = InCluster(environ, Lines(), str(tmp_path))
    context = access.endpoint().context
    ask(access)
    put(tmp_path / "token", "t2")
    ask(access)
    assert users(secure) == ["first", "second"]
    assert access.endpoint().context is context  # connections live on
    os.unlink(tmp_path / "token")
    ask(access)


def test_a_ca_that_is_replaced_counts_for_the_next_connection(secure, authority, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    put(tmp_path / "token", "t1")
    put(tmp_path / "ca.crt", Path(Authority(other).ca_file).read_text())
    environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(secure.port)}
    access = InCluster(environ, Lines(), str(tmp_path))
    with pytest.raises(Unreachable, match="its certificate is not accepted"):
        ask(access)
    put(tmp_path / "ca.crt", Path(authority.ca_file).read_text())
    ask(access)


def test_no_service_account_is_said_with_what_to_do(tmp_path):
    with pytest.raises(InvalidConfig, match="KUBERNETES_SERVICE_HOST is not set"):
        InCluster({}, Lines(), str(tmp_path))
    with pytest.raises(IOFailure, match=r"token|No such file"):
        InCluster({"KUBERNETES_SERVICE_HOST": "127.0.0.1"}, Lines(), str(tmp_path))


def test_a_server_of_another_name_is_not_believed_unless_told_so(secure, authority, tmp_path):
    def tried(**cluster):
        given = {"server": f"https://127.0.0.1:{secure.port}", "certificate-authority": authority.ca_file, **cluster}
        ask(Kubeconfig(config(tmp_path, cluster=given, user={"token": "t1"}), Lines()))

    tried(**{"tls-server-name": "kubernetes"})
    with pytest.raises(Unreachable, match="certificate is not accepted"):
        tried(**{"tls-server-name": "elsewhere"})
    tried(**{"tls-server-name": "elsewhere", "insecure-skip-tls-verify": True, "certificate-authority": None})


def program(tmp_path, body):
    path = tmp_path / "credential.py"
    path.write_text(f"#!{sys.executable} -I\nimport json, os, sys, time\n{body}\n")
    path.chmod(0o755)
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "./credential.py",
                     "interactiveMode": "Never"}}  # fmt: skip


GIVES = """
count = int(open("{count}").read()) + 1 if os.path.exists("{count}") else 1
open("{count}", "w").write(str(count))
until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + {left}))
info = json.loads(os.environ["KUBERNETES_EXEC_INFO"])
print(json.dumps({{"apiVersion": info["apiVersion"], "kind": "ExecCredential",
                  "status": {{"token": "t" + str(count), "expirationTimestamp": until}}}}))
"""


def test_a_credential_program_is_run_once_until_its_credential_ends(secure, tmp_path):
    user = program(tmp_path, GIVES.format(count=tmp_path / "count", left=3600))
    access = Kubeconfig(secure.kubeconfig(tmp_path / "k", **user), Lines())
    for _ in range(3):
        ask(access)
    assert users(secure) == ["first"] * 3


def test_a_credential_that_is_over_by_a_skewed_clock_is_used_all_the_same(secure, tmp_path, monkeypatch):
    """This node's clock is an hour ahead: every credential looks expired, and is not fetched with every request."""
    user = program(tmp_path, GIVES.format(count=tmp_path / "count", left=-3600))
    access = Kubeconfig(secure.kubeconfig(tmp_path / "k", **user), Lines())
    for _ in range(5):
        ask(access)
    assert users(secure) == ["first"] * 5
    monkeypatch.setattr("underlay.kube.exec_credential._LEAST", 0.0)
    access = Kubeconfig(secure.kubeconfig(tmp_path / "k", **user), Lines())
    ask(access)
    assert users(secure)[-1] == "second"


def test_a_refused_credential_is_fetched_anew(secure, tmp_path, monkeypatch):
    monkeypatch.setattr("underlay.kube.exec_credential._LEAST", 0.0)
    del secure.tokens["t1"]
    user = program(tmp_path, GIVES.format(count=tmp_path / "count", left=3600))
    ask(Kubeconfig(secure.kubeconfig(tmp_path / "k", **user), Lines()))
    assert users(secure) == ["second"]


def test_a_credential_program_may_give_a_certificate(secure, authority, tmp_path):
    certificate, key = authority.client("by-program")
    body = f"""
status = {{"clientCertificateData": open("{certificate}").read(), "clientKeyData": open("{key}").read()}}
print(json.dumps({{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}}))
"""
    ask(Kubeconfig(secure.kubeconfig(tmp_path / "k", **program(tmp_path, body)), Lines()))
    assert users(secure) == ["by-program"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("sys.exit('no ticket')", "ended with 1: no ticket"),
        ("print('{}')", "no ExecCredential of client.authentication.k8s.io/v1"),
        ("print('hello')", "printed no ExecCredential"),
    ],
)
def test_a_credential_program_that_fails_is_named_with_its_words(secure, tmp_path, body, words):
    with pytest.raises(Unreachable, match=f"credential program .*credential.py.* ?{words}"):
        ask(Kubeconfig(secure.kubeconfig(tmp_path / "k", **program(tmp_path, body)), Lines()))


@pytest.mark.parametrize(
    ("cluster", "user", "words"),
    [
        ({"server": "10.0.0.1"}, {}, 'server "10.0.0.1" is not of the form https://HOST:PORT'),
        ({"server": "https://h:99999"}, {}, 'server "https://h:99999"'),
        ({"server": 7}, {}, r'cluster "c": Expected `str`, got `int` - at `\$.server`'),
        ({"proxy-url": "http://p"}, {}, 'cluster "c": "proxy-url" is not supported: the API server is spoken to'),
        ({"certificate-authority-data": "%%"}, {}, "certificate-authority-data is not base64"),
        ({"certificate-authority-data": "aGFsbG8="}, {}, "the certificate authority is no PEM certificate"),
        ({}, {"username": "me", "password": "x"}, 'user "u": "username" is not supported'),
        ({}, {"auth-provider": {"name": "gcp"}}, '"auth-provider" is not supported: Kubernetes 1.26 removed it'),
        ({}, {"client-certificate-data": "aGFsbG8="}, "client-certificate and client-key are wanted both"),
        ({}, {"exec": {"command": "x", "apiVersion": "v9"}}, 'exec.apiVersion "v9" is not supported'),
    ],
)
def test_what_cannot_work_is_refused_at_the_start_by_name(tmp_path, cluster, user, words):
    with pytest.raises(InvalidConfig, match=words):
        Kubeconfig(config(tmp_path, cluster=cluster, user=user), Lines())


def test_missing_contexts_and_files_are_named(tmp_path):
    with pytest.raises(InvalidConfig, match='there is no context "y", there is: x'):
        Kubeconfig(config(tmp_path), Lines(), "y")
    with pytest.raises(IOFailure, match="cannot read /nowhere/token: No such file"):
        Kubeconfig(config(tmp_path, user={"tokenFile": "/nowhere/token"}), Lines())
    with pytest.raises(IOFailure, match=r"cannot read .*absent: No such file"):
        Kubeconfig(str(tmp_path / "absent"), Lines())


def test_a_field_that_nobody_knows_is_named_once(tmp_path):
    log = Lines()
    Kubeconfig(config(tmp_path, cluster={"servr": "x"}), log)
    assert [event for event in log.events() if "servr" in event] == [
        'kubeconfig: cluster "c": "servr" is no field of a kubeconfig'
    ]


@settings(max_examples=100)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.sampled_from(["kind", "clusters", "contexts", "users", "current-context", "name", "cluster",
                                         "context", "user", "server", "exec", "token"]), inner, max_size=4),
                    max_leaves=12))  # fmt: skip
def test_whatever_a_kubeconfig_holds_it_is_taken_or_refused_with_words(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("k") / "config"
    path.write_text(json.dumps(content))
    with contextlib.suppress(UnderlayError):
        Kubeconfig(str(path), Lines())


def test_a_call_is_repeated_when_its_idle_connection_was_closed(server, tmp_path):
    client = Client(Kubeconfig(server.kubeconfig(tmp_path / "k"), Lines()), "test")
    for _ in range(3):
        client.call("GET", "/api/v1/pods", soon(), accept=JSON)
        server.cut()
        time.sleep(0.05)
    assert len(server.requests) == 3
    client.close()
    with pytest.raises(Unreachable, match="closed"):
        client.call("GET", "/api/v1/pods", soon(), accept=JSON)


def test_a_call_ends_at_its_deadline_and_a_short_answer_is_none(server, tmp_path):
    client = Client(Kubeconfig(server.kubeconfig(tmp_path / "k"), Lines()), "test")
    server.faults += [Fault(delay=2.0), Fault(cut=10)]
    with pytest.raises(Unreachable, match="timed out"):
        client.call("GET", "/api/v1/pods", soon(0.2), accept=JSON)
    with pytest.raises(Unreachable, match="IncompleteRead"):
        client.call("GET", "/api/v1/pods", soon(), accept=JSON)
    with pytest.raises(Refused, match="404 NotFound"):
        client.call("GET", "/api/v1/nothing", soon(), accept=JSON)
    client.close()


@pytest.mark.parametrize(
    ("cluster", "token", "words"),
    [
        ({"server": f"http://{'a' * 70}.invalid:80"}, "t", "label"),
        ({"server": "http://127.0.0.1:PORT"}, "two\nlines", "Invalid header value"),
    ],
)
def test_what_the_standard_library_calls_a_value_error_is_a_fault_of_the_connection(
    server, tmp_path, cluster, token, words
):
    given = {"server": cluster["server"].replace("PORT", str(server.port))}
    access = Kubeconfig(config(tmp_path, cluster=given, user={"token": token}), Lines())
    with pytest.raises(Unreachable, match=words):
        ask(access)
    client = Client(access, "test")
    with pytest.raises(Unreachable, match=words):
        client.watch("/api/v1/pods?watch=1", accept=JSON, idle=1)
    client.close()


def test_a_certificate_that_this_nodes_clock_does_not_accept_is_said_with_the_clock(tmp_path):
    over = Authority(tmp_path, days=-1)
    with ApiServer(authority=over) as server:
        trusted = {"server": server.url, "certificate-authority": over.ca_file}
        with pytest.raises(Unreachable, match=r"certificate has expired \(this node's clock says 2"):
            ask(Kubeconfig(config(tmp_path, cluster=trusted), Lines()))
