"""The batch queue that several routers share, in PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from chiron.batch.changes import Changes
from chiron.batch.contract import UNLIMITED, BatchQueue
from chiron.batch.filing import FileStore, NewView
from chiron.batch.postgres import reading, receiving, sourced, sweeping, working
from chiron.batch.postgres.filestore import PostgresFileStore
from chiron.batch.postgres.notices import Notices, channel_of
from chiron.batch.postgres.pool import Pool
from chiron.batch.postgres.transaction import Transaction
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

DEFAULT_LIMITS = Limits()
_T = TypeVar("_T")


class PostgresBatchQueue(BatchQueue):
    """For any number of routers. Deadlines and leases go by the database's clock. Made by `open`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._changes = Changes()
        self._notices = Notices(pool.connection, channel_of(pool.schema), self._heard)
        self._files = PostgresFileStore(pool, self._committed)
        self._closed = False

    @property
    def files(self) -> FileStore:
        """See BatchQueue."""
        return self._files

    @classmethod
    async def open(cls, url: str, limits: Limits = DEFAULT_LIMITS) -> PostgresBatchQueue:
        """Opens a queue, or makes an empty one.

        Args:
            url: `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`, with asyncpg's parameters; `schema` names
                the schema in which the tables lie, `chiron_batch` by default.
            limits: how much it takes.

        Raises:
            RefusedError: not allowed, no such database, a schema of a newer version or of something else.
            UnavailableError: it cannot be reached, or takes no writes.
        """
        return cls(await Pool.open(url, limits))

    @property
    def shared_name(self) -> str:
        """See BatchQueue."""
        return f"postgresql/{self._pool.name}"

    async def _write(self, work: Callable[[Transaction], Awaitable[_T]]) -> _T:
        return await self._pool.write(work, self._committed)

    def _committed(self, tx: Transaction) -> None:
        if tx.changed:
            self._changes.tell(set(tx.changed))
            if not tx.told:
                self._notices.tell(tx.changed)

    def _heard(self, keys: set[BatchKey] | None) -> None:
        if keys is None:
            self._changes.tell_any()
        else:
            self._changes.tell(keys)

    async def create(self, batch: NewBatch, limits: TenantLimits = UNLIMITED) -> Batch:
        """See BatchQueue."""
        return await self._write(partial(receiving.create, batch=batch, limits=limits))

    async def append(
        self, batch: BatchKey, items: Sequence[NewItem], limits: TenantLimits = UNLIMITED
    ) -> int:
        """See BatchQueue."""
        return await self._write(partial(receiving.append, key=batch, items=items, limits=limits))

    async def seal(self, batch: BatchKey, items: int) -> Batch:
        """See BatchQueue."""
        await self._write(partial(receiving.seal, key=batch, items=items))
        return await self.get(batch)

    async def refuse(self, batch: BatchKey, refusal: str) -> Batch:
        """See BatchQueue."""
        await self._write(partial(sourced.refuse, key=batch, refusal=refusal))
        return await self.get(batch)

    async def discard(self, batch: BatchKey) -> None:
        """See BatchQueue."""
        await self._write(partial(receiving.discard, key=batch))

    async def get(self, batch: BatchKey) -> Batch:
        """See BatchQueue."""
        return await self._pool.read(partial(reading.batch, key=batch))

    async def page(
        self, tenant: str, *, limit: int, token: str = "", open_only: bool = False
    ) -> tuple[Sequence[Batch], str]:
        """See BatchQueue."""
        return await self._pool.read(
            partial(reading.page, tenant=tenant, limit=limit, token=token, open_only=open_only)
        )

    async def sourced(self, tenant: str, *, limit: int, after: str = "") -> Sequence[Batch]:
        """See BatchQueue."""
        return await self._pool.read(partial(sourced.page, tenant=tenant, limit=limit, after=after))

    async def results(self, batch: BatchKey, *, after: int, limit: int, most_bytes: int) -> Sequence[Result]:
        """See BatchQueue."""
        return await self._pool.read(
            partial(reading.results, key=batch, after=after, limit=limit, most_bytes=most_bytes)
        )

    async def result(self, batch: BatchKey, custom_id: str) -> Result | None:
        """See BatchQueue."""
        return await self._pool.read(partial(reading.result, key=batch, custom_id=custom_id))

    async def usage(self, tenant: str | None = None) -> Sequence[TenantUsage]:
        """See BatchQueue."""
        return await self._pool.read(partial(reading.usage, tenant=tenant))

    async def units(self) -> Sequence[Unit]:
        """See BatchQueue."""
        return await self._pool.read(reading.units)

    async def now(self) -> float:
        """See BatchQueue."""
        return await self._pool.read(lambda db: db.fetchval("SELECT queue_now()"))

    def changes(self) -> AsyncIterator[frozenset[BatchKey]]:
        """See BatchQueue."""
        return self._changes.watch()

    async def cancel(self, batch: BatchKey) -> Batch:
        """See BatchQueue."""
        await self._write(partial(receiving.cancel, key=batch))
        return await self.get(batch)

    async def delete(self, batch: BatchKey) -> None:
        """See BatchQueue."""
        await self._write(partial(receiving.delete, key=batch))

    async def adopt(self, hold_s: float, limit: int) -> Sequence[BatchKey]:
        """See BatchQueue."""
        if not await self._pool.read(partial(sourced.any_unfinished, hold_s=hold_s)):
            return []
        return await self._write(partial(sourced.adopt, hold_s=hold_s, limit=limit))

    async def hold(self, batches: Sequence[BatchKey]) -> None:
        """See BatchQueue."""
        await self._write(partial(sourced.hold, keys=batches))

    async def finalize(self, batch: BatchKey, views: Sequence[NewView]) -> Batch:
        """See BatchQueue."""
        await self._write(partial(sourced.finalize, key=batch, views=views))
        return await self.get(batch)

    async def begin_session(self, owner: str, ttl_s: float) -> Session:
        """See BatchQueue."""
        return await self._write(partial(working.begin_session, owner=owner, ttl_s=ttl_s))

    async def renew(self, session: Session) -> None:
        """See BatchQueue."""
        await self._write(partial(working.renew, session=session))

    async def end_session(self, session: Session) -> None:
        """See BatchQueue."""
        await self._write(partial(working.end_session, session=session))

    async def claim(self, session: Session, batch: BatchKey, model: str, limit: int) -> Sequence[Claim]:
        """See BatchQueue."""
        return await self._write(partial(working.claim, session=session, key=batch, model=model, limit=limit))

    async def checkpoint(self, session: Session, states: Sequence[tuple[Lease, bytes]]) -> Sequence[Lease]:
        """See BatchQueue."""
        return await self._write(partial(working.checkpoint, session=session, states=states))

    async def finish(self, session: Session, outcomes: Sequence[Outcome]) -> Sequence[Lease]:
        """See BatchQueue."""
        return await self._write(partial(working.finish, outcomes=outcomes))

    async def put_back(self, session: Session, returns: Sequence[Return]) -> Sequence[Lease]:
        """See BatchQueue."""
        return await self._write(partial(working.put_back, session=session, returns=returns))

    async def sweep(self) -> Swept:
        """See BatchQueue."""
        return await sweeping.sweep(self._write)

    async def close(self) -> None:
        """See BatchQueue."""
        if self._closed:
            return
        self._closed = True
        self._changes.close()
        await self._notices.close()
        await self._pool.close()
