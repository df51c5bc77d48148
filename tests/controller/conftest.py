from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from tests.kube.api_server import ApiServer
from tests.kube.cluster_bench import Lines

from underlay.kube.client import Client
from underlay.kube.kubeconfig import Kubeconfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server


@pytest.fixture
def log() -> Lines:
    return Lines()


@pytest.fixture
def client(server: ApiServer, log: Lines, tmp_path: Path) -> Iterator[Callable[[], Client]]:
    """Makes clients of the server, each with connections of its own."""
    numbers = itertools.count()
    made: list[Client] = []

    def make() -> Client:
        config = server.kubeconfig(tmp_path / f"kubeconfig-{next(numbers)}")
        made.append(Client(Kubeconfig(config, log), "tests"))
        return made[-1]

    yield make
    for each in made:
        each.close()
