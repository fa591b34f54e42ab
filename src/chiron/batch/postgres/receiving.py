"""Handing in: making a batch, keeping its items, sealing or discarding it; cancelling and forgetting it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from chiron.batch.contract import (
    IncompleteError,
    ItemError,
    QueueFullError,
    TenantFullError,
)
from chiron.batch.integrity import item_digest
from chiron.batch.postgres.rows import BATCH_COLUMNS, ITEM_COLUMNS, BatchRow, ItemRow, batch_by_key
from chiron.batch.postgres.schema import INVALID, QUEUED
from chiron.batch.postgres.transaction import Ending, Transaction
from chiron.batch.receipt import exceeded, runs, taken, unknown, wrong_state
from chiron.batch.records import (
    Batch,
    BatchKey,
    BatchState,
    ItemState,
    NewBatch,
    NewItem,
    TenantLimits,
)

FAILURES_AT_SEAL = 500
"""Invalid items that get their result as the batch is sealed; the others get it from `sweep`."""

MOST_INDEX = (1 << 32) - 1

_INSERT_BATCH = f"""INSERT INTO batches (tenant, batch_id, state, created, deadline, expire_late,
    fail_invalid, priority, items, touched, metadata, source)
    VALUES ($1, $2, 1, $3, $4, $5, $6, $7, $8, $3, $9, $10)
    ON CONFLICT (tenant, batch_id) DO NOTHING RETURNING {BATCH_COLUMNS}"""
# Materialized, so that each key is looked up: a batch of which statistics know nothing counts as one row,
# and would be read whole.
_KEPT = """WITH places AS MATERIALIZED (SELECT $1::int8 AS batch, unnest($2::int8[]) AS place),
    ids AS MATERIALIZED (SELECT $1::int8 AS batch, unnest($3::text[]) AS custom_id)
    SELECT i.place, i.custom_id, i.digest FROM places p
    JOIN items i ON i.batch = p.batch AND i.place = p.place
    UNION SELECT i.place, i.custom_id, i.digest FROM ids n
    JOIN items i ON i.batch = n.batch AND i.custom_id = n.custom_id"""
_INSERT_UNITS = """INSERT INTO units (batch, model) SELECT $1, unnest($2::text[])
    ON CONFLICT (batch, model) DO NOTHING"""
_UNITS = "SELECT model, unit FROM units WHERE batch = $1 AND model = ANY($2::text[])"
_ITEM_FIELDS = (
    "batch",
    "place",
    "unit",
    "state",
    "custom_id",
    "prompt_tokens",
    "max_tokens",
    "digest",
    "size",
)
_BODY_FIELDS = ("batch", "place", "body", "failure")
_RECEIVED = "UPDATE batches SET received = received + $2, contiguous = $3, touched = $4 WHERE no = $1"
_FAILURES = f"""SELECT {ITEM_COLUMNS}, b.failure FROM items i
    LEFT JOIN bodies b ON b.batch = i.batch AND b.place = i.place
    WHERE i.batch = $1 AND i.state = {INVALID} ORDER BY i.place LIMIT $2 FOR UPDATE OF i SKIP LOCKED"""
DOOM = "INSERT INTO doomed VALUES ($1) ON CONFLICT DO NOTHING"
"""Has `sweep` remove what is kept of a batch's items."""
_FORGET = (
    "DELETE FROM files WHERE batch = $1",
    "DELETE FROM emptying WHERE batch = $1",
    "DELETE FROM batches WHERE no = $1",
    DOOM,
)
_USED = "SELECT open_batches, queued, stored_bytes FROM tenants WHERE tenant = $1 FOR UPDATE"
_USED_BY_ALL = """SELECT coalesce(sum(open_batches), 0)::int8, coalesce(sum(queued), 0)::int8,
    coalesce(sum(stored_bytes), 0)::int8 FROM tenants"""


def known(row: BatchRow | None, key: BatchKey) -> BatchRow:
    """The row. Raises UnknownBatchError for None."""
    if row is None:
        raise unknown(key)
    return row


async def create(tx: Transaction, batch: NewBatch, limits: TenantLimits) -> Batch:
    """As the contract has it."""
    key = (batch.tenant, batch.batch_id)
    row = await batch_by_key(tx.db, key)
    if row is None:
        made = await tx.db.fetchrow(
            _INSERT_BATCH,
            batch.tenant,
            batch.batch_id,
            tx.now,
            tx.now + batch.deadline_s,
            batch.expire_late,
            batch.fail_invalid,
            batch.priority,
            batch.items,
            json.dumps(dict(batch.metadata)),
            batch.source,
        )
        if made is not None:
            await check_limits(tx, batch.tenant, limits, batches=1)
            row = BatchRow(*made)
            tx.delta(row.no).opened += 1
            tx.told = True
            return row.to_batch()
        row = known(await batch_by_key(tx.db, key), key)
    if not _same(row, batch):
        raise taken(key)
    return row.to_batch()


def _same(row: BatchRow, batch: NewBatch) -> bool:
    return (
        row.expire_late == batch.expire_late
        and row.fail_invalid == batch.fail_invalid
        and row.priority == batch.priority
        and row.items == batch.items
        and row.source == batch.source
        and json.loads(row.metadata) == dict(batch.metadata)
    )


async def check_limits(
    tx: Transaction, tenant: str, limits: TenantLimits, *, batches: int = 0, items: int = 0, size: int = 0
) -> None:
    """Raises QueueFullError or TenantFullError where so much more does not fit.

    The tenant's limits hold exactly, since its row is locked; those of the queue but for what other
    routers write at this moment.
    """
    more = (batches, items, size)
    if limits != TenantLimits():
        own = await tx.db.fetchrow(_USED, tenant)
        if text := exceeded(limits, tuple(own or (0, 0, 0)), more):
            raise TenantFullError(f"tenant {tenant!r} has {text}")
    if text := exceeded(tx.limits, tuple(await tx.db.fetchrow(_USED_BY_ALL)), more):
        raise QueueFullError(f"the queue has {text}")


async def append(tx: Transaction, key: BatchKey, items: Sequence[NewItem], limits: TenantLimits) -> int:
    """As the contract has it."""
    row = known(await batch_by_key(tx.db, key, lock=True), key)
    for item in items:
        if not 0 <= item.index <= MOST_INDEX:
            text = f"item {item.index}: an index is between 0 and {MOST_INDEX}"
            raise ItemError(item.index, "index", text)
    new = await _not_kept(tx, row, items)
    if not new:
        return 0
    if row.state != BatchState.RECEIVING:
        raise wrong_state(row.batch_id, row.state, "it takes no more items")
    await _insert(tx, row, new)
    await _count(tx, row, [item for item, _ in new], limits)
    return len(new)


async def _not_kept(tx: Transaction, row: BatchRow, items: Sequence[NewItem]) -> list[tuple[NewItem, bytes]]:
    """Those of the items that are to be written, with their digests. Raises ItemError."""
    kept: dict[int, bytes] = {}
    names: dict[str, int] = {}
    wanted = [item.index for item in items], [item.custom_id for item in items]
    for place, custom_id, own in await tx.db.fetch(_KEPT, row.no, *wanted):
        kept[place] = own
        names[custom_id] = place
    new = []
    for item in items:
        own = item_digest(item)
        if item.index in kept:
            if kept[item.index] != own:
                raise ItemError(item.index, "index", f"item {item.index} is kept already, and is another")
            continue
        if (other := names.get(item.custom_id)) is not None:
            text = f"item {item.index} has the custom_id {item.custom_id!r} of item {other}"
            raise ItemError(item.index, "custom_id", text)
        kept[item.index] = own
        names[item.custom_id] = item.index
        new.append((item, own))
    return new


async def _insert(tx: Transaction, row: BatchRow, items: Sequence[tuple[NewItem, bytes]]) -> None:
    models = sorted({item.model for item, _ in items if not item.failure})
    await tx.db.execute(_INSERT_UNITS, row.no, models)
    units = dict(await tx.db.fetch(_UNITS, row.no, models))
    rows: list[tuple[object, ...]] = []
    bodies = []
    for item, own in items:
        unit, state = (None, INVALID) if item.failure else (units[item.model], QUEUED)
        size = len(item.body) + len(item.failure)
        figures = (item.prompt_tokens, item.max_tokens, own, size)
        rows.append((row.no, item.index, unit, state, item.custom_id, *figures))
        bodies.append((row.no, item.index, item.body, item.failure))
        if unit is not None:
            tx.waits(unit, 1, item.prompt_tokens, item.max_tokens)
    await tx.db.copy_records_to_table("items", records=rows, columns=_ITEM_FIELDS)
    await tx.db.copy_records_to_table("bodies", records=bodies, columns=_BODY_FIELDS)


async def _count(tx: Transaction, row: BatchRow, items: Sequence[NewItem], limits: TenantLimits) -> None:
    """Adds new items to the counters, once they are written. Raises QueueFullError."""
    size = sum(len(item.body) + len(item.failure) for item in items)
    most = tx.limits.items_per_batch
    if most and row.received + len(items) > most:
        raise QueueFullError(f"batch {row.batch_id!r} exceeds the limit of {most} items in a batch")
    for item in items:
        if tx.limits.body_bytes and len(item.body) > tx.limits.body_bytes:
            most = tx.limits.body_bytes
            raise QueueFullError(f"item {item.index}: {len(item.body)} bytes exceed the limit of {most}")
    delta = tx.delta(row.no)
    delta.invalid += sum(1 for item in items if item.failure)
    delta.queued += len(items)
    delta.stored_bytes += size
    contiguous = row.contiguous
    for start, stop in runs(sorted(item.index for item in items)):
        contiguous = await _extend(tx, row, contiguous, start, stop)
    await tx.db.execute(_RECEIVED, row.no, len(items), contiguous, tx.now)
    await check_limits(tx, row.tenant, limits, items=len(items), size=size)


async def _extend(tx: Transaction, row: BatchRow, contiguous: int, start: int, stop: int) -> int:
    """Adds a run of new items; returns how far they now are without a gap."""
    after = await tx.db.fetchval(
        "DELETE FROM runs WHERE batch = $1 AND start = $2 RETURNING stop", row.no, stop
    )
    stop = stop if after is None else after
    if start == contiguous:
        return stop
    before = await tx.db.fetchrow(
        "SELECT start, stop FROM runs WHERE batch = $1 AND start < $2 ORDER BY start DESC LIMIT 1",
        row.no,
        start,
    )
    if before and before["stop"] == start:
        start = before["start"]
    await tx.db.execute(
        "INSERT INTO runs VALUES ($1, $2, $3) ON CONFLICT (batch, start) DO UPDATE SET stop = excluded.stop",
        row.no,
        start,
        stop,
    )
    return contiguous


async def seal(tx: Transaction, key: BatchKey, items: int) -> None:
    """As the contract has it; the batch is to be read afterwards."""
    row = known(await batch_by_key(tx.db, key), key)
    if row.sealed is None and row.state != BatchState.RECEIVING:
        raise wrong_state(row.batch_id, row.state, "it was cancelled before")
    # Items first: nobody locks them after the batch.
    invalid = await _failures(tx, row.no, FAILURES_AT_SEAL) if row.sealed is None else []
    row = known(await batch_by_key(tx.db, key, lock=True), key)
    if row.items and items != row.items:
        raise IncompleteError(f"batch {row.batch_id!r} announces {row.items} items, {items} were handed in")
    if row.contiguous < items:
        raise IncompleteError(f"batch {row.batch_id!r} lacks item {row.contiguous} of {items}")
    if row.received > items:
        raise IncompleteError(f"batch {row.batch_id!r} has {row.received} items, more than {items}")
    if row.sealed is None and row.state == BatchState.RECEIVING:
        await tx.db.execute(
            "UPDATE batches SET state = $2, sealed = $3 WHERE no = $1", row.no, int(BatchState.ACTIVE), tx.now
        )
        tx.delta(row.no)
        tx.told = True
        tx.end(invalid)


async def fail_invalid(tx: Transaction, batch: int, limit: int) -> int:
    """Gives up to `limit` invalid items of a sealed batch their result; returns how many."""
    endings = await _failures(tx, batch, limit)
    tx.end(endings)
    return len(endings)


async def _failures(tx: Transaction, batch: int, limit: int) -> list[Ending]:
    endings = []
    for *columns, failure in await tx.db.fetch(_FAILURES, batch, limit):
        lost = failure is None
        endings.append(Ending(ItemRow(*columns), ItemState.FAILED, failure or b"", damaged=lost))
    return endings


async def discard(tx: Transaction, key: BatchKey) -> None:
    """As the contract has it."""
    row = await batch_by_key(tx.db, key, lock=True)
    if row is None:
        return
    if row.state != BatchState.RECEIVING:
        raise wrong_state(row.batch_id, row.state, "it is not discarded")
    await forget(tx, row)


async def delete(tx: Transaction, key: BatchKey) -> None:
    """As the contract has it."""
    row = known(await batch_by_key(tx.db, key, lock=True), key)
    if row.state != BatchState.ENDED:
        raise wrong_state(row.batch_id, row.state, "it has not ended")
    await forget(tx, row)


async def forget(tx: Transaction, row: BatchRow) -> None:
    """Takes a batch that holds no running item, and is locked, out of the queue; `sweep` removes its rows."""
    tx.forgotten(row)
    for statement in _FORGET:
        await tx.db.execute(statement, row.no)


async def cancel(tx: Transaction, key: BatchKey) -> None:
    """As the contract has it; the batch is to be read afterwards."""
    row = known(await batch_by_key(tx.db, key, lock=True), key)
    if row.state in (BatchState.RECEIVING, BatchState.ACTIVE):
        await tx.db.execute(
            "UPDATE batches SET state = $2, cancelled = true, cancelled_at = $3 WHERE no = $1",
            row.no,
            int(BatchState.CANCELLING),
            tx.now,
        )
        tx.delta(row.no)
        tx.told = True
