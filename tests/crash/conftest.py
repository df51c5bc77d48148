"""The engine's bench, for processes that are killed."""

from tests.delegate.conftest import bench, log

__all__ = ["bench", "log"]
