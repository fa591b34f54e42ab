"""Batches as a whole: made, sealed, cancelled, forgotten."""

from __future__ import annotations

import json
import sqlite3

from chiron.batch.contract import IncompleteError
from chiron.batch.receipt import taken, unknown, wrong_state
from chiron.batch.records import Batch, BatchKey, BatchState, ItemState, NewBatch, TenantLimits
from chiron.batch.sqlite.content import read_content
from chiron.batch.sqlite.limits import check_limits
from chiron.batch.sqlite.rows import (
    INDEX_MASK,
    ITEM_COLUMNS,
    BatchRow,
    ItemRow,
    batch_by_key,
    metadata_of,
    row_id,
    to_batch,
)
from chiron.batch.sqlite.schema import INVALID
from chiron.batch.sqlite.transaction import SLICE_BYTES, Ending, Transaction

FAILURES_AT_SEAL = 500
"""Invalid items that get their result as the batch is sealed; the others get it from `sweep`."""

_INSERT_BATCH = """INSERT INTO batches
    (tenant, batch_id, state, created, deadline, expire_late, fail_invalid, priority, items, touched, source)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING no"""
_FAILURES = f"""SELECT {ITEM_COLUMNS} FROM items INDEXED BY invalid_items
    WHERE state = {INVALID} AND id >= ? AND id <= ? ORDER BY id LIMIT ?"""

DOOM = "INSERT OR IGNORE INTO doomed VALUES (?)"
"""Has `sweep` remove what is kept of a batch's items."""


def known(row: BatchRow | None, key: BatchKey) -> BatchRow:
    """The row. Raises UnknownBatchError for None."""
    if row is None:
        raise unknown(key)
    return row


def create(tx: Transaction, batch: NewBatch, limits: TenantLimits) -> Batch:
    """As the contract has it."""
    key = (batch.tenant, batch.batch_id)
    row = tx.find(key)
    if row is not None:
        if not _same(tx.db, row, batch):
            raise taken(key)
        return to_batch(tx.db, row)
    check_limits(tx, batch.tenant, limits, batches=1)
    (no,) = tx.db.execute(
        _INSERT_BATCH,
        (
            batch.tenant,
            batch.batch_id,
            int(BatchState.RECEIVING),
            tx.now,
            tx.now + batch.deadline_s,
            batch.expire_late,
            batch.fail_invalid,
            batch.priority,
            batch.items,
            tx.now,
            batch.source,
        ),
    ).fetchone()
    if batch.metadata:
        tx.db.execute("INSERT INTO metadata VALUES (?, ?)", (no, json.dumps(dict(batch.metadata))))
    row = known(tx.find(key), key)
    tx.delta(row).opened += 1
    return to_batch(tx.db, row)


def _same(db: sqlite3.Connection, row: BatchRow, batch: NewBatch) -> bool:
    return (
        bool(row.expire_late) == batch.expire_late
        and bool(row.fail_invalid) == batch.fail_invalid
        and row.priority == batch.priority
        and row.items == batch.items
        and row.source == batch.source
        and metadata_of(db, row.no) == dict(batch.metadata)
    )


def seal(tx: Transaction, key: BatchKey, items: int) -> Batch:
    """As the contract has it."""
    row = known(tx.find(key), key)
    if row.sealed is None and row.state != BatchState.RECEIVING:
        raise wrong_state(row.batch_id, row.state, "it was cancelled before")
    if row.items and items != row.items:
        raise IncompleteError(f"batch {row.batch_id!r} announces {row.items} items, {items} were handed in")
    if row.contiguous < items:
        raise IncompleteError(f"batch {row.batch_id!r} lacks item {row.contiguous} of {items}")
    if row.received > items:
        raise IncompleteError(f"batch {row.batch_id!r} has {row.received} items, more than {items}")
    if row.sealed is None:
        tx.db.execute(
            "UPDATE batches SET state = ?, sealed = ? WHERE no = ?", (int(BatchState.ACTIVE), tx.now, row.no)
        )
        tx.delta(row)
        fail_invalid(tx, row, FAILURES_AT_SEAL)
        tx.flush()
    return read(tx.db, key)


def fail_invalid(tx: Transaction, row: BatchRow, limit: int) -> int:
    """Gives up to `limit` invalid items of a sealed batch their result; returns how many."""
    first = row_id(row.no, 0)
    endings = []
    size = 0
    for columns in tx.db.execute(_FAILURES, (first, first | INDEX_MASK, limit)):
        item = ItemRow._make(columns)
        content = read_content(tx.db, item, tx.unreadable)
        failure = content.failure if content else b""
        endings.append(Ending(item, ItemState.FAILED, failure, damaged=content is None))
        size += item.size
        if size > SLICE_BYTES:
            break
    tx.end(endings)
    return len(endings)


def discard(tx: Transaction, key: BatchKey) -> None:
    """As the contract has it."""
    row = tx.find(key)
    if row is None:
        return
    if row.state != BatchState.RECEIVING:
        raise wrong_state(row.batch_id, row.state, "it is not discarded")
    forget(tx, row)


def delete(tx: Transaction, key: BatchKey) -> None:
    """As the contract has it."""
    row = known(tx.find(key), key)
    if row.state != BatchState.ENDED:
        raise wrong_state(row.batch_id, row.state, "it has not ended")
    forget(tx, row)


def forget(tx: Transaction, row: BatchRow) -> None:
    """Takes a batch that holds no running item out of the queue; `sweep` removes its rows, in slices."""
    delta = tx.delta(row)
    delta.forgotten = True
    delta.opened -= row.state != BatchState.ENDED
    delta.queued -= row.queued
    delta.stored_bytes -= row.stored_bytes
    tx.db.execute("DELETE FROM batches WHERE no = ?", (row.no,))
    for table in ("metadata", "files", "emptying"):
        tx.db.execute(f"DELETE FROM {table} WHERE batch = ?", (row.no,))
    tx.db.execute(DOOM, (row.no,))


def cancel(tx: Transaction, key: BatchKey) -> Batch:
    """As the contract has it."""
    row = known(tx.find(key), key)
    if row.state in (BatchState.RECEIVING, BatchState.ACTIVE):
        tx.db.execute(
            "UPDATE batches SET state = ?, cancelled = 1, cancelled_at = ? WHERE no = ?",
            (int(BatchState.CANCELLING), tx.now, row.no),
        )
        tx.delta(row)
        tx.flush()
    return read(tx.db, key)


def read(db: sqlite3.Connection, key: BatchKey) -> Batch:
    """A batch as it stands. Raises UnknownBatchError."""
    return to_batch(db, known(batch_by_key(db, key), key))
