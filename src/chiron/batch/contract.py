"""The contract that every batch queue fulfils; tests/conformance/batch_suite.py checks it."""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Sequence

from chiron.batch.errors import (
    BatchExistsError,
    BatchQueueError,
    BatchStateError,
    IncompleteError,
    ItemError,
    QueueFullError,
    RefusedError,
    SessionLostError,
    TenantFullError,
    UnavailableError,
    UnknownBatchError,
)
from chiron.batch.filing import FileStore, NewView
from chiron.batch.records import (
    Batch,
    BatchKey,
    Claim,
    Lease,
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

__all__ = [
    "UNLIMITED",
    "BatchExistsError",
    "BatchQueue",
    "BatchQueueError",
    "BatchStateError",
    "IncompleteError",
    "ItemError",
    "QueueFullError",
    "RefusedError",
    "SessionLostError",
    "TenantFullError",
    "UnavailableError",
    "UnknownBatchError",
]

UNLIMITED = TenantLimits()


class BatchQueue(abc.ABC):
    """Batches, their items and results. What a call has done is on disk when it returns.

    Any method MAY raise UnavailableError; a write that is made again after it MUST have happened once. Calls
    may overlap; none blocks the event loop. Memory MUST NOT grow with the number of items kept.
    """

    @property
    def shared_name(self) -> str:
        """Names the store to all who share it, and no other store; empty: nobody else can open it.

        A store that several routers work on MUST have one.
        """
        return ""

    @property
    @abc.abstractmethod
    def files(self) -> FileStore:
        """Keeps files beside the batches, and under the same limits."""

    # Handing in.

    @abc.abstractmethod
    async def create(self, batch: NewBatch, limits: TenantLimits = UNLIMITED) -> Batch:
        """Makes a batch that is RECEIVING; the same submission again returns the batch as it stands.

        Raises BatchExistsError, QueueFullError.
        """

    @abc.abstractmethod
    async def append(
        self, batch: BatchKey, items: Sequence[NewItem], limits: TenantLimits = UNLIMITED
    ) -> int:
        """Keeps items of a batch that is RECEIVING; returns how many of them were new.

        - MUST be durable when it returns, and write all or nothing.
        - An item that is kept already, equal in every field, MUST be passed over, also in a batch that is
          sealed; another one with its index, or one with the custom_id of another, MUST raise ItemError.
        - Calls that overlap SHOULD share a commit.

        Raises UnknownBatchError, BatchStateError, ItemError, QueueFullError.
        """

    @abc.abstractmethod
    async def seal(self, batch: BatchKey, items: int) -> Batch:
        """Accepts the batch as a whole: it has `items` items, without a gap. Idempotent.

        Its cost MUST NOT grow with the number of items. Items with a `failure` get that as their result,
        perhaps by `sweep`; a batch of none but those, or of no items, ends by itself.

        Raises UnknownBatchError, BatchStateError, IncompleteError.
        """

    @abc.abstractmethod
    async def refuse(self, batch: BatchKey, refusal: str) -> Batch:
        """Ends a batch that is RECEIVING and has a source, with what is wrong with it (not empty), and
        without the items that it has so far. One that was refused before stays as it is.

        Raises UnknownBatchError, BatchStateError.
        """

    @abc.abstractmethod
    async def discard(self, batch: BatchKey) -> None:
        """Forgets a batch that is RECEIVING; nothing if there is none. Raises BatchStateError."""

    # Reading.

    @abc.abstractmethod
    async def get(self, batch: BatchKey) -> Batch:
        """A batch of a tenant. Raises UnknownBatchError."""

    @abc.abstractmethod
    async def page(
        self, tenant: str, *, limit: int, token: str = "", open_only: bool = False
    ) -> tuple[Sequence[Batch], str]:
        """A page of a tenant's batches, the newest first, and the token of the next; empty: no more.

        Raises ValueError for a token that no page has returned.
        """

    @abc.abstractmethod
    async def sourced(self, tenant: str, *, limit: int, after: str = "") -> Sequence[Batch]:
        """Up to `limit` of a tenant's batches that have a source, in the falling order of their ids.

        They begin after `after`, which need not be there (any more); empty: at the first.
        """

    @abc.abstractmethod
    async def results(self, batch: BatchKey, *, after: int, limit: int, most_bytes: int) -> Sequence[Result]:
        """The next results with a number greater than `after`: at most `limit`, and of more than one at most
        `most_bytes`. Raises UnknownBatchError.
        """

    @abc.abstractmethod
    async def result(self, batch: BatchKey, custom_id: str) -> Result | None:
        """One item's result; None: it has none yet, or there is no such item. Raises UnknownBatchError."""

    @abc.abstractmethod
    async def usage(self, tenant: str | None = None) -> Sequence[TenantUsage]:
        """What each tenant, or one, has in the queue. Its cost MUST NOT grow with the number of items."""

    @abc.abstractmethod
    async def units(self) -> Sequence[Unit]:
        """Everything that waits, by batch and model; its cost MUST NOT grow with the number of items."""

    @abc.abstractmethod
    async def now(self) -> float:
        """The store's clock."""

    @abc.abstractmethod
    def changes(self) -> AsyncIterator[frozenset[BatchKey]]:
        """Yields batches that have changed since the last time, by whomever; an empty set: any may have. A
        batch without an id stands for files of its tenant that were deleted.

        The first comes at once and is empty. What a slow consumer misses MUST be merged, in bounded memory.
        It ends when the queue is closed.
        """

    # Ending early.

    @abc.abstractmethod
    async def cancel(self, batch: BatchKey) -> Batch:
        """What has no result will get one as CANCELLED (`sweep` does that, in slices).

        Leases of it count no more. Idempotent; a batch that has ended stays as it is.

        Raises UnknownBatchError.
        """

    @abc.abstractmethod
    async def delete(self, batch: BatchKey) -> None:
        """Forgets a batch that has ended. Raises UnknownBatchError, BatchStateError."""

    # Batches that have a source.

    @abc.abstractmethod
    async def adopt(self, hold_s: float, limit: int) -> Sequence[BatchKey]:
        """Takes up to `limit` batches with a source that somebody has to go on with, and leaves them to the
        caller for `hold_s` seconds: those RECEIVING that nobody has made, appended to or adopted for as
        long, and those that have ended and are not closed.

        Nobody is kept from doing the same beside it: everything that is done with them is idempotent.
        """

    @abc.abstractmethod
    async def hold(self, batches: Sequence[BatchKey]) -> None:
        """Leaves these, which have a source, to the caller from now on for as long as `adopt` says; those
        that are not there are passed over.
        """

    @abc.abstractmethod
    async def finalize(self, batch: BatchKey, views: Sequence[NewView]) -> Batch:
        """Closes a batch that has a source and has ended: gives it files, at most one of each kind. One that
        was closed before stays as it is.

        Raises UnknownBatchError, BatchStateError.
        """

    # Working.

    @abc.abstractmethod
    async def begin_session(self, owner: str, ttl_s: float) -> Session:
        """A hold for claims, which lapses `ttl_s` after its last renewal by the store's clock."""

    @abc.abstractmethod
    async def renew(self, session: Session) -> None:
        """Raises SessionLostError."""

    @abc.abstractmethod
    async def end_session(self, session: Session) -> None:
        """Puts back what the session still holds, at once and without counting it. Idempotent."""

    @abc.abstractmethod
    async def claim(self, session: Session, batch: BatchKey, model: str, limit: int) -> Sequence[Claim]:
        """Takes up to `limit` items of a unit out of the queue, in their order.

        - No item MUST ever be claimed under a fence that is not greater than all before.
        - Two callers MUST NOT get the same item while both sessions live, and SHOULD NOT wait for each other.
        - An item whose row is damaged MUST end as FAILED and hold up no other.
        - What has been put back with a delay MUST stay until then; what is past a deadline at which it
          expires, or is cancelled, MUST NOT be handed out.

        Raises SessionLostError.
        """

    @abc.abstractmethod
    async def checkpoint(self, session: Session, states: Sequence[tuple[Lease, bytes]]) -> Sequence[Lease]:
        """Keeps how far items have come; returns the leases that count no more. Raises SessionLostError."""

    @abc.abstractmethod
    async def finish(self, session: Session, outcomes: Sequence[Outcome]) -> Sequence[Lease]:
        """Records results and the items' ends in one transaction; returns the leases that count no more.

        An outcome whose fence is not the item's newest, or whose item has ended under another, MUST change
        nothing; one that was recorded before under the same fence counts as recorded. It works for a session
        that has lapsed as long as nobody has claimed the item since.
        """

    @abc.abstractmethod
    async def put_back(self, session: Session, returns: Sequence[Return]) -> Sequence[Lease]:
        """Puts items back into the queue, or ends those without an attempt left.

        Returns the leases that count no more. Raises SessionLostError.
        """

    @abc.abstractmethod
    async def sweep(self) -> Swept:
        """A bounded round of housekeeping: lapsed sessions, deadlines, cancelled batches, retention.

        What waits at a deadline at which it expires ends here; what runs stays with its holder, who may
        record it (late) or end it as EXPIRED. Several routers may call it at the same time.
        """

    @abc.abstractmethod
    async def close(self) -> None:
        """Finishes writes under way and ends every iterator. May be called twice."""
