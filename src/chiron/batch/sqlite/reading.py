"""What is read: batches, results, usage, and what waits."""

from __future__ import annotations

import sqlite3

from chiron.batch.pages import page_token, read_page_token
from chiron.batch.records import Batch, BatchKey, ItemState, Result, TenantUsage, Unit
from chiron.batch.sqlite.batches import known
from chiron.batch.sqlite.failures import is_damage
from chiron.batch.sqlite.rows import (
    COLUMNS,
    INDEX_MASK,
    RESULT_COLUMNS,
    BatchRow,
    batch_by_key,
    row_id,
    to_batch,
    to_result,
)

_PAGE = f"SELECT {COLUMNS} FROM batches b WHERE b.tenant = ? AND b.no < ? ORDER BY b.no DESC LIMIT ?"
_OPEN_PAGE = f"""SELECT {COLUMNS} FROM batches b
    WHERE b.tenant = ? AND b.no < ? AND b.state < 4 ORDER BY b.no DESC LIMIT ?"""
_RESULTS = f"SELECT {RESULT_COLUMNS} FROM results WHERE id > ? AND id <= ? ORDER BY id"
_RESULT = f"SELECT {RESULT_COLUMNS} FROM results WHERE id = ?"
_ITEM_OF = "SELECT id, custom_id, attempts FROM items WHERE id >= ? AND id <= ? AND number = ?"
_USAGE = "SELECT * FROM tenants"
_UNITS = """SELECT b.tenant, b.batch_id, u.model, b.deadline, b.expire_late, b.priority, b.sealed,
    u.queued, u.prompt_tokens, u.max_tokens
    FROM units u INDEXED BY waiting_units CROSS JOIN batches b ON b.no = u.batch
    WHERE u.queued > 0 AND b.state = 2"""
_NEWEST = 1 << 31


def page(
    db: sqlite3.Connection, tenant: str, limit: int, token: str, open_only: bool
) -> tuple[list[Batch], str]:
    """As the contract has it."""
    below = read_page_token(tenant, token) if token else _NEWEST
    query = _OPEN_PAGE if open_only else _PAGE
    rows = [BatchRow._make(row) for row in db.execute(query, (tenant, below, limit + 1)).fetchall()]
    batches = [to_batch(db, row) for row in rows[:limit]]
    return batches, page_token(tenant, rows[limit - 1].no) if len(rows) > limit else ""


def results(db: sqlite3.Connection, key: BatchKey, after: int, limit: int, most_bytes: int) -> list[Result]:
    """As the contract has it."""
    row = known(batch_by_key(db, key), key)
    after = max(0, min(after, INDEX_MASK))
    try:
        return _results(db, row, after, limit, most_bytes)
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        # One by one, so that what lies on other pages is found.
        numbers = range(after + 1, min(row.results, after + limit) + 1)
        return [_one(db, row, number) for number in numbers]


def _results(db: sqlite3.Connection, row: BatchRow, after: int, limit: int, most_bytes: int) -> list[Result]:
    found: list[Result] = []
    size = 0
    for one in db.execute(_RESULTS, (row_id(row.no, after), row_id(row.no, INDEX_MASK))):
        if len(found) == limit or (found and size + len(one[4]) > most_bytes):
            break
        found.append(to_result(one))
        size += len(one[4])
    return found


def result(db: sqlite3.Connection, key: BatchKey, custom_id: str) -> Result | None:
    """As the contract has it."""
    row = known(batch_by_key(db, key), key)
    found = db.execute(
        "SELECT number FROM items WHERE id >> 32 = ? AND custom_id = ?", (row.no, custom_id)
    ).fetchone()
    if found is None or found[0] is None:
        return None
    return _one(db, row, found[0])


def _one(db: sqlite3.Connection, row: BatchRow, number: int) -> Result:
    try:
        one = db.execute(_RESULT, (row_id(row.no, number),)).fetchone()
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        one = None
    return to_result(one) if one else _lost(db, row, number)


def _lost(db: sqlite3.Connection, row: BatchRow, number: int) -> Result:
    """What is still known of a result that cannot be read."""
    found = db.execute(_ITEM_OF, (row_id(row.no, 0), row_id(row.no, INDEX_MASK), number)).fetchone()
    item, custom_id, attempts = found or (0, "", 0)
    return Result(
        number=number,
        index=item & INDEX_MASK,
        custom_id=custom_id,
        state=ItemState.FAILED,
        result=b"",
        recorded=row.ended or row.created,
        late=False,
        attempts=attempts,
        damaged=True,
    )


def usage(db: sqlite3.Connection, tenant: str | None) -> list[TenantUsage]:
    """As the contract has it."""
    if tenant is None:
        return [TenantUsage(*row) for row in db.execute(_USAGE).fetchall()]
    return [TenantUsage(*row) for row in db.execute(f"{_USAGE} WHERE tenant = ?", (tenant,)).fetchall()]


def units(db: sqlite3.Connection) -> list[Unit]:
    """As the contract has it."""
    return [
        Unit((tenant, batch_id), model, deadline, bool(expire_late), *rest)
        for tenant, batch_id, model, deadline, expire_late, *rest in db.execute(_UNITS).fetchall()
    ]
