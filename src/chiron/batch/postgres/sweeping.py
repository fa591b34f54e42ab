"""One bounded round of housekeeping, in small transactions that several routers may make at the same time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from chiron.batch.postgres.file_sweeping import FILE_PARTS
from chiron.batch.postgres.receiving import fail_invalid, forget
from chiron.batch.postgres.rows import BATCH_COLUMNS, ITEM_COLUMNS, BatchRow, ItemRow
from chiron.batch.postgres.schema import DELAYED, ENDED, QUEUED
from chiron.batch.postgres.transaction import Ending, Transaction
from chiron.batch.postgres.working import release
from chiron.batch.records import ItemState, Swept

SLICE = 1_000
"""Items that a round changes of each kind."""

SCANNED = 10_000
"""Items that a round looks at, of a cancelled batch."""

IDLE_S = 30.0
"""The longest time that a round gives for the next."""

_LAPSED = """SELECT session FROM sessions WHERE lapses <= $1 ORDER BY lapses LIMIT 1
    FOR UPDATE SKIP LOCKED"""
_OF_BATCH = f"""SELECT {ITEM_COLUMNS} FROM items i WHERE i.batch = $1 AND i.place > $2
    ORDER BY i.place LIMIT {SCANNED}"""
_LOCKED = f"""WITH w AS MATERIALIZED (SELECT $1::int8 AS batch, unnest($2::int8[]) AS place)
    SELECT {ITEM_COLUMNS} FROM w JOIN items i ON i.batch = w.batch AND i.place = w.place
    WHERE i.state <> {ENDED} ORDER BY i.place FOR UPDATE OF i"""
_LATE = """SELECT no FROM batches WHERE state = 2 AND expire_late AND deadline <= $1 AND queued > 0
    ORDER BY deadline LIMIT 1"""
# Found by what waits of each unit, so that ended items of the batch, and other batches, are not looked at.
_WAITING = f"""WITH own AS MATERIALIZED (SELECT unit FROM units WHERE batch = $1 AND queued > 0),
    waiting AS MATERIALIZED (
    (SELECT i.batch, i.place FROM own JOIN items i ON i.unit = own.unit
    WHERE i.state = {QUEUED} LIMIT {SLICE})
    UNION ALL
    (SELECT i.batch, i.place FROM own JOIN items i ON i.unit = own.unit
    WHERE i.state = {DELAYED} LIMIT {SLICE}))
    SELECT {ITEM_COLUMNS} FROM waiting w JOIN items i ON i.batch = w.batch AND i.place = w.place
    WHERE i.state IN ({QUEUED}, {DELAYED}) ORDER BY i.batch, i.place LIMIT {SLICE} FOR UPDATE OF i"""
_PAST = f"""SELECT {BATCH_COLUMNS} FROM batches WHERE state = 4 AND expires <= $1
    ORDER BY expires LIMIT 10 FOR UPDATE SKIP LOCKED"""
_NEVER_SEALED = f"""SELECT {BATCH_COLUMNS} FROM batches WHERE state = 1 AND touched <= $1 AND source = ''
    ORDER BY touched LIMIT 10 FOR UPDATE SKIP LOCKED"""
_NEXT = """SELECT least(
    (SELECT min(lapses) FROM sessions),
    (SELECT min(deadline) FROM batches WHERE state = 2 AND expire_late AND queued > 0),
    (SELECT min(expires) FROM batches WHERE state = 4),
    (SELECT min(touched) + $1 FROM batches WHERE state = 1 AND source = ''),
    (SELECT min(expires) FROM files WHERE kept),
    (SELECT min(touched) + $2 FROM files WHERE NOT kept))"""

_Part = tuple[Swept, bool]
Write = Callable[[Callable[[Transaction], Awaitable[_Part]]], Awaitable[_Part]]
"""Makes one transaction."""


async def sweep(write: Write) -> Swept:
    """As the contract has it."""
    sums, again = Swept(), False
    for part in (_lapsed, _cancel, _invalid, _expire, _forget, _remove, *FILE_PARTS):
        done, more = await write(part)
        again |= more
        sums = Swept(
            sums.requeued + done.requeued,
            sums.failed + done.failed,
            sums.expired + done.expired,
            sums.cancelled + done.cancelled,
            sums.forgotten + done.forgotten,
        )
    wait, _ = await write(_next)
    again_s = 0.0 if again else wait.again_s
    return Swept(sums.requeued, sums.failed, sums.expired, sums.cancelled, sums.forgotten, again_s)


async def _next(tx: Transaction) -> _Part:
    at = await tx.db.fetchval(_NEXT, tx.limits.receive_s, tx.limits.upload_s)
    return Swept(again_s=IDLE_S if at is None else min(IDLE_S, max(0.0, at - tx.now))), False


async def _lapsed(tx: Transaction) -> _Part:
    """Puts back what the session that lapsed first holds."""
    session = await tx.db.fetchval(_LAPSED, tx.now)
    if session is None:
        return Swept(), False
    requeued, failed = await release(tx, session, SLICE, counts=True)
    if requeued + failed < SLICE:
        await tx.db.execute("DELETE FROM sessions WHERE session = $1", session)
    return Swept(requeued=requeued, failed=failed), True


async def _cancel(tx: Transaction) -> _Part:
    found = await tx.db.fetchrow("SELECT no, swept FROM batches WHERE state = 3 ORDER BY no LIMIT 1")
    if found is None:
        return Swept(), False
    no, swept = found
    open_places: list[int] = []
    for row in await tx.db.fetch(_OF_BATCH, no, swept):
        if len(open_places) == SLICE:
            break
        item = ItemRow(*row)
        swept = item.place
        if item.state != ENDED:
            open_places.append(item.place)
    # Claims made before the batch was cancelled, and committed since, are seen under the lock.
    items = [ItemRow(*row) for row in await tx.db.fetch(_LOCKED, no, open_places)]
    await tx.db.execute("UPDATE batches SET swept = greatest(swept, $2) WHERE no = $1", no, swept)
    tx.delta(no)
    tx.end(Ending(item, ItemState.CANCELLED) for item in items)
    return Swept(cancelled=len(items)), True


async def _invalid(tx: Transaction) -> _Part:
    no = await tx.db.fetchval("SELECT no FROM batches WHERE state = 2 AND invalid > 0 ORDER BY no LIMIT 1")
    if no is None:
        return Swept(), False
    return Swept(), await fail_invalid(tx, no, SLICE) > 0


async def _expire(tx: Transaction) -> _Part:
    """Ends what waits past the deadline; what runs stays with its holder."""
    no = await tx.db.fetchval(_LATE, tx.now)
    if no is None:
        return Swept(), False
    items = [ItemRow(*row) for row in await tx.db.fetch(_WAITING, no)]
    tx.end(Ending(item, ItemState.EXPIRED) for item in items)
    return Swept(expired=len(items)), bool(items)


async def _forget(tx: Transaction) -> _Part:
    rows = await tx.db.fetch(_PAST, tx.now)
    rows += await tx.db.fetch(_NEVER_SEALED, tx.now - tx.limits.receive_s)
    for row in rows:
        await forget(tx, BatchRow(*row))
    return Swept(forgotten=len(rows)), bool(rows)


async def _remove(tx: Transaction) -> _Part:
    """Removes some rows of a batch that is forgotten."""
    no = await tx.db.fetchval("SELECT batch FROM doomed LIMIT 1 FOR UPDATE SKIP LOCKED")
    if no is None:
        return Swept(), False
    removed = False
    for table, column in (
        ("items", "place"),
        ("bodies", "place"),
        ("checkpoints", "place"),
        ("results", "number"),
    ):
        status = await tx.db.execute(
            f"DELETE FROM {table} WHERE batch = $1 AND {column} <= (SELECT max({column}) FROM"
            f" (SELECT {column} FROM {table} WHERE batch = $1 ORDER BY {column} LIMIT {SLICE}) first)",
            no,
        )
        removed |= not status.endswith(" 0")
    if not removed:
        for table in ("units", "runs", "doomed"):
            await tx.db.execute(f"DELETE FROM {table} WHERE batch = $1", no)
    return Swept(), True
