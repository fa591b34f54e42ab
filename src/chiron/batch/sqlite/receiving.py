"""Keeping items, and telling those that are kept already."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from chiron.batch.contract import ItemError, QueueFullError
from chiron.batch.integrity import item_digest
from chiron.batch.receipt import runs, wrong_state
from chiron.batch.records import BatchKey, BatchState, NewItem, TenantLimits
from chiron.batch.sqlite.batches import known
from chiron.batch.sqlite.limits import check_limits
from chiron.batch.sqlite.rows import INDEX_MASK, BatchRow, row_id
from chiron.batch.sqlite.schema import INVALID, QUEUED
from chiron.batch.sqlite.transaction import Transaction

_INSERT_ITEM = """INSERT INTO items
    (id, unit, state, custom_id, prompt_tokens, max_tokens, digest, size) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"""
_INSERT_BODY = "INSERT INTO bodies VALUES (?, ?, ?)"
_INSERT_UNIT = "INSERT INTO units (batch, model) VALUES (?, ?) RETURNING unit"
_DIGEST = "SELECT digest FROM items WHERE id = ?"
_NAMED = "SELECT id FROM items WHERE id >> 32 = ? AND custom_id = ?"
_UNIT = "SELECT unit FROM units WHERE batch = ? AND model = ?"
_RECEIVED = "UPDATE batches SET received = received + ?, contiguous = ?, touched = ? WHERE no = ?"
_RUN_FROM = "DELETE FROM runs WHERE batch = ? AND start = ? RETURNING stop"
_RUN_BEFORE = "SELECT start, stop FROM runs WHERE batch = ? AND start < ? ORDER BY start DESC LIMIT 1"
_LENGTHEN_RUN = "UPDATE runs SET stop = ? WHERE batch = ? AND start = ?"


def append(tx: Transaction, key: BatchKey, items: Sequence[NewItem], limits: TenantLimits) -> int:
    """As the contract has it."""
    row = known(tx.find(key), key)
    for item in items:
        if not 0 <= item.index <= INDEX_MASK:
            text = f"item {item.index}: an index is between 0 and {INDEX_MASK}"
            raise ItemError(item.index, "index", text)
    digests = [item_digest(item) for item in items]
    if row.state == BatchState.RECEIVING:
        # Nothing of what comes is kept, where a client sends its items once: they need not be looked for.
        tx.db.execute("SAVEPOINT fresh")
        try:
            units = _insert(tx, row, items, digests)
            tx.db.execute("RELEASE fresh")
        except sqlite3.IntegrityError:
            tx.db.execute("ROLLBACK TO fresh")
            tx.db.execute("RELEASE fresh")
        else:
            _count(tx, row, items, units, limits)
            return len(items)
    new = _not_kept(tx, row, items, digests)
    if not new:
        return 0
    if row.state != BatchState.RECEIVING:
        raise wrong_state(row.batch_id, row.state, "it takes no more items")
    fresh = [item for item, _ in new]
    units = _insert(tx, row, fresh, [own for _, own in new])
    _count(tx, row, fresh, units, limits)
    return len(new)


def _not_kept(
    tx: Transaction, row: BatchRow, items: Sequence[NewItem], digests: Sequence[bytes]
) -> list[tuple[NewItem, bytes]]:
    """Those of the items that are to be written, with their digests. Raises ItemError."""
    new: dict[int, tuple[NewItem, bytes]] = {}
    names: dict[str, int] = {}
    for item, own in zip(items, digests, strict=True):
        found = tx.db.execute(_DIGEST, (row_id(row.no, item.index),)).fetchone()
        kept = found[0] if found else new[item.index][1] if item.index in new else None
        if kept == own:
            continue
        if kept is not None:
            raise ItemError(item.index, "index", f"item {item.index} is kept already, and is another")
        named = tx.db.execute(_NAMED, (row.no, item.custom_id)).fetchone()
        other = named[0] & INDEX_MASK if named else names.get(item.custom_id)
        if other is not None:
            text = f"item {item.index} has the custom_id {item.custom_id!r} of item {other}"
            raise ItemError(item.index, "custom_id", text)
        new[item.index] = (item, own)
        names[item.custom_id] = item.index
    return list(new.values())


def _insert(
    tx: Transaction, row: BatchRow, items: Sequence[NewItem], digests: Sequence[bytes]
) -> dict[str, int]:
    """Writes items; returns the units by model. Raises sqlite3.IntegrityError where one is kept already."""
    units = {model: _unit(tx, row, model) for model in {item.model for item in items}}
    rows: list[tuple[int, int, int, str, int, int, bytes, int]] = []
    bodies: list[tuple[int, bytes, bytes]] = []
    base = row_id(row.no, 0)
    for item, own in zip(items, digests, strict=True):
        key = base | item.index
        state = INVALID if item.failure else QUEUED
        size = len(item.body) + len(item.failure)
        rows.append(
            (key, units[item.model], state, item.custom_id, item.prompt_tokens, item.max_tokens, own, size)
        )
        bodies.append((key, item.body, item.failure))
    tx.db.executemany(_INSERT_ITEM, rows)
    tx.db.executemany(_INSERT_BODY, bodies)
    return units


def _unit(tx: Transaction, row: BatchRow, model: str) -> int:
    found = tx.db.execute(_UNIT, (row.no, model)).fetchone()
    unit: int = (found or tx.db.execute(_INSERT_UNIT, (row.no, model)).fetchone())[0]
    return unit


def _count(
    tx: Transaction, row: BatchRow, items: Sequence[NewItem], units: dict[str, int], limits: TenantLimits
) -> None:
    """Adds items that are new, and written, to the counters. Raises QueueFullError."""
    most = tx.limits.items_per_batch
    if most and row.received + len(items) > most:
        raise QueueFullError(f"batch {row.batch_id!r} exceeds the limit of {most} items in a batch")
    most = tx.limits.body_bytes
    size = invalid = 0
    waiting: dict[str, tuple[int, int, int]] = {}
    for item in items:
        if most and len(item.body) > most:
            raise QueueFullError(f"item {item.index}: {len(item.body)} bytes exceed the limit of {most}")
        size += len(item.body) + len(item.failure)
        if item.failure:
            invalid += 1
        else:
            count, prompt, tokens = waiting.get(item.model, (0, 0, 0))
            waiting[item.model] = (count + 1, prompt + item.prompt_tokens, tokens + item.max_tokens)
    check_limits(tx, row.tenant, limits, items=len(items), size=size)
    for model, sums in waiting.items():
        tx.waits(units[model], *sums)
    delta = tx.delta(row)
    delta.queued += len(items)
    delta.invalid += invalid
    delta.stored_bytes += size
    contiguous = row.contiguous
    for start, stop in runs(sorted(item.index for item in items)):
        contiguous = _extend(tx, row, contiguous, start, stop)
    tx.db.execute(_RECEIVED, (len(items), contiguous, tx.now, row.no))


def _extend(tx: Transaction, row: BatchRow, contiguous: int, start: int, stop: int) -> int:
    """Adds a run of new items; returns how far they now are without a gap."""
    if row.received > row.contiguous or start != contiguous:
        after = tx.db.execute(_RUN_FROM, (row.no, stop)).fetchone()
        stop = after[0] if after else stop
    if start == contiguous:
        return stop
    before = tx.db.execute(_RUN_BEFORE, (row.no, start)).fetchone()
    if before and before[1] == start:
        tx.db.execute(_LENGTHEN_RUN, (stop, row.no, before[0]))
    else:
        tx.db.execute("INSERT INTO runs VALUES (?, ?, ?)", (row.no, start, stop))
    return contiguous
