"""How a batch, an item's identity and a result lie in their rows."""

from __future__ import annotations

import json
from typing import NamedTuple

import asyncpg

from chiron.batch.integrity import DAMAGED, REMOVED, result_checksum
from chiron.batch.records import Batch, BatchCounts, BatchKey, BatchState, ItemState, Result


class BatchRow(NamedTuple):
    """A row of `batches`, its columns in this order."""

    no: int
    tenant: str
    batch_id: str
    state: int
    created: float
    deadline: float
    expire_late: bool
    fail_invalid: bool
    priority: int
    items: int
    cancelled: bool
    sealed: float | None
    ended: float | None
    expires: float | None
    received: int
    contiguous: int
    queued: int
    running: int
    succeeded: int
    failed: int
    cancelled_items: int
    expired: int
    late: int
    prompt_tokens: int
    completion_tokens: int
    invalid: int
    stored_bytes: int
    swept: int
    metadata: str
    source: str
    refusal: str
    output_file: str
    error_file: str
    cancelled_at: float | None
    closed: float | None

    @property
    def key(self) -> BatchKey:
        """Tenant and id."""
        return self.tenant, self.batch_id

    def to_batch(self) -> Batch:
        """The batch as the contract has it."""
        counts = BatchCounts(
            received=self.received,
            contiguous=self.contiguous,
            queued=self.queued,
            running=self.running,
            succeeded=self.succeeded,
            failed=self.failed,
            cancelled=self.cancelled_items,
            expired=self.expired,
            late=self.late,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
        )
        return Batch(
            batch_id=self.batch_id,
            tenant=self.tenant,
            state=BatchState(self.state),
            created=self.created,
            deadline=self.deadline,
            expire_late=self.expire_late,
            fail_invalid=self.fail_invalid,
            priority=self.priority,
            metadata=dict(json.loads(self.metadata)),
            items=self.items,
            cancelled=self.cancelled,
            ended=self.ended,
            expires=self.expires,
            counts=counts,
            sealed=self.sealed,
            cancelled_at=self.cancelled_at,
            source=self.source,
            refusal=self.refusal,
            closed=self.closed,
            output_file=self.output_file,
            error_file=self.error_file,
        )


BATCH_COLUMNS = ", ".join(BatchRow._fields)


async def batch_by_key(db: asyncpg.Connection, key: BatchKey, *, lock: bool = False) -> BatchRow | None:
    """The row of a batch, locked against other writes if told; None: there is none."""
    query = f"SELECT {BATCH_COLUMNS} FROM batches WHERE tenant = $1 AND batch_id = $2"
    row = await db.fetchrow(query + (" FOR UPDATE" if lock else ""), *key)
    return BatchRow(*row) if row else None


class ItemRow(NamedTuple):
    """What every write reads of an item, its columns in this order."""

    batch: int
    place: int
    unit: int | None
    state: int
    custom_id: str
    prompt_tokens: int
    max_tokens: int
    size: int
    """Bytes of body and failure."""
    saved: int
    """Bytes of the checkpoint."""
    attempts: int
    fence: int


ITEM_COLUMNS = ", ".join(f"i.{name}" for name in ItemRow._fields)
RESULT_COLUMNS = "number, item, custom_id, state, result, recorded, late, attempts, damaged, checksum"


def to_result(row: asyncpg.Record) -> Result:
    """The result as the contract has it; one whose row is not as it was written is FAILED and `damaged`."""
    number, item, custom_id, state, result, recorded, late, attempts, damaged, checksum = row
    own = result_checksum((number, item, custom_id, state), result, (recorded, late, attempts, damaged))
    whole = checksum == own
    return Result(
        number=number,
        index=item,
        custom_id=custom_id,
        state=ItemState(state) if whole else ItemState.FAILED,
        result=result if whole else b"",
        recorded=recorded,
        late=bool(late),
        attempts=attempts,
        damaged=damaged == DAMAGED or not whole,
        removed=damaged == REMOVED and whole,
    )
