"""Keeps files in the queue's SQLite file."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

from chiron.batch.filing import UNLIMITED, FileHead, FileKey, FileKind, FileStore, StoredFile
from chiron.batch.records import TenantLimits
from chiron.batch.sqlite import filing
from chiron.batch.sqlite.readers import Readers
from chiron.batch.sqlite.writer import Writer


class SqliteFileStore(FileStore):
    """On the connections of a queue, which closes them."""

    def __init__(self, writer: Writer, readers: Readers) -> None:
        self._writer = writer
        self._readers = readers

    async def begin(self, file: FileKey) -> None:
        """See FileStore."""
        await self._writer.write(partial(filing.begin, key=file))

    async def write(self, file: FileKey, chunk: int, data: bytes, limits: TenantLimits = UNLIMITED) -> None:
        """See FileStore."""
        await self._writer.write(partial(filing.write, key=file, chunk=chunk, data=data, limits=limits))

    async def complete(self, file: FileKey, head: FileHead, chunks: int) -> StoredFile:
        """See FileStore."""
        return await self._writer.write(partial(filing.complete, key=file, head=head, chunks=chunks))

    async def get(self, file: FileKey) -> StoredFile:
        """See FileStore."""
        return await self._readers.read(partial(filing.get, key=file))

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
        return await self._readers.read(
            partial(filing.page, tenant=tenant, limit=limit, after=after, ascending=ascending, kinds=kinds)
        )

    async def read(self, file: FileKey, chunk: int) -> bytes:
        """See FileStore."""
        return await self._readers.read(partial(filing.read, key=file, chunk=chunk))

    async def delete(self, file: FileKey) -> None:
        """See FileStore."""
        await self._writer.write(partial(filing.delete, key=file))
