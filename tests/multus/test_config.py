from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from underlay.errors import DecodeFailure, IncompatibleVersion, InvalidConfig, UnderlayError
from underlay.multus.config import parse

LEAST = {"cniVersion": "0.3.1", "name": "multus-net", "type": "multus", "clusterNetwork": "cluster-net"}


def read(**keys: object):
    return parse(json.dumps({**LEAST, **keys}).encode())


def test_what_is_left_out_has_the_documented_defaults():
    config = read()
    assert (config.version, config.name, config.cluster_network) == ("0.3.1", "multus-net", "cluster-net")
    assert config.multus_namespace == "kube-system"
    assert config.global_namespaces == {"default"}
    assert not config.namespace_isolation
    assert (config.default_networks, config.delegates, config.system_namespaces) == ((), (), frozenset())
    assert config.warnings == ()


def test_every_key_of_files_is_taken():
    config = read(
        defaultNetworks=["a", "/etc/cni/b.conf"],
        confDir="/etc/cni/multus/net.d",
        binDir="/opt/cni/bin",
        capabilities={"portMappings": True},
        runtimeConfig={"portMappings": [{"hostPort": 1}]},
        namespaceIsolation=True,
        globalNamespaces="default, shared",
        systemNamespaces=["kube-system", "admin"],
        multusNamespace="net",
        readinessindicatorfile="/run/flannel/subnet.env",
        auxiliaryCNIChainName="vendor-cni-chain",
        retryDeleteOnError=True,
    )
    assert config.default_networks == ("a", "/etc/cni/b.conf")
    assert (config.conf_dir, config.bin_dir) == ("/etc/cni/multus/net.d", "/opt/cni/bin")
    assert config.runtime == {"portMappings": [{"hostPort": 1}]}
    assert config.namespace_isolation
    assert config.global_namespaces == {"default", "shared"}
    assert config.system_namespaces == {"kube-system", "admin"}
    assert (config.multus_namespace, config.readiness_file) == ("net", "/run/flannel/subnet.env")
    assert config.auxiliary_chain == "vendor-cni-chain"
    assert config.warnings == ()


def test_delegates_keep_their_exact_bytes():
    raw = b'{"cniVersion":"0.3.1","name":"m","type":"multus","delegates":[{ "type":"ptp", "x":1.0 },{"type":"b"}]}'
    assert parse(raw).delegates == (b'{ "type":"ptp", "x":1.0 }', b'{"type":"b"}')


@pytest.mark.parametrize(
    "keys",
    [
        {"kubeconfig": "/etc/k"},
        {"cniDir": "/var/lib/cni/multus"},
        {"logFile": "/var/log/multus.log"},
        {"logLevel": "debug"},
        {"logToStderr": True},
        {"logOptions": {"maxAge": 5, "maxSize": 100, "maxBackups": 5, "compress": True}},
        {"chrootDir": "/hostroot"},
        {"multusConfigFile": "auto"},
        {"perNodeCertificate": {"enabled": True}},
        {"Note1": "a comment"},
        {"clusterNetwrok": "x"},
    ],
)
def test_a_key_without_effect_is_named_in_one_warning(keys):
    (key,) = keys
    (warning,) = read(**keys).warnings
    assert warning.startswith(f'"{key}" ')
    assert "no effect" in warning


@pytest.mark.parametrize(
    ("keys", "fault", "words"),
    [
        ({"delegates": [{"type": "a"}]}, InvalidConfig, '"delegates" and "clusterNetwork" exclude each other'),
        (
            {"delegates": [{"type": "a"}], "clusterNetwork": None, "defaultNetworks": ["a"]},
            InvalidConfig,
            '"delegates" and "defaultNetworks" exclude',
        ),
        ({"clusterNetwork": None}, InvalidConfig, 'neither "clusterNetwork" nor "delegates"'),
        ({"clusterNetwork": None, "delegates": []}, InvalidConfig, 'neither "clusterNetwork" nor "delegates"'),
        ({"clusterNetwork": 1}, InvalidConfig, '"clusterNetwork"'),
        ({"defaultNetworks": "a"}, InvalidConfig, '"defaultNetworks"'),
        ({"defaultNetworks": ["a", 1]}, InvalidConfig, '"defaultNetworks[1]"'),
        ({"defaultNetworks": [""]}, InvalidConfig, '"defaultNetworks[0]" is empty'),
        ({"namespaceIsolation": "yes"}, InvalidConfig, '"namespaceIsolation"'),
        ({"globalNamespaces": "a b"}, InvalidConfig, '"globalNamespaces"'),
        ({"globalNamespaces": 1}, InvalidConfig, '"globalNamespaces"'),
        ({"systemNamespaces": ["A"]}, InvalidConfig, '"systemNamespaces"'),
        ({"multusNamespace": "../x"}, InvalidConfig, '"multusNamespace"'),
        ({"confDir": "net.d"}, InvalidConfig, "\"confDir\" 'net.d' is no absolute path"),
        ({"binDir": "bin"}, InvalidConfig, '"binDir"'),
        ({"readinessindicatorfile": "x"}, InvalidConfig, '"readinessindicatorfile"'),
        ({"auxiliaryCNIChainName": "../x"}, InvalidConfig, '"auxiliaryCNIChainName"'),
        ({"logOptions": {"maxAge": "5"}}, InvalidConfig, '"logOptions.maxAge"'),
        ({"logToStderr": "no"}, InvalidConfig, '"logToStderr"'),
        ({"retryDeleteOnError": 1}, InvalidConfig, '"retryDeleteOnError"'),
        ({"cniVersion": "9.9"}, IncompatibleVersion, "9.9"),
        ({"name": None}, InvalidConfig, '"name" is missing'),
    ],
)
def test_a_wrong_value_names_its_key(keys, fault, words):
    with pytest.raises(fault) as caught:
        read(**keys)
    assert words in caught.value.message


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"1", b"\xff", b"[" * 100_000])
def test_what_is_no_json_object_is_refused(raw):
    with pytest.raises(DecodeFailure):
        parse(raw)


VALUES = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text() | st.integers(), max_size=3)
KEYS = ["cniVersion", "name", "clusterNetwork", "defaultNetworks", "delegates", "confDir", "globalNamespaces"]
KEYS += ["systemNamespaces", "multusNamespace", "readinessindicatorfile", "logOptions", "runtimeConfig", "x"]


@given(st.dictionaries(st.sampled_from(KEYS), VALUES))
def test_no_configuration_does_anything_but_parse_or_be_refused(keys):
    with contextlib.suppress(UnderlayError):
        read(**keys)
