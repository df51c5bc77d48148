"""Hatchling's build hook: puts the shim's static binaries into the wheel as underlay/_shim/underlay-shim-<machine>."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).with_name("shim")))
import shim_build


class ShimHook(BuildHookInterface[Any]):
    """Builds both binaries for a wheel, and only the native one, in the tree, for an editable install."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects files; ``version`` is "standard" or "editable"."""
        folder = Path(self.root, "build", "shim")
        if version == "editable":
            self._build_native(folder / "underlay-shim")
            return
        for target in shim_build.TARGETS:
            self.app.display_info(f"building the shim for {target}")
            binary = shim_build.build(folder / f"underlay-shim-{target}", target)
            build_data["force_include"][str(binary)] = f"underlay/_shim/{binary.name}"

    def _build_native(self, out: Path) -> None:
        try:
            shim_build.build(out)
        except shim_build.NoCompiler as fault:
            # The Python part is of use without it (`underlay plugin`), and `underlay install` says what is missing.
            self.app.display_warning(str(fault))
