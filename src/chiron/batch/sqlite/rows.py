"""How a batch, an item's identity and a result lie in their rows."""

from __future__ import annotations

import json
import sqlite3
from typing import NamedTuple

from chiron.batch.integrity import DAMAGED, REMOVED, result_checksum
from chiron.batch.records import Batch, BatchCounts, BatchKey, BatchState, ItemState, Result

INDEX_BITS = 32
INDEX_MASK = (1 << INDEX_BITS) - 1


def row_id(batch: int, number: int) -> int:
    """The key of an item (`number` is its index) or of a result."""
    return batch << INDEX_BITS | number


class BatchRow(NamedTuple):
    """A row of `batches`, its columns in this order."""

    no: int
    tenant: str
    batch_id: str
    state: int
    created: float
    deadline: float
    expire_late: int
    fail_invalid: int
    priority: int
    items: int
    cancelled: int
    touched: float
    sealed: float | None
    ended: float | None
    expires: float | None
    received: int
    contiguous: int
    invalid: int
    queued: int
    running: int
    succeeded: int
    failed: int
    cancelled_items: int
    expired: int
    late: int
    prompt_tokens: int
    completion_tokens: int
    stored_bytes: int
    swept: int
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

    @property
    def results(self) -> int:
        """How many items have one; also the number of the last."""
        return self.succeeded + self.failed + self.cancelled_items + self.expired

    @property
    def late_expires(self) -> bool:
        """Whether what waits is not to be worked on after the deadline."""
        return bool(self.expire_late)


COLUMNS = ", ".join(f"b.{name}" for name in BatchRow._fields)
_BY_KEY = f"SELECT {COLUMNS} FROM batches b WHERE b.tenant = ? AND b.batch_id = ?"
_BY_NO = f"SELECT {COLUMNS} FROM batches b WHERE b.no = ?"


def batch_by_key(db: sqlite3.Connection, key: BatchKey) -> BatchRow | None:
    """The row of a batch; None: there is none."""
    row = db.execute(_BY_KEY, key).fetchone()
    return BatchRow(*row) if row else None


def batch_by_no(db: sqlite3.Connection, no: int) -> BatchRow | None:
    """The row of a batch; None: there is none."""
    row = db.execute(_BY_NO, (no,)).fetchone()
    return BatchRow(*row) if row else None


def metadata_of(db: sqlite3.Connection, no: int) -> dict[str, str]:
    """A batch's metadata."""
    row = db.execute("SELECT entries FROM metadata WHERE batch = ?", (no,)).fetchone()
    return dict(json.loads(row[0])) if row else {}


def to_batch(db: sqlite3.Connection, row: BatchRow) -> Batch:
    """The batch as the contract has it."""
    counts = BatchCounts(
        received=row.received,
        contiguous=row.contiguous,
        queued=row.queued,
        running=row.running,
        succeeded=row.succeeded,
        failed=row.failed,
        cancelled=row.cancelled_items,
        expired=row.expired,
        late=row.late,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
    )
    return Batch(
        batch_id=row.batch_id,
        tenant=row.tenant,
        state=BatchState(row.state),
        created=row.created,
        deadline=row.deadline,
        expire_late=bool(row.expire_late),
        fail_invalid=bool(row.fail_invalid),
        priority=row.priority,
        metadata=metadata_of(db, row.no),
        items=row.items,
        cancelled=bool(row.cancelled),
        ended=row.ended,
        expires=row.expires,
        counts=counts,
        sealed=row.sealed,
        cancelled_at=row.cancelled_at,
        source=row.source,
        refusal=row.refusal,
        closed=row.closed,
        output_file=row.output_file,
        error_file=row.error_file,
    )


class ItemRow(NamedTuple):
    """What every write reads of an item, its columns in this order."""

    id: int
    unit: int
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
    digest: bytes

    @property
    def batch(self) -> int:
        """The number of its batch."""
        return self.id >> INDEX_BITS

    @property
    def place(self) -> int:
        """Its place in the batch."""
        return self.id & INDEX_MASK


ITEM_COLUMNS = ", ".join(ItemRow._fields)


ResultRow = tuple[int, int, str, int, bytes, float, int, int, int, int]
"""A row of `results`, its columns in the table's order."""

RESULT_COLUMNS = "id, item, custom_id, state, result, recorded, late, attempts, damaged, checksum"


def result_row(
    key: int,
    item: int,
    custom_id: str,
    state: int,
    result: bytes,
    recorded: float,
    late: bool,
    attempts: int,
    fate: int,
) -> ResultRow:
    """The row of a result, with its checksum; `fate` is what has become of it since it was recorded."""
    head = (key, item, custom_id, state)
    tail = (recorded, int(late), attempts, int(fate))
    return (*head, result, *tail, result_checksum(head, result, tail))


def to_result(row: ResultRow) -> Result:
    """The result as the contract has it; one whose row is not as it was written is FAILED and `damaged`."""
    key, item, custom_id, state, result, recorded, late, attempts, damaged, checksum = row
    whole = checksum == result_checksum(
        (key, item, custom_id, state), result, (recorded, late, attempts, damaged)
    )
    return Result(
        number=key & INDEX_MASK,
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
