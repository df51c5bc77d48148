"""The daemon's configuration: one file, flags over it, faults named by their key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from underlay.daemon import config
from underlay.daemon.config import Settings
from underlay.errors import InvalidConfig, IOFailure

if TYPE_CHECKING:
    from pathlib import Path


def load(tmp_path: Path, text: str, **flags: Any) -> Settings:
    file = tmp_path / "underlay.yaml"
    file.write_text(text)
    return config.load(str(file), flags)


def test_without_a_file_the_defaults_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config, "DEFAULT_FILE", str(tmp_path / "none.yaml"))
    assert config.load(None, {}) == Settings()


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    from_yaml = load(tmp_path, "workers: 4\nbin_dir: [/a, /b]\nlog:\n  level: debug\n")
    from_json = load(tmp_path, '{"workers": 4, "bin_dir": ["/a", "/b"], "log": {"level": "debug"}}')
    assert from_yaml == from_json
    assert from_yaml.workers == 4
    assert from_yaml.bin_dir == ("/a", "/b")
    assert from_yaml.log.level == "debug"
    assert load(tmp_path, "{workers: 4}").workers == 4  # YAML that begins like JSON
    assert load(tmp_path, "# only a comment\n") == Settings()


def test_flags_go_over_the_file_key_by_key(tmp_path: Path) -> None:
    settings = load(
        tmp_path, "workers: 4\nlog: {level: debug, max_count: 2}\n", workers=8, log={"level": "warn"}, bin_dir=["/x"]
    )
    assert settings.workers == 8
    assert settings.log.level == "warn"
    assert settings.log.max_count == 2
    assert settings.bin_dir == ("/x",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("worker: 4", 'no key "worker"; did you mean "workers"'),
        ("log: {file: /x, colour: true}", 'no key "log.colour"'),
        ("log: {max_sise: 1}", 'did you mean "log.max_size"'),
        ("workers: many", "workers: Expected `int`, got `str`"),
        ("pools: cluster", "pools: there is no API server"),
        ("pools: here", "pools: Invalid enum value 'here'"),
        ("workers: 0", "workers: 0 is not within 1 and 1024"),
        ("deadline: -1", "deadline: -1.0 is not within"),
        ("state_dir: var/lib", "state_dir: 'var/lib' is no absolute path"),
        ("device_info_dir: run", "device_info_dir: 'run' is no absolute path"),
        ("bin_dir: [opt]", "bin_dir: 'opt' is no absolute path"),
        ("bin_dir: [1]", r"bin_dir\[0\]: Expected `str`, got `int`"),
        ("log: {level: loud}", "log.level: Invalid enum value 'loud'"),
        ("log: {max_count: -1}", "log.max_count: -1 is negative"),
        ("log: [a]", "log: Expected `object`, got `array`"),
        ("health_address: localhost", '"localhost" is not HOST:PORT'),
        (f"run_dir: /{'r' * 100}", "longer than 80 bytes"),
        ("kube: {kubeconfig: /k, in_cluster: true, node_name: n}", "in_cluster and kubeconfig are both given"),
        ("kube: {kubeconfig: k, node_name: n}", "kube.kubeconfig: 'k' is no absolute path"),
        ("kube: {in_cluster: true}", "kube.node_name: which node this is, is not known"),
        ("kube: {node: n}", 'no key "kube.node"; did you mean "kube.node_name"'),
        ("[1, 2]", "holds no mapping"),
        ("{1: 2}", "holds no mapping"),
        ("a: b: c", "neither JSON nor YAML"),
        ("\x07", "neither JSON nor YAML"),
    ],
)
def test_a_wrong_key_is_refused_by_name(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidConfig, match=words) as caught:
        load(tmp_path, text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("log: {level: loud}", "It is one of debug, info, warn, error."),
        ("pools: here", "It is one of auto, manifests, cluster."),
    ],
)
def test_of_a_value_that_is_none_of_a_few_all_are_named(tmp_path: Path, text: str, hint: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        load(tmp_path, text)
    assert caught.value.hint == hint


def test_the_nodes_name_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_NAME", "from-environment")
    assert config.node_name(load(tmp_path, "kube: {in_cluster: true}").kube) == "from-environment"
    assert config.node_name(load(tmp_path, "kube: {in_cluster: true, node_name: n}").kube) == "n"
    over = load(tmp_path, "kube: {kubeconfig: /a, node_name: n}", kube={"kubeconfig": "/b"}).kube
    assert (over.kubeconfig, over.node_name) == ("/b", "n")
    assert not load(tmp_path, "kube: {node_name: n}").kube.used


def test_the_kubeconfig_of_multus_own_file_counts_where_nothing_else_says_how_the_api_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NODE_NAME", raising=False)
    monkeypatch.setenv("MULTUS_NODE_NAME", "n1")
    theirs = tmp_path / "daemon-config.json"
    theirs.write_text('{"kubeconfig": "/theirs"}')
    flags: dict[str, Any] = {"multus_daemon_config": str(theirs)}
    kube = load(tmp_path, "kube: {context: c}", **flags).kube
    assert (kube.kubeconfig, kube.context, config.node_name(kube)) == ("/theirs", "c", "n1")
    assert load(tmp_path, "kube: {kubeconfig: /ours}", **flags).kube.kubeconfig == "/ours"
    assert load(tmp_path, "", **flags, kube={"kubeconfig": "/flag"}).kube.kubeconfig == "/flag"
    kube = load(tmp_path, "kube: {in_cluster: true}", **flags).kube
    assert (kube.in_cluster, kube.kubeconfig) == (True, "")
    theirs.write_text('{"kubeconfig": "relative"}')
    with pytest.raises(InvalidConfig, match=r'daemon-config.json: "kubeconfig" \'relative\' is no absolute path'):
        load(tmp_path, "", **flags)


def test_a_file_that_is_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(IOFailure, match="does not exist"):
        config.load(str(tmp_path / "none.yaml"), {})
    with pytest.raises(IOFailure, match=r"cannot read .*: Is a directory") as caught:
        config.load(str(tmp_path), {})
    assert "--config" in caught.value.hint


@pytest.mark.parametrize(("address", "parts"), [("127.0.0.1:9464", ("127.0.0.1", 9464)), ("[::1]:0", ("::1", 0))])
def test_health_addresses_are_taken_apart(address: str, parts: tuple[str, int]) -> None:
    assert config.split_address(address) == parts


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"workers": 0}, "the command line: workers: 0 is not within"),
        ({"run_dir": "run"}, "the command line: run_dir: 'run' is no absolute path"),
        ({"run_dir": "/" + "r" * 80}, "the command line: run_dir: .* is longer than 80 bytes"),
        ({"bin_dir": ["opt"]}, "the command line: bin_dir: 'opt'"),
        ({"log": {"file": "log"}}, "the command line: log.file: 'log'"),
        ({"multus_daemon_config": "m"}, "the command line: multus_daemon_config: 'm'"),
        ({"kube": {"kubeconfig": 1, "node_name": "n"}}, "the command line: kube.kubeconfig: Expected `str`"),
    ],
)
def test_a_fault_of_a_flag_is_not_laid_to_the_file(tmp_path: Path, flags: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidConfig, match=words):
        load(tmp_path, "queue: 8\nlog: {level: debug}\n", **flags)
    with pytest.raises(InvalidConfig, match=r"underlay\.yaml: queue: 0"):
        load(tmp_path, "queue: 0", workers=8)
