"""Underlay networking for Kubernetes: one resident daemon per node behind a static CNI shim."""

__version__ = "0.1.0"  # pyproject.toml says the same; importlib.metadata would cost the daemon 15 ms and 1 MiB
