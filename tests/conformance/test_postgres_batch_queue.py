"""The PostgreSQL batch queue fulfils the contract."""

from __future__ import annotations

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


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    made = PostgresServer()
    try:
        made.start()
        yield made
    finally:
        made.close()


class TestPostgresBatchQueue(BatchQueueSuite):
    @pytest.fixture
    def schema(self) -> str:
        return f"q{uuid.uuid4().hex[:12]}"

    @pytest.fixture
    def open_queue(self, server: PostgresServer, schema: str) -> OpenQueue:
        async def open_it(limits: Limits = LIMITS) -> BatchQueue:
            return await PostgresBatchQueue.open(f"{server.url}?schema={schema}", limits)

        return open_it

    @pytest.fixture
    def advance(self, server: PostgresServer, schema: str) -> Advance:
        moved = 0.0

        async def move(seconds: float) -> None:
            nonlocal moved
            moved += seconds
            db = await asyncpg.connect(server.url)
            await db.execute(
                f"CREATE OR REPLACE FUNCTION {schema}.queue_now() RETURNS float8 LANGUAGE sql VOLATILE"
                f" RETURN extract(epoch FROM clock_timestamp())::float8 + {moved}"
            )
            await db.close()

        return move
