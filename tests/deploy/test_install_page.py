"""docs/install.md: its commands are commands, its files are there, and its settings are read without a word."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from tests.deploy.test_manifests import DAEMON_SET, DEPLOY, MANIFESTS, UNINSTALL_SET, documents

from underlay import __version__
from underlay.cli.main import _parser
from underlay.daemon import config
from underlay.multus import daemon_file

if TYPE_CHECKING:
    import pytest

ROOT = DEPLOY.parent
PAGE = (ROOT / "docs" / "install.md").read_text()
BLOCK = re.compile(r"(?ms)^ *```(\w+)\n(.*?)^ *```")


def blocks(language: str) -> list[str]:
    return [body for found, body in BLOCK.findall(PAGE) if found == language]


def commands() -> list[list[str]]:
    """Every command of the page, words apart, continued lines joined."""
    lines = [line.strip().removeprefix("# ").removesuffix(" &") for body in (*blocks("sh"), *blocks("console"))
             for line in body.replace("\\\n", " ").splitlines()]  # fmt: skip
    parts = [part for line in lines for part in line.split(" && ")]
    return [shlex.split(part) for part in parts if part and not re.match(r"(ok|warn|fail) ", part)]


def test_every_call_of_underlay_is_one() -> None:
    called = [
        words[words.index("underlay") :] for words in commands() if "underlay" in words and words[0] != "systemctl"
    ]
    called = [words for words in called if words[0] == "underlay" and len(words) > 1]
    assert {words[1] for words in called} == {"install", "uninstall", "daemon", "status", "doctor", "networks"}
    for words in called:
        _parser(words[1:]).parse_args(words[1:])


def test_every_file_of_the_repository_that_is_named_is_there() -> None:
    named = {word for words in commands() for word in words if word.startswith("deploy/")}
    named |= set(re.findall(r"`(deploy/[\w./-]+)`", PAGE))
    assert named
    assert [each for each in sorted(named) if not (ROOT / each).exists()] == []


def test_the_objects_that_are_named_are_those_of_the_manifests() -> None:
    made = {f"{each['kind'].lower()}/{each['metadata']['name']}" for path in MANIFESTS for each in documents(path)}
    named = set(re.findall(r"\b(daemonset/[\w-]+)", PAGE))
    assert named == {"daemonset/underlay", "daemonset/underlay-uninstall"}
    assert named <= made
    sets = (DAEMON_SET, UNINSTALL_SET)
    containers = {one["name"] for each in sets for one in each["spec"]["template"]["spec"]["containers"]}
    assert {words[words.index("-c") + 1] for words in commands() if "exec" in words} <= containers


def test_the_image_is_of_this_version_everywhere() -> None:
    found = re.findall(r"multus[-_]underlay[:-](\d+\.\d+\.\d+)", PAGE) + re.findall(r"newTag: (\S+?)}", PAGE)
    assert len(found) >= 4
    assert set(found) == {__version__}


def test_the_secrets_and_names_of_the_certificate_are_the_webhooks() -> None:
    deployments = (each for path in MANIFESTS for each in documents(path) if each["kind"] == "Deployment")
    volumes = [volume for each in deployments for volume in each["spec"]["template"]["spec"]["volumes"]]
    wanted = {each["secret"]["secretName"] for each in volumes if "secret" in each}
    assert {words[words.index("tls") + 1] for words in commands() if "secret" in words} == wanted
    services = {f"DNS:{each['metadata']['name']}.kube-system.svc" for path in MANIFESTS for each in documents(path)
                if each["kind"] == "Service"}  # fmt: skip
    (names,) = (word for words in commands() for word in words if word.startswith("subjectAltName="))
    assert set(names.removeprefix("subjectAltName=").split(",")) == services


def test_the_clusters_own_kustomization_patches_every_webhook_that_there_is() -> None:
    (own,) = (yaml.safe_load(body) for body in blocks("yaml") if "patches:" in body)
    kinds = {each["metadata"]["name"]: each["webhooks"] for path in MANIFESTS for each in documents(path)
             if each["kind"] == "ValidatingWebhookConfiguration"}  # fmt: skip
    patched = {each["target"]["name"]: yaml.safe_load(each["patch"]) for each in own["patches"]}
    assert patched.keys() == kinds.keys()
    for name, operations in patched.items():
        assert [each["path"] for each in operations] == [
            f"/webhooks/{number}/clientConfig/caBundle" for number in range(len(kinds[name]))
        ]
    (path,) = own["resources"]
    assert (Path(ROOT / "cluster") / path).resolve() == DEPLOY


def test_the_settings_of_the_unit_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (settings,) = (body for body in blocks("yaml") if "multus_daemon_config" in body)
    (theirs,) = blocks("json")
    assert daemon_file.parse(theirs.encode()).warnings == ()
    assert json.loads(theirs) == json.loads(documents(DEPLOY / "daemonset.yaml")[0]["data"]["daemon-config.json"])
    monkeypatch.delenv("NODE_NAME", raising=False)
    (tmp_path / "daemon-config.json").write_text(theirs)
    (tmp_path / "underlay.yaml").write_text(
        settings.replace("/etc/underlay/daemon-config", f"{tmp_path}/daemon-config")
    )
    read = config.load(str(tmp_path / "underlay.yaml"), {})
    assert (read.kube.node_name, config.node_name(read.kube)) == ("node-1", "node-1")
    unit = (DEPLOY / "underlay.service").read_text()
    assert "/usr/local/bin/underlay daemon" in unit
    assert "/usr/local/bin/underlay" in {word for words in commands() for word in words}
