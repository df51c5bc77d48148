"""docs/lint.md shows what the command prints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from underlay.multus.findings import Severity
from underlay.webhook import admission, server

PAGE = (Path(__file__).parents[2] / "docs" / "lint.md").read_text()
BLOCKS = re.findall(r"(?ms)^```(\w+)\n(.*?)^```", PAGE)


def test_the_output_of_the_page_is_that_of_the_command(tmp_path):
    (manifest,) = [body for language, body in BLOCKS if language == "yaml"]
    (tmp_path / "networks.yaml").write_text(manifest)
    shown = next(body for language, body in BLOCKS if language == "text")
    command = [sys.executable, "-m", "underlay", "networks", "lint", "networks.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert shown == f"$ underlay networks lint networks.yaml\n{done.stdout}$ echo $?\n{done.returncode}\n"


def test_the_page_names_every_severity_and_the_limits_of_the_code():
    assert re.findall(r"(?m)^\| `(\w+)` \|", PAGE) == [str(each) for each in Severity]
    assert f"| body of a review | {server.BODY_BYTES >> 20} MiB |" in PAGE
    assert f"| {admission.WARNINGS}, {admission.WARNING_LENGTH} characters |" in PAGE


def test_the_command_that_fills_in_the_authority_finds_what_it_replaces():
    manifest = (Path(__file__).parents[2] / "deploy" / "webhook.yaml").read_text()
    assert manifest.count('caBundle: ""') == 3
    assert 's/caBundle: \\"\\"/' in PAGE
