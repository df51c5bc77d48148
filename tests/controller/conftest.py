from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from tests.ipam.pools.test_crds import schema
from tests.kube.api_objects import ENDPOINTS, POOLS, RESERVED, SUBNETS
from tests.kube.api_server import ApiServer
from tests.kube.cluster_bench import QUICK, Lines

from underlay.controller.app import Controller, Settings
from underlay.controller.election import Terms
from underlay.controller.writer import Pace
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


SETTINGS = Settings(
    "kube-system", "candidate", terms=Terms(lease=1.0, renew=0.7, retry=0.1), pace=Pace(gap=0.1), timing=QUICK,
    grace=0.2, shrink=0.3, settle=0.1, again=0.3, look=0.2, least=0.02,
)  # fmt: skip


@pytest.fixture
def controller(server: ApiServer, log: Lines, tmp_path: Path) -> Iterator[Callable[..., Controller]]:
    """Makes and starts controllers, in haste; what they have written fits the definitions in the end."""
    made: list[Controller] = []
    numbers = itertools.count()

    def make(**keys: Any) -> Controller:
        number = next(numbers)
        config = server.kubeconfig(tmp_path / f"kubeconfig-{number}")
        settings = replace(SETTINGS, identity=f"candidate-{number}", **keys)
        made.append(Controller(Kubeconfig(config, log), log, settings))
        made[-1].start()
        return made[-1]

    yield make
    for each in made:
        each.stop()
    assert "look failed" not in log.events()
    for resource in (POOLS, SUBNETS, RESERVED, ENDPOINTS):
        for each in server.objects.all(resource):
            jsonschema.validate(each, schema(each["kind"]))  # as strict as the API server, and stricter
