"""The configuration file, followed: a ConfigMap that is changed changes the resources, without anybody's doing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from underlay.device_plugin import configuration
from underlay.errors import IOFailure, UnderlayError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from underlay.device_plugin.selection import Resource
    from underlay.kube.source import Log


class Followed:
    """A configuration file. ``resources`` are those of its last content without errors."""

    def __init__(self, path: str, prefix: str, log: Log) -> None:
        """Warnings are logged. Raises InvalidConfig for its first fault, DecodeFailure, IOFailure."""
        self._path = path
        self._prefix = prefix
        self._log = log
        self._content = read(path)
        self.resources: Sequence[Resource] = self._parsed(self._content)

    def changed(self) -> bool:
        """Whether the file says something else than the last time, and something that can be served.

        What cannot be read or served is logged, and the former resources stay.
        """
        try:
            content = read(self._path)
            if content == self._content:
                return False
            self._content = content
            resources = self._parsed(content)
        except UnderlayError as error:
            self._log("error", "configuration not taken over", cause=error.message, hint=error.hint)
            return False
        same = resources == self.resources
        self.resources = resources
        return not same

    def _parsed(self, content: bytes) -> list[Resource]:
        resources, findings = configuration.parse(content, self._path, self._prefix)
        configuration.refuse(findings)
        for each in findings:
            self._log(
                "warn", "configuration", file=each.subject.file, field=each.field, problem=each.message, hint=each.hint
            )
        return resources


def read(path: str) -> bytes:
    """A configuration's content. Raises IOFailure."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise IOFailure(
            f"cannot read {path}: {error.strerror}", hint="Correct the file's name, or who may read it."
        ) from error
