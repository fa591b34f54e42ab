"""Batches that have a source: those that somebody has to go on with, refused, and given their files."""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg

from chiron.batch.filing import FileKind, NewView
from chiron.batch.postgres.receiving import DOOM, known
from chiron.batch.postgres.rows import BATCH_COLUMNS, BatchRow, batch_by_key
from chiron.batch.postgres.transaction import Transaction
from chiron.batch.receipt import not_ended, not_refused
from chiron.batch.records import Batch, BatchKey, BatchState

_LAST = "\U0010ffff"
_PAGE = f"""SELECT {BATCH_COLUMNS} FROM batches
    WHERE tenant = $1 AND source <> '' AND batch_id COLLATE "C" < $2
    ORDER BY batch_id COLLATE "C" DESC LIMIT $3"""
_ANY = """SELECT 1 FROM batches
    WHERE source <> '' AND closed IS NULL AND state IN (1, 4) AND touched <= queue_now() - $1 LIMIT 1"""
_UNFINISHED = """SELECT no, tenant, batch_id FROM batches
    WHERE source <> '' AND closed IS NULL AND state IN (1, 4) AND touched <= $1
    ORDER BY touched LIMIT $2 FOR UPDATE SKIP LOCKED"""
_HOLD = """WITH held AS MATERIALIZED (
    SELECT b.no FROM unnest($2::text[], $3::text[]) AS h(tenant, batch_id)
    JOIN batches b ON b.tenant = h.tenant AND b.batch_id = h.batch_id
    WHERE b.source <> '' ORDER BY b.no FOR UPDATE OF b)
    UPDATE batches b SET touched = $1 FROM held WHERE b.no = held.no"""
_REFUSED = """UPDATE batches SET state = $2, ended = $3, closed = $3, expires = $4, refusal = $5,
    received = 0, contiguous = 0 WHERE no = $1"""
_CLOSED = "UPDATE batches SET closed = $2, output_file = $3, error_file = $4 WHERE no = $1"
_VIEW = """INSERT INTO files (tenant, file_id, kept, kind, name, size, created, touched, expires, batch)
    VALUES ($1, $2, true, $3, $4, $5, $6, $6, $7, $8)"""


async def page(db: asyncpg.Connection, tenant: str, limit: int, after: str) -> list[Batch]:
    """As the contract has it."""
    return [BatchRow(*row).to_batch() for row in await db.fetch(_PAGE, tenant, after or _LAST, limit)]


async def any_unfinished(db: asyncpg.Connection, hold_s: float) -> bool:
    """Whether `adopt` has anything to take."""
    return await db.fetchval(_ANY, hold_s) is not None


async def adopt(tx: Transaction, hold_s: float, limit: int) -> list[BatchKey]:
    """As the contract has it."""
    found = await tx.db.fetch(_UNFINISHED, tx.now - hold_s, limit)
    numbers = [row["no"] for row in found]
    await tx.db.execute("UPDATE batches SET touched = $2 WHERE no = ANY($1::int8[])", numbers, tx.now)
    return [(tenant, batch_id) for _, tenant, batch_id in found]


async def hold(tx: Transaction, keys: Sequence[BatchKey]) -> None:
    """As the contract has it."""
    ordered = sorted(keys)
    await tx.db.execute(_HOLD, tx.now, [tenant for tenant, _ in ordered], [one for _, one in ordered])


async def refuse(tx: Transaction, key: BatchKey, refusal: str) -> None:
    """As the contract has it; the batch is to be read afterwards."""
    row = known(await batch_by_key(tx.db, key, lock=True), key)
    if row.refusal:
        return
    if row.state != BatchState.RECEIVING or not row.source:
        raise not_refused(row.batch_id, row.state)
    expires = tx.now + tx.limits.retention_s
    await tx.db.execute(_REFUSED, row.no, int(BatchState.ENDED), tx.now, expires, refusal)
    await tx.db.execute(DOOM, row.no)
    delta = tx.delta(row.no)
    delta.opened -= 1
    delta.queued -= row.queued
    delta.invalid -= row.invalid
    delta.stored_bytes -= row.stored_bytes
    tx.told = True


async def finalize(tx: Transaction, key: BatchKey, views: Sequence[NewView]) -> None:
    """As the contract has it; the batch is to be read afterwards."""
    row = known(await batch_by_key(tx.db, key, lock=True), key)
    if row.closed is not None:
        return
    if row.state != BatchState.ENDED or not row.source or row.expires is None:
        raise not_ended(row.batch_id, row.state)
    ids = {FileKind.OUTPUT: "", FileKind.ERRORS: ""}
    for view in views:
        ids[view.kind] = view.file_id
        expires = min(tx.now + view.expires_s, row.expires)
        head = (row.tenant, view.file_id, int(view.kind), view.name, view.size)
        await tx.db.execute(_VIEW, *head, tx.now, expires, row.no)
    await tx.db.execute(_CLOSED, row.no, tx.now, ids[FileKind.OUTPUT], ids[FileKind.ERRORS])
    tx.delta(row.no)
    tx.told = True
