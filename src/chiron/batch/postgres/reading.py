"""What is read: batches, results, usage, and what waits."""

from __future__ import annotations

import asyncpg

from chiron.batch.pages import page_token, read_page_token
from chiron.batch.postgres.receiving import known
from chiron.batch.postgres.rows import BATCH_COLUMNS, RESULT_COLUMNS, BatchRow, batch_by_key, to_result
from chiron.batch.records import Batch, BatchKey, Result, TenantUsage, Unit

_PAGE = f"SELECT {BATCH_COLUMNS} FROM batches WHERE tenant = $1 AND no < $2 ORDER BY no DESC LIMIT $3"
_OPEN_PAGE = f"""SELECT {BATCH_COLUMNS} FROM batches
    WHERE tenant = $1 AND no < $2 AND state < 4 ORDER BY no DESC LIMIT $3"""
# Sizes are summed up before a result is read, so that no more is sent than asked for.
_RESULTS = f"""WITH listed AS (
    SELECT batch, number, octet_length(result) AS size FROM results
    WHERE batch = $1 AND number > $2 ORDER BY number LIMIT $3),
    bounded AS (SELECT *, sum(size) OVER (ORDER BY number) AS total, min(number) OVER () AS first FROM listed)
    SELECT {RESULT_COLUMNS} FROM results JOIN bounded USING (batch, number)
    WHERE total <= $4 OR number = first ORDER BY number"""
_RESULT = f"""SELECT {RESULT_COLUMNS} FROM results WHERE batch = $1 AND number =
    (SELECT i.number FROM items i WHERE i.batch = $1 AND i.custom_id = $2)"""
_USAGE = """SELECT tenant, open_batches, queued, running, stored_bytes, succeeded, failed, completion_tokens
    FROM tenants WHERE $1::text IS NULL OR tenant = $1 ORDER BY tenant"""
_UNITS = """SELECT b.tenant, b.batch_id, u.model, b.deadline, b.expire_late, b.priority, b.sealed,
    u.queued, u.prompt_tokens, u.max_tokens
    FROM units u JOIN batches b ON b.no = u.batch WHERE u.queued > 0 AND b.state = 2"""
_NEWEST = 1 << 62
_MOST_ROWS = 10_000


async def batch(db: asyncpg.Connection, key: BatchKey) -> Batch:
    """As the contract has it."""
    return known(await batch_by_key(db, key), key).to_batch()


async def page(
    db: asyncpg.Connection, tenant: str, limit: int, token: str, open_only: bool
) -> tuple[list[Batch], str]:
    """As the contract has it."""
    below = read_page_token(tenant, token) if token else _NEWEST
    query = _OPEN_PAGE if open_only else _PAGE
    rows = [BatchRow(*row) for row in await db.fetch(query, tenant, below, limit + 1)]
    batches = [row.to_batch() for row in rows[:limit]]
    return batches, page_token(tenant, rows[limit - 1].no) if len(rows) > limit else ""


async def results(
    db: asyncpg.Connection, key: BatchKey, after: int, limit: int, most_bytes: int
) -> list[Result]:
    """As the contract has it."""
    row = known(await batch_by_key(db, key), key)
    found: list[Result] = []
    while len(found) < limit:
        wanted = min(limit - len(found), _MOST_ROWS)
        rows = await db.fetch(_RESULTS, row.no, max(0, min(after, _NEWEST)), wanted, most_bytes)
        if found and rows and len(rows[0]["result"]) > most_bytes:
            break
        found += map(to_result, rows)
        if len(rows) < wanted:
            break
        after = found[-1].number
        most_bytes -= sum(len(one["result"]) for one in rows)
    return found


async def result(db: asyncpg.Connection, key: BatchKey, custom_id: str) -> Result | None:
    """As the contract has it."""
    row = known(await batch_by_key(db, key), key)
    one = await db.fetchrow(_RESULT, row.no, custom_id)
    return to_result(one) if one else None


async def usage(db: asyncpg.Connection, tenant: str | None) -> list[TenantUsage]:
    """As the contract has it."""
    return [TenantUsage(*row) for row in await db.fetch(_USAGE, tenant)]


async def units(db: asyncpg.Connection) -> list[Unit]:
    """As the contract has it."""
    return [Unit((tenant, batch_id), *rest) for tenant, batch_id, *rest in await db.fetch(_UNITS)]
