"""The PEP 517 backend: hatchling, and ziglang where a wheel for others is made, not for an editable install.

ziglang compiles the shim for both machine types, but it is 411 MB installed: too much to ask of a source checkout,
which builds the native shim alone with the system's compiler.
"""

from __future__ import annotations

from typing import Any

from hatchling.build import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
)
from hatchling.build import get_requires_for_build_wheel as hatchling_requires

import shim_build

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
]


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """What a wheel for others needs to be built."""
    return [*hatchling_requires(config_settings), f"ziglang=={shim_build.ZIG_VERSION}"]
