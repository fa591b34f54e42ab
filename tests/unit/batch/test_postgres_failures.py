"""What goes wrong between a queue and its PostgreSQL is told as the contract tells it: no router dies."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from chiron.batch.contract import UnavailableError
from chiron.batch.postgres.pool import Pool
from chiron.batch.records import Limits

LOST = (
    asyncpg.InternalClientError("cannot switch to state 15; another operation (2) is in progress"),
    asyncpg.ProtocolError("got no expected answer"),
    asyncpg.InternalServerError("cache lookup failed"),
    asyncpg.PostgresSystemError("could not open a file"),
    asyncpg.InFailedSQLTransactionError("current transaction is aborted"),
    asyncpg.ReadOnlySQLTransactionError("cannot execute INSERT in a read-only transaction"),
    asyncpg.IdleInTransactionSessionTimeoutError("terminating connection"),
    asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
)


class Losing:
    """A pool whose connections are lost while they are given back."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    @asynccontextmanager
    async def acquire(self, *, timeout: float) -> AsyncIterator[Any]:
        yield Connection()
        raise self._error


class Connection:
    @asynccontextmanager
    async def transaction(self, **_: object) -> AsyncIterator[None]:
        yield

    async def fetchval(self, *_: object) -> float:
        return 0.0


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
async def test_a_connection_that_is_lost_as_it_is_given_back_is_the_stores_failure(error: Exception) -> None:
    losing: Any = Losing(error)
    pool = Pool(losing, "postgresql://127.0.0.1/q", "s", Limits(), "1/1")

    async def nothing(_: object) -> None:
        pass

    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1") as read:
        await pool.read(nothing)
    assert not read.value.uncertain
    with pytest.raises(UnavailableError) as written:
        await pool.write(nothing, lambda _: None)
    assert written.value.uncertain, "it may have been committed"
