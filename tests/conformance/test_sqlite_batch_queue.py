"""The SQLite batch queue fulfils the contract."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chiron.batch.contract import BatchQueue
from chiron.batch.records import Limits
from chiron.batch.sqlite import QueueClock, SqliteBatchQueue
from tests.conformance.batch_cases import LIMITS, Advance, OpenQueue
from tests.conformance.batch_suite import BatchQueueSuite


class ManualClock:
    """Stands still until it is told to move."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


class TestSqliteBatchQueue(BatchQueueSuite):
    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    @pytest.fixture
    def folder(self) -> Iterator[Path]:
        # In memory where that can be: none of these tests depends on what the disk does.
        memory = Path("/dev/shm")
        with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as made:
            yield Path(made)

    @pytest.fixture
    def open_queue(self, folder: Path, clock: ManualClock) -> OpenQueue:
        async def open_it(limits: Limits = LIMITS) -> BatchQueue:
            return await SqliteBatchQueue.open(folder / "queue.db", limits, QueueClock(clock, clock))

        return open_it

    @pytest.fixture
    def advance(self, clock: ManualClock) -> Advance:
        async def move(seconds: float) -> None:
            clock.now += seconds

        return move
