"""The batch queue of one router, in a SQLite file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

from chiron.batch.changes import Changes
from chiron.batch.contract import UNLIMITED, BatchQueue
from chiron.batch.filing import FileStore, NewView
from chiron.batch.records import (
    Batch,
    BatchKey,
    Claim,
    Lease,
    Limits,
    NewBatch,
    NewItem,
    Outcome,
    Result,
    Return,
    Session,
    Swept,
    TenantLimits,
    TenantUsage,
    Unit,
)
from chiron.batch.sqlite import batches, reading, receiving, sourced, sweeping, working
from chiron.batch.sqlite.clock import QueueClock
from chiron.batch.sqlite.file import WRITER_CACHE_KIB, QueueFile
from chiron.batch.sqlite.filestore import SqliteFileStore
from chiron.batch.sqlite.readers import Readers
from chiron.batch.sqlite.writer import Writer

DEFAULT_LIMITS = Limits()


class SqliteBatchQueue(BatchQueue):
    """For one router: another process that opens the same file is refused. Made by `open`.

    A session ends with the process that began it: what it held goes back as soon as the file is opened again.
    """

    def __init__(self, file: QueueFile, limits: Limits, clock: QueueClock) -> None:
        self._file = file
        self._clock = clock
        self._changes = Changes()
        self._writer = Writer(file.connect(WRITER_CACHE_KIB), file.path, clock, limits, self._changes.tell)
        self._readers = Readers(file.connect, file.path)
        self._files = SqliteFileStore(self._writer, self._readers)
        self._closed = False

    @property
    def files(self) -> FileStore:
        """See BatchQueue."""
        return self._files

    @classmethod
    async def open(
        cls, path: str | Path, limits: Limits = DEFAULT_LIMITS, clock: QueueClock | None = None
    ) -> SqliteBatchQueue:
        """Opens a queue, or makes an empty one.

        Args:
            path: the file; its folder exists. SQLite keeps two more beside it, `-wal` and `-shm`.
            limits: how much it takes.
            clock: for tests.

        Raises:
            RefusedError: held by another process, damaged, of a newer schema, no batch queue, not accessible.
            UnavailableError: the disk is full, or fails.
        """
        own = clock or QueueClock()
        return cls(await asyncio.to_thread(QueueFile, str(path), own), limits, own)

    async def create(self, batch: NewBatch, limits: TenantLimits = UNLIMITED) -> Batch:
        """See BatchQueue."""
        return await self._writer.write(partial(batches.create, batch=batch, limits=limits))

    async def append(
        self, batch: BatchKey, items: Sequence[NewItem], limits: TenantLimits = UNLIMITED
    ) -> int:
        """See BatchQueue."""
        return await self._writer.write(partial(receiving.append, key=batch, items=items, limits=limits))

    async def seal(self, batch: BatchKey, items: int) -> Batch:
        """See BatchQueue."""
        return await self._writer.write(partial(batches.seal, key=batch, items=items))

    async def refuse(self, batch: BatchKey, refusal: str) -> Batch:
        """See BatchQueue."""
        return await self._writer.write(partial(sourced.refuse, key=batch, refusal=refusal))

    async def discard(self, batch: BatchKey) -> None:
        """See BatchQueue."""
        await self._writer.write(partial(batches.discard, key=batch))

    async def get(self, batch: BatchKey) -> Batch:
        """See BatchQueue."""
        return await self._readers.read(partial(batches.read, key=batch))

    async def page(
        self, tenant: str, *, limit: int, token: str = "", open_only: bool = False
    ) -> tuple[Sequence[Batch], str]:
        """See BatchQueue."""
        return await self._readers.read(
            partial(reading.page, tenant=tenant, limit=limit, token=token, open_only=open_only)
        )

    async def sourced(self, tenant: str, *, limit: int, after: str = "") -> Sequence[Batch]:
        """See BatchQueue."""
        return await self._readers.read(partial(sourced.page, tenant=tenant, limit=limit, after=after))

    async def results(self, batch: BatchKey, *, after: int, limit: int, most_bytes: int) -> Sequence[Result]:
        """See BatchQueue."""
        return await self._readers.read(
            partial(reading.results, key=batch, after=after, limit=limit, most_bytes=most_bytes)
        )

    async def result(self, batch: BatchKey, custom_id: str) -> Result | None:
        """See BatchQueue."""
        return await self._readers.read(partial(reading.result, key=batch, custom_id=custom_id))

    async def usage(self, tenant: str | None = None) -> Sequence[TenantUsage]:
        """See BatchQueue."""
        return await self._readers.read(partial(reading.usage, tenant=tenant))

    async def units(self) -> Sequence[Unit]:
        """See BatchQueue."""
        return await self._readers.read(reading.units)

    async def now(self) -> float:
        """See BatchQueue."""
        return self._clock.now()

    def changes(self) -> AsyncIterator[frozenset[BatchKey]]:
        """See BatchQueue."""
        return self._changes.watch()

    async def cancel(self, batch: BatchKey) -> Batch:
        """See BatchQueue."""
        return await self._writer.write(partial(batches.cancel, key=batch))

    async def delete(self, batch: BatchKey) -> None:
        """See BatchQueue."""
        await self._writer.write(partial(batches.delete, key=batch))

    async def adopt(self, hold_s: float, limit: int) -> Sequence[BatchKey]:
        """See BatchQueue."""
        now = self._clock.now()
        if not await self._readers.read(partial(sourced.any_unfinished, now=now, hold_s=hold_s)):
            return []
        return await self._writer.write(partial(sourced.adopt, hold_s=hold_s, limit=limit))

    async def hold(self, batches: Sequence[BatchKey]) -> None:
        """See BatchQueue."""
        await self._writer.write(partial(sourced.hold, keys=batches))

    async def finalize(self, batch: BatchKey, views: Sequence[NewView]) -> Batch:
        """See BatchQueue."""
        return await self._writer.write(partial(sourced.finalize, key=batch, views=views))

    async def begin_session(self, owner: str, ttl_s: float) -> Session:
        """See BatchQueue."""
        return await self._writer.write(partial(working.begin_session, owner=owner, ttl_s=ttl_s))

    async def renew(self, session: Session) -> None:
        """See BatchQueue."""
        await self._writer.write(partial(working.renew, session=session))

    async def end_session(self, session: Session) -> None:
        """See BatchQueue."""
        await self._writer.write(partial(working.end_session, session=session))

    async def claim(self, session: Session, batch: BatchKey, model: str, limit: int) -> Sequence[Claim]:
        """See BatchQueue."""
        return await self._writer.write(
            partial(working.claim, session=session, key=batch, model=model, limit=limit)
        )

    async def checkpoint(self, session: Session, states: Sequence[tuple[Lease, bytes]]) -> Sequence[Lease]:
        """See BatchQueue."""
        return await self._writer.write(partial(working.checkpoint, session=session, states=states))

    async def finish(self, session: Session, outcomes: Sequence[Outcome]) -> Sequence[Lease]:
        """See BatchQueue."""
        return await self._writer.write(partial(working.finish, outcomes=outcomes))

    async def put_back(self, session: Session, returns: Sequence[Return]) -> Sequence[Lease]:
        """See BatchQueue."""
        return await self._writer.write(partial(working.put_back, session=session, returns=returns))

    async def sweep(self) -> Swept:
        """See BatchQueue."""
        return await self._writer.write(sweeping.sweep)

    async def close(self) -> None:
        """See BatchQueue."""
        if self._closed:
            return
        self._closed = True
        self._changes.close()
        await self._writer.close()
        await self._readers.close()
        await asyncio.to_thread(self._file.close)
