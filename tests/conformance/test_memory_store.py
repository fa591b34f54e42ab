"""The in-memory store fulfils the contract."""

from __future__ import annotations

import pytest

from chiron.store import MemoryStore, Store
from tests.conformance.store_suite import DECISIONS_KEPT, HISTORY_KEPT, MakeStore, StoreSuite


class TestMemoryStore(StoreSuite):
    @pytest.fixture
    def make_store(self) -> MakeStore:
        async def make() -> Store:
            return MemoryStore(decisions_kept=DECISIONS_KEPT, history_kept=HISTORY_KEPT)

        return make

    async def test_a_term_of_a_new_process_is_greater(self) -> None:
        earlier = await MemoryStore(clock_ms=lambda: 1_000).acquire_term()
        assert await MemoryStore(clock_ms=lambda: 1_001).acquire_term() > earlier
