"""Reads, on threads of their own and beside the writer: each sees one state of the file."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from chiron.batch.contract import UnavailableError
from chiron.batch.sqlite.failures import translate

T = TypeVar("T")

THREADS = 3


class Readers:
    """A few threads with a connection each."""

    def __init__(self, connect: Callable[[], sqlite3.Connection], path: str) -> None:
        self._connect = connect
        self._path = path
        self._own = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._pool = ThreadPoolExecutor(THREADS, "batch-queue-reader")
        self._closed = False

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Raises UnavailableError, RefusedError, and what `query` raises."""
        if self._closed:
            raise UnavailableError(f"batch queue {self._path} is closed")
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._read, query)

    async def close(self) -> None:
        """Ends the threads once their reads have ended."""
        self._closed = True
        await asyncio.to_thread(self._pool.shutdown)
        for db in self._connections:
            db.close()
        self._connections.clear()

    def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        try:
            db = self._db()
            db.execute("BEGIN")
            try:
                return query(db)
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise translate(error, self._path) from error

    def _db(self) -> sqlite3.Connection:
        db: sqlite3.Connection | None = getattr(self._own, "db", None)
        if db is None:
            db = self._own.db = self._connect()
            db.execute("PRAGMA query_only = ON")
            self._connections.append(db)
        return db
