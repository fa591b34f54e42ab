"""One bounded round of housekeeping."""

from __future__ import annotations

import sqlite3

from chiron.batch.records import ItemState, Swept
from chiron.batch.sqlite.batches import fail_invalid, forget
from chiron.batch.sqlite.failures import is_damage
from chiron.batch.sqlite.file_sweeping import sweep_files
from chiron.batch.sqlite.rows import COLUMNS, INDEX_MASK, ITEM_COLUMNS, BatchRow, ItemRow, row_id
from chiron.batch.sqlite.schema import DELAYED, ENDED, QUEUED
from chiron.batch.sqlite.transaction import SLICE, SLICE_BYTES, Ending, Transaction
from chiron.batch.sqlite.working import release

SCANNED = 10_000
"""Items that a round looks at, of a cancelled batch."""

IDLE_S = 30.0
"""The longest time that a round gives for the next."""

_LAPSED = "SELECT session FROM sessions WHERE lapses <= ? ORDER BY lapses LIMIT 1"
_CANCELLING = f"SELECT {COLUMNS} FROM batches b WHERE b.state = 3 ORDER BY b.no LIMIT 1"
_OF_BATCH = f"SELECT {ITEM_COLUMNS} FROM items WHERE id > ? AND id <= ? ORDER BY id LIMIT {SCANNED}"
_INVALID = f"SELECT {COLUMNS} FROM batches b WHERE b.state = 2 AND b.invalid > 0 ORDER BY b.no LIMIT 1"
_LATE = f"""SELECT {COLUMNS} FROM batches b WHERE b.state = 2 AND b.expire_late = 1 AND b.deadline <= ?
    AND b.queued > 0 ORDER BY b.deadline LIMIT 1"""
_WAITING = "SELECT unit FROM units WHERE batch = ? AND queued > 0"
_QUEUED = f"""SELECT {ITEM_COLUMNS} FROM items INDEXED BY queued_items
    WHERE unit = ? AND state = {QUEUED} ORDER BY id LIMIT ?"""
_DELAYED = f"""SELECT {ITEM_COLUMNS} FROM items INDEXED BY delayed_items
    WHERE unit = ? AND state = {DELAYED} ORDER BY ready LIMIT ?"""
_PAST = f"SELECT {COLUMNS} FROM batches b WHERE b.state = 4 AND b.expires <= ? ORDER BY b.expires LIMIT 10"
_NEVER_SEALED = (
    f"SELECT {COLUMNS} FROM batches b WHERE b.state = 1 AND b.touched <= ? AND b.source = ''"
    " ORDER BY b.touched LIMIT 10"
)
_SIZES = (
    ("items", "0"),
    ("bodies", "length(body) + length(failure)"),
    ("checkpoints", "length(checkpoint)"),
    ("results", "length(result)"),
)
_NEXT = """SELECT min(at) FROM (
    SELECT min(lapses) AS at FROM sessions
    UNION ALL SELECT min(deadline) FROM batches WHERE state = 2 AND expire_late = 1 AND deadline > ?
    UNION ALL SELECT min(expires) FROM batches WHERE state = 4
    UNION ALL SELECT min(touched) + ? FROM batches WHERE state = 1 AND source = ''
    UNION ALL SELECT min(expires) FROM files WHERE kept = 1
    UNION ALL SELECT min(touched) + ? FROM files WHERE kept = 0)"""


def sweep(tx: Transaction) -> Swept:
    """As the contract has it."""
    requeued, failed, again = _lapsed(tx)
    more, cancelled = _cancel(tx)
    again |= more
    tx.flush()
    again |= _invalid(tx)
    tx.flush()
    more, expired = _expire(tx)
    again |= more
    tx.flush()
    forgotten = _forget(tx)
    again |= forgotten > 0
    again |= _remove(tx)
    tx.flush()
    again |= sweep_files(tx)
    tx.flush()
    (at,) = tx.db.execute(_NEXT, (tx.now, tx.limits.receive_s, tx.limits.upload_s)).fetchone()
    again_s = 0.0 if again else IDLE_S if at is None else min(IDLE_S, max(0.0, at - tx.now))
    return Swept(requeued, failed, expired, cancelled, forgotten, again_s)


def _lapsed(tx: Transaction) -> tuple[int, int, bool]:
    """Puts back what the session that lapsed first holds."""
    found = tx.db.execute(_LAPSED, (tx.now,)).fetchone()
    if found is None:
        return 0, 0, False
    requeued, failed = release(tx, found[0], SLICE, counts=True)
    tx.flush()
    if requeued + failed < SLICE:
        tx.db.execute("DELETE FROM sessions WHERE session = ?", found)
    return requeued, failed, True


def _cancel(tx: Transaction) -> tuple[bool, int]:
    found = tx.db.execute(_CANCELLING).fetchone()
    if found is None:
        return False, 0
    row = BatchRow._make(found)
    first = row_id(row.no, 0)
    endings: list[Ending] = []
    swept, size = row.swept, 0
    for columns in tx.db.execute(_OF_BATCH, (first + row.swept, first | INDEX_MASK)):
        if len(endings) == SLICE or size > SLICE_BYTES:
            break
        item = ItemRow._make(columns)
        swept = item.place
        if item.state != ENDED:
            endings.append(Ending(item, ItemState.CANCELLED))
            size += item.size
    tx.db.execute("UPDATE batches SET swept = ? WHERE no = ?", (swept, row.no))
    tx.end(endings)
    return swept > row.swept, len(endings)


def _invalid(tx: Transaction) -> bool:
    found = tx.db.execute(_INVALID).fetchone()
    if found is None:
        return False
    return fail_invalid(tx, BatchRow._make(found), SLICE) > 0


def _expire(tx: Transaction) -> tuple[bool, int]:
    """Ends what waits past the deadline; what runs stays with its holder."""
    found = tx.db.execute(_LATE, (tx.now,)).fetchone()
    if found is None:
        return False, 0
    row = BatchRow._make(found)
    endings: list[Ending] = []
    size = 0
    for (unit,) in tx.db.execute(_WAITING, (row.no,)).fetchall():
        for query in (_QUEUED, _DELAYED):
            for columns in tx.db.execute(query, (unit, SLICE - len(endings))):
                if size > SLICE_BYTES:
                    break
                item = ItemRow._make(columns)
                endings.append(Ending(item, ItemState.EXPIRED))
                size += item.size
    tx.end(endings)
    return bool(endings), len(endings)


def _forget(tx: Transaction) -> int:
    past = tx.db.execute(_PAST, (tx.now,)).fetchall()
    never = tx.db.execute(_NEVER_SEALED, (tx.now - tx.limits.receive_s,)).fetchall()
    for row in map(BatchRow._make, past + never):
        forget(tx, row)
    return len(past) + len(never)


def _remove(tx: Transaction) -> bool:
    """Removes some rows of a batch that is forgotten."""
    found = tx.db.execute("SELECT batch FROM doomed LIMIT 1").fetchone()
    if found is None:
        return False
    (no,) = found
    removed = 0
    try:
        if ("doomed", no) not in tx.unreadable:
            removed = sum(_remove_from(tx, no, table, size) for table, size in _SIZES)
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        # The rest stays where it is: the number of a batch is never given again.
        tx.unreadable.add(("doomed", no))
    if not removed:
        tx.db.execute("DELETE FROM units WHERE batch = ?", found)
        tx.db.execute("DELETE FROM runs WHERE batch = ?", found)
        tx.db.execute("DELETE FROM doomed WHERE batch = ?", found)
    return True


def _remove_from(tx: Transaction, no: int, table: str, size: str) -> int:
    query = f"SELECT id, {size} FROM {table} WHERE id >= ? AND id <= ? ORDER BY id LIMIT {SLICE}"
    keys: list[tuple[int]] = []
    removed = 0
    for key, length in tx.db.execute(query, (row_id(no, 0), row_id(no, INDEX_MASK))):
        keys.append((key,))
        removed += length
        if removed > SLICE_BYTES:
            break
    tx.db.executemany(f"DELETE FROM {table} WHERE id = ?", keys)
    return len(keys)
