"""The services of systemd call what there is."""

from __future__ import annotations

from configparser import RawConfigParser
from typing import TYPE_CHECKING

import pytest
from tests.deploy.test_manifests import DEPLOY

from underlay.cli.main import _parser

if TYPE_CHECKING:
    from pathlib import Path

UNITS = sorted(DEPLOY.glob("*.service"))


@pytest.mark.parametrize("path", UNITS, ids=[path.name for path in UNITS])
def test_a_unit_starts_the_program_with_options_that_it_has(path: Path) -> None:
    unit = RawConfigParser(strict=False)
    unit.read(path)
    program, *arguments = unit["Service"]["ExecStart"].split()
    assert program == "/usr/local/bin/underlay"
    _parser(arguments).parse_args(arguments)
    assert unit["Service"]["Restart"] == "always"
    assert unit["Install"]["WantedBy"] == "multi-user.target"
