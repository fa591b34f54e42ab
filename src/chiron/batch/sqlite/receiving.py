"""Handing in: making a batch, keeping its items, sealing or discarding it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from chiron.batch.contract import (
    BatchExistsError,
    BatchStateError,
    IncompleteError,
    ItemError,
    QueueFullError,
    TenantFullError,
    UnknownBatchError,
)
from chiron.batch.records import (
    Batch,
    BatchKey,
    BatchState,
    ItemState,
    Limits,
    NewBatch,
    NewItem,
    TenantLimits,
)
from chiron.batch.sqlite.rows import (
    INDEX_MASK,
    BatchRow,
    batch_by_key,
    item_digest,
    metadata_of,
    row_id,
    to_batch,
)
from chiron.batch.sqlite.schema import INVALID, QUEUED
from chiron.batch.sqlite.transaction import ITEM_COLUMNS, Ending, ItemRow, Transaction

FAILURES_AT_SEAL = 500
"""Invalid items that get their result as the batch is sealed; the others get it from `sweep`."""

_INSERT_BATCH = """INSERT INTO batches
    (tenant, batch_id, state, created, deadline, expire_late, fail_invalid, priority, items, touched)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING no"""
_INSERT_ITEM = """INSERT INTO items
    (id, unit, state, custom_id, prompt_tokens, max_tokens, digest, size) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"""
_INSERT_BODY = "INSERT INTO bodies VALUES (?, ?, ?)"
_RECEIVED = "UPDATE batches SET received = received + ?, contiguous = ?, touched = ? WHERE no = ?"
_FAILURES = f"""SELECT {ITEM_COLUMNS} FROM items INDEXED BY invalid_items
    WHERE state = {INVALID} AND id >= ? AND id <= ? ORDER BY id LIMIT ?"""

_ItemTuple = tuple[int, int | None, int, str, int, int, bytes, int]


def known(row: BatchRow | None, key: BatchKey) -> BatchRow:
    """The row. Raises UnknownBatchError for None."""
    if row is None:
        raise UnknownBatchError(f"no batch {key[1]!r} of tenant {key[0]!r}")
    return row


def _wrong_state(row: BatchRow, text: str) -> BatchStateError:
    return BatchStateError(f"batch {row.batch_id!r} is {BatchState(row.state).name}: {text}")


def create(tx: Transaction, batch: NewBatch, limits: TenantLimits) -> Batch:
    """As the contract has it."""
    key = (batch.tenant, batch.batch_id)
    row = tx.find(key)
    if row is not None:
        if not _same(tx.db, row, batch):
            raise BatchExistsError(f"another batch of tenant {batch.tenant!r} has the id {batch.batch_id!r}")
        return to_batch(tx.db, row)
    _check_limits(tx, batch.tenant, limits, batches=1)
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
        and metadata_of(db, row.no) == dict(batch.metadata)
    )


def _check_limits(
    tx: Transaction, tenant: str, limits: TenantLimits, *, batches: int = 0, items: int = 0, size: int = 0
) -> None:
    own = tx.db.execute(
        "SELECT open_batches, queued, stored_bytes FROM tenants WHERE tenant = ?", (tenant,)
    ).fetchone()
    all_of = tx.db.execute("SELECT open_batches, queued, stored_bytes FROM store").fetchone()
    more = (batches, items, size)
    if text := _exceeded(limits, own or (0, 0, 0), more):
        raise TenantFullError(f"tenant {tenant!r} has {text}")
    if text := _exceeded(tx.limits, all_of, more):
        raise QueueFullError(f"the queue has {text}")


def _exceeded(limits: Limits | TenantLimits, used: Sequence[int], more: Sequence[int]) -> str:
    names = ("open batches", "queued items", "stored bytes")
    most = (limits.open_batches, limits.queued_items, limits.stored_bytes)
    for name, bound, held, added in zip(names, most, used, more, strict=True):
        if bound and added and held + added > bound:
            return f"{held} {name}; {added} more exceed the limit of {bound}"
    return ""


def append(tx: Transaction, key: BatchKey, items: Sequence[NewItem], limits: TenantLimits) -> int:
    """As the contract has it."""
    row = known(tx.find(key), key)
    digests = [item_digest(item) for item in items]
    low, high = min((i.index for i in items), default=0), max((i.index for i in items), default=0)
    if low < 0 or high > INDEX_MASK:
        wrong = low if low < 0 else high
        raise ItemError(wrong, "index", f"item {wrong}: an index is between 0 and {INDEX_MASK}")
    if row.state == BatchState.RECEIVING:
        # Nothing of what comes is kept, where a client sends its items in order: they need not be looked for.
        tx.db.execute("SAVEPOINT fresh")
        try:
            _insert(tx, row, items, digests)
            tx.db.execute("RELEASE fresh")
        except sqlite3.IntegrityError:
            tx.db.execute("ROLLBACK TO fresh")
            tx.db.execute("RELEASE fresh")
        else:
            _count(tx, row, items, limits)
            return len(items)
    new, new_digests = _not_kept(tx, row, items, digests)
    if not new:
        return 0
    if row.state != BatchState.RECEIVING:
        raise _wrong_state(row, "it takes no more items")
    _insert(tx, row, new, new_digests)
    _count(tx, row, new, limits)
    return len(new)


def _not_kept(
    tx: Transaction, row: BatchRow, items: Sequence[NewItem], digests: Sequence[bytes]
) -> tuple[list[NewItem], list[bytes]]:
    """Those of the items that are to be written. Raises ItemError."""
    new: dict[int, tuple[NewItem, bytes]] = {}
    names: dict[str, int] = {}
    for item, own in zip(items, digests, strict=True):
        found = tx.db.execute(
            "SELECT digest FROM items WHERE id = ?", (row_id(row.no, item.index),)
        ).fetchone()
        kept = found[0] if found else new[item.index][1] if item.index in new else None
        if kept == own:
            continue
        if kept is not None:
            raise ItemError(item.index, "index", f"item {item.index} is kept already, and is another")
        named = tx.db.execute(
            "SELECT id FROM items WHERE id >> 32 = ? AND custom_id = ?", (row.no, item.custom_id)
        ).fetchone()
        other = named[0] & INDEX_MASK if named else names.get(item.custom_id)
        if other is not None:
            text = f"item {item.index} has the custom_id {item.custom_id!r} of item {other}"
            raise ItemError(item.index, "custom_id", text)
        new[item.index] = (item, own)
        names[item.custom_id] = item.index
    return [item for item, _ in new.values()], [own for _, own in new.values()]


def _insert(tx: Transaction, row: BatchRow, items: Sequence[NewItem], digests: Sequence[bytes]) -> None:
    units = _units(tx, row, {item.model for item in items if not item.failure})
    rows: list[_ItemTuple] = []
    bodies = []
    base = row_id(row.no, 0)
    for item, own in zip(items, digests, strict=True):
        key = base | item.index
        unit, state = (None, INVALID) if item.failure else (units[item.model], QUEUED)
        size = len(item.body) + len(item.failure)
        rows.append((key, unit, state, item.custom_id, item.prompt_tokens, item.max_tokens, own, size))
        bodies.append((key, item.body, item.failure))
    tx.db.executemany(_INSERT_ITEM, rows)
    tx.db.executemany(_INSERT_BODY, bodies)


def _units(tx: Transaction, row: BatchRow, models: set[str]) -> dict[str, int]:
    units: dict[str, int] = {}
    for model in models:
        found = tx.db.execute(
            "SELECT unit FROM units WHERE batch = ? AND model = ?", (row.no, model)
        ).fetchone()
        if found is None:
            found = tx.db.execute(
                "INSERT INTO units (batch, model) VALUES (?, ?) RETURNING unit", (row.no, model)
            ).fetchone()
        units[model] = found[0]
    return units


def _count(tx: Transaction, row: BatchRow, items: Sequence[NewItem], limits: TenantLimits) -> None:
    """Adds new items to the counters, once they are written. Raises QueueFullError."""
    size = sum(len(item.body) + len(item.failure) for item in items)
    most = tx.limits.items_per_batch
    if most and row.received + len(items) > most:
        raise QueueFullError(f"batch {row.batch_id!r} exceeds the limit of {most} items in a batch")
    for item in items:
        if tx.limits.body_bytes and len(item.body) > tx.limits.body_bytes:
            most = tx.limits.body_bytes
            raise QueueFullError(f"item {item.index}: {len(item.body)} bytes exceed the limit of {most}")
    _check_limits(tx, row.tenant, limits, items=len(items), size=size)
    units = _units(tx, row, {item.model for item in items if not item.failure})
    delta = tx.delta(row)
    for item in items:
        if item.failure:
            delta.invalid += 1
        else:
            tx.waits(units[item.model], 1, item.prompt_tokens, item.max_tokens)
    delta.queued += len(items)
    delta.stored_bytes += size
    indexes = sorted(item.index for item in items)
    contiguous = row.contiguous
    for start, stop in _runs(indexes):
        contiguous = _extend(tx, row, contiguous, start, stop)
    tx.db.execute(_RECEIVED, (len(items), contiguous, tx.now, row.no))


def _runs(indexes: Sequence[int]) -> list[tuple[int, int]]:
    """Sorted indexes without repetitions as runs [start, stop)."""
    runs: list[tuple[int, int]] = []
    start = 0
    for place in range(1, len(indexes) + 1):
        if place == len(indexes) or indexes[place] != indexes[place - 1] + 1:
            runs.append((indexes[start], indexes[place - 1] + 1))
            start = place
    return runs


def _extend(tx: Transaction, row: BatchRow, contiguous: int, start: int, stop: int) -> int:
    """Adds a run of new items; returns how far they now are without a gap."""
    after = tx.db.execute(
        "DELETE FROM runs WHERE batch = ? AND start = ? RETURNING stop", (row.no, stop)
    ).fetchone()
    stop = after[0] if after else stop
    if start == contiguous:
        return stop
    before = tx.db.execute(
        "SELECT start, stop FROM runs WHERE batch = ? AND start < ? ORDER BY start DESC LIMIT 1",
        (row.no, start),
    ).fetchone()
    if before and before[1] == start:
        tx.db.execute("UPDATE runs SET stop = ? WHERE batch = ? AND start = ?", (stop, row.no, before[0]))
    else:
        tx.db.execute("INSERT INTO runs VALUES (?, ?, ?)", (row.no, start, stop))
    return contiguous


def seal(tx: Transaction, key: BatchKey, items: int) -> Batch:
    """As the contract has it."""
    row = known(tx.find(key), key)
    if row.sealed is None and row.state != BatchState.RECEIVING:
        raise _wrong_state(row, "it was cancelled before")
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
    found = tx.db.execute(_FAILURES, (first, first | INDEX_MASK, limit)).fetchall()
    endings = []
    for item in map(ItemRow._make, found):
        body = tx.db.execute("SELECT failure FROM bodies WHERE id = ?", (item.id,)).fetchone()
        endings.append(Ending(item, ItemState.FAILED, body[0] if body else b"", damaged=not body))
    tx.end(endings)
    return len(endings)


def discard(tx: Transaction, key: BatchKey) -> None:
    """As the contract has it."""
    row = tx.find(key)
    if row is None:
        return
    if row.state != BatchState.RECEIVING:
        raise _wrong_state(row, "it is not discarded")
    forget(tx, row)


def delete(tx: Transaction, key: BatchKey) -> None:
    """As the contract has it."""
    row = known(tx.find(key), key)
    if row.state != BatchState.ENDED:
        raise _wrong_state(row, "it has not ended")
    forget(tx, row)


def forget(tx: Transaction, row: BatchRow) -> None:
    """Takes a batch that holds no running item out of the queue; `sweep` removes its rows, in slices."""
    delta = tx.delta(row)
    delta.forgotten = True
    delta.opened -= row.state != BatchState.ENDED
    delta.queued -= row.queued
    delta.stored_bytes -= row.stored_bytes
    tx.db.execute("DELETE FROM batches WHERE no = ?", (row.no,))
    tx.db.execute("DELETE FROM metadata WHERE batch = ?", (row.no,))
    tx.db.execute("INSERT INTO doomed VALUES (?)", (row.no,))


def cancel(tx: Transaction, key: BatchKey) -> Batch:
    """As the contract has it."""
    row = known(tx.find(key), key)
    if row.state in (BatchState.RECEIVING, BatchState.ACTIVE):
        tx.db.execute(
            "UPDATE batches SET state = ?, cancelled = 1 WHERE no = ?", (int(BatchState.CANCELLING), row.no)
        )
        tx.delta(row)
        tx.flush()
    return read(tx.db, key)


def read(db: sqlite3.Connection, key: BatchKey) -> Batch:
    """A batch as it stands. Raises UnknownBatchError."""
    return to_batch(db, known(batch_by_key(db, key), key))
