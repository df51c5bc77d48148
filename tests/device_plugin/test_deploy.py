"""deploy/device-plugin.yaml and the page fit the code that they are about."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from underlay.cli.main import _parser
from underlay.device_plugin import configuration, plugin
from underlay.kube import device_info

ROOT = Path(__file__).parents[2]
CONFIG, DAEMON_SET = yaml.safe_load_all((ROOT / "deploy" / "device-plugin.yaml").read_text())
POD = DAEMON_SET["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
MOUNTS = {each["mountPath"]: each["name"] for each in CONTAINER["volumeMounts"]}
VOLUMES = {each["name"]: each for each in POD["volumes"]}


def test_the_configuration_is_one_without_a_word() -> None:
    (content,) = CONFIG["data"].values()
    resources, findings = configuration.parse(content.encode(), "config.json")
    assert findings == []
    assert [each.name for each in resources] == ["intel.com/sriov", "intel.com/sriov_dpdk"]


def test_the_container_is_called_as_the_command_is_written_and_finds_its_files() -> None:
    words = [*CONTAINER["command"], *CONTAINER["args"]]
    assert words[0] == "underlay"
    options = _parser(words[1:]).parse_args(words[1:])
    directory, name = options.config.rsplit("/", 1)
    assert name in CONFIG["data"]
    assert VOLUMES[MOUNTS[directory]]["configMap"]["name"] == CONFIG["metadata"]["name"]
    for path in (options.plugin_dir, options.device_info_dir):
        assert VOLUMES[MOUNTS[path]]["hostPath"]["path"] == path


def test_the_defaults_of_the_command_are_those_of_the_code() -> None:
    options = _parser(["device-plugin"]).parse_args(["device-plugin"])
    defaults = plugin.Settings(
        options.plugin_dir, options.device_info_dir, options.cdi_dir, options.sysfs, options.interval
    )
    assert defaults == plugin.Settings()
    assert defaults.device_info_dir == device_info.DIRECTORY
    assert (options.config, options.resource_prefix) == (configuration.FILE, configuration.PREFIX)
    for flags, expected in ((["--use-cdi"], "/var/run/cdi"), (["--cdi-dir"], "/var/run/cdi"), (["--cdi-dir=/x"], "/x")):
        assert _parser(["device-plugin"]).parse_args(["device-plugin", *flags]).cdi_dir == expected


def test_it_may_do_nothing_but_what_it_needs() -> None:
    assert CONTAINER["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"] is True
    assert POD["automountServiceAccountToken"] is False
    assert POD["hostNetwork"] is True
    labels = DAEMON_SET["spec"]["template"]["metadata"]["labels"]
    assert DAEMON_SET["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_the_page_holds_every_key_and_its_example_is_one() -> None:
    page = (ROOT / "docs" / "sriov.md").read_text()
    section = page.split("\n## From a bare node to a resource in the kubelet\n")[1].split("\n## ")[0]
    keys = set(re.findall(r"(?m)^\| (`\w+`(?:, `\w+`)*) \|", section.split("\n### ")[0]))
    named = {key.strip("`") for row in keys for key in row.split(", ")}
    known = {
        key
        for kind in (configuration.SelectorKeys, configuration.ResourceKeys)
        for key in kind.__struct_encode_fields__
    }
    assert named == known
    examples = re.findall(r"(?ms)^```json\n(.*?)^```", section)
    assert examples
    for each in examples:
        assert configuration.parse(json.dumps(json.loads(each)).encode(), "page")[1] == []
