"""The configurations that a container runtime reads: which there are, in its order, and whom they call."""

from __future__ import annotations

import os

import msgspec

DIRECTORY = "/etc/cni/net.d"
_ENDINGS = (".conf", ".conflist", ".json")


class _Plugin(msgspec.Struct, frozen=True):
    type: str = ""


class Calls(_Plugin, frozen=True, rename="camel"):
    """What of a CNI configuration, or a list of them, says who is called."""

    plugins: tuple[_Plugin, ...] = ()
    cluster_network: str = ""

    @property
    def types(self) -> set[str]:
        """The plugins that are called first hand."""
        return {self.type, *(plugin.type for plugin in self.plugins)} - {""}


def listed(directory: str) -> list[str]:
    """Paths, in the order in which a runtime reads them: it takes the first. None where there is no directory."""
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    return sorted(f"{directory}/{name}" for name in names if name.endswith(_ENDINGS) and not name.startswith("."))


def calls(path: str) -> Calls | None:
    """Whom the file calls, however wrong the rest of it is; None where it is no such JSON, or cannot be read."""
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(), type=Calls)
    except (OSError, msgspec.MsgspecError):
        return None
