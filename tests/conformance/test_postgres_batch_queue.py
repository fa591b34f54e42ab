"""The PostgreSQL batch queue fulfils the contract."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import asyncpg
import pytest

from chiron.batch.contract import BatchQueue
from chiron.batch.postgres import PostgresBatchQueue
from chiron.batch.records import Limits
from tests.conformance.batch_cases import LIMITS, Advance, OpenQueue
from tests.conformance.batch_suite import BatchQueueSuite
from tests.support.postgres_server import PostgresServer

# Every call is a transaction of a server that other tests have the processor with.
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    made = PostgresServer()
    try:
        made.start()
        yield made
    finally:
        made.close()


class StandingClock:
    """The clock of one queue in the database, which moves only when it is told to."""

    def __init__(self, url: str, schema: str) -> None:
        self._url = url
        self._schema = schema
        self._now = time.time()
        self._set = False

    async def take_over(self) -> None:
        """From now on the queue, which is there, goes by this clock."""
        if not self._set:
            await self.move(0.0)
            self._set = True

    async def move(self, seconds: float) -> None:
        self._now += seconds
        db = await asyncpg.connect(self._url)
        await db.execute(
            f"CREATE OR REPLACE FUNCTION {self._schema}.queue_now() RETURNS float8 LANGUAGE sql VOLATILE"
            f" RETURN {self._now!r}::float8"
        )
        await db.close()


class TestPostgresBatchQueue(BatchQueueSuite):
    @pytest.fixture
    def schema(self) -> str:
        return f"q{uuid.uuid4().hex[:12]}"

    @pytest.fixture
    def clock(self, server: PostgresServer, schema: str) -> StandingClock:
        return StandingClock(server.url, schema)

    @pytest.fixture
    def open_queue(self, server: PostgresServer, schema: str, clock: StandingClock) -> OpenQueue:
        async def open_it(limits: Limits = LIMITS) -> BatchQueue:
            queue = await PostgresBatchQueue.open(f"{server.url}?schema={schema}", limits)
            await clock.take_over()
            return queue

        return open_it

    @pytest.fixture
    def advance(self, clock: StandingClock) -> Advance:
        return clock.move
