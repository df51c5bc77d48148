"""What other clients put into the tests' API server, and what is to be found there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.controller.pictures import blocks
from tests.kube.api_objects import BLOCKS, POOLS

from underlay.kube import block_objects

if TYPE_CHECKING:
    from tests.kube.api_server import ApiServer


def put_blocks(server: ApiServer, *owned: Any) -> None:
    for block in blocks(*owned):
        server.put(BLOCKS, block_objects.encode(block))


def a_pool(server: ApiServer, name: str = "p", **spec: Any) -> None:
    server.put(POOLS, {"metadata": {"name": name, "generation": 1},
                       "spec": {"subnet": "10.0.0.0/24", "ips": ["10.0.0.10-10.0.0.19"], **spec}})  # fmt: skip


def status(server: ApiServer, name: str = "p") -> dict[str, Any]:
    return (server.get(POOLS, "", name) or {}).get("status") or {}


def owned_pools(server) -> list[dict[str, Any]]:
    return [each for each in server.objects.all(POOLS) if each["metadata"]["name"].startswith("auto")]
