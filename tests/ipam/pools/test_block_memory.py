"""The store that the tests use keeps the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.ipam.pools.block_memory import MemoryStore, Truth
from tests.ipam.pools.block_store_contract import BlockStoreContract

if TYPE_CHECKING:
    from collections.abc import Callable

    from underlay.ipam.pools.block import BlockStore, Key


class TestMemoryStore(BlockStoreContract):
    @pytest.fixture
    def truth(self) -> Truth:
        return Truth()

    @pytest.fixture
    def store(self, truth: Truth) -> BlockStore:
        return MemoryStore(truth)

    @pytest.fixture
    def remove(self, truth: Truth) -> Callable[[Key], None]:
        return truth.remove
