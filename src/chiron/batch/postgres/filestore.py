"""Keeps files in the queue's PostgreSQL schema."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import TypeVar

from chiron.batch.filing import UNLIMITED, FileHead, FileKey, FileKind, FileStore, StoredFile
from chiron.batch.postgres import filing
from chiron.batch.postgres.pool import Pool
from chiron.batch.postgres.transaction import Transaction
from chiron.batch.records import TenantLimits

_T = TypeVar("_T")


class PostgresFileStore(FileStore):
    """On the connections of a queue, which closes them."""

    def __init__(self, pool: Pool, committed: Callable[[Transaction], None]) -> None:
        """committed: is called with each write once it is durable."""
        self._pool = pool
        self._committed = committed

    async def begin(self, file: FileKey) -> None:
        """See FileStore."""
        await self._write(partial(filing.begin, key=file))

    async def write(self, file: FileKey, chunk: int, data: bytes, limits: TenantLimits = UNLIMITED) -> None:
        """See FileStore."""
        await self._write(partial(filing.write, key=file, chunk=chunk, data=data, limits=limits))

    async def complete(self, file: FileKey, head: FileHead, chunks: int) -> StoredFile:
        """See FileStore."""
        await self._write(partial(filing.complete, key=file, head=head, chunks=chunks))
        return await self.get(file)

    async def get(self, file: FileKey) -> StoredFile:
        """See FileStore."""
        return await self._pool.read(partial(filing.get, key=file))

    async def page(
        self,
        tenant: str,
        *,
        limit: int,
        after: str = "",
        ascending: bool = False,
        kinds: Collection[FileKind] = tuple(FileKind),
    ) -> Sequence[StoredFile]:
        """See FileStore."""
        return await self._pool.read(
            partial(filing.page, tenant=tenant, limit=limit, after=after, ascending=ascending, kinds=kinds)
        )

    async def read(self, file: FileKey, chunk: int) -> bytes:
        """See FileStore."""
        return await self._pool.read(partial(filing.read, key=file, chunk=chunk))

    async def delete(self, file: FileKey) -> None:
        """See FileStore."""
        await self._write(partial(filing.delete, key=file))

    async def _write(self, work: Callable[[Transaction], Awaitable[_T]]) -> _T:
        return await self._pool.write(work, self._committed)
