"""deploy/Containerfile builds of what the repository has, and pins what the wheel asks for.

That such an image runs as the manifests say is tests/e2e/test_daemon_set.py's to show.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from underlay import __version__

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "deploy" / "Containerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHON_OF = {"12": (3, 11), "13": (3, 13)}  # Debian's releases, packages.debian.org/python3
PINNED = dict(re.findall(r"(?m)^([\w-]+)==(\S+)", (ROOT / "deploy" / "requirements.txt").read_text()))


def instructions() -> list[tuple[str, str]]:
    """Word and rest of each, continued lines joined (Containerfile(5))."""
    plain = "\n".join(line for line in TEXT.splitlines() if not line.startswith("#"))
    lines = re.sub(r"\\\n\s*", "", plain).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def of(word: str) -> list[str]:
    return [rest for each, rest in instructions() if each == word]


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def test_debian_alone_is_pulled_and_its_python_is_new_enough() -> None:
    (base, *_) = of("ARG")
    name, _, release = base.removeprefix("DEBIAN=").rpartition(":")
    assert name == "docker.io/library/debian"
    assert {each.partition(" ")[0] for each in of("FROM")} == {"${DEBIAN}"}
    python = PYTHON_OF[release.removesuffix("-slim")]
    assert python >= numbers(PROJECT["requires-python"].removeprefix(">="))
    assert f"CPython {python[0]}.{python[1]}" in (ROOT / "deploy" / "requirements.txt").read_text()


def test_what_is_copied_is_there_or_what_make_wheel_makes_and_is_in_the_context() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [words for rest in of("COPY") if not rest.startswith("--from") for words in shlex.split(rest)[:-1]]
    assert set(copied) == let_in == {"deploy/requirements.txt", "dist/*.whl"}
    assert (ROOT / "deploy/requirements.txt").exists()
    assert "dist/*.whl" in (ROOT / "Makefile").read_text()
    assert Path(f"multus_underlay-{__version__}-py3-none-any.whl").match("multus_underlay-*.whl")
    assert "/dist/multus_underlay-*.whl" in TEXT


def test_what_is_called_is_on_the_path_and_what_the_manifests_call() -> None:
    (from_build,) = (rest for rest in of("COPY") if rest.startswith("--from=build"))
    assert from_build.split()[1:] == ["/opt/underlay", "/opt/underlay"]
    (path,) = (each.removeprefix("PATH=") for each in of("ENV"))
    assert path.split(":")[0] == "/opt/underlay/bin"
    assert of("ENTRYPOINT") == ['["underlay"]']
    assert list(PROJECT["scripts"]) == ["underlay"]
    called = set()
    for file in (ROOT / "deploy").rglob("*.yaml"):
        for each in yaml.safe_load_all(file.read_text()):
            spec = ((each or {}).get("spec") or {}).get("template", {}).get("spec", {})
            called |= {one["command"][0] for one in (*spec.get("initContainers", ()), *spec.get("containers", ()))}
    assert called == {"underlay", "sleep"}  # the second of Debian's coreutils, which are essential


def test_the_tag_that_is_shown_is_this_versions() -> None:
    assert set(re.findall(r"multus-underlay:(\S+)", TEXT)) == {__version__}


@pytest.mark.parametrize("wanted", PROJECT["dependencies"])
def test_the_pins_are_within_what_the_wheel_asks_for(wanted: str) -> None:
    name, *_ = re.split("[<>=]", wanted)
    bounds = re.findall(r"(>=|<)([\d.]+)", wanted)
    pinned = numbers(PINNED[name])
    assert len(bounds) == 2
    for sign, bound in bounds:
        assert pinned >= numbers(bound) if sign == ">=" else pinned < numbers(bound)


def test_every_pin_has_a_hash_for_each_machine_and_none_is_idle() -> None:
    entries = (ROOT / "deploy" / "requirements.txt").read_text().replace("\\\n", " ").splitlines()
    hashes = {line.split("==")[0]: line.count("--hash=sha256:") for line in entries if not line.startswith("#")}
    pure = {"h2", "hpack", "hyperframe"}  # the last two are what h2 asks for
    assert hashes == {**dict.fromkeys(pure, 1), "msgspec": 2, "pyyaml": 2}
