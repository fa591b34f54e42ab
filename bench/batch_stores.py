"""The stores that a batch queue is measured in: a file of SQLite, or a PostgreSQL server that syncs."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

import asyncpg
import psutil

from chiron.batch.contract import BatchQueue
from chiron.batch.postgres import PostgresBatchQueue
from chiron.batch.records import Limits
from chiron.batch.sqlite import SqliteBatchQueue
from tests.support.postgres_server import PostgresServer

STORES = ("sqlite", "postgres")
NO_LIMITS = Limits(items_per_batch=0, queued_items=0)


class Store(abc.ABC):
    """Queues by name, each with nothing in it at first."""

    @abc.abstractmethod
    def url(self, name: str) -> str:
        """A queue's address, as a router is told it."""

    @abc.abstractmethod
    async def open(self, name: str) -> BatchQueue:
        """Opens a queue without limits."""

    @abc.abstractmethod
    async def size(self, name: str) -> int:
        """Bytes on the disk."""

    def server_cpu_s(self) -> float:
        """CPU time of the store's own processes so far."""
        return 0.0


class SqliteStore(Store):
    """Files in a folder."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}.db"

    def url(self, name: str) -> str:
        """See Store."""
        return f"sqlite:{self._path(name)}"

    async def open(self, name: str) -> BatchQueue:
        """See Store."""
        return await SqliteBatchQueue.open(self._path(name), NO_LIMITS)

    async def size(self, name: str) -> int:
        """See Store."""
        return await asyncio.to_thread(os.path.getsize, self._path(name))


class PostgresStore(Store):
    """Schemas in one server's database."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server

    def url(self, name: str) -> str:
        """See Store."""
        return f"{self._server.url}?schema={name}"

    async def open(self, name: str) -> BatchQueue:
        """See Store."""
        return await PostgresBatchQueue.open(self.url(name), NO_LIMITS)

    async def size(self, name: str) -> int:
        """See Store."""
        db = await asyncpg.connect(self._server.url)
        try:
            found = await db.fetchval(
                "SELECT sum(pg_total_relation_size(oid))::int8 FROM pg_class"
                " WHERE relnamespace = to_regnamespace($1) AND relkind = 'r'",
                name,
            )
        finally:
            await db.close()
        return int(found)

    def server_cpu_s(self) -> float:
        """Those that have ended count with the first process, which waits for them."""
        first = psutil.Process(self._server.pid)
        own = first.cpu_times()
        spent = own.user + own.system + own.children_user + own.children_system
        for one in first.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                used = one.cpu_times()
                spent += used.user + used.system
        return spent


@contextlib.asynccontextmanager
async def store_of(kind: str, folder: str) -> AsyncIterator[Store]:
    """One of STORES; what it keeps is lost with it."""
    if kind == "sqlite":
        yield SqliteStore(folder)
        return
    server = await asyncio.to_thread(PostgresServer, durable=True)
    try:
        await asyncio.to_thread(server.start)
        yield PostgresStore(server)
    finally:
        await asyncio.to_thread(server.close)
