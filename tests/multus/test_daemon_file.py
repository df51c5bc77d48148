"""daemon-config.json of Multus' own daemon, key by key."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from underlay.daemon import config
from underlay.errors import DecodeFailure, IncompatibleVersion, InvalidConfig, IOFailure
from underlay.multus import config as multus
from underlay.multus.daemon_file import OVER, WITHOUT_EFFECT, DaemonFile, FileKeys, Generation, load, parse

if TYPE_CHECKING:
    from pathlib import Path

OF_THE_THICK_DAEMONSET = {
    "chrootDir": "/hostroot",
    "cniVersion": "0.3.1",
    "logLevel": "verbose",
    "logToStderr": True,
    "cniConfigDir": "/host/etc/cni/net.d",
    "multusAutoconfigDir": "/host/etc/cni/net.d",
    "multusConfigFile": "auto",
    "socketDir": "/host/run/multus/",
}


def read(**keys: Any) -> DaemonFile:
    return parse(json.dumps(keys).encode())


def warned(read: DaemonFile) -> set[str]:
    return {warning.split('"')[1] for warning in read.warnings}


def test_the_file_of_the_thick_daemonset_is_taken_as_it_is() -> None:
    theirs = read(**OF_THE_THICK_DAEMONSET)
    assert theirs.settings == {"chroot_dir": "/hostroot", "log": {"level": "info"}}
    assert theirs.generation == Generation("/host/etc/cni/net.d", "/host/etc/cni/net.d", version="0.3.1")
    assert theirs.overrides == {}
    assert warned(theirs) == {"socketDir"}


def test_an_empty_file_wraps_the_first_network_as_multus_does() -> None:
    assert read().generation == Generation("/etc/cni/net.d", "/etc/cni/net.d")


def test_every_key_is_either_honoured_or_named_in_one_warning() -> None:
    example: dict[str, Any] = {
        "clusterNetwork": "overlay", "defaultNetworks": ["a"], "confDir": "/c", "binDir": "/b", "cniDir": "/d",
        "kubeconfig": "/k", "namespaceIsolation": True, "globalNamespaces": "default,net", "systemNamespaces": ["s"],
        "multusNamespace": "m", "readinessindicatorfile": "/r", "auxiliaryCNIChainName": "x",
        "retryDeleteOnError": True, "logFile": "/var/log/multus.log", "logLevel": "debug", "logToStderr": True,
        "logOptions": {"maxAge": 1, "maxSize": 2, "maxBackups": 3, "compress": True}, "cniVersion": "1.0.0",
        "name": "n", "type": "multus-shim", "capabilities": {"mac": True}, "chrootDir": "/h", "socketDir": "/s",
        "daemonSocketDir": "/s", "metricsPort": 9091, "connectionLimit": 7,
        "perNodeCertificate": {"enabled": True, "bootstrapKubeconfig": "/k", "certDir": "/c", "certDuration": "24h"},
        "cniConfigDir": "/n", "multusConfigFile": "auto", "multusAutoconfigDir": "/a", "multusMasterCNI": "10-x.conf",
        "overrideNetworkName": True, "cleanupConfigOnExit": True, "forceCNIVersion": True,
    }  # fmt: skip
    names = set(FileKeys.__struct_encode_fields__)
    assert set(example) == names - {"delegates"}  # which excludes clusterNetwork
    theirs = read(**example)
    assert set(theirs.overrides) == set(OVER) - {"delegates"}
    assert theirs.settings == {
        "chroot_dir": "/h", "workers": 7,
        "log": {"level": "debug", "file": "/var/log/multus.log", "max_age": 1, "max_size": 2, "max_count": 3},
        "kube": {"kubeconfig": "/k"},
    }  # fmt: skip
    assert theirs.generation == Generation("/n", "/a", "", "10-x.conf", "1.0.0", ("mac",), own_name=True, clean_up=True)
    assert len(theirs.warnings) == len(warned(theirs))
    assert warned(theirs) == {*WITHOUT_EFFECT, "logToStderr", "logOptions.compress"}


def test_a_key_that_multus_does_not_have_is_named_too() -> None:
    theirs = read(chrotDir="/x", logOptions={"maxAges": 1}, perNodeCertificate={"enable": True})
    assert theirs.warnings[1:] == (
        '"chrotDir" is no key of Multus\' daemon and has no effect',
        '"logOptions.maxAges" is no key of Multus\' daemon and has no effect',
        '"perNodeCertificate.enable" is no key of Multus\' daemon and has no effect',
    )


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("chrootDir", 3, '"chrootDir": expected string'),
        ("chrootDir", "hostroot", "\"chrootDir\" 'hostroot' is no absolute path"),
        ("metricsPort", "9091", '"metricsPort": expected integer'),
        ("connectionLimit", -1, '"connectionLimit" -1 is negative'),
        ("connectionLimit", True, '"connectionLimit": expected integer'),
        ("logLevel", "loud", "\"logLevel\" 'loud' is none of panic, error, verbose, debug"),
        ("logOptions", {"maxAge": "5"}, '"logOptions.maxAge": expected integer'),
        ("logOptions", {"maxBackups": -1}, '"logOptions.maxBackups" -1 is negative'),
        ("cniConfigDir", "net.d", "\"cniConfigDir\" 'net.d' is no absolute path"),
        ("multusConfigFile", "automatic", "\"multusConfigFile\" 'automatic' is no absolute path"),
        ("multusAutoconfigDir", [], '"multusAutoconfigDir": expected string'),
        ("multusMasterCNI", "../x.conf", "\"multusMasterCNI\" '../x.conf' is no plain file name"),
        ("capabilities", ["mac"], '"capabilities": expected object'),
        ("perNodeCertificate", True, '"perNodeCertificate": expected object'),
        ("namespaceIsolation", "true", '"namespaceIsolation": expected boolean'),
        ("confDir", "net.d", "\"confDir\" 'net.d' is no absolute path"),
        ("multusNamespace", "Kube_System", "\"multusNamespace\": 'Kube_System' is no name of a namespace"),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(tmp_path: Path, key: str, value: object, words: str) -> None:
    file = tmp_path / "daemon-config.json"
    file.write_text(json.dumps({key: value}))
    with pytest.raises(InvalidConfig) as caught:
        load(str(file))
    assert caught.value.message.startswith(f"{file}: {words}")
    assert "docs/multus.md" in caught.value.hint


def test_what_is_no_file_no_json_or_no_version_is_said(tmp_path: Path) -> None:
    with pytest.raises(IOFailure, match=f"{tmp_path}/none: No such file"):
        load(f"{tmp_path}/none")
    with pytest.raises(DecodeFailure):
        parse(b"logLevel: debug")
    with pytest.raises(DecodeFailure):
        parse(b"[]")
    with pytest.raises(IncompatibleVersion):
        read(cniVersion="9.9")


def test_delegates_and_cluster_network_exclude_each_other_in_the_file_as_well() -> None:
    with pytest.raises(InvalidConfig, match="exclude each other"):
        read(clusterNetwork="a", delegates=[{"type": "x"}])


@pytest.mark.parametrize("empty", [{"clusterNetwork": ""}, {"delegates": []}, {"clusterNetwork": None}])
def test_an_empty_network_overrides_nothing(empty: dict[str, Any]) -> None:
    assert read(**empty).overrides == {}


STDIN: dict[str, Any] = {"cniVersion": "1.0.0", "name": "multus-net", "type": "multus", "clusterNetwork": "overlay"}


def test_the_file_wins_over_standard_input_and_its_warnings_are_not_repeated() -> None:
    given = {**STDIN, "namespaceIsolation": False, "binDir": "/opt/cni/bin", "multusNamespace": "net"}
    over = read(namespaceIsolation=True, binDir="/own", defaultNetworks=["a"], socketDir="/s").overrides
    config = multus.parse(json.dumps(given).encode(), over)
    assert (config.namespace_isolation, config.bin_dir, config.default_networks) == (True, "/own", ("a",))
    assert (config.name, config.version, config.cluster_network) == ("multus-net", "1.0.0", "overlay")
    assert config.multus_namespace == "net"
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("file", "given", "cluster", "delegates"),
    [
        ({"delegates": [{"type": "x"}]}, {"clusterNetwork": "overlay", "defaultNetworks": ["a"]}, "", 1),
        ({"clusterNetwork": "own"}, {"delegates": [{"type": "x"}]}, "own", 0),
    ],
)
def test_what_the_file_excludes_gives_way(file: Any, given: Any, cluster: str, delegates: int) -> None:
    stdin = {key: value for key, value in STDIN.items() if key != "clusterNetwork"} | given
    config = multus.parse(json.dumps(stdin).encode(), read(**file).overrides)
    assert (config.cluster_network, len(config.delegates)) == (cluster, delegates)


def test_its_settings_lie_under_those_of_the_daemon_and_its_flags(tmp_path: Path) -> None:
    theirs = tmp_path / "daemon-config.json"
    theirs.write_text(json.dumps({"chrootDir": "/hostroot", "connectionLimit": 9, "logLevel": "debug",
                                  "logFile": "/var/log/m.log", "logOptions": {"maxAge": 1}}))  # fmt: skip
    own = tmp_path / "underlay.yaml"
    own.write_text(f"multus_daemon_config: {theirs}\nlog:\n  file: /var/log/u.log\n")
    settings = config.load(str(own), {"workers": 4})
    assert (settings.chroot_dir, settings.workers) == ("/hostroot", 4)
    assert (settings.log.level, settings.log.file, settings.log.max_age) == ("debug", "/var/log/u.log", 1)
    own.write_text("{}")
    assert config.load(str(own), {"multus_daemon_config": str(theirs)}).log.file == "/var/log/m.log"
    with pytest.raises(InvalidConfig, match="multus_daemon_config"):
        config.load(str(own), {"multus_daemon_config": "relative.json"})


def test_raw_values_are_kept_as_written() -> None:
    over = parse(b'{"delegates":[{"type":"x","big":12345678901234567890.5}]}').overrides
    assert over == {"delegates": msgspec.Raw(b'[{"type":"x","big":12345678901234567890.5}]')}
