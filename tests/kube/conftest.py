from __future__ import annotations

import pytest
from tests.kube.api_server import ApiServer
from tests.kube.cluster_bench import Benches


@pytest.fixture
def server():
    with ApiServer() as server:
        yield server


@pytest.fixture
def benches(tmp_path):
    made = Benches(tmp_path)
    yield made
    made.close()


@pytest.fixture
def cluster(server, benches):
    """A cluster source that listens to the server."""
    return benches.make(server)
