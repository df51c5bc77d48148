"""The pages of examples, applied as they stand: manifests and files to a node, and their tables read off the kernel."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.multus.multus_node import InProcess

from underlay.cli.main import main
from underlay.kube import manifest

if TYPE_CHECKING:
    from underlay.kube.objects import Pod

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
PAGES = sorted(set(EXAMPLES.glob("*.md")) - {EXAMPLES / "README.md"})
YAML = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"`(/etc/\S+)`[^`]*:\n\n```json\n(.*?)^```", re.MULTILINE | re.DOTALL)
HAS = re.compile(r"^Pod `(\S+)` has:\n\n((?:\|.*\n)+)", re.MULTILINE)
REFUSED = re.compile(r"^Pod `(\S+)` does not start.*:\n\n```text\n(.*?)^```", re.MULTILINE | re.DOTALL)
RUNTIMES = "/etc/cni/net.d/00-multus.conf"
CONF_DIR = "/etc/cni/multus/net.d/"
RESERVATIONS = "/run/cni/networks"  # of the pages; this process has a /run of its own


@pytest.fixture
def node(uplink, tmp_path):
    shutil.rmtree(RESERVATIONS, ignore_errors=True)
    made = InProcess(uplink, tmp_path)
    yield made
    made.close()


def lay(node: InProcess, page: str) -> Any:
    """Apply the page: its files over those of all pages, its manifests; returns the configuration of the runtime."""
    files = dict(FILE.findall((EXAMPLES / "README.md").read_text())) | dict(FILE.findall(page))
    for path, text in files.items():
        if path != RUNTIMES:
            assert path.startswith(CONF_DIR)
            node.write(f"net.d/{path.removeprefix(CONF_DIR)}", text)
    for number, text in enumerate(YAML.findall(page)):
        node.write(f"manifests/pods/{number}.yaml", text)
    return json.loads(files[RUNTIMES])


def pods(page: str) -> list[Pod]:
    return [pod for text in YAML.findall(page) for pod in manifest.parse("page.yaml", text.encode()).pods]


def table(text: str) -> list[dict[str, str]]:
    """The rows, by the words at the head of their columns; without a hardware address where the kernel chose it."""
    head, _, *cells = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in text.splitlines()]
    rows = [dict(zip(head, row, strict=True)) for row in cells]
    return [{key: cell for key, cell in row.items() if cell or key != "MAC"} for row in rows]


def found(ns: Any, status: Any) -> list[dict[str, str]]:
    """What the namespace holds, as a row for each NIC in the order of network-status."""
    links = {each["ifname"]: each for each in ns.ip("link", "show") if each["ifname"] != "lo"}
    assert sorted(links) == sorted(each["interface"] for each in status)
    routes = [each for family in ("-4", "-6") for each in ns.ip(family, "route", "show", "default")]
    return [
        {
            "NIC": nic,
            "kind": links[nic]["linkinfo"]["info_kind"],
            "MAC": links[nic]["address"],
            "addresses": ", ".join(addresses(ns, nic)),
            "default route": ", ".join(route["gateway"] for route in routes if route["dev"] == nic),
            "network": each["name"],
        }
        for each in status
        for nic in [each["interface"]]
    ]


def addresses(ns: Any, nic: str) -> list[str]:
    infos = [info for each in ns.ip("addr", "show", "dev", nic) for info in each["addr_info"]]
    return [f"{info['local']}/{info['prefixlen']}" for info in infos if info["scope"] == "global"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_the_pods_of_a_page_have_what_it_says(page, node, new_netns, snapshot):
    text = page.read_text()
    conf, wanted, refused = lay(node, text), dict(HAS.findall(text)), dict(REFUSED.findall(text))
    assert [f"{pod.namespace}/{pod.name}" for pod in pods(text)] == [*wanted, *refused]
    before, calls = {node.ns: snapshot(node.ns)}, []
    for pod in pods(text):
        shown, ns = f"{pod.namespace}/{pod.name}", new_netns("pod")
        args = f"IgnoreUnknown=1;K8S_POD_NAMESPACE={pod.namespace};K8S_POD_NAME={pod.name}"
        calls.append({"netns": ns.path, "container": shown.replace("/", "-"), "args": args})
        before[ns] = snapshot(ns)
        ok, printed = node.call("ADD", conf, **calls[-1])
        assert ok == (shown in wanted), printed
        if not ok:
            told = [f"{line['reason']}: {line['message']}" for line in node.log if line["event"] == "event"]
            assert told[-1] == " ".join(refused[shown].split())
            assert snapshot(ns) == before[ns]
            continue
        rows = table(wanted[shown])
        seen = found(ns, node.status(pod.namespace, pod.name))
        assert [{key: row[key] for key in want} for row, want in zip(seen, rows, strict=True)] == rows
    for call in calls:
        assert node.call("DEL", conf, **call) == (True, None)
    assert {ns: snapshot(ns) for ns in before} == before
    assert [line for line in node.log if line["level"] != "info" and line["event"] != "event"] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_lint_finds_no_fault_in_a_page(page, node, capsys):
    lay(node, page.read_text())
    with node.ns.entered():
        status = main(["networks", "lint", "--strict", "--quiet", "--complete", "--on-this-node", str(node.manifests)])
    assert (status, capsys.readouterr().out) == (0, "1 file: 0 errors, 0 warnings\n")


def test_the_page_of_pages_names_each():
    named = re.findall(r"\]\(([\w-]+\.md)\)", (EXAMPLES / "README.md").read_text())
    assert sorted(named) == [page.name for page in PAGES]
