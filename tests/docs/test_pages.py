"""The pages say what is: links lead somewhere, examples parse, tables of keys are complete."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import yaml

from underlay.cli.daemon import _EPILOG
from underlay.cni.config import parse_network
from underlay.daemon.config import KubeSettings, LogSettings, Settings, load
from underlay.ipam.pools import applications, section
from underlay.ipam.pools.objects import Pool, parse_object
from underlay.kube import block_objects, manifest
from underlay.multus import annotations, daemon_file, lint_pools
from underlay.multus import config as multus
from underlay.multus.findings import Subject
from underlay.plugins import sriov_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    return [body for found, body in BLOCK.findall((ROOT / page).read_text()) if found == language]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file(page: Path) -> None:
    targets = [target for target in LINK.findall(page.read_text()) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_networks_of_the_page_are_networks() -> None:
    found = [manifest.parse("page.yaml", block.encode()) for block in blocks("docs/networks.md", "yaml")]
    networks = {each.name: each for one in found for each in one.networks}
    for each in networks.values():
        assert each.config is not None
        assert len(parse_network(each.config.encode()).plugins) == 2
    pods = [pod for one in found for pod in one.pods]
    assert len(pods) == 2
    for pod in pods:
        for key, text in pod.annotations.items():
            assert {one.name for one in annotations.parse(text, pod.namespace, key)} <= set(networks)


def test_the_multus_configuration_of_the_page_is_one_without_warnings() -> None:
    for block in blocks("docs/networks.md", "json"):
        assert multus.parse(block.encode()).warnings == ()


def test_the_devices_page_ties_a_network_and_names_the_defaults() -> None:
    (block,) = blocks("docs/devices.md", "yaml")
    (network,) = manifest.parse("page.yaml", block.encode()).networks
    assert network.resource_name == "intel.com/sriov"
    assert network.config is not None
    assert parse_network(network.config.encode(), name=network.name).plugins[0].capabilities == {"deviceID": True}
    rows = re.findall(r"(?m)^\| `(\w+)` \| `(/\S+)` \|$", (ROOT / "docs/devices.md").read_text())
    assert {key: getattr(Settings(), key) for key, _ in rows} == dict(rows)
    assert len(rows) == 3


def rows(page: str, heading: str) -> dict[str, str]:
    """First and last cell of every row of the table below a heading."""
    section = (ROOT / page).read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return {found[1]: found[2] for found in re.finditer(r"(?m)^\| `(\w+)` \|.*\| (.*) \|$", section)}


def test_the_multus_page_holds_every_key_of_the_runtimes_file() -> None:
    protocol = {"cniVersion", "name", "type", "capabilities"}
    table = rows("docs/multus.md", "The file that the runtime reads")
    assert set(table) == protocol | set(multus.Keys.__struct_encode_fields__)
    idle = {key for key, words in table.items() if words.startswith("no effect")}
    assert idle == {key for key in multus.WITHOUT_EFFECT if key in table}


def test_the_multus_page_holds_every_key_of_its_daemons_file() -> None:
    table = rows("docs/multus.md", "The file of Multus' own daemon")
    assert set(table) == set(daemon_file.FileKeys.__struct_encode_fields__) - set(daemon_file.OVER)
    assert {key for key, words in table.items() if words.startswith("no effect")} == set(daemon_file.WITHOUT_EFFECT)


def test_the_examples_of_the_multus_page_are_without_warnings() -> None:
    of_the_runtime, of_the_daemon = blocks("docs/multus.md", "json")
    assert multus.parse(of_the_runtime.encode()).warnings == ()
    assert daemon_file.parse(of_the_daemon.encode()).warnings == ()


def test_the_pools_page_shows_what_its_example_does(tmp_path: Path) -> None:
    (tmp_path / "manifests").mkdir()
    pools, _ = blocks("docs/pools.md", "yaml")
    pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: web-0}\n"
    (tmp_path / "manifests/pools.yaml").write_text(f"{pools}---\n{pod}")
    settings = {key: str(tmp_path / key) for key in ("state_dir", "run_dir")}
    settings["manifest_dir"] = str(tmp_path / "manifests")
    (tmp_path / "underlay.json").write_text(json.dumps(settings))
    session = next(each for each in blocks("docs/pools.md", "console") if each.startswith("# underlay ipam"))
    told = {}
    for step in filter(None, session.split("# ")):
        command, _, shown = step.partition("\n")
        argv = [sys.executable, "-m", *command.split(), "--config", str(tmp_path / "underlay.json")]
        done = subprocess.run(argv, check=False, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), command
        told[command.split()[2]] = done.stdout
        assert done.stdout.startswith(shown)
    assert "Reserved/default/web-0" in told["who"]
    assert list(told) == ["explain", "reserve", "who", "list", "release"]


def test_the_pools_page_shows_files_and_objects_of_a_cluster_as_they_are() -> None:
    install, shown = (each for each in blocks("docs/pools.md", "console") if "kubectl" in each)
    applied = re.findall(r"-f (\S+)", install)
    assert len(applied) == 3
    assert all((ROOT / path).exists() for path in applied)
    crd = yaml.safe_load((ROOT / "deploy/crds/underlayipblocks.yaml").read_text())["spec"]
    assert {crd["names"]["plural"], *crd["names"]["shortNames"]} == set(re.findall(r"kubectl get (\S+)", shown))
    columns = [each["name"] for each in crd["versions"][0]["additionalPrinterColumns"] if not each.get("priority")]
    lines = shown.splitlines()
    assert lines[1].split() == ["NAME", *columns]
    name, revision, owned = lines[2].split()
    leases = json.loads(lines[4].replace("\u2026", "x"))
    spec = {"revision": int(revision), "owned": json.loads(owned), "leases": leases}
    shape = msgspec.convert({"metadata": {"name": name}, "spec": spec}, block_objects.Shape)
    block = block_objects.decode(shape)
    assert block is not None
    assert (len(block.owned), [one.pod for one in block.leases.values()]) == (3, ["shop/web-1"])


def test_the_pools_page_shows_what_the_controller_says() -> None:
    (pools, example) = blocks("docs/pools.md", "yaml")
    subnet, pod = (each for each in yaml.safe_load_all(example))
    (asked,) = applications.asked(pod["metadata"]["annotations"])
    assert asked.subnets == {4: (subnet["metadata"]["name"],)}
    assert (asked.number.count, asked.number.flexible) == (1, True)
    assert asked.number == applications.asked({key: value for key, value in pod["metadata"]["annotations"].items()
                                               if "number" not in key})[0].number  # fmt: skip
    rack = parse_object(next(yaml.safe_load_all(pools)))
    assert isinstance(rack, Pool)
    other = parse_object({"kind": "SpiderIPPool", "metadata": {"name": "rack-8"},
                          "spec": {"subnet": "172.18.0.0/16", "ips": ["172.18.40.100-172.18.40.150"]}})  # fmt: skip
    assert isinstance(other, Pool)
    (finding,) = lint_pools.beside(Subject(""), rack, lint_pools.Around({"rack-8": other}))
    (shown,) = blocks("docs/pools.md", "text")
    assert f"{finding.field}: {finding.message} ({finding.hint})" in shown


def test_the_pools_page_holds_every_key_of_the_section_with_its_default() -> None:
    (config,) = blocks("docs/pools.md", "json")
    (plugin,) = parse_network(config.encode()).plugins
    assert section.read(plugin).log is None
    table = re.findall(r"(?m)^\| (`\w+`(?:, `\w+`)*) \| (.*?) \|.*\|$", (ROOT / "docs/pools.md").read_text())
    keys = [key for cell, _ in table for key in re.findall(r"\w+", cell)]
    assert sorted(keys) == sorted(_fields(section.Keys))
    logged = json.loads(config.replace('"spiderpool"', '"spiderpool", "log_level": "info"'))
    log = section.read(parse_network(json.dumps(logged).encode()).plugins[0]).log
    assert log is not None
    told = next(words for cell, words in table if "log_level" in cell)
    assert told.endswith(f"{log.level}, `{log.file}`, {log.max_size} MB, {log.max_age} days, {log.max_count} files")


def _fields(keys: type[msgspec.Struct]) -> tuple[str, ...]:
    """The names in JSON of what stands below "ipam"."""
    (ipam,) = msgspec.structs.fields(keys)
    return tuple(each.encode_name for each in msgspec.structs.fields(ipam.type))


def test_the_daemons_page_holds_every_key_with_its_default(tmp_path: Path) -> None:
    (written,) = blocks("docs/daemon.md", "yaml")
    keys = yaml.safe_load(written)
    assert set(keys) == set(Settings.__struct_fields__)
    assert set(keys["log"]) == set(LogSettings.__struct_fields__)
    assert set(keys["kube"]) == set(KubeSettings.__struct_fields__)
    file = tmp_path / "underlay.yaml"
    file.write_text(written)
    assert load(str(file), {}) == msgspec.convert({}, Settings)


def test_the_daemons_help_holds_every_key() -> None:
    told = re.findall(r"(?m)^ +([a-z_]+):", _EPILOG)
    log, kube = LogSettings.__struct_fields__, KubeSettings.__struct_fields__
    assert told == [*[key for key in Settings.__struct_fields__ if key != "kube"], *log, "kube", *kube]


def test_the_log_line_of_the_page_is_json() -> None:
    (line,) = blocks("docs/daemon.md", "json")
    assert json.loads(line)["event"] == "request"


def test_the_sriov_page_has_a_network_of_its_resource_and_every_key() -> None:
    found = [manifest.parse("page.yaml", block.encode()) for block in blocks("docs/sriov.md", "yaml")]
    (network,) = (each for one in found for each in one.networks)
    assert network.resource_name == "intel.com/sriov"
    assert network.config is not None
    first, second = parse_network(network.config.encode(), name=network.name).plugins
    assert (first.type, second.type) == ("sriov", "veth")
    (pod,) = (each for one in found for each in one.pods)
    assert pod.annotations["v1.multus-cni.io/default-network"] == f"kube-system/{network.name}"
    table = (ROOT / "docs/sriov.md").read_text().split("## Keys")[1].split("## ")[0]
    named = {
        key
        for line in table.splitlines()
        if line.startswith("| `")
        for key in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert named == {each.encode_name for each in msgspec.structs.fields(sriov_config.Keys)}
