"""Batches that have a source: those that somebody has to go on with, refused, and given their files."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from chiron.batch.filing import FileKind, NewView
from chiron.batch.receipt import not_ended, not_refused
from chiron.batch.records import Batch, BatchKey, BatchState
from chiron.batch.sqlite.batches import DOOM, known, read
from chiron.batch.sqlite.rows import COLUMNS, BatchRow, to_batch
from chiron.batch.sqlite.transaction import Transaction

_LAST = "\U0010ffff"
_PAGE = f"""SELECT {COLUMNS} FROM batches b INDEXED BY sourced
    WHERE b.tenant = ? AND b.source <> '' AND b.batch_id < ? ORDER BY b.batch_id DESC LIMIT ?"""
_UNFINISHED = """SELECT no, tenant, batch_id FROM batches INDEXED BY unfinished
    WHERE source <> '' AND closed IS NULL AND state IN (1, 4) AND touched <= ? ORDER BY touched LIMIT ?"""
_HOLD = "UPDATE batches SET touched = ? WHERE tenant = ? AND batch_id = ? AND source <> ''"
_REFUSED = """UPDATE batches SET state = ?, ended = ?, closed = ?, expires = ?, refusal = ?,
    received = 0, contiguous = 0 WHERE no = ?"""
_CLOSED = "UPDATE batches SET closed = ?, output_file = ?, error_file = ? WHERE no = ?"
_VIEW = """INSERT INTO files (tenant, file_id, kept, kind, name, size, created, touched, expires, batch)
    VALUES (?, ?, 1, ?, ?, ?, ?, ?, ?, ?)"""


def page(db: sqlite3.Connection, tenant: str, limit: int, after: str) -> list[Batch]:
    """As the contract has it."""
    rows = db.execute(_PAGE, (tenant, after or _LAST, limit)).fetchall()
    return [to_batch(db, BatchRow._make(row)) for row in rows]


def any_unfinished(db: sqlite3.Connection, now: float, hold_s: float) -> bool:
    """Whether `adopt` has anything to take."""
    return db.execute(_UNFINISHED, (now - hold_s, 1)).fetchone() is not None


def adopt(tx: Transaction, hold_s: float, limit: int) -> list[BatchKey]:
    """As the contract has it."""
    found = tx.db.execute(_UNFINISHED, (tx.now - hold_s, limit)).fetchall()
    tx.db.executemany("UPDATE batches SET touched = ? WHERE no = ?", [(tx.now, no) for no, _, _ in found])
    return [(tenant, batch_id) for _, tenant, batch_id in found]


def hold(tx: Transaction, keys: Sequence[BatchKey]) -> None:
    """As the contract has it."""
    tx.db.executemany(_HOLD, [(tx.now, *key) for key in keys])


def refuse(tx: Transaction, key: BatchKey, refusal: str) -> Batch:
    """As the contract has it."""
    row = known(tx.find(key), key)
    if not row.refusal:
        if row.state != BatchState.RECEIVING or not row.source:
            raise not_refused(row.batch_id, row.state)
        expires = tx.now + tx.limits.retention_s
        tx.db.execute(_REFUSED, (int(BatchState.ENDED), tx.now, tx.now, expires, refusal, row.no))
        tx.db.execute(DOOM, (row.no,))
        delta = tx.delta(row)
        delta.opened -= 1
        delta.queued -= row.queued
        delta.invalid -= row.invalid
        delta.stored_bytes -= row.stored_bytes
        tx.flush()
    return read(tx.db, key)


def finalize(tx: Transaction, key: BatchKey, views: Sequence[NewView]) -> Batch:
    """As the contract has it."""
    row = known(tx.find(key), key)
    if row.closed is None:
        if row.state != BatchState.ENDED or not row.source or row.expires is None:
            raise not_ended(row.batch_id, row.state)
        ids = {FileKind.OUTPUT: "", FileKind.ERRORS: ""}
        for view in views:
            ids[view.kind] = view.file_id
            expires = min(tx.now + view.expires_s, row.expires)
            head = (row.tenant, view.file_id, int(view.kind), view.name, view.size)
            tx.db.execute(_VIEW, (*head, tx.now, tx.now, expires, row.no))
        closed = (tx.now, ids[FileKind.OUTPUT], ids[FileKind.ERRORS], row.no)
        tx.db.execute(_CLOSED, closed)
        tx.delta(row)
        tx.flush()
    return read(tx.db, key)
