"""Housekeeping among files: the parts of a round, each a transaction of its own."""

from __future__ import annotations

from chiron.batch.filing import FileKind
from chiron.batch.integrity import DAMAGED, REMOVED, result_checksum
from chiron.batch.postgres.filing import FILE_COLUMNS, FileRow, forget_file
from chiron.batch.postgres.rows import RESULT_COLUMNS, to_result
from chiron.batch.postgres.transaction import Transaction
from chiron.batch.records import ItemState, Swept

SLICE = 1_000
"""Results that a round looks at."""
SLICE_BYTES = 32 << 20
"""Bytes of a file that a round removes, or of results that it reads to do so."""

_PAST = f"""SELECT {FILE_COLUMNS} FROM files f WHERE f.kept AND f.expires <= $1
    ORDER BY f.expires LIMIT 10 FOR UPDATE SKIP LOCKED"""
_GIVEN_UP = f"""SELECT {FILE_COLUMNS} FROM files f WHERE NOT f.kept AND f.touched <= $1
    ORDER BY f.touched LIMIT 10 FOR UPDATE SKIP LOCKED"""
_REMOVE = """DELETE FROM chunks WHERE file = $1 AND chunk <= (SELECT max(chunk) FROM (
    SELECT chunk, sum(octet_length(data)) OVER (ORDER BY chunk) - octet_length(data) AS before
    FROM (SELECT chunk, data FROM chunks WHERE file = $1 ORDER BY chunk LIMIT 256) listed) sized
    WHERE before <= $2)"""
_RESULTS = f"""SELECT {RESULT_COLUMNS} FROM (
    SELECT *, sum(octet_length(result)) OVER (ORDER BY number) - octet_length(result) AS before FROM (
        SELECT * FROM results WHERE batch = $1 AND number > $2 ORDER BY number LIMIT {SLICE}) listed) sized
    WHERE before <= $3 ORDER BY number"""
_AFTER = "SELECT after FROM emptying WHERE batch = $1 AND kind = $2 FOR UPDATE"
_EMPTIED = """UPDATE results r SET result = '', damaged = e.damaged, checksum = e.checksum
    FROM unnest($2::int8[], $3::int2[], $4::int8[]) AS e(number, damaged, checksum)
    WHERE r.batch = $1 AND r.number = e.number"""

_Part = tuple[Swept, bool]


async def _forget(tx: Transaction) -> _Part:
    rows = await tx.db.fetch(_PAST, tx.now)
    rows += await tx.db.fetch(_GIVEN_UP, tx.now - tx.limits.upload_s)
    for row in rows:
        await forget_file(tx, FileRow(*row))
    return Swept(), bool(rows)


async def _remove(tx: Transaction) -> _Part:
    """Removes some chunks of a file that is forgotten."""
    no = await tx.db.fetchval("SELECT file FROM doomed_files LIMIT 1 FOR UPDATE SKIP LOCKED")
    if no is None:
        return Swept(), False
    status = await tx.db.execute(_REMOVE, no, SLICE_BYTES)
    if status.endswith(" 0"):
        await tx.db.execute("DELETE FROM doomed_files WHERE file = $1", no)
    return Swept(), True


async def _empty(tx: Transaction) -> _Part:
    """Removes some of the results that a forgotten file has shown."""
    found = await tx.db.fetchrow("SELECT batch, kind FROM emptying LIMIT 1")
    if found is None:
        return Swept(), False
    no, kind = found
    # The batch first, as everybody does who has to do with both.
    await tx.db.execute("SELECT 1 FROM batches WHERE no = $1 FOR UPDATE", no)
    after = await tx.db.fetchval(_AFTER, no, kind)
    if after is None:
        return Swept(), True
    last, size = None, 0
    emptied: list[tuple[int, int, int]] = []
    for row in await tx.db.fetch(_RESULTS, no, after, SLICE_BYTES):
        result = to_result(row)
        last = result.number
        if (result.state is ItemState.SUCCEEDED) == (kind == FileKind.OUTPUT) and row["result"]:
            number, item, custom_id, state, content, recorded, late, attempts, *_ = row
            fate = DAMAGED if result.damaged else REMOVED
            head, tail = (number, item, custom_id, state), (recorded, late, attempts, fate)
            emptied.append((number, fate, result_checksum(head, b"", tail)))
            size += len(content)
    if last is None:
        await tx.db.execute("DELETE FROM emptying WHERE batch = $1 AND kind = $2", no, kind)
    else:
        await tx.db.execute("UPDATE emptying SET after = $3 WHERE batch = $1 AND kind = $2", no, kind, last)
    if emptied:
        await tx.db.execute(_EMPTIED, no, *map(list, zip(*emptied, strict=True)))
        tx.delta(no).stored_bytes -= size
    return Swept(), True


FILE_PARTS = (_forget, _remove, _empty)
